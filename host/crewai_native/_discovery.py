"""Finds plug-ins by what their wheels say of themselves, importing none of them."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import importlib_metadata

from crewai_native._settings import normalise
from crewai_native._types import CONTRACT, Candidate, State
from crewai_native.slots import SLOT_NAMES

if TYPE_CHECKING:
    from collections.abc import Iterator

_GROUP: Final = re.compile(r"crewai_native\.v(\d+)")
_NATIVE_SUFFIXES: Final = (".so", ".pyd", ".dylib")
OURS: Final = frozenset(
    f"crewai-native-{name}" for name in ("memory", "tools", "tasks", "db", "serialization", "celery")
)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Offer:
    """An entry point of an installed distribution: its offer to serve a slot.

    Attributes:
        candidate: What is told to the user.
        name: The distribution's name, canonical.
        value: ``module`` or ``module:object`` of the plug-in.
        accelerates: The CrewAI range that it was tested with, as a specifier; None if unsaid.
        distribution: Its metadata.
    """

    candidate: Candidate
    name: str
    value: str
    accelerates: str | None
    distribution: importlib_metadata.Distribution

    @property
    def ours(self) -> bool:
        """Whether the distribution is one of this project's own."""
        return self.name in OURS


def offers() -> tuple[dict[str, list[Offer]], list[Candidate]]:
    """Find every offer in the environment.

    One copy of a distribution counts: the first on the path, the one that an import would find.

    Returns:
        The offers per slot, and what this host cannot place: unknown slots, other contracts.
    """
    found: dict[str, list[Offer]] = {slot: [] for slot in SLOT_NAMES}
    strangers: list[Candidate] = []
    for major, entry in _entry_points():
        distribution = entry.dist
        if distribution is None:
            continue
        candidate = Candidate(
            slot=entry.name,
            distribution=distribution.name,
            version=distribution.version,
            entry_point=entry.value,
            location=str(distribution.locate_file("")),
        )
        if major != CONTRACT:
            candidate.failed(
                "compatibility",
                State.INCOMPATIBLE,
                f"offers contract {major}; this host speaks contract {CONTRACT}",
            )
            strangers.append(candidate)
        elif entry.name not in found:
            candidate.failed(
                "discover",
                State.INCOMPATIBLE,
                f"offers a slot that this host does not know; slots: {', '.join(SLOT_NAMES)}",
            )
            strangers.append(candidate)
        else:
            candidate.passed("discover", f"entry point {entry.name} = {entry.value}")
            found[entry.name].append(
                Offer(
                    candidate,
                    normalise(distribution.name),
                    entry.value,
                    _accelerates(distribution),
                    distribution,
                )
            )
    return found, strangers


def _entry_points() -> Iterator[tuple[int, importlib_metadata.EntryPoint]]:
    # entry_points() is already unique by distribution: a stale copy later on the path is ignored.
    for entry in importlib_metadata.entry_points():
        match = _GROUP.fullmatch(entry.group)
        if match:
            yield int(match[1]), entry


def _accelerates(distribution: importlib_metadata.Distribution) -> str | None:
    from packaging.requirements import InvalidRequirement, Requirement

    for line in distribution.requires or ():
        if "accelerates" not in line:
            continue
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            return line  # refused, with this text, when it is compared
        if requirement.name.lower() == "crewai" and requirement.marker is not None:
            return str(requirement.specifier)
    return None


def content_hash(offer: Offer) -> str:
    """Return a hash that changes when the plug-in's files do.

    A wheel's RECORD holds a hash of every file. That of an editable install does not: there the
    sizes and times of the package's files stand in.
    """
    record = offer.distribution.read_text("RECORD") or ""
    digest = hashlib.sha256(record.encode())
    if '"editable"' in (offer.distribution.read_text("direct_url.json") or ""):
        for path in _package_files(offer):
            stat = path.stat()
            digest.update(f"{path}:{stat.st_size}:{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _package_files(offer: Offer) -> list[Path]:
    package = offer.value.partition(":")[0].partition(".")[0]
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec is not None else None
    return sorted(
        path
        for folder in folders or ()
        for path in Path(folder).rglob("*")
        if path.suffix in {".py", *_NATIVE_SUFFIXES}
    )
