"""CrewAI's other stores, and files of records, read record by record.

Reading leaves what is read as it is: a LanceDB table through its own reader, a Qdrant shard as a copy,
because its reader writes. Nothing here imports either library before there is something to read.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from crewai_native_memory import location

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from crewai.memory.types import MemoryRecord

_logger = logging.getLogger("crewai_native_memory")

BATCH: Final = 1000
LANCE_TABLE: Final = "memories"
# The first line of a JSON Lines file names these.
FORMAT: Final = "crewai-native-memory"
VERSION: Final = 1
_QDRANT_VECTOR: Final = "memory"
# What making a record of a row raises where the row does not hold one.
_UNREADABLE: Final = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    OverflowError,
    RecursionError,
)
_SQLITE_HEADER: Final = b"SQLite format 3\0"


class MoveError(Exception):
    """Records could not be moved. What was moved before stays, and trying again goes on."""


class Source(ABC):
    """Records somewhere else.

    One row that no record can be made of must not keep all others away: it stays behind, and is
    told of.

    Attributes:
        library: The module that reads it.
        duplicates: Rows left out because a newer one has the same id; known once opened.
        left: Ids of the records that stay behind, each with the reason; known once all are read.
        bare: Records that come without their vector, which holds something else than finite
            numbers or has another length than those before it; known once all are read.
    """

    library: ClassVar[str]

    def __init__(self) -> None:
        self.duplicates = 0
        self.left: dict[str, str] = {}
        self.bare = 0
        self._length: int | None = None

    @property
    @abstractmethod
    def name(self) -> str:
        """What it is and where, for people."""

    @abstractmethod
    def open(self) -> tuple[int, Iterable[list[MemoryRecord]]]:
        """Return how many records there are and the records, in batches, each id once."""

    def erase(self) -> None:
        """Delete all of it, as CrewAI's own reset does; there may be nothing any more."""
        raise NotImplementedError(f"{self.name} is not CrewAI's, and no reset erases it")

    def leave(self, id_: str, error: Exception) -> None:
        """Go on without a record."""
        reason = _reason(error)
        self.left[id_] = reason
        _logger.warning("record %r stays behind in %s: %s", id_, self.name, reason)

    @contextmanager
    def _leaving(self, id_: object) -> Iterator[None]:
        """Go on without a record if making it fails."""
        try:
            yield
        except _UNREADABLE as error:
            self.leave(str(id_), error)

    def _vector(self, id_: object, vector: Any) -> Any:
        """A vector as it can be stored, or None."""
        import numpy as np

        # CrewAI's stores write zeros where there is none.
        if vector is None or not any(vector):
            return None
        with np.errstate(over="ignore"):
            vector = np.asarray(vector, np.float32)
            finite = np.isfinite(vector).all()
        self._length = self._length or len(vector)
        if not finite:
            reason = "not all of its components are finite numbers of float32"
        elif len(vector) != self._length:
            reason = f"it has {len(vector)} dimensions, others have {self._length}"
        else:
            return vector
        self.bare += 1
        _logger.warning("record %r of %s comes without its vector: %s", id_, self.name, reason)
        return None


# --- the places where CrewAI keeps memories ---------------------------------------------------


def default_directory() -> Path:
    """The directory of CrewAI's default store."""
    configured = os.environ.get("CREWAI_STORAGE_DIR")
    if configured:
        return Path(configured) / "memory"
    from crewai_core.paths import db_storage_path

    return Path(db_storage_path()) / "memory"


def find(directory: Path) -> Source | None:
    """Look for a LanceDB or Qdrant-edge store of CrewAI's in a directory, LanceDB first.

    Only file names are looked at.
    """
    if any((directory / f"{LANCE_TABLE}.lance" / "data").glob("*.lance")):
        return LanceSource(directory)
    for place in (directory, directory / "qdrant-edge"):
        if _shards(place):
            return QdrantSource(place)
    return None


def open_source(place: Path) -> Source:
    """Return the records at a place that a user named: a store's directory or a JSON Lines file.

    Raises:
        MoveError: There are none.
    """
    if place.is_file():
        with place.open("rb") as file:
            is_sqlite = file.read(len(_SQLITE_HEADER)) == _SQLITE_HEADER
        if is_sqlite:
            raise MoveError(
                f"{place} is an SQLite file, as a native store and its backup are, and those need "
                f"no import: use it where it is (--store {place}; in a program "
                f"Memory(storage={str(place)!r})), or put it, while no program runs, in the place "
                f"of {location.default_path()}"
            )
        return JsonLinesSource(place)
    found = find(place)
    if found is None:
        raise MoveError(
            f"{place}: expected a .jsonl file, a directory with a LanceDB table "
            f"({LANCE_TABLE}.lance) or a directory of Qdrant-edge shards (central, worker-*)"
        )
    return found


# --- sources ----------------------------------------------------------------------------------


class LanceSource(Source):
    """CrewAI's table in a LanceDB directory.

    LanceDB has no unique ids: of rows with the same one the last accessed, then the last added,
    is the record.
    """

    library: ClassVar = "lancedb"

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._directory = directory

    @property
    def name(self) -> str:
        """What it is and where, for people."""
        return f"LanceDB table {self._directory / LANCE_TABLE}.lance"

    def open(self) -> tuple[int, Iterator[list[MemoryRecord]]]:
        """Read which rows are current, then let the records be read in batches."""
        import lancedb

        table = lancedb.connect(str(self._directory)).open_table(LANCE_TABLE)
        # This version and no later one, whoever writes meanwhile.
        table.checkout(table.version)
        # CrewAI does without any of the other columns.
        if missing := {"id", "content"}.difference(table.schema.names):
            raise MoveError(f"{self.name} is none of CrewAI's: it has no column {missing.pop()!r}")
        columns = [name for name in ("id", "last_accessed") if name in table.schema.names]
        ages = table.search().select(columns).with_row_id(True).to_arrow()
        newest: dict[str, tuple[str, int]] = {}
        for row in ages.to_pylist():
            age = (str(row.get("last_accessed") or ""), row["_rowid"])
            newest[row["id"]] = max(age, newest.get(row["id"], age))
        self.duplicates = ages.num_rows - len(newest)
        current = {row for _, row in newest.values()}
        return len(current), self._batches(table, current)

    def erase(self) -> None:
        """Drop the table with all its versions."""
        import lancedb
        from crewai_core.lock_store import lock

        with lock(f"lancedb:{self._directory.resolve()}"):
            lancedb.connect(str(self._directory)).drop_table(LANCE_TABLE, ignore_missing=True)

    def _batches(self, table: Any, current: set[int]) -> Iterator[list[MemoryRecord]]:
        for batch in table.search().with_row_id(True).to_batches(BATCH):
            if "vector" in batch.schema.names:
                vectors = batch.column("vector")
                batch = batch.drop_columns(["vector"])  # noqa: PLW2901 - all of it but the vectors
            else:
                vectors = itertools.repeat(None)
            records = []
            for row, value in zip(batch.to_pylist(), vectors, strict=False):
                if row.pop("_rowid") not in current:
                    continue
                with self._leaving(row["id"]):
                    row["categories"] = _parsed(row, "categories", "[]")
                    row["metadata"] = _parsed(row, "metadata", "{}")
                    row["source"] = row.get("source") or None
                    record = _record(row)
                    record.embedding = self._vector(record.id, _numbers(value))
                    records.append(record)
            if records:
                yield records


class QdrantSource(Source):
    """CrewAI's Qdrant-edge shards: the central one and those that processes left behind."""

    library: ClassVar = "qdrant_edge"

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._directory = directory

    @property
    def name(self) -> str:
        """What it is and where, for people."""
        return f"Qdrant-edge shards {self._directory}"

    def open(self) -> tuple[int, Iterator[list[MemoryRecord]]]:
        """Read every shard, from copies."""
        newest: dict[str, MemoryRecord] = {}
        for shard in _shards(self._directory):
            for record in self._read(shard):
                known = newest.get(record.id)
                if known is not None:
                    self.duplicates += 1
                if known is None or record.last_accessed >= known.last_accessed:
                    newest[record.id] = record
        return len(newest) + len(self.left), _batched(newest.values())

    def erase(self) -> None:
        """Remove every shard."""
        for shard in _shards(self._directory):
            shutil.rmtree(shard)

    def _read(self, shard: Path) -> Iterator[MemoryRecord]:
        import qdrant_edge

        with tempfile.TemporaryDirectory(prefix="crewai-native-") as copies:
            copy = Path(copies) / shard.name
            shutil.copytree(shard, copy)
            opened: Any = qdrant_edge.EdgeShard.load(str(copy))
            try:
                offset = None
                while True:
                    points, offset = opened.scroll(
                        qdrant_edge.ScrollRequest(
                            limit=BATCH, offset=offset, with_payload=True, with_vector=True
                        )
                    )
                    for point in points:
                        record = self._of_point(point)
                        if record is not None:
                            yield record
                    if offset is None or not points:
                        return
            finally:
                opened.close()

    def _of_point(self, point: Any) -> MemoryRecord | None:
        row = dict(point.payload or {})
        with self._leaving(row.get("record_id", f"point {point.id}")):
            row["id"] = row.pop("record_id")
            row["source"] = row.get("source") or None
            record = _record(row)
            record.embedding = self._vector(record.id, (point.vector or {}).get(_QDRANT_VECTOR))
            return record
        return None


class ChromaSource(Source):
    """Passages of one of CrewAI's knowledge collections, in a Chroma database."""

    library: ClassVar = "chromadb"

    def __init__(self, directory: Path, collection: str) -> None:
        super().__init__()
        self._directory = directory
        self._collection = collection

    @property
    def name(self) -> str:
        """What it is and where, for people."""
        return f"Chroma collection {self._collection} in {self._directory}"

    def open(self) -> tuple[int, Iterable[list[MemoryRecord]]]:
        """Count the passages, then let them be read in batches."""
        from chromadb.errors import NotFoundError

        with self._opened() as client:
            try:
                collection = client.get_collection(self._collection)
            except NotFoundError:
                return 0, ()
        return collection.count(), self._batches(collection)

    def erase(self) -> None:
        """Delete the collection."""
        from chromadb.errors import NotFoundError

        with self._opened() as client, suppress(NotFoundError):
            client.delete_collection(self._collection)

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        import chromadb
        from crewai.rag.chromadb.config import _default_settings
        from crewai_core.lock_store import lock

        # CrewAI's own settings: Chroma opens a database with one set of them in a process.
        chosen = _default_settings()
        chosen.persist_directory = str(self._directory)
        with lock(f"chromadb:{self._directory}"):
            yield chromadb.PersistentClient(path=str(self._directory), settings=chosen)

    def _batches(self, collection: Any) -> Iterator[list[MemoryRecord]]:
        for offset in itertools.count(0, BATCH):
            found = collection.get(
                limit=BATCH, offset=offset, include=["documents", "metadatas", "embeddings"]
            )
            if not found["ids"]:
                return
            records = []
            columns = ("ids", "documents", "metadatas", "embeddings")
            for id_, text, metadata, vector in zip(*(found[c] for c in columns), strict=True):
                with self._leaving(id_):
                    record = _record({"id": id_, "content": text or "", "metadata": metadata})
                    record.embedding = self._vector(id_, vector)
                    records.append(record)
            yield records


class JsonLinesSource(Source):
    """A file that :func:`~crewai_native_memory.exports.export_json_lines` wrote, or any with a memory record in each line.

    Whoever names a file can put a line right: none is left out.
    """

    library: ClassVar = "json"

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    @property
    def name(self) -> str:
        """What it is and where, for people."""
        return f"file {self._path}"

    def open(self) -> tuple[int, Iterator[list[MemoryRecord]]]:
        """Count the lines, then let the records be read in batches."""
        with self._path.open(encoding="utf-8") as lines:
            count = sum(1 for line in lines if line.strip() and not self._is_header(line))
        return count, _batched(self._records())

    def leave(self, id_: str, error: Exception) -> None:
        """Say that a record cannot be stored."""
        raise MoveError(f"{self._path}, record {id_!r}: {_reason(error)}") from error

    def _records(self) -> Iterator[MemoryRecord]:
        with self._path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip() or self._is_header(line):
                    continue
                try:
                    row = json.loads(line)
                    record = _record(row)
                    record.embedding = row.get("embedding")
                except _UNREADABLE as error:
                    raise MoveError(f"{self._path}, line {number}: {_reason(error)}") from error
                yield record

    def _is_header(self, line: str) -> bool:
        if not line.startswith('{"format"'):
            return False
        header = json.loads(line)
        if header["format"] != FORMAT or header["version"] > VERSION:
            raise MoveError(
                f"{self._path}: format {header['format']} {header['version']}; "
                f"this release reads {FORMAT} up to {VERSION}"
            )
        return True


def _record(row: dict[str, Any]) -> MemoryRecord:
    """The record of a row, without the embedding.

    What the row lacks is what CrewAI takes it for. An importance out of bounds, which CrewAI lets
    be written and not be read, is the bound.
    """
    from crewai.memory.types import MemoryRecord

    now = datetime.now(UTC)
    importance = row.get("importance")
    return MemoryRecord(
        id=str(row["id"]),
        content=str(row["content"]),
        scope=str(row.get("scope") or "/"),
        categories=row.get("categories") or [],
        metadata=row.get("metadata") or {},
        importance=0.5 if importance is None else min(1.0, max(0.0, float(importance))),
        created_at=_moment(row, "created_at", now),
        last_accessed=_moment(row, "last_accessed", now),
        source=row.get("source"),
        private=bool(row.get("private", False)),
    )


def _parsed(row: dict[str, Any], name: str, absent: str) -> Any:
    try:
        return json.loads(row.pop(f"{name}_str", None) or absent)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _numbers(value: Any) -> Any:
    """An Arrow list as an array; None for none."""
    values = None if value is None else value.values
    return None if values is None else values.to_numpy(zero_copy_only=False)


def _reason(error: Exception) -> str:
    """What is wrong, in one line."""
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        return "; ".join(
            f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}, got {detail['input']!r:.100}"
            for detail in error.errors()
        )
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return str(error)


def _moment(row: dict[str, Any], name: str, absent: datetime) -> datetime:
    """A naive UTC datetime, as CrewAI's code expects it."""
    value = row.get(name)
    try:
        moment = datetime.fromisoformat(str(value)) if value is not None else absent
        return moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{name}: {error}") from error


def _shards(directory: Path) -> list[Path]:
    shards = [directory / "central", *sorted(directory.glob("worker-*"))]
    return [shard for shard in shards if (shard / "edge_config.json").is_file()]


def _batched(records: Iterable[MemoryRecord]) -> Iterator[list[MemoryRecord]]:
    rest = iter(records)
    while batch := list(itertools.islice(rest, BATCH)):
        yield batch
