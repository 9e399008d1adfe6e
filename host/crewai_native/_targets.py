"""Looks at CrewAI before touching it: is each target there, and is it the code we know?

An official extension point must exist with the parameters that the slot was written for. Code
that a slot stands in for must be, word for word, code that the tests have run against: CrewAI
changes internals in patch releases. What is known is data, ``fingerprints.json``, written by
``crewai-native fingerprints --refresh`` after the tests have passed on a release.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import json
import linecache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from crewai_native.slots._base import Target

FINGERPRINTS: Final = Path(__file__).with_name("fingerprints.json")


class Report(NamedTuple):
    """What was found at a target.

    Attributes:
        path: The target.
        problem: Why it cannot be used, or None.
        fingerprint: Of its source, for wrapped code that could be read.
        known: CrewAI versions that this source was tested in.
    """

    path: str
    problem: str | None
    fingerprint: str | None = None
    known: tuple[str, ...] = ()


def resolve(path: str) -> tuple[Any, str, Any]:
    """Find a target: the module or class that owns it, its name there, and itself.

    Raises:
        ImportError: Its module does not exist.
        AttributeError: The module or class lacks it.
    """
    module_name, _, attribute = path.partition(":")
    owner: Any = importlib.import_module(module_name)
    *classes, name = attribute.split(".")
    for part in classes:
        owner = getattr(owner, part)
    return owner, name, getattr(owner, name)


def probe(target: Target) -> Report:
    """Look at one target."""
    try:
        _, _, found = resolve(target.path)
    except Exception as error:  # noqa: BLE001 - CrewAI's modules import half the world
        return Report(target.path, f"{target.path} does not exist ({error})")
    if target.parameters is not None:
        try:
            parameters = tuple(inspect.signature(found).parameters)
        except (TypeError, ValueError) as error:
            return Report(target.path, f"{target.path} has no signature ({error})")
        if parameters != target.parameters:
            return Report(
                target.path,
                f"{target.path} takes ({', '.join(parameters)}), "
                f"not ({', '.join(target.parameters)})",
            )
    if not target.wrapped:
        return Report(target.path, None)
    source = _source(found)
    if source is None:
        return Report(target.path, f"the source of {target.path} is not available")
    fingerprint = hashlib.sha256(source.encode()).hexdigest()[:16]
    known = tuple(_known().get(target.path, {}).get(fingerprint, ()))
    problem = None if known else f"{target.path} is not code that was tested ({fingerprint})"
    return Report(target.path, problem, fingerprint, known)


def problems(targets: Iterable[Target]) -> list[str]:
    """Return what is wrong with targets; nothing where all can be used."""
    reports = [probe(target) for target in targets]
    return [report.problem for report in reports if report.problem is not None]


def refresh(targets: Iterable[Target], crewai: str) -> list[Report]:
    """Record the source of wrapped targets as tested with a CrewAI version.

    Returns:
        The reports on all wrapped targets after the change.
    """
    known = {path: dict(entries) for path, entries in _known().items()}
    wrapped = [target for target in targets if target.wrapped]
    for report in map(probe, wrapped):
        if report.fingerprint is not None:
            versions = known.setdefault(report.path, {}).setdefault(report.fingerprint, [])
            if crewai not in versions:
                versions.append(crewai)
    FINGERPRINTS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    _known.cache_clear()
    return [probe(target) for target in wrapped]


@functools.cache
def _known() -> dict[str, dict[str, list[str]]]:
    known: dict[str, dict[str, list[str]]] = json.loads(FINGERPRINTS.read_text())
    return known


def _source(function: Any) -> str | None:
    """Return a function's source without comments and blank lines, or None.

    The text itself, not bytecode or a syntax tree: both differ between Python versions. Cut out
    by indentation, which takes microseconds where :func:`inspect.getsource` tokenises for
    milliseconds, and start-up has dozens of targets.
    """
    # A wrapper that another library put over the function keeps the original in __wrapped__, and
    # the original is what must be known: ours will then call theirs.
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None:
        return None
    lines = linecache.getlines(code.co_filename)[code.co_firstlineno - 1 :]
    if not lines:
        return None
    base = _indent(lines[0])
    deeper = " " * (base + 1)
    kept: list[str] = []
    in_body = False
    for line in lines:
        text = line.strip()
        if not text or text[0] == "#":
            continue
        # Most lines by far are deeper, and neither begin nor end a body: look no further at them.
        if line.startswith(deeper):
            in_body = True
        else:
            header = text.startswith(("@", "def ", "async def ", ")", "]"))
            if in_body and _indent(line) <= base and text[0] not in ")]":
                break
            in_body = in_body or not (header and _indent(line) == base)
        kept.append(line.rstrip())
    return "\n".join(kept)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
