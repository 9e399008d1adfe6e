"""Cases for ``crewai-native bench memory``: the store against CrewAI's own and Qdrant's engine.

All sides hold the same records, made from a seed, and must find the same. CrewAI's own store is
its LanceDB backend; ``qdrant-edge`` is the engine of its other backend with the shard held open,
which that backend opens anew for every operation.

Sizes are options of ``memory``: ``bench_records`` ("1k", "1k,10k,100k"), ``bench_dimensions``
("1536", "384,1536,3072") and ``bench_data`` ("clustered", "topics" or "uniform"; see `Corpus`).
In the environment: ``CREWAI_NATIVE_MEMORY_BENCH_RECORDS=100k crewai-native bench memory``.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import itertools
import json
import mmap
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from crewai_native.bench import Case, Measured, Unavailable, identical
from crewai_native_memory.storage import NativeStorage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from crewai.memory.types import MemoryRecord

    Operation = Callable[[Any, "Corpus"], Callable[[], Any]]

_RIVAL: Final = "qdrant-edge"
_BATCH: Final = 1000
_QUERIES: Final = 64
_CLUSTERS: Final = 64
_DATA: Final = ("clustered", "topics", "uniform")
# Records of a topic, on average.
_TOPIC: Final = 50
_CREWS: Final = 8
_CATEGORIES: Final = ("fact", "decision", "preference", "todo", "contact")
_EPOCH: Final = datetime(2026, 1, 1)  # noqa: DTZ001 - CrewAI's datetimes are naive UTC
# Building the largest LanceDB table takes minutes.
_TIMEOUT: Final = 3600.0
_STATM: Final = Path("/proc/self/statm")


@dataclasses.dataclass(frozen=True, slots=True)
class Corpus:
    """Records to be stored and vectors to be searched for, the same on every side.

    Attributes:
        records: How many.
        dimensions: Length of an embedding.
        data: "clustered" around 64 centres, in any order; "topics", many small clusters one after
            another, as sessions leave them, whose vectors differ along few directions most; or
            "uniform" on the sphere.
    """

    records: int
    dimensions: int
    data: str

    def vectors(self) -> tuple[Any, Any]:
        """Unit vectors: (records, dimensions) of the records and (64, dimensions) of queries."""
        return _vectors(self.records, self.dimensions, self.data)

    def record(self, number: int, id_: str | None = None) -> MemoryRecord:
        """Return one of the records, or one like it under another id."""
        from crewai.memory.types import MemoryRecord

        number %= self.records
        return MemoryRecord(
            id=id_ or f"r{number}",
            content=f"memory {number}: the agent noted item {number * 7919 % 1000}",
            scope=f"/crew/{number % _CREWS}/agent{number % 32}",
            categories=[_CATEGORIES[number % len(_CATEGORIES)]],
            metadata={"k": number % 10, "src": "bench"},
            importance=number % 10 / 10,
            created_at=_EPOCH + timedelta(seconds=number),
            last_accessed=_EPOCH + timedelta(seconds=number),
            embedding=self.vectors()[0][number].tolist(),
        )

    def fill(self, storage: Any) -> None:
        """Save every record."""
        for start in range(0, self.records, _BATCH):
            numbers = range(start, min(start + _BATCH, self.records))
            storage.save([self.record(number) for number in numbers])


@functools.lru_cache(maxsize=1)
def _vectors(records: int, dimensions: int, data: str) -> tuple[Any, Any]:
    try:
        import numpy as np
    except ModuleNotFoundError as error:
        raise Unavailable("needs numpy") from error
    rng = np.random.default_rng(7)

    clusters = max(1, records // _TOPIC) if data == "topics" else _CLUSTERS

    def unit(count: int, spread: float) -> Any:
        made = rng.standard_normal((count, dimensions), dtype=np.float32)
        if data != "uniform":
            near = rng.integers(0, clusters, count)
            if data == "topics":
                near.sort()
            made = centres[near] + spread * made
        if data == "topics":
            made /= np.sqrt(1 + np.arange(dimensions, dtype=np.float32))
        return made / np.linalg.norm(made, axis=1, keepdims=True)

    centres = rng.standard_normal((clusters, dimensions), dtype=np.float32)
    return unit(records, 0.7), unit(_QUERIES, 0.7)


# --- the sides --------------------------------------------------------------------------------


class _Shard:
    """Qdrant's engine with the shard open, as far as a search goes."""

    def __init__(self, directory: Path, dimensions: int) -> None:
        try:
            import qdrant_edge
        except ModuleNotFoundError as error:
            raise Unavailable("needs qdrant-edge-py") from error
        from crewai.memory.storage import qdrant_edge_storage

        self._edge: Any = qdrant_edge
        self._stock: Any = qdrant_edge_storage
        backend = qdrant_edge_storage.QdrantEdgeStorage(path=directory, vector_dim=dimensions)
        backend._closed = True  # noqa: SLF001 - only its translations are used
        self._backend: Any = backend
        directory.mkdir(parents=True, exist_ok=True)
        self._shard: Any = qdrant_edge.EdgeShard.create(
            str(directory / "open"),
            backend._config,  # noqa: SLF001
        )
        backend._ensure_indexes(self._shard)  # noqa: SLF001

    def save(self, records: list[MemoryRecord]) -> None:
        points = [self._backend._record_to_point(record) for record in records]  # noqa: SLF001
        self._shard.update(self._edge.UpdateOperation.upsert_points(points))

    def search(
        self,
        query_embedding: list[float],
        scope_prefix: str | None = None,
        categories: list[str] | None = None,
        limit: int = 10,
    ) -> list[tuple[MemoryRecord, float]]:
        edge = self._edge
        wanted = [
            edge.FieldCondition(key=key, match=edge.MatchValue(value=value))
            for key, value in (
                ("scope_ancestors", scope_prefix),
                ("categories", categories and categories[0]),
            )
            if value
        ]
        found = self._shard.query(
            edge.QueryRequest(
                query=edge.Query.Nearest(list(query_embedding), using=self._stock.VECTOR_NAME),
                filter=edge.Filter(must=wanted) if wanted else None,
                limit=limit,
                with_payload=True,
                with_vector=False,
            )
        )
        return [
            (self._backend._payload_to_record(point.payload), point.score)  # noqa: SLF001
            for point in found
        ]

    def finish(self) -> None:
        self._shard.optimize()


def _open(side: str, directory: Path, corpus: Corpus) -> Any:
    if side == _RIVAL:
        return _Shard(directory, corpus.dimensions)
    if side == "native":
        return NativeStorage(directory / "memory.db")
    from crewai.memory.storage.lancedb_storage import LanceDBStorage

    return LanceDBStorage(path=directory)


def _directory() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="crewai-native-bench-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


@functools.lru_cache(maxsize=8)
def _filled(side: str, corpus: Corpus, purpose: str) -> tuple[Any, Path]:  # noqa: ARG001
    """A side's store with all records; reading cases share one, each writing case has its own."""
    directory = _directory()
    storage = _open(side, directory, corpus)
    corpus.fill(storage)
    for tidy in ("optimize", "finish"):
        if side != "stock" and hasattr(storage, tidy):
            getattr(storage, tidy)()
    if side == "stock":
        _compact(storage)
    return storage, directory


def _compact(storage: Any) -> None:
    """Do what stock's own compaction would do in time.

    One of those may be under way; LanceDB then tells the second of the two to begin anew.
    """
    for left in reversed(range(10)):
        try:
            storage._table.optimize()  # noqa: SLF001
        except (OSError, RuntimeError) as error:
            if left == 0 or "conflict" not in str(error).lower():
                raise
            time.sleep(0.5)
        else:
            return


# --- the operations ---------------------------------------------------------------------------


def _search(**conditions: Any) -> Operation:
    def operation(storage: Any, corpus: Corpus) -> Callable[[], Any]:
        queries = itertools.cycle([query.tolist() for query in corpus.vectors()[1]])
        return lambda: storage.search(next(queries), limit=10, **conditions)

    return operation


def _on_random_records(act: Callable[[Any, Corpus, int], Any]) -> Operation:
    def operation(storage: Any, corpus: Corpus) -> Callable[[], Any]:
        # A stride that shares no factor with a power of ten visits every record.
        numbers = itertools.count(1, 7919)
        return lambda: act(storage, corpus, next(numbers) % corpus.records)

    return operation


def _save_one(storage: Any, corpus: Corpus) -> Callable[[], Any]:
    numbers = itertools.count()

    def run() -> Measured:
        record = corpus.record(number := next(numbers), f"new{number}")
        return _timed(lambda: storage.save([record]))

    return run


def _delete_one(storage: Any, corpus: Corpus) -> Callable[[], Any]:
    numbers = itertools.count()

    def run() -> Measured:
        id_ = f"doomed{next(numbers)}"
        storage.save([corpus.record(0, id_)])
        return _timed(lambda: storage.delete(record_ids=[id_]))

    return run


def _update(storage: Any, corpus: Corpus, number: int) -> Any:
    record = corpus.record(number)
    record.content = f"memory {number}, revised"
    return _timed(lambda: storage.update(record))


def _touch(storage: Any, corpus: Corpus, number: int) -> Any:
    ids = [f"r{(number + offset) % corpus.records}" for offset in range(10)]
    return storage.touch_records(ids)


def _timed(work: Callable[[], Any]) -> Measured:
    start = time.perf_counter()
    result = work()
    return Measured(time.perf_counter() - start, result)


def _ids(result: Any) -> list[str]:
    if isinstance(result, list):
        return [(one[0] if isinstance(one, tuple) else one).id for one in result]
    return [result.id]


def _scope(info: Any) -> list[Any]:
    return [info.record_count, sorted(info.categories), sorted(info.child_scopes)]


def _nothing(_result: Any) -> None:
    return None


def _as_the_rival(results: Mapping[str, Any]) -> str | None:
    """Compare with the rival only: CrewAI's store applies the filter after the ranking."""
    if results["native"] == results.get(_RIVAL, results["native"]):
        return None
    return f"native gave another result than {_RIVAL}"


# --- the cases --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class _Kind:
    name: str
    description: str
    operation: Operation
    observe: Callable[[Any], Any]
    targets: Mapping[int, float]
    rival: bool = False
    writes: bool = False
    exact_stock: bool = True


_ALWAYS_200: Final = {100_000: 200.0}
_SCOPE: Final = "/crew/3"

_KINDS: Final = (
    _Kind(
        "search",
        "the 10 most similar of all records, exact, records included",
        _search(),
        _ids,
        {1000: 20.0, 10_000: 30.0, 100_000: 60.0},
        rival=True,
    ),
    _Kind(
        "search-scope",
        "the 10 most similar in a scope that holds 1/8 of the records",
        _search(scope_prefix=_SCOPE),
        _ids,
        {100_000: 60.0},
        rival=True,
    ),
    _Kind(
        "search-category",
        "the 10 most similar of a category that 1/5 of the records have",
        _search(categories=["decision"]),
        _ids,
        {100_000: 60.0},
        rival=True,
        exact_stock=False,
    ),
    _Kind(
        "save",
        "save one record, durable against kill -9",
        _save_one,
        _nothing,
        {1000: 25.0, 10_000: 25.0, 100_000: 25.0},
        writes=True,
    ),
    _Kind(
        "get",
        "get_record",
        _on_random_records(lambda storage, _, number: storage.get_record(f"r{number}")),
        _ids,
        {100_000: 50.0},
    ),
    _Kind(
        "touch",
        "touch_records of 10 records, as after every recall",
        _on_random_records(_touch),
        _nothing,
        {100_000: 50.0},
        writes=True,
    ),
    _Kind(
        "update",
        "update one record's text",
        _on_random_records(_update),
        _nothing,
        {100_000: 50.0},
        writes=True,
    ),
    _Kind(
        "delete",
        "delete one record by its id",
        _delete_one,
        lambda count: count,
        {100_000: 50.0},
        writes=True,
    ),
    _Kind(
        "list",
        "list_records(limit=50)",
        lambda storage, _: lambda: storage.list_records(limit=50),
        _ids,
        _ALWAYS_200,
    ),
    _Kind(
        "scope-info",
        "get_scope_info of a scope that holds 1/8 of the records",
        lambda storage, _: lambda: storage.get_scope_info(_SCOPE),
        _scope,
        _ALWAYS_200,
    ),
    _Kind(
        "scopes",
        "list_scopes",
        lambda storage, _: lambda: storage.list_scopes("/crew"),
        list,
        _ALWAYS_200,
    ),
    _Kind(
        "categories",
        "list_categories of a scope",
        lambda storage, _: lambda: storage.list_categories(_SCOPE),
        dict,
        _ALWAYS_200,
    ),
    _Kind(
        "count",
        "count of a scope",
        lambda storage, _: lambda: storage.count(_SCOPE),
        int,
        _ALWAYS_200,
    ),
)


def cases(options: Mapping[str, Any]) -> Iterator[Case]:
    """Return the cases for the sizes that the options name.

    Raises:
        ValueError: An option means nothing.
    """
    for records, dimensions, data in itertools.product(
        [_number("bench_records", text) for text in _list(options, "bench_records", "1k")],
        [_number("bench_dimensions", text) for text in _list(options, "bench_dimensions", "1536")],
        _list(options, "bench_data", "clustered"),
    ):
        if data not in _DATA:
            raise ValueError(f"memory.bench_data accepts {', '.join(_DATA)}, not {data!r}")
        yield from _cases(Corpus(records, dimensions, data))


def _cases(corpus: Corpus) -> Iterator[Case]:
    shared: dict[str, Any] = {
        "group": "memory",
        "slot": "memory.storage",
        "parameters": {"n": corpus.records, "dim": corpus.dimensions, "data": corpus.data},
        "timeout": _TIMEOUT,
    }
    for kind in _KINDS:
        yield Case(
            name=kind.name,
            description=kind.description,
            setup=functools.partial(_prepared, kind, corpus),
            sides=("stock", "native", _RIVAL) if kind.rival else ("stock", "native"),
            observe=kind.observe,
            target=kind.targets.get(corpus.records),
            **shared,
            check=identical if kind.exact_stock else _as_the_rival,
        )
    yield Case(
        name="open",
        description="open an existing store and answer the first search",
        setup=functools.partial(_first_search, corpus),
        observe=_ids,
        target=15.0 if corpus.records >= 100_000 else None,  # noqa: PLR2004
        **shared,
    )
    yield Case(
        name="resident",
        description=f"memory that a process takes to open it and to search {_QUERIES} times",
        setup=functools.partial(_resident, corpus),
        observe=list,
        unit="B",
        target=5.0 if corpus.records >= 100_000 else None,  # noqa: PLR2004
        **shared,
    )
    yield Case(
        name="load",
        description=f"fill an empty store with {_BATCH} records at once",
        setup=functools.partial(_load, corpus),
        observe=_nothing,
        fresh=True,
        target=3.0,
        **shared,
    )


def _prepared(kind: _Kind, corpus: Corpus, side: str) -> Callable[[], Any]:
    storage, _ = _filled(side, corpus, kind.name if kind.writes else "")
    return kind.operation(storage, corpus)


def _first_search(corpus: Corpus, side: str) -> Callable[[], Any]:
    storage, directory = _filled(side, corpus, "open")
    if side == "native":
        storage.close()
    query = corpus.vectors()[1][0].tolist()

    def run() -> Any:
        opened = _open(side, directory, corpus)
        found = opened.search(query, limit=10)
        if side == "native":
            opened.close()
        return found

    return run


def _resident(corpus: Corpus, side: str) -> Callable[[], Any]:
    if not _STATM.exists():
        raise Unavailable("needs /proc/self/statm, which Linux has")
    _, directory = _filled(side, corpus, "open")
    queries = directory / "queries.json"
    queries.write_text(json.dumps(corpus.vectors()[1].tolist()))
    # Only a new process has nothing of the benchmark's own data.
    program = f"from {__name__} import say_resident; say_resident()"
    command = [sys.executable, "-c", program, side, str(directory), str(queries)]

    def run() -> Measured:
        ended = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - our own
        said = json.loads(ended.stdout)
        return Measured(said["bytes"], said["found"])

    return run


def say_resident() -> None:
    """Search a store in a process that does nothing else, and say what memory that took."""
    import crewai  # noqa: F401 - what programs have anyway

    side, directory, file = sys.argv[1:]
    queries = json.loads(Path(file).read_text())
    before = _pages()
    storage = _open(side, Path(directory), Corpus(0, len(queries[0]), ""))
    found = [[record.id for record, _ in storage.search(query, limit=10)] for query in queries]
    print(json.dumps({"bytes": (_pages() - before) * mmap.PAGESIZE, "found": found}))  # noqa: T201


def _pages() -> int:
    return int(_STATM.read_text().split()[1])


def _load(corpus: Corpus, side: str) -> Callable[[], Any]:
    directory = _directory()
    records = [corpus.record(number, f"r{number}") for number in range(_BATCH)]

    def run() -> None:
        _open(side, directory, corpus).save(records)

    return run


def _list(options: Mapping[str, Any], name: str, default: str) -> list[str]:
    value = options.get(name, default)
    return [
        str(one).strip() for one in (value if isinstance(value, list) else str(value).split(","))
    ]


def _number(name: str, text: str) -> int:
    digits, factor = (text[:-1], 1000) if text.endswith("k") else (text, 1)
    if not digits.isdecimal() or int(digits) == 0:
        raise ValueError(f"memory.{name} accepts numbers such as 1000 or 10k, not {text!r}")
    return int(digits) * factor
