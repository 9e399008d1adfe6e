"""Finds plug-ins by what their wheels say of themselves, importing none of them."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from crewai_native._settings import normalise
from crewai_native._types import CONTRACT, Candidate, State
from crewai_native.slots import SLOT_NAMES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from importlib.metadata import Distribution, EntryPoint

# What is nearly the name of a group is told of, and not used.
_GROUP: Final = re.compile(r"crewai[-_.]native(?:[-_.]?v?\d+)?", re.IGNORECASE)
_SECTION: Final = re.compile(rb"\[\s*crewai[-_.]native", re.IGNORECASE)
# As every build back-end writes it.
_ACCELERATES: Final = re.compile(
    r"""crewai ?\(?([<>=!~.,*\w]+)\)? ?; ?extra ?== ?["']accelerates["']"""
)
_NATIVE_SUFFIXES: Final = (".so", ".pyd", ".dylib")
OURS: Final = frozenset(
    f"crewai-native-{name}"
    for name in ("memory", "tools", "tasks", "db", "serialization", "celery")
)


class Offer(NamedTuple):
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
    distribution: Distribution

    @property
    def ours(self) -> bool:
        """Whether the distribution is one of this project's own."""
        return self.name in OURS


def offers() -> tuple[dict[str, list[Offer]], list[Candidate]]:
    """Find every offer in the environment.

    One copy of a distribution counts: the first on the path, the one that an import would find.

    Returns:
        The offers per slot, and what this host cannot use whatever the settings say: unknown
        slots, other contracts, stale copies, damaged distributions.
    """
    found: dict[str, list[Offer]] = {slot: [] for slot in SLOT_NAMES}
    strangers: list[Candidate] = []
    first: dict[str, tuple[str, str]] = {}
    for distribution in _distributions():
        location = str(distribution.locate_file(""))
        try:
            entries = _entries(distribution)
            headers = _headers(distribution)
            name, version = headers["name"][0], headers["version"][0]
            accelerates = _accelerates(headers)
            if normalise(name) not in first:
                used, its_version = _used(name)
                first[normalise(name)] = str(used.locate_file("")), its_version
        except Exception as error:  # noqa: BLE001 - differs between releases of importlib.metadata
            # A damaged folder, such as an interrupted pip leaves behind.
            candidate = Candidate("?", location, "?", "?", location)
            candidate.failed("discover", State.BROKEN, f"its metadata cannot be read: {error!r}")
            strangers.append(candidate)
            continue
        place = first[normalise(name)]
        for entry in entries:
            candidate = Candidate(entry.name, name, version, entry.value, location)
            if place != (location, version):
                candidate.failed(
                    "discover",
                    State.SHADOWED,
                    f"by the copy of {name} {place[1]} that comes first on the path, in {place[0]}",
                )
            elif entry.group != f"crewai_native.v{CONTRACT}":
                major = entry.group.removeprefix("crewai_native.v")
                candidate.failed(
                    "compatibility",
                    State.INCOMPATIBLE,
                    f"offers contract {major}; this host speaks contract {CONTRACT}"
                    if major.isdecimal()
                    else f"is in the group of entry points {entry.group!r}; this host reads "
                    f"'crewai_native.v{CONTRACT}'",
                )
            elif entry.name not in found:
                candidate.failed(
                    "discover",
                    State.INCOMPATIBLE,
                    f"offers a slot that this host does not know; slots: {', '.join(SLOT_NAMES)}",
                )
            else:
                candidate.passed("discover", f"entry point {entry.name} = {entry.value}")
                found[entry.name].append(
                    Offer(candidate, normalise(name), entry.value, accelerates, distribution)
                )
                continue
            strangers.append(candidate)
    return found, strangers


def _distributions() -> Iterator[Distribution]:
    """Yield the installed distributions that have entry points for us, without parsing the rest."""
    seen = set()
    for distribution in importlib.metadata.distributions():
        text = _entry_points(distribution)
        if not text or not _SECTION.search(text):
            continue
        # A folder that is on the path twice, or under two names, holds one installation.
        place = (os.path.realpath(str(distribution.locate_file(""))), text)
        if place not in seen:
            seen.add(place)
            yield distribution


def _entry_points(distribution: Distribution) -> bytes | None:
    """Return the text of a distribution's entry points, or None where it has none.

    There are hundreds of distributions, and every start asks each of them. To make a path object,
    an exception and a decoder for each, as ``read_text`` does, takes longer than to read the files.
    """
    folder = getattr(distribution, "_path", None)
    if not isinstance(folder, Path):  # one in a zip file, or of somebody else's finder
        try:
            text = distribution.read_text("entry_points.txt")
        except UnicodeDecodeError:
            return None
        return None if text is None else text.encode()
    try:
        file = os.open(
            f"{folder}{os.sep}entry_points.txt", os.O_RDONLY | getattr(os, "O_BINARY", 0)
        )
        try:
            return os.read(file, os.fstat(file).st_size)
        finally:
            os.close(file)
    except OSError:
        return None


def crewai_version() -> str:
    """Return the installed CrewAI's version, importing nothing; empty where there is none."""
    try:
        return _used("crewai")[1]
    except importlib.metadata.PackageNotFoundError:
        return ""


def _used(name: str) -> tuple[Distribution, str]:
    """Return the distribution of a name that is used, the first on the path, and its version.

    A folder that an interrupted pip has left without metadata, or whose metadata name no version or
    are damaged, is not it, though ``importlib.metadata.distribution`` would return it.

    Raises:
        importlib.metadata.PackageNotFoundError: There is none.
    """
    for distribution in importlib.metadata.distributions(name=name):
        try:
            headers = _headers(distribution)
        except UnicodeDecodeError:
            continue
        if "version" in headers:
            return distribution, headers["version"][0]
    raise importlib.metadata.PackageNotFoundError(name)


def _headers(distribution: Distribution) -> dict[str, list[str]]:
    """Return the fields of a distribution's metadata, by their names in lower case.

    A wheel's metadata is a mail's headers with a README for a body. ``distribution.metadata`` loads
    a third of the email package to reformat that body, at every question; that is milliseconds of
    each start.
    """
    found: dict[str, list[str]] = {}
    # Where the standard library looks for it, too.
    texts = (distribution.read_text(file) for file in ("METADATA", "PKG-INFO", ""))
    headers = next(filter(None, texts), "").partition("\n\n")[0]
    # Further lines of a field are indented.
    for line in headers.replace("\n ", " ").replace("\n\t", " ").split("\n"):
        name, colon, value = line.partition(":")
        if colon:
            found.setdefault(name.lower(), []).append(value.strip())
    return found


def _entries(distribution: Distribution) -> list[EntryPoint]:
    """Return a distribution's entry points for any contract."""
    return [entry for entry in distribution.entry_points if _GROUP.fullmatch(entry.group)]


def _accelerates(headers: dict[str, list[str]]) -> str | None:
    for line in headers.get("requires-dist", ()):
        if "accelerates" not in line:
            continue
        if simple := _ACCELERATES.fullmatch(line):
            return simple[1]
        # Only needed here, and tens of regular expressions to compile.
        from packaging.requirements import InvalidRequirement, Requirement

        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            return line  # refused, with this text, when it is compared
        if normalise(requirement.name) != "crewai" or requirement.marker is None:
            continue
        if requirement.marker.evaluate({"extra": "accelerates"}):
            return str(requirement.specifier)
    return None


def content_hash(offer: Offer) -> str:
    """Return a hash that changes when the plug-in's files do.

    A wheel's RECORD holds a hash of every file. That of an editable install does not, and some
    installers write none: there the sizes and times of the package's files stand in.
    """
    try:
        record = offer.distribution.read_text("RECORD")
    except UnicodeDecodeError:
        record = None
    digest = hashlib.sha256((record or "").encode())
    if record is None or _editable(offer.distribution):
        for path in _package_files(offer):
            try:
                stat = path.stat()
            except OSError:
                continue  # an editor's lock, which is a link to nowhere; or removed just now
            digest.update(os.fsencode(f"{path}:{stat.st_size}:{stat.st_mtime_ns}\n"))
    return digest.hexdigest()


def _editable(distribution: Distribution) -> bool:
    try:
        origin = json.loads(distribution.read_text("direct_url.json") or "{}")
        return bool(origin.get("dir_info", {}).get("editable"))
    except (ValueError, AttributeError):
        return True  # nobody can tell, and to look at the files as well does no harm


def _package_files(offer: Offer) -> list[Path]:
    package = offer.value.partition(":")[0].partition(".")[0]
    spec = importlib.util.find_spec(package)
    if spec is None:
        return []
    if spec.submodule_search_locations is None:
        return [Path(spec.origin)] if spec.origin else []
    return sorted(
        path
        for folder in spec.submodule_search_locations
        for path in Path(folder).rglob("*")
        if path.suffix in {".py", *_NATIVE_SUFFIXES}
    )
