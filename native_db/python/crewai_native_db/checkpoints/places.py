"""Where checkpoints are: directories of files, and tables in SQLite files, as CrewAI has them.

Each has a store of ours beside it. CrewAI's commands and CrewAI itself open what is theirs; here
it is only ever touched through Python's ``sqlite3``, as two copies of SQLite in one process would
drop one another's locks on a file.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from crewai_native_db import _native

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_STORE: Final = "checkpoints.db"
_SUFFIX: Final = ".native"
# The store, from the directory of a branch whose name is one.
_BESIDE: Final = str(Path(os.pardir, _SUFFIX, _STORE))
_TIMEOUT: Final = 30.0
# What nobody refers to is left alone for so long, in µs: its outline may be about to be written.
_GRACE: Final = 3600 * 10**6
_MAGIC: Final = b"SQLite format 3\x00"
_TABLE: Final = """
CREATE TABLE IF NOT EXISTS checkpoints (
    id TEXT PRIMARY KEY,
    created_at TEXT NOT NULL,
    parent_id TEXT,
    branch TEXT NOT NULL DEFAULT 'main',
    data JSONB NOT NULL
)
"""
_NAME: Final = re.compile(r"[\w-]+")
# CrewAI stores what jsonb() makes of the text, which SQLite has since 3.45. Whatever reads it takes
# the text as well: json() of either is the text.
_INSERT: Final = (
    "INSERT INTO checkpoints (id, created_at, parent_id, branch, data) VALUES (?, ?, ?, ?, ?)"
)


class Place(Protocol):
    """A location of checkpoints.

    Attributes:
        store: The file of ours.
    """

    store: Path

    def data(self, branch: str) -> str:
        """The path of the store from where an outline on a branch is."""

    def file(
        self, checkpoint_id: str, parent_id: str | None, branch: str
    ) -> tuple[Path, Path] | None:
        """Where an outline is drafted, and where it is then, if it is a file."""

    def publish(self, checkpoint_id: str, parent_id: str | None, branch: str, text: str) -> None:
        """Put an outline there, whole or not at all; after a power cut, too."""

    def settle(self, branch: str) -> None:
        """Wait until the disk has it that outlines on a branch were removed."""

    def name(self, location: str, checkpoint_id: str, parent_id: str | None, branch: str) -> str:
        """What CrewAI calls a checkpoint there, given what the user calls the place."""

    def ids(self, branch: str | None = None) -> set[str]:
        """The ids of the checkpoints there, or on a branch."""

    def texts(self) -> Iterable[tuple[str, str | None, str, str]]:
        """(id, parent's id, branch, text) of each, oldest first."""


class Files:
    """A directory of files, one for each checkpoint, in a directory for each branch."""

    def __init__(self, location: str | os.PathLike[str]) -> None:
        self._directory = Path(location).absolute()
        self.store = Path(self._directory, _SUFFIX, _STORE)

    def data(self, branch: str) -> str:  # noqa: D102 - see Place
        if _NAME.fullmatch(branch):
            return _BESIDE
        return os.path.relpath(self.store, self._directory / branch)

    def file(  # noqa: D102 - see Place
        self, checkpoint_id: str, parent_id: str | None, branch: str
    ) -> tuple[Path, Path]:
        path = self._path(checkpoint_id, parent_id, branch)
        return path.with_name(f".{checkpoint_id}.new"), path

    def publish(  # noqa: D102 - see Place
        self, checkpoint_id: str, parent_id: str | None, branch: str, text: str
    ) -> None:
        _native.publish(*self.file(checkpoint_id, parent_id, branch), text)

    def settle(self, branch: str) -> None:  # noqa: D102 - see Place
        # Elsewhere directories cannot be opened, and names are journalled.
        if os.name == "posix":
            directory = os.open(self._directory / branch, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)

    def name(  # noqa: D102 - see Place
        self, location: str, checkpoint_id: str, parent_id: str | None, branch: str
    ) -> str:
        return str(Path(location, branch, _file_name(checkpoint_id, parent_id)))

    def ids(self, branch: str | None = None) -> set[str]:  # noqa: D102 - see Place
        if branch is None:
            return {_parsed(path)[0] for path in self._files()}
        return {_parsed(path)[0] for path in next(_walk(self._directory / branch), ())}

    def texts(self) -> Iterable[tuple[str, str | None, str, str]]:  # noqa: D102 - see Place
        for path in sorted(self._files(), key=lambda path: path.stat().st_mtime_ns):
            branch = path.parent.relative_to(self._directory).as_posix()
            yield *_parsed(path), branch, path.read_text(encoding="utf-8")

    def _files(self) -> Iterable[Path]:
        files = itertools.chain.from_iterable(_walk(self._directory))
        return (path for path in files if path.is_file())

    def _path(self, checkpoint_id: str, parent_id: str | None, branch: str) -> Path:
        directory = self._directory / branch
        # What is a name, and leads nowhere else, is inside, wherever the whole path leads.
        if not _NAME.fullmatch(branch) or directory.is_symlink():
            from crewai.state.provider.json_provider import _safe_branch

            _safe_branch(str(self._directory), branch)
        return directory / _file_name(checkpoint_id, parent_id)


class Table:
    """A table in a SQLite file, with a row for each checkpoint."""

    def __init__(self, location: str | os.PathLike[str]) -> None:
        self._file = Path(location).absolute()
        self.store = self._file.with_name(self._file.name + _SUFFIX) / _STORE

    def data(self, branch: str) -> str:  # noqa: ARG002, D102 - see Place
        return os.path.relpath(self.store, self._file.parent)

    def file(self, checkpoint_id: str, parent_id: str | None, branch: str) -> None:  # noqa: ARG002, D102 - see Place
        return None

    def publish(  # noqa: D102 - see Place
        self, checkpoint_id: str, parent_id: str | None, branch: str, text: str
    ) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        row = (checkpoint_id, checkpoint_id.split("_", maxsplit=1)[0], parent_id, branch, text)
        with closing(sqlite3.connect(self._file, timeout=_TIMEOUT)) as db, db:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute(_TABLE)
            db.execute(_INSERT, row)

    def settle(self, branch: str) -> None:  # noqa: D102 - see Place
        pass  # CrewAI's commit has waited for the disk

    def name(  # noqa: D102 - see Place
        self,
        location: str,
        checkpoint_id: str,
        parent_id: str | None,  # noqa: ARG002
        branch: str,  # noqa: ARG002
    ) -> str:
        return f"{location}#{checkpoint_id}"

    def ids(self, branch: str | None = None) -> set[str]:  # noqa: D102 - see Place
        query = "SELECT id FROM checkpoints WHERE ?1 IS NULL OR branch = ?1"
        return {name for (name,) in self._rows(query, branch)}

    def texts(self) -> Iterable[tuple[str, str | None, str, str]]:  # noqa: D102 - see Place
        return self._rows(
            "SELECT id, parent_id, branch, json(data) FROM checkpoints ORDER BY rowid"
        )

    def _rows(self, query: str, *values: str | None) -> list[tuple[Any, ...]]:
        if not is_table(self._file):
            return []
        with closing(sqlite3.connect(self._file, timeout=_TIMEOUT)) as db:
            if not db.execute(
                "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'checkpoints'"
            ).fetchone():
                return []
            return db.execute(query, values).fetchall()


def of(location: str | os.PathLike[str]) -> Place:
    """What is at a location: a table in a SQLite file, or else files."""
    return Table(location) if is_table(location) else Files(location)


def is_table(location: str | os.PathLike[str]) -> bool:
    """Whether there is a SQLite file."""
    if os.path.isdir(location):  # noqa: PTH112 - it may be text
        return False
    # Whatever else is wrong does not mean that there is none: what it refers to would be dropped.
    with (
        contextlib.suppress(FileNotFoundError, NotADirectoryError),
        open(location, "rb") as file,  # noqa: PTH123 - as CrewAI's
    ):
        return file.read(len(_MAGIC)) == _MAGIC
    return False


def _walk(directory: Path) -> Iterator[list[Path]]:
    """Yield the paths that end in ``.json`` in a directory and each below it."""
    for above, _, names in os.walk(directory, onerror=_refuse):
        yield [Path(above, name) for name in names if name.endswith(".json")]


def _refuse(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def reclaim(place: Place, store: _native.CheckpointStore) -> int:
    """Drop the data of checkpoints that somebody else removed from a place; say how many."""
    saved = store.ids()
    if not saved:
        return 0
    there = place.ids()
    before = time.time_ns() // 1000 - _GRACE
    gone = [name for name, saved_at in saved if name not in there and saved_at < before]
    return store.forget(gone) if gone else 0


def _file_name(checkpoint_id: str, parent_id: str | None) -> str:
    return f"{checkpoint_id}_p-{parent_id or 'none'}.json"


def _parsed(path: Path) -> tuple[str, str | None]:
    checkpoint_id, _, parent_id = path.stem.partition("_p-")
    return checkpoint_id, parent_id if parent_id not in ("", "none") else None
