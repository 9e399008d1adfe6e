"""Bringing the records of CrewAI's other stores here, and taking them back.

What is imported is only read: a LanceDB table through its own reader, a Qdrant shard as a copy,
because its reader writes. Nothing here imports either library before there is something to read.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import logging
import os
import shutil
import tempfile
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from crewai_native_memory.progress import progress
from crewai_native_memory.storage import NativeStorage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from crewai.memory.types import MemoryRecord

_logger = logging.getLogger("crewai_native_memory")

BATCH: Final = 1000
# Stores of this process that need not be asked again whether something has to be imported.
_settled: set[str] = set()
_LANCE_TABLE: Final = "memories"
_QDRANT_VECTOR: Final = "memory"
_FORMAT: Final = "crewai-native-memory"
_VERSION: Final = 1


class MoveError(Exception):
    """Records could not be moved. What was moved before stays, and trying again goes on."""


class Source(Protocol):
    """Records somewhere else."""

    @property
    def name(self) -> str:
        """What it is and where, for people."""

    def open(self) -> tuple[int, Iterable[list[MemoryRecord]]]:
        """Return how many records there are and the records, in batches, each id once."""

    @property
    def duplicates(self) -> int:
        """Rows left out because a newer one has the same id; known once opened."""


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """What an import did.

    Attributes:
        source: Where the records came from.
        records: Records that the source holds.
        imported: Those that were not here yet.
        duplicates: Older rows of the source with the id of a newer one, left out.
    """

    source: str
    records: int
    imported: int
    duplicates: int

    def __str__(self) -> str:
        """Return it in words."""
        text = f"imported {self.imported} of {self.records} records from {self.source}"
        if self.duplicates:
            text += f", leaving out {self.duplicates} older rows with the id of a newer one"
        return text


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
    if any((directory / f"{_LANCE_TABLE}.lance" / "data").glob("*.lance")):
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
        return JsonLinesSource(place)
    found = find(place)
    if found is None:
        raise MoveError(
            f"{place}: expected a .jsonl file, a directory with a LanceDB table "
            f"({_LANCE_TABLE}.lance) or a directory of Qdrant-edge shards (central, worker-*)"
        )
    return found


# --- sources ----------------------------------------------------------------------------------


class LanceSource:
    """CrewAI's table in a LanceDB directory.

    LanceDB has no unique ids: of rows with the same one the last accessed, then the last added,
    is the record.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.duplicates = 0

    @property
    def name(self) -> str:
        """What it is and where, for people."""
        return f"LanceDB table {self._directory / _LANCE_TABLE}.lance"

    def open(self) -> tuple[int, Iterator[list[MemoryRecord]]]:
        """Read which rows are current, then let the records be read in batches."""
        import lancedb

        table = lancedb.connect(str(self._directory)).open_table(_LANCE_TABLE)
        # This version and no later one, whoever writes meanwhile.
        table.checkout(table.version)
        ages = table.search().select(["id", "last_accessed"]).with_row_id(True).to_arrow()
        newest: dict[str, tuple[str, int]] = {}
        for row in ages.to_pylist():
            age = (str(row["last_accessed"]), row["_rowid"])
            newest[row["id"]] = max(age, newest.get(row["id"], age))
        self.duplicates = ages.num_rows - len(newest)
        current = {row for _, row in newest.values()}
        return len(current), self._batches(table, current)

    @staticmethod
    def _batches(table: Any, current: set[int]) -> Iterator[list[MemoryRecord]]:
        for batch in table.search().with_row_id(True).to_batches(BATCH):
            vectors = batch.column("vector").flatten().to_numpy()
            length = len(vectors) // batch.num_rows if batch.num_rows else 0
            rows = batch.drop_columns(["vector"]).to_pylist()
            records = []
            for index, row in enumerate(rows):
                if row.pop("_rowid") not in current:
                    continue
                row["categories"] = json.loads(row.pop("categories_str") or "[]")
                row["metadata"] = json.loads(row.pop("metadata_str") or "{}")
                vector = vectors[index * length : (index + 1) * length]
                records.append(_record(row, _or_none(vector)))
            if records:
                yield records


class QdrantSource:
    """CrewAI's Qdrant-edge shards: the central one and those that processes left behind."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.duplicates = 0

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
        return len(newest), _batched(newest.values())

    @staticmethod
    def _read(shard: Path) -> Iterator[MemoryRecord]:
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
                        row = dict(point.payload)
                        row["id"] = row.pop("record_id")
                        vector = (point.vector or {}).get(_QDRANT_VECTOR)
                        yield _record(row, _or_none(vector))
                    if offset is None or not points:
                        return
            finally:
                opened.close()


class ChromaSource:
    """Passages of one of CrewAI's knowledge collections, in a Chroma database."""

    def __init__(self, directory: Path, collection: str) -> None:
        self._directory = directory
        self._collection = collection
        self.duplicates = 0

    @property
    def name(self) -> str:
        """What it is and where, for people."""
        return f"Chroma collection {self._collection} in {self._directory}"

    def open(self) -> tuple[int, Iterable[list[MemoryRecord]]]:
        """Count the passages, then let them be read in batches."""
        import chromadb
        from chromadb.errors import NotFoundError
        from crewai.rag.chromadb.config import _default_settings
        from crewai_core.lock_store import lock

        # CrewAI's own settings: Chroma opens a database with one set of them in a process.
        chosen = _default_settings()
        chosen.persist_directory = str(self._directory)
        with lock(f"chromadb:{self._directory}"):
            client = chromadb.PersistentClient(path=str(self._directory), settings=chosen)
            try:
                collection = client.get_collection(self._collection)
            except NotFoundError:
                return 0, ()
        return collection.count(), self._batches(collection)

    @staticmethod
    def _batches(collection: Any) -> Iterator[list[MemoryRecord]]:
        for offset in itertools.count(0, BATCH):
            found = collection.get(
                limit=BATCH, offset=offset, include=["documents", "metadatas", "embeddings"]
            )
            if not found["ids"]:
                return
            yield [
                _record({"id": id_, "content": text or "", "metadata": metadata}, vector)
                for id_, text, metadata, vector in zip(
                    found["ids"],
                    found["documents"],
                    found["metadatas"],
                    found["embeddings"],
                    strict=True,
                )
            ]


class JsonLinesSource:
    """A file that :func:`export_json_lines` wrote, or any with a memory record in each line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.duplicates = 0

    @property
    def name(self) -> str:
        """What it is and where, for people."""
        return f"file {self._path}"

    def open(self) -> tuple[int, Iterator[list[MemoryRecord]]]:
        """Count the lines, then let the records be read in batches."""
        with self._path.open(encoding="utf-8") as lines:
            count = sum(1 for line in lines if line.strip() and not self._is_header(line))
        return count, _batched(self._records())

    def _records(self) -> Iterator[MemoryRecord]:
        with self._path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip() or self._is_header(line):
                    continue
                try:
                    row = json.loads(line)
                    yield _record(row, row.get("embedding"))
                except (ValueError, TypeError, KeyError, AttributeError) as error:
                    raise MoveError(f"{self._path}, line {number}: {error}") from error

    def _is_header(self, line: str) -> bool:
        if not line.startswith('{"format"'):
            return False
        header = json.loads(line)
        if header["format"] != _FORMAT or header["version"] > _VERSION:
            raise MoveError(
                f"{self._path}: format {header['format']} {header['version']}; "
                f"this release reads {_FORMAT} up to {_VERSION}"
            )
        return True


def _record(row: dict[str, Any], vector: Any) -> MemoryRecord:
    from crewai.memory.types import MemoryRecord

    now = datetime.now(UTC)
    record = MemoryRecord(
        id=str(row["id"]),
        content=str(row["content"]),
        scope=str(row.get("scope") or "/"),
        categories=row.get("categories") or [],
        metadata=row.get("metadata") or {},
        importance=float(row.get("importance", 0.5)),
        created_at=_moment(row.get("created_at"), now),
        last_accessed=_moment(row.get("last_accessed"), now),
        source=row.get("source") or None,
        private=bool(row.get("private", False)),
    )
    record.embedding = vector
    return record


def _or_none(vector: Any) -> Any:
    """The vector, unless it is the zeros that CrewAI's stores write where there is none."""
    return vector if vector is not None and any(vector) else None


def _moment(value: Any, absent: datetime) -> datetime:
    """A naive UTC datetime, as CrewAI's code expects it."""
    moment = datetime.fromisoformat(str(value)) if value is not None else absent
    return moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)


def _shards(directory: Path) -> list[Path]:
    shards = [directory / "central", *sorted(directory.glob("worker-*"))]
    return [shard for shard in shards if (shard / "edge_config.json").is_file()]


def _batched(records: Iterable[MemoryRecord]) -> Iterator[list[MemoryRecord]]:
    rest = iter(records)
    while batch := list(itertools.islice(rest, BATCH)):
        yield batch


# --- importing --------------------------------------------------------------------------------


def bring(storage: NativeStorage, source: Source) -> Report:
    """Save the records of another store here, unless their ids are here already.

    Each batch is kept: a second call after an interruption brings what is missing.

    Raises:
        MoveError: The source cannot be read.
        EmbeddingDimensionMismatchError: This store's embeddings have another length.
    """
    try:
        count, batches = source.open()
    except MoveError:
        raise
    except Exception as error:
        raise MoveError(f"cannot read {source.name}: {error}") from error
    imported = 0
    with progress(f"Importing {source.name}", count) as advance:
        for batch in batches:
            new = [record for record in batch if storage.get_record(record.id) is None]
            storage.save(new)
            imported += len(new)
            advance(len(batch))
    return Report(source.name, count, imported, source.duplicates)


def import_first(storage: NativeStorage, look: Callable[[], Source | None]) -> NativeStorage:
    """Have the records that a look finds elsewhere imported when the storage is first used.

    That happens once for a store, which remembers it, and only to one without records: its users
    would otherwise find some that they had not put there. Whoever uses the storage meanwhile
    waits.
    """
    if storage.path not in _settled:
        source = look()
        if source is not None:
            storage.do_first(functools.partial(_import_once, storage.path, source))
    return storage


def _import_once(path: str, source: Source) -> None:
    from crewai_core.lock_store import lock

    storage = NativeStorage(path)
    if _is_due(storage):
        # Whoever waits needs the records, however long the import takes.
        with lock(f"crewai-native-import:{path}", timeout=24 * 3600):
            if _is_due(storage):
                _remember(storage, source, "running")
                report = bring(storage, source)
                _remember(storage, source, "done")
                _logger.info("%s, which stays as it is", report)
    _settled.add(path)


def _is_due(storage: NativeStorage) -> bool:
    state = _state(storage)
    return state == "running" or (state is None and storage.count() == 0)


def _state(storage: NativeStorage) -> str | None:
    text = storage.note("import")
    return None if text is None else str(json.loads(text)["state"])


def _remember(storage: NativeStorage, source: Source, state: str) -> None:
    storage.set_note("import", json.dumps({"state": state, "source": source.name}))


# --- exporting --------------------------------------------------------------------------------


def export_json_lines(storage: NativeStorage, path: Path) -> int:
    """Write every record as a line of JSON, embeddings included; give the number of records.

    Raises:
        FileExistsError: There is such a file.
    """
    count = 0
    with path.open("x", encoding="utf-8") as out, snapshot(storage, path) as (total, batches):
        out.write(json.dumps({"format": _FORMAT, "version": _VERSION}) + "\n")
        with progress(f"Exporting to {path}", total) as advance:
            for batch in batches:
                for record in batch:
                    row = record.model_dump(mode="json")
                    row["embedding"] = record.embedding
                    out.write(json.dumps(row, ensure_ascii=False) + "\n")
                count += len(batch)
                advance(len(batch))
    return count


def export_lance(storage: NativeStorage, directory: Path) -> int:
    """Write every record into a new LanceDB store of CrewAI's; give the number of records.

    Raises:
        MoveError: There is a store: LanceDB would keep old and new rows of one id side by side.
    """
    if find(directory) is not None:
        raise MoveError(f"{directory} holds a store already; choose an empty directory")
    from crewai.memory.storage.lancedb_storage import LanceDBStorage

    target = LanceDBStorage(path=directory, compact_every=0)
    count = 0
    with (
        snapshot(storage, directory) as (total, batches),
        progress(f"Exporting to {directory}", total) as advance,
    ):
        for batch in batches:
            target.save(batch)
            count += len(batch)
            advance(len(batch))
    return count


@contextmanager
def snapshot(
    storage: NativeStorage, beside: Path
) -> Iterator[tuple[int, Iterator[list[MemoryRecord]]]]:
    """The number of a live store's records, and all of them at one moment, oldest first.

    Args:
        storage: The store.
        beside: Where there is room for a copy, which goes with the block.
    """
    with tempfile.TemporaryDirectory(prefix=".crewai-native-", dir=beside.parent) as directory:
        path = Path(directory) / "memory.db"
        copied = storage.backup(path)
        copy = NativeStorage(path)
        try:
            yield (copy.count() if copied else 0), _oldest_first(copy)
        finally:
            copy.close()


def _oldest_first(storage: NativeStorage) -> Iterator[list[MemoryRecord]]:
    end = storage.count()
    while end > 0:
        start = max(0, end - BATCH)
        yield storage.list_records(limit=end - start, offset=start)[::-1]
        end = start
