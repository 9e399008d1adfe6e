"""Looks at CrewAI before touching it: is each target there, and is it the code we know?

An official extension point must exist with the parameters that the slot was written for. Code
that a slot stands in for must be, word for word, code that the tests have run against: CrewAI
changes internals in patch releases. What is known is data, ``fingerprints.json``, written by
``crewai-native fingerprints --refresh`` after the tests have passed on a release.

To read and cut two dozen source files at every start would take longer than to bind most slots, so
the fingerprints of files that have not changed since are remembered, see :class:`Fingerprints`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import json
import linecache
import os
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from crewai_native import _bind, _cache

if TYPE_CHECKING:
    from collections.abc import Iterable

    from crewai_native.slots._base import Slot, Target

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


class Fingerprints:
    """The fingerprints of functions' sources.

    A function is known by the file and the line that its code says it is from, so that one which
    was put in another's place is not taken for it. A file is known by what the system says of it, and
    what it had before it changed is not looked at.

    Args:
        path: The file that remembers them from one start to the next; None remembers nothing.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._remembered = {} if path is None else _cache.read(path)
        # By file: what it is remembered by, if at all, and its functions by their first lines.
        self._files: dict[str, tuple[str | None, dict[str, str]]] = {}
        self._new = False
        # Of what cuts the sources out.
        self._own_stamp = _stamp(__file__)

    def of(self, function: Any) -> str | None:
        """Return the fingerprint of a function's source, or None where there is no source."""
        # A wrapper, CrewAI's own or another library's, keeps the original in __wrapped__, and that
        # is what must be known.
        *_, original = function, *_bind.layers(function)
        code = getattr(original, "__code__", None)
        if not isinstance(code, types.CodeType):
            return None
        _, functions = self._file(code.co_filename)
        line = str(code.co_firstlineno)
        if line not in functions:
            source = _source(code)
            if source is None:
                return None
            functions[line] = hashlib.sha256(source.encode()).hexdigest()[:16]
            self._new = True
        return functions[line]

    def keep(self) -> None:
        """Remember what is new."""
        if self._new and self._path is not None:
            known = {key: functions for key, functions in self._files.values() if key is not None}
            _cache.write(self._path, self._remembered | known)
            self._new = False

    def _file(self, name: str) -> tuple[str | None, dict[str, str]]:
        if name not in self._files:
            stamp = _stamp(name)
            key = None if stamp is None else f"{name} {stamp} {self._own_stamp}"
            functions = None if key is None else self._remembered.get(key)
            if not isinstance(functions, dict):
                functions = {}
                if key is not None:
                    # Somebody may have asked for its lines before it changed.
                    linecache.updatecache(name)
            self._files[name] = key, functions
        return self._files[name]


def _stamp(file: str) -> str | None:
    """Return what is different once a file has changed, or None where it is none."""
    try:
        stat = os.stat(file)  # noqa: PTH116 - a start asks for dozens
    except OSError:
        return None
    # The last cannot be set, as archives and installers set the times of what they unpack.
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ino} {stat.st_ctime_ns}"


def resolve(path: str) -> tuple[Any, str, Any]:
    """Find a target: the module or class that owns it, its name there, and itself.

    Raises:
        ImportError: Its module does not exist.
        AttributeError: The module or class lacks it.
    """
    module_name, _, attribute = path.partition(":")
    # As import_module does, at the speed of C for what is loaded.
    __import__(module_name)
    owner: Any = sys.modules[module_name]
    *classes, name = attribute.split(".")
    for part in classes:
        owner = getattr(owner, part)
    return owner, name, getattr(owner, name)


def probe(target: Target, fingerprints: Fingerprints | None = None) -> Report:
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
    fingerprint = (fingerprints or Fingerprints()).of(found)
    if fingerprint is None:
        return Report(target.path, f"the source of {target.path} is not available")
    known = tuple(_known().get(target.path, {}).get(fingerprint, ()))
    problem = None if known else f"{target.path} is not code that was tested ({fingerprint})"
    wrapper = None if target.passes_on else _wrapper_of(found)
    if problem is None and wrapper is not None:
        # Ours would not call it, and what it does would silently not be done any more.
        problem = f"{target.path} is wrapped by other code ({wrapper})"
    return Report(target.path, problem, fingerprint, known)


def problems(targets: Iterable[Target], fingerprints: Fingerprints | None = None) -> list[str]:
    """Return what is wrong with targets; nothing where all can be used."""
    reports = [probe(target, fingerprints) for target in targets]
    return [report.problem for report in reports if report.problem is not None]


def functions(slots: Iterable[Slot]) -> list[Any]:
    """Return what stands at those targets that are functions of modules which are loaded."""
    found = []
    for slot in slots:
        for target in (*slot.targets, *(t for repair in slot.repairs for t in repair.targets)):
            module, _, name = target.path.partition(":")
            if module in sys.modules and "." not in name and target.wrapped:
                found.append(getattr(sys.modules[module], name, None))
    return found


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


def _wrapper_of(function: Any) -> str | None:
    """Return what other code has put over a function of CrewAI's, by name, or None."""
    *wrappers, _ = _bind.layers(_bind.beneath(function))
    others = (w for w in wrappers if not (_bind.is_ours(w) or _is_crewais(w)))
    return next(map(_bind.name_of, others), None)


def _is_crewais(wrapper: Any) -> bool:
    """Whether CrewAI itself made a wrapper, by a decorator of its own or of the standard library."""
    if type(wrapper) is not types.FunctionType:
        return type(wrapper).__module__.partition(".")[0] in {"crewai", "functools"}
    file = wrapper.__code__.co_filename
    return file == contextlib.__file__ or file.startswith(_crewais_directory())


@functools.cache
def _crewais_directory() -> str:
    import crewai

    return str(Path(crewai.__file__).parent) + os.sep


@functools.cache
def _known() -> dict[str, dict[str, list[str]]]:
    known: dict[str, dict[str, list[str]]] = json.loads(FINGERPRINTS.read_text())
    return known


def _source(code: types.CodeType) -> str | None:
    """Return the source of a function's code without comments and blank lines, or None.

    The text itself, not bytecode or a syntax tree: both differ between Python versions. Cut out
    by indentation, which takes microseconds where :func:`inspect.getsource` tokenises for
    milliseconds, and start-up has dozens of targets.
    """
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
