"""What a disk may hold after the power was cut.

What a program wrote lies in memory first. A sync of a file puts its bytes on the disk, and one of a
directory its names; of all that came after, anything may be there already and anything may not: the
system writes sectors back in whatever order it likes, and each as it is at that moment.

Two kinds of file systems are modelled. A ``strict`` one keeps what was synced, and no more. One with
a ``journal``, as ext4 is, has its names change in their order, and each sync of a file puts the names
as they are then on the disk as well; the bytes in files still come whenever they like, so that a file
that was renamed and not synced may be empty.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator

    from recorder import Operation

# What reached the disk of what was not synced: nothing; all; all but one operation; of each file all
# or nothing; of each page, or of each sector, the operations up to some.
MODES: Final = ("none", "all", "one lost", "by file", "pages", "sectors")
SECTOR: Final = 512
_PAGE: Final = 4096
# Shared memory of SQLite's, which no call writes to. Whoever opens the database first makes it anew.
_MAPPED: Final = "-shm"


@dataclasses.dataclass(eq=False)
class File:
    """A file: bytes that are on the disk, and what was done to them since."""

    base: bytearray = dataclasses.field(default_factory=bytearray)
    since: list[Operation] = dataclasses.field(default_factory=list)
    time: int | None = None

    def sync(self, count: int) -> None:
        for operation in self.since[:count]:
            self.time = _apply(self.base, operation, self.time)
        del self.since[:count]


@dataclasses.dataclass(eq=False)
class Directory:
    """A directory; its names are in :attr:`Disk.names`."""


@dataclasses.dataclass(eq=False)
class Edit:
    """A change of names, all of it or nothing: each in a directory, and what it stands for then."""

    names: list[tuple[Directory, str, File | Directory | None]]
    synced: bool = False


class Disk:
    """Follows a program's operations, and says what a power cut would leave."""

    def __init__(self, path: Path, inode: int, *, journal: bool) -> None:
        self._path = path
        self._journal = journal
        self._root = Directory()
        self._inodes: dict[int, File | Directory] = {inode: self._root}
        self._edits: list[Edit] = []
        # As the program sees them.
        self._names: dict[tuple[Directory, str], File | Directory] = {}
        # For each sync that goes on, how much there was when it began.
        self._syncs: dict[int, tuple[int, list[Operation]]] = {}

    def do(self, operation: Operation) -> None:
        """Go on by an operation."""
        match operation.kind:
            case "C" | "M":
                made = File() if operation.kind == "C" else Directory()
                self._inodes[operation.inode] = made
                self._edit([(operation.paths[0], made)])
            case "W" | "T" | "I":
                self._file(operation.inode).since.append(operation)
            case "U":
                self._edit([(operation.paths[0], None)])
            case "R":
                old, new = operation.paths
                self._edit([(old, None), (new, self._found(old))])
            case "L":
                old, new = operation.paths
                self._edit([(new, self._found(old))])
            case "S":
                there = self._inodes[operation.inode]
                since = list(there.since) if isinstance(there, File) else []
                self._syncs[operation.number] = len(self._edits), since
            case "E":
                self._synced(operation)

    def _file(self, inode: int) -> File:
        found = self._inodes[inode]
        assert isinstance(found, File)
        return found

    def _synced(self, end: Operation) -> None:
        edits, since = self._syncs.pop(end.number)
        there = self._inodes[end.inode]
        if isinstance(there, File):
            # Another one's sync may have had some of them on the disk meanwhile.
            known = {id(operation) for operation in since}
            there.sync(sum(id(operation) in known for operation in there.since))
        for edit in self._edits[:edits]:
            if self._journal or any(directory is there for directory, _, _ in edit.names):
                edit.synced = True

    def _edit(self, names: list[tuple[str, File | Directory | None]]) -> None:
        placed = [(*self._place(path), there) for path, there in names]
        for directory, name, there in placed:
            if there is None:
                del self._names[directory, name]
            else:
                self._names[directory, name] = there
        self._edits.append(Edit(placed))

    def _place(self, path: str) -> tuple[Directory, str]:
        *parents, name = Path(path).relative_to(self._path).parts
        directory = self._root
        for parent in parents:
            directory = self._names[directory, parent]
        return directory, name

    def _found(self, path: str) -> File | Directory:
        return self._names[self._place(path)]

    def write(self, target: Path, mode: str, rng: random.Random) -> None:
        """Make, at a new directory, what may be on the disk if the power is cut now."""
        lost = self._lost(rng) if mode == "one lost" else None
        tree: dict[Directory, dict[str, File | Directory]] = {}
        for edit in self._kept(mode, lost, rng):
            for directory, name, there in edit.names:
                if there is None:
                    tree.get(directory, {}).pop(name, None)
                else:
                    tree.setdefault(directory, {})[name] = there
        self._put(target, self._root, tree, lambda file: _contents(file, mode, lost, rng), rng)

    def _put(
        self,
        target: Path,
        directory: Directory,
        tree: dict[Directory, dict[str, File | Directory]],
        contents: Callable[[File], bytes],
        rng: random.Random,
    ) -> None:
        target.mkdir()
        for name, there in tree.get(directory, {}).items():
            if isinstance(there, Directory):
                self._put(target / name, there, tree, contents, rng)
                continue
            mapped = name.endswith(_MAPPED)
            (target / name).write_bytes(rng.randbytes(8 * _PAGE) if mapped else contents(there))
            time = there.time
            for operation in there.since:
                time = _apply(bytearray(), operation, time) if operation.kind == "I" else time
            if time is not None:
                os.utime(target / name, ns=(time, time))

    def _kept(self, mode: str, lost: object, rng: random.Random) -> Iterator[Edit]:
        pending = [edit for edit in self._edits if not edit.synced]
        if mode == "none":
            kept = set()
        elif mode == "all":
            kept = set(pending)
        elif mode == "one lost":
            kept = set(pending) - {lost}
            if self._journal and lost in pending:
                kept = set(pending[: pending.index(lost)])
        elif self._journal:
            kept = set(pending[: rng.randint(0, len(pending))])
        else:
            kept = {edit for edit in pending if rng.random() < 0.5}
        return (edit for edit in self._edits if edit.synced or edit in kept)

    def _lost(self, rng: random.Random) -> object:
        files = [there for there in self._inodes.values() if isinstance(there, File)]
        pending: list[object] = [edit for edit in self._edits if not edit.synced]
        pending += [operation for file in files for operation in file.since]
        return rng.choice(pending) if pending else None


def _apply(content: bytearray, operation: Operation, time: int | None) -> int | None:
    """Do an operation to what is in a file; return its time."""
    if operation.kind == "I":
        return operation.number
    _resize(
        content, max(len(content), _end(operation)) if operation.kind == "W" else _end(operation)
    )
    if operation.kind == "W":
        content[operation.number : _end(operation)] = operation.data
    return time


def _end(operation: Operation) -> int:
    return operation.number + len(operation.data)


def _resize(content: bytearray, length: int) -> None:
    del content[length:]
    content.extend(bytes(length - len(content)))


def _contents(file: File, mode: str, lost: object, rng: random.Random) -> bytes:
    since = [operation for operation in file.since if operation.kind != "I"]
    kept = len(since)
    if mode == "none" or (mode == "by file" and rng.random() < 0.5):
        kept = 0
    elif mode == "one lost" and any(operation is lost for operation in since):
        return _without(file, since, lost)
    elif mode in ("pages", "sectors"):
        size = _PAGE if mode == "pages" else SECTOR
        limits: dict[int, int] = {}

        def some(sector: int) -> int:
            return limits.setdefault(sector * SECTOR // size, rng.randint(0, kept))

        return _up_to(file, since, some, rng.choice((kept, rng.randint(0, kept))))
    return _up_to(file, since, lambda _: kept, kept)


def _without(file: File, since: list[Operation], lost: object) -> bytes:
    """What is in a file of which the sectors that an operation wrote are as before it."""
    at = next(index for index, operation in enumerate(since) if operation is lost)
    first, end = since[at].number, _end(since[at])
    if since[at].kind == "T":
        return _up_to(file, since, lambda _: at, at)

    def limit(sector: int) -> int:
        return at if first < (sector + 1) * SECTOR and sector * SECTOR < end else len(since)

    return _up_to(file, since, limit, len(since))


def _up_to(file: File, since: list[Operation], limit: Callable[[int], int], lengths: int) -> bytes:
    """What is in a file of which each sector is as after so many operations, and the length, too."""
    whole, content = bytearray(file.base), bytearray(file.base)
    length = len(content)
    for index, operation in enumerate(since):
        _apply(whole, operation, None)
        if index < lengths:
            length = len(whole)
        if len(content) < len(whole):
            _resize(content, len(whole))
        if operation.kind == "T":
            start, data = operation.number, bytes(max(0, len(content) - operation.number))
        else:
            start, data = operation.number, operation.data
        at = start
        while at < start + len(data):
            sector = at // SECTOR
            end = min(start + len(data), (sector + 1) * SECTOR)
            if index < limit(sector):
                content[at:end] = data[at - start : end - start]
            at = end
    _resize(content, length)
    return bytes(content)
