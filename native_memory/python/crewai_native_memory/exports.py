"""Taking records back to where CrewAI keeps them, or to a file."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from crewai_native_memory.progress import progress
from crewai_native_memory.sources import BATCH, FORMAT, LANCE_TABLE, VERSION, MoveError, find
from crewai_native_memory.storage import NativeStorage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crewai.memory.types import MemoryRecord

# Files that somebody asks for by these names are nothing that is written here.
_OTHER_FILES: Final = {
    *(".json", ".ndjson", ".csv", ".tsv", ".txt", ".parquet"),
    *(".db", ".sqlite", ".sqlite3", ".zip", ".gz", ".zst"),
}


def export_json_lines(storage: NativeStorage, path: Path) -> int:
    """Write every record as a line of JSON, embeddings included; give the number of records.

    Raises:
        FileExistsError: There is such a file.
    """
    if path.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    count = 0
    with snapshot(storage, path) as (copy, draft), _naming(path):
        with (
            draft.open("w", encoding="utf-8") as out,
            progress(f"Exporting to {path}", copy.count()) as advance,
        ):
            out.write(json.dumps({"format": FORMAT, "version": VERSION}) + "\n")
            for batch in _oldest_first(copy):
                out.writelines(map(_line, batch))
                count += len(batch)
                advance(len(batch))
        # Only now: were it there before, an export that is killed would look like one of nothing.
        path.open("x").close()
        draft.replace(path)
    return count


@contextmanager
def _naming(place: Path) -> Iterator[None]:
    """Name the place in whatever goes wrong while it is written."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror or str(error), str(place)) from error
    except RuntimeError as error:
        # LanceDB's.
        raise MoveError(f"cannot write {place}: {error}") from error


def _line(record: MemoryRecord) -> str:
    # Pydantic would make null of numbers that are not finite.
    row = record.model_dump(mode="json", exclude={"metadata"})
    row["metadata"] = record.metadata
    row["embedding"] = record.embedding
    return json.dumps(row, ensure_ascii=False) + "\n"


def export_lance(storage: NativeStorage, directory: Path) -> int:
    """Write every record into a new LanceDB store of CrewAI's; give the number of records.

    Raises:
        MoveError: There is a store: LanceDB would keep old and new rows of one id side by side.
            Or it is a file, or named like one.
    """
    like_a_file = directory.exists() or directory.suffix.lower() in _OTHER_FILES
    if like_a_file and not directory.is_dir():
        raise MoveError(
            f"{directory}: expected a file that ends in .jsonl, or a directory for a LanceDB store"
        )
    name = f"{LANCE_TABLE}.lance"
    if find(directory) is not None or (directory / name).exists():
        raise MoveError(f"{directory} holds a store already; choose an empty directory")
    from crewai.memory.storage.lancedb_storage import LanceDBStorage

    directory.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with snapshot(storage, directory) as (copy, draft), _naming(directory):
        # From the first records CrewAI tells the length of all; those may have no embedding.
        target = LanceDBStorage(path=draft, vector_dim=copy.stats().dimension, compact_every=0)
        with progress(f"Exporting to {directory}", copy.count()) as advance:
            for batch in _oldest_first(copy):
                target.save([_within_bounds(record) for record in batch])
                count += len(batch)
                advance(len(batch))
        directory.mkdir(exist_ok=True)
        if count:
            (draft / name).rename(directory / name)
    return count


def _within_bounds(record: MemoryRecord) -> MemoryRecord:
    """The record as CrewAI can read it: its ``update`` admits an importance that it refuses."""
    importance = min(1.0, max(0.0, record.importance))
    if importance == record.importance:
        return record
    return record.model_copy(update={"importance": importance})


@contextmanager
def snapshot(storage: NativeStorage, beside: Path) -> Iterator[tuple[NativeStorage, Path]]:
    """A copy of a live store, of one moment, and a place for what is made of it.

    Args:
        storage: The store.
        beside: What is made in the end: the place is on its file system, and what is left there
            goes with the block, so that nothing half-done is found at ``beside``.
    """
    with tempfile.TemporaryDirectory(prefix=".crewai-native-", dir=beside.parent) as directory:
        path = Path(directory) / "memory.db"
        storage.backup(path)
        copy = NativeStorage(path)
        try:
            yield copy, Path(directory) / "draft"
        finally:
            copy.close()


def _oldest_first(storage: NativeStorage) -> Iterator[list[MemoryRecord]]:
    end = storage.count()
    while end > 0:
        start = max(0, end - BATCH)
        yield storage.list_records(limit=end - start, offset=start)[::-1]
        end = start
