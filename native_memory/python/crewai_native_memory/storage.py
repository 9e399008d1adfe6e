"""The memory store as CrewAI's ``StorageBackend``."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import json
import logging
import math
import os
import threading
import time
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, ParamSpec, TypeVar

from crewai_native_memory import _native, embedders, location

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from concurrent.futures import ThreadPoolExecutor
    from datetime import datetime

    from crewai.memory.types import MemoryRecord, ScopeInfo

__all__ = ["NativeStorage"]

_P = ParamSpec("_P")
_T = TypeVar("_T")

_logger = logging.getLogger("crewai_native_memory")

_ASYNC_THREADS = 8
# Reciprocal rank fusion: the constant of the paper.
FUSION_CONSTANT = 60
_FUSION_DEPTH = 50
_FUSION_FACTOR = 5
# Fewer records are searched exactly in about the time that an approximate search takes.
_APPROXIMATE_FROM = 20_000
_pool: tuple[int, ThreadPoolExecutor] | None = None


def fusion_depth(limit: int) -> int:
    """How deep two rankings are looked at to merge them into one of so many."""
    return max(_FUSION_DEPTH, _FUSION_FACTOR * limit)


def _executor() -> ThreadPoolExecutor:
    """The threads for the asynchronous methods; new ones after a fork."""
    global _pool  # noqa: PLW0603 - one per process
    pid = os.getpid()
    if _pool is None or _pool[0] != pid:
        from concurrent.futures import ThreadPoolExecutor

        _pool = pid, ThreadPoolExecutor(_ASYNC_THREADS, thread_name_prefix="crewai-native-memory")
    return _pool[1]


async def _in_thread(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    import asyncio

    def call() -> _T:
        try:
            return function(*args, **kwargs)
        except StopIteration as error:
            # No future takes one, and whoever waited for it would wait for ever. An embedder, which
            # may raise anything, raises this where one vector is too few.
            raise RuntimeError("coroutine raised StopIteration") from error

    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(_executor(), context.run, call)


@functools.cache
def _records() -> Any:
    """The module that needs CrewAI, which is loaded by whoever calls a storage's methods."""
    return import_module("crewai_native_memory.records")


class Stats(NamedTuple):
    """Sizes of a store.

    Attributes:
        records: Number of records.
        vectors: Number of records with an embedding.
        dimension: Length of the embeddings, once there is one.
        file: Size of the file in bytes.
        log: Size in bytes of the write-ahead log beside it.
        free: Bytes in the file that ``optimize`` gives back.
    """

    records: int
    vectors: int
    dimension: int | None
    file: int
    log: int
    free: int


class _Question(NamedTuple):
    """What a recall asks for beyond the vector."""

    text: str
    source: str | None
    include_private: bool


class NativeStorage:
    """A memory store in one file, exact, and shared by threads and processes.

    It implements CrewAI's ``StorageBackend`` (and ``touch_records``, ``close``, ``optimize``).
    Making one is cheap and touches no file: reads of a store that does not exist find nothing,
    and the first write creates the file and its directory. Handles on the same file share
    connections and memory within a process; every committed write is seen by the next call on
    any handle in any process. A handle survives a fork.

    Scopes are paths of components: ``/user/1`` holds ``/user/1/notes`` and not ``/user/10``.

    Args:
        path: A file, or a directory in which ``native/memory.db`` is used. By default
            ``native/memory.db`` under CrewAI's storage directory.
        metric: How similarity is scored: ``"l2"`` as ``1 / (1 + d²)`` with the squared Euclidean
            distance, as CrewAI's default store does; ``"cosine"``; or ``"dot"``.
        hybrid: Whether a search that knows the words asked for goes by them as well
            (:meth:`search_hybrid`), as those of ``Memory.recall`` do under crewai-native.
        approximate: Whether a search may miss some of the nearest records for speed: at least
            0.98 of the true ten are found for queries like the records, where those cluster.
            True means stores of 20,000 records and more, a number those of as many and more. What
            it takes is computed in the background by each process; until then, and whenever a
            search has conditions or asks for more than 32 records, the search is exact.
        synchronous: ``"normal"``: a save that has returned survives the death of its process at
            any moment, and the newest saves can be lost with the power. ``"full"``: it survives
            that as well, for some milliseconds more per save. Asked for once, it holds for all
            handles on the file in the process.

    Raises:
        ValueError: From every method, for arguments that mean nothing.
        OSError: From every method, when the system refuses (space, permissions).
        StoreError: From every method, when the file is damaged or of a newer format.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        metric: Literal["l2", "cosine", "dot"] = "l2",
        hybrid: bool = False,
        approximate: bool | int = False,
        synchronous: Literal["normal", "full"] = "normal",
    ) -> None:
        if not isinstance(approximate, int) or approximate < 0:
            raise ValueError(
                f"approximate must be a bool or a number of records, got {approximate!r}"
            )
        if synchronous not in {"normal", "full"}:
            raise ValueError(f"synchronous must be 'normal' or 'full', got {synchronous!r}")
        file = location.default_path() if path is None else location.resolve(path)
        from_ = _APPROXIMATE_FROM if approximate is True else approximate
        self._core = _native.Store(
            file,
            metric,
            approximate_from=None if approximate is False else from_,
            synchronous=synchronous == "full",
        )
        self._metric = metric
        self._hybrid = hybrid
        self._approximate = approximate
        self._synchronous: Literal["normal", "full"] = synchronous
        self._thread = threading.local()
        self._first: Callable[[], None] | None = None
        self._after_reset: Callable[[], None] | None = None
        self._told: tuple[str, str] | None = None

    def __repr__(self) -> str:
        return f"NativeStorage({str(self.path)!r}, metric={self._metric!r})"

    def __copy__(self) -> NativeStorage:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> NativeStorage:
        # The records are in the file; a copy of a handle is the handle.
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # Whoever gets the copy knows nothing of what has to come first.
        make = functools.partial(
            NativeStorage,
            metric=self._metric,
            hybrid=self._hybrid,
            approximate=self._approximate,
            synchronous=self._synchronous,
        )
        return make, (str(self._store.path),)

    @property
    def path(self) -> str:
        """The file."""
        return str(self._core.path)

    @property
    def _store(self) -> _native.Store:
        """The core, after what has to come first."""
        if self._first is not None:
            self._first()
            self._first = None
        return self._core

    def do_first(self, prepare: Callable[[], None]) -> None:
        """Have something done before this handle's first operation.

        It is done again before the next one if it raises, and several threads may do it at once.
        """
        self._first = prepare

    def do_after_reset(self, follow: Callable[[], None]) -> None:
        """Have something done whenever this handle has deleted everything."""
        self._after_reset = follow

    # Writing

    def save(self, records: list[MemoryRecord]) -> None:
        """Saves all records, or none if one of them cannot be saved.

        A record whose id is already stored is replaced. One without an embedding is stored and
        listed but never found by similarity.

        Raises:
            EmbeddingDimensionMismatchError: The embeddings differ in length, from one another
                or from the store's.
            ValueError: A record holds a value that cannot be stored.
        """
        module = _records()
        batch = _native.Batch()
        for record in records:
            module.add_record(batch, record)
        try:
            self._store.save(batch)
        except _native.DimensionError as error:
            raise module.EmbeddingDimensionMismatchError(*error.args) from None

    def update(self, record: MemoryRecord) -> None:
        """Replaces the record with the same id, or saves it if there is none."""
        self.save([record])

    def touch_records(self, record_ids: list[str]) -> None:
        """Sets ``last_accessed`` of these records to now."""
        self._store.touch(list(record_ids), time.time_ns() // 1000)

    def delete(
        self,
        scope_prefix: str | None = None,
        categories: list[str] | None = None,
        record_ids: list[str] | None = None,
        older_than: datetime | None = None,
        metadata_filter: dict[str, Any] | None = None,
    ) -> int:
        """Deletes the records that meet every condition that is given.

        Without any condition that is every record. A condition that is given but empty (no ids,
        no categories, no metadata) is met by no record: what was meant as a selection never
        becomes everything.

        Args:
            scope_prefix: Records in this scope and below.
            categories: Records with at least one of these.
            record_ids: Records with one of these ids.
            older_than: Records created before; UTC if naive.
            metadata_filter: Records whose metadata has all of these values.

        Returns:
            The number of records deleted.
        """
        empty = [
            given is not None and len(given) == 0
            for given in (categories, record_ids, metadata_filter)
        ]
        if any(empty):
            return 0
        return self._store.delete(
            scope=scope_prefix,
            categories=None if categories is None else list(categories),
            record_ids=None if record_ids is None else list(record_ids),
            created_before=_microseconds("older_than", older_than),
            metadata=_json("metadata_filter", metadata_filter),
        )

    def reset(self, scope_prefix: str | None = None) -> None:
        """Deletes a scope.

        Without one, or with the root, it deletes everything: then the next save may have
        embeddings of another length.
        """
        self._store.reset(scope_prefix)
        if self._after_reset is not None and not (scope_prefix or "").strip("/"):
            self._after_reset()

    # Reading

    def search(  # noqa: PLR0917 - CrewAI's own signature
        self,
        query_embedding: Sequence[float],
        scope_prefix: str | None = None,
        categories: list[str] | None = None,
        metadata_filter: dict[str, Any] | None = None,
        limit: int = 10,
        min_score: float = 0.0,
        *,
        created_from: datetime | None = None,
        created_before: datetime | None = None,
        sources: Iterable[str] | None = None,
        source: str | None = None,
        include_private: bool = True,
        text: str | None = None,
    ) -> list[tuple[MemoryRecord, float]]:
        """Finds the records most similar to a vector, among those that meet every condition.

        The result is the one of comparing with every vector. Conditions apply before the ranking,
        so a filtered search returns the best ``limit`` of what the filter admits.

        Args:
            query_embedding: As long as the stored embeddings.
            scope_prefix: Only records in this scope and below.
            categories: Only records with at least one of these; an empty list asks for nothing
                in particular.
            metadata_filter: Only records whose metadata has all of these values.
            limit: At most so many results.
            min_score: Only results with at least this score.
            created_from: Only records created then or later; UTC if naive.
            created_before: Only records created before; UTC if naive.
            sources: Only records from one of these.
            source: Who asks; matters with ``include_private=False``.
            include_private: If false, private records are left out unless they came from
                ``source``.
            text: The words that the vector stands for. Where the storage was made with
                ``hybrid=True``, records are ranked by them as well, and a score is that of
                :meth:`search_hybrid` divided by the highest one possible.

        Returns:
            (record, score) pairs, best first; records with equal scores in the order of their ids.

        Raises:
            EmbeddingDimensionMismatchError: The query is not as long as the stored embeddings.
        """
        if limit <= 0:
            return []
        question: _Question | None = getattr(self._thread, "question", None)
        if question is not None:
            text, source, include_private = question
        if text and self._hybrid:
            return self._search_recalled(
                text,
                query_embedding,
                min_score,
                scope_prefix=scope_prefix,
                categories=categories,
                metadata_filter=metadata_filter,
                limit=limit,
                created_from=created_from,
                created_before=created_before,
                sources=sources,
                source=source,
                include_private=include_private,
            )
        module = _records()
        try:
            rows = self._store.search(
                query_embedding,
                limit=limit,
                min_score=min_score,
                scope=scope_prefix,
                categories=list(categories) if categories else None,
                metadata=_json("metadata_filter", metadata_filter or None),
                created_from=_microseconds("created_from", created_from),
                created_before=_microseconds("created_before", created_before),
                sources=None if sources is None else list(sources),
                include_private=include_private,
                viewer=source,
            )
        except _native.DimensionError as error:
            raise module.EmbeddingDimensionMismatchError(*error.args) from None
        return [module.record_at(rows, at) for at in range(len(rows))]

    def search_text(
        self,
        text: str,
        scope_prefix: str | None = None,
        categories: list[str] | None = None,
        metadata_filter: dict[str, Any] | None = None,
        limit: int = 10,
        *,
        created_from: datetime | None = None,
        created_before: datetime | None = None,
        sources: Iterable[str] | None = None,
        source: str | None = None,
        include_private: bool = True,
    ) -> list[tuple[MemoryRecord, float]]:
        """Finds the records with the most, and the rarest, words of a text (BM25).

        Words are compared without regard to case and accents. Of Chinese, Japanese and Korean,
        every two letters that follow one another are taken for a word. The first call on a store
        indexes its contents, and the index is kept up to date from then on. The conditions are
        those of :meth:`search`.

        Returns:
            (record, score) pairs, best first, equal scores in the order of ids. A score is above
            0 and has no upper limit; it compares within one result only.
        """
        if limit <= 0:
            return []
        rows = _native.search_text(
            self._store,
            text,
            limit=limit,
            scope=scope_prefix,
            categories=list(categories) if categories else None,
            metadata=_json("metadata_filter", metadata_filter or None),
            created_from=_microseconds("created_from", created_from),
            created_before=_microseconds("created_before", created_before),
            sources=None if sources is None else list(sources),
            include_private=include_private,
            viewer=source,
        )
        module = _records()
        return [module.record_at(rows, at) for at in range(len(rows))]

    def search_hybrid(
        self,
        text: str,
        query_embedding: Sequence[float],
        scope_prefix: str | None = None,
        categories: list[str] | None = None,
        *,
        metadata_filter: dict[str, Any] | None = None,
        limit: int = 10,
        **conditions: Any,
    ) -> list[tuple[MemoryRecord, float]]:
        """Finds records by their words and by similarity: :meth:`search_text` and :meth:`search`.

        The two rankings are merged by reciprocal rank fusion (Cormack, Clarke and Büttcher,
        SIGIR 2009): a record scores the sum of ``1 / (60 + rank)``.

        Returns:
            (record, score) pairs, best first, equal scores in the order of ids.
        """
        chosen = (scope_prefix, categories, metadata_filter, fusion_depth(limit))
        scores: dict[str, float] = {}
        records: dict[str, MemoryRecord] = {}
        by_similarity = self.search(query_embedding, *chosen, min_score=-math.inf, **conditions)
        for found in (by_similarity, self.search_text(text, *chosen, **conditions)):
            for rank, (record, _) in enumerate(found, start=1):
                records.setdefault(record.id, record)
                scores[record.id] = scores.get(record.id, 0.0) + 1 / (FUSION_CONSTANT + rank)
        best = sorted(scores, key=lambda id_: (-scores[id_], id_))[: max(limit, 0)]
        return [(records[id_], scores[id_]) for id_ in best]

    def _search_recalled(
        self, text: str, query_embedding: Sequence[float], min_score: float, **conditions: Any
    ) -> list[tuple[MemoryRecord, float]]:
        with self._asked(None):
            found = self.search_hybrid(text, query_embedding, **conditions)
        highest = 2 / (FUSION_CONSTANT + 1)
        return [
            (record, score / highest) for record, score in found if score / highest >= min_score
        ]

    def recalling(
        self, text: str, *, source: str | None, include_private: bool
    ) -> contextlib.AbstractContextManager[None]:
        """Let this thread's searches in a block be those of a recall, which cannot say it itself.

        CrewAI's recall passes a vector and drops private records from what it gets. In the block
        they are left out of the ranking, and the words asked for are known.
        """
        return self._asked(_Question(text, source, include_private))

    @contextlib.contextmanager
    def _asked(self, question: _Question | None) -> Iterator[None]:
        before = getattr(self._thread, "question", None)
        self._thread.question = question
        try:
            yield
        finally:
            self._thread.question = before

    def get_record(self, record_id: str) -> MemoryRecord | None:
        """The record with this id, or None."""
        return next(_each(self._store.get(record_id)), None)

    def are_from(self, record_ids: list[str], source: str) -> list[bool]:
        """Say of each of these ids whether a record with it and this source is stored.

        That costs a fraction of reading the records.
        """
        return self._store.are_from(record_ids, source)

    def list_records(
        self, scope_prefix: str | None = None, limit: int = 200, offset: int = 0
    ) -> list[MemoryRecord]:
        """Records of a scope, newest first; of the same age, last saved first."""
        if limit <= 0 or offset < 0:
            return []
        return list(_each(self._store.list(scope_prefix or "/", limit, offset)))

    def get_scope_info(self, scope: str) -> ScopeInfo:
        """What a scope and everything below it holds, under its normalised path."""
        module = _records()
        path, records, categories, oldest, newest, children = self._store.scope_info(scope)
        info: ScopeInfo = module.ScopeInfo(
            path=path,
            record_count=records,
            categories=categories,
            oldest_record=None if oldest is None else module.datetime_of(oldest),
            newest_record=None if newest is None else module.datetime_of(newest),
            child_scopes=children,
        )
        return info

    def list_scopes(self, parent: str = "/") -> list[str]:
        """Full paths of the scopes one level below, sorted."""
        return self._store.children(parent)

    def list_categories(self, scope_prefix: str | None = None) -> dict[str, int]:
        """Categories of a scope, sorted, and how many records have each."""
        return dict(self._store.categories(scope_prefix or "/"))

    def count(self, scope_prefix: str | None = None) -> int:
        """Number of records in a scope."""
        return self._store.count(scope_prefix or "/")

    # Life cycle

    def optimize(self) -> None:
        """Gives the space of deleted records back to the file system."""
        self._store.optimize()

    def close(self) -> None:
        """Lets go of the file. The handle stays usable: its next call opens the file again."""
        self._core.close()

    def note(self, key: Literal["embedder", "import"]) -> str | None:
        """What the store was told to remember: which embedder made its vectors, what it imported."""
        return _native.note(self._store, key)

    def set_note(self, key: Literal["embedder", "import"], text: str) -> None:
        """Have the store remember something."""
        _native.set_note(self._store, key, text)

    def made_by(self, embedder: Callable[..., Any]) -> None:
        """Take note of the embedder that made what is being saved; warn where it is another one.

        Vectors of different embedders cannot be compared, even if they are of one length. The
        store is asked each time, as `reembed` may have exchanged its vectors meanwhile, in
        another process; what it says is told once.
        """
        name = embedders.identity(embedder)
        known = self.note("embedder")
        if known == name:
            return
        if known is None or embedders.is_same(known, name):
            self.set_note("embedder", name)
        elif self._told != (known, name):
            self._told = known, name
            _logger.warning(
                "the vectors of %s were made by %s, and new ones by %s are not comparable with "
                "them; `crewai-native memory reembed` makes them all anew",
                self.path,
                known,
                name,
            )

    def stats(self) -> Stats:
        """The store's sizes; zeros where there is none."""
        return Stats(*_native.stats(self._store))

    def check(self) -> list[str]:
        """Read everything, compare it with its checksums and counts, and say what is wrong.

        Raises:
            StoreError: The file cannot be opened at all.
        """
        return _native.check(self._store)

    def backup(self, path: str | os.PathLike[str]) -> bool:
        """Copy the store to a new file while it is in use; say whether there was one to copy.

        Raises:
            ValueError: There is a file at ``path``.
        """
        return _native.backup(self._store, path)

    # Asynchronous twins; each runs in a thread and never blocks the event loop.

    async def asave(self, records: list[MemoryRecord]) -> None:
        """:meth:`save`, without blocking the event loop."""
        await _in_thread(self.save, records)

    async def asearch(  # noqa: PLR0917 - CrewAI's own signature
        self,
        query_embedding: Sequence[float],
        scope_prefix: str | None = None,
        categories: list[str] | None = None,
        metadata_filter: dict[str, Any] | None = None,
        limit: int = 10,
        min_score: float = 0.0,
        **conditions: Any,
    ) -> list[tuple[MemoryRecord, float]]:
        """:meth:`search`, without blocking the event loop."""
        return await _in_thread(
            self.search,
            query_embedding,
            scope_prefix,
            categories,
            metadata_filter,
            limit,
            min_score,
            **conditions,
        )

    async def adelete(
        self,
        scope_prefix: str | None = None,
        categories: list[str] | None = None,
        record_ids: list[str] | None = None,
        older_than: datetime | None = None,
        metadata_filter: dict[str, Any] | None = None,
    ) -> int:
        """:meth:`delete`, without blocking the event loop."""
        return await _in_thread(
            self.delete, scope_prefix, categories, record_ids, older_than, metadata_filter
        )


def _each(rows: _native.Rows) -> Iterator[MemoryRecord]:
    module = _records()
    for at in range(len(rows)):
        yield module.record_at(rows, at)[0]


def _microseconds(name: str, moment: datetime | None) -> int | None:
    if moment is None:
        return None
    try:
        microseconds: int = _records().microseconds_of(moment)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"{name}: {error}") from None
    return microseconds


def _json(name: str, values: dict[str, Any] | None) -> str | None:
    if values is None:
        return None
    try:
        return json.dumps(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be JSON: {error}") from error
