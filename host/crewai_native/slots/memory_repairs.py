"""Defects of CrewAI above its memory store, mended while an isolated store serves it.

A store can keep what it is asked to keep apart; these are the places where CrewAI asks for the
wrong thing. "Isolated" is the feature that the repairs build on: the store matches scopes by
whole components, and its ``delete`` is the conjunction of what it is given, so that
``forget(record_ids=...)`` needs no wrap to stay inside ``root_scope``.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import datetime as dt
import functools
import inspect
import sys
import threading
from typing import TYPE_CHECKING, Any, Final

from crewai_native import _targets
from crewai_native.slots._base import Repair, Target

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from crewai_native._bind import Binding
    from crewai_native.slots._base import Provider

_MEMORY: Final = "crewai.memory.unified_memory:Memory"
_ENCODING: Final = "crewai.memory.encoding_flow:EncodingFlow"
_RECALL: Final = "crewai.memory.recall_flow:RecallFlow"
_BROWSER: Final = "crewai_cli.memory_tui"
_ASYNC_TWINS: Final = ("extract_memories", "remember", "remember_many", "recall")


# --- Memory -----------------------------------------------------------------------------------


class _Turn:
    """One save, or one forgetting that takes its turn among them, while it runs."""

    over = False


_turn: Final[contextvars.ContextVar[_Turn | None]] = contextvars.ContextVar(
    "crewai_native_memory_turn", default=None
)


def _forget_waits(binding: Binding, _provider: Provider) -> None:
    from crewai.memory.unified_memory import Memory

    def make_submit(submit: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(submit)
        def submit_known(self: Any, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            return submit(self, _in_turn, fn, *args, **kwargs)

        return submit_known

    def make_forget(forget: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(forget)
        def forget_after_saving(self: Any, *args: Any, **kwargs: Any) -> int:
            if _waited_for():
                return forget(self, *args, **kwargs)
            # The lock, where this CrewAI has it, holds back saves that are submitted meanwhile. It
            # is not held while waiting: what is waited for may need it.
            with getattr(self, "_reset_lock", contextlib.nullcontext()):
                with self._pending_lock:
                    saving = bool(self._pending_saves)
                if not saving:
                    return forget(self, *args, **kwargs)
                call = functools.partial(forget, self, *args, **kwargs)
                turn = self._submit_save(_attempt, call)
            deleted, error = turn.result()
            if error is not None:
                raise error
            return deleted

        return forget_after_saving

    binding.stand_in(Memory, "_submit_save", make_submit)
    binding.stand_in(Memory, "forget", make_forget)


def _in_turn(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    turn = _Turn()
    token = _turn.set(turn)
    try:
        return fn(*args, **kwargs)
    finally:
        # What the save has started, such as a thread, may live on with a copy of its context.
        turn.over = True
        _turn.reset(token)


def _waited_for() -> bool:
    """Return whether a save may be waiting for the caller, who must not wait for saves then.

    A save waits for the embedder and the model that it calls, and for every handler of events
    that is running when it ends.
    """
    turn = _turn.get()
    if turn is not None and not turn.over:
        return True
    from crewai.events.event_bus import crewai_event_bus as bus

    thread = threading.current_thread()
    # CrewAI makes both with the first event.
    handlers = getattr(getattr(bus, "_sync_executor", None), "_threads", ())
    return thread is getattr(bus, "_loop_thread", None) or thread in handlers


def _attempt(call: Callable[[], int]) -> tuple[int, Exception | None]:
    # An error of the task itself would be told of as a save that failed.
    try:
        return call(), None
    except Exception as error:  # noqa: BLE001 - raised by whoever called
        return 0, error


def _update_stays_inside(binding: Binding, _provider: Provider) -> None:
    from crewai.memory.unified_memory import Memory
    from crewai.memory.utils import join_scope_paths

    def make(update: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(update)
        def update_inside(
            self: Any,
            record_id: str,
            content: str | None = None,
            scope: str | None = None,
            *args: Any,
            **kwargs: Any,
        ) -> Any:
            if self.root_scope:
                existing = self._storage.get_record(record_id)
                if existing is not None and not _within(existing.scope, self.root_scope):
                    # The same words as for a record that does not exist: another tenant's id
                    # must not be told from an invented one.
                    raise ValueError(f"Record not found: {record_id}")
                # A scope below the root is one that a record has, which programs hand back; any
                # other is meant to begin at the root, as it is where a record is saved.
                if scope is not None and not _within(scope, self.root_scope):
                    scope = join_scope_paths(self.root_scope, scope)
            return update(self, record_id, content, scope, *args, **kwargs)

        return update_inside

    binding.stand_in(Memory, "update", make)


def _async_leaves_the_loop(binding: Binding, _provider: Provider) -> None:
    from crewai.memory.unified_memory import Memory

    for name in _ASYNC_TWINS:

        def make(twin: Callable[..., Any], name: str = name) -> Callable[..., Any]:
            @functools.wraps(twin)
            async def in_thread(self: Any, *args: Any, **kwargs: Any) -> Any:
                return await asyncio.to_thread(_awaited, getattr(self, name), *args, **kwargs)

            return in_thread

        binding.stand_in(Memory, f"a{name}", make)


def _awaited(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call something as a coroutine would, whose own StopIteration becomes another error.

    No future takes one, and whoever waited for it would wait for ever.
    """
    try:
        return call(*args, **kwargs)
    except StopIteration as error:
        raise RuntimeError("coroutine raised StopIteration") from error


def _browser_opens_it(binding: Binding, provider: Provider) -> None:
    # `crewai memory` imports its browser, and only then CrewAI, which is when this runs: in the
    # middle of the browser's constructor, whose next step looks the store's class up in its
    # module. In any other process the browser is not there and nothing is touched; importing
    # it, or LanceDB, to be prepared would cost every program seconds.
    if _BROWSER not in sys.modules:
        return
    if problems := _targets.problems(_code(f"{_BROWSER}:MemoryTUI.__init__")):
        binding.notes.append(f"crewai memory shows CrewAI's own store ({'; '.join(problems)})")
        return
    from crewai.memory.storage import lancedb_storage

    own = lancedb_storage.LanceDBStorage

    def open_store(path: Any = None) -> Any:
        storage = provider.call(spec="lancedb" if path is None else str(path))
        return own(path) if storage is None else storage

    binding.replace(lancedb_storage, "LanceDBStorage", open_store)


# --- saving: EncodingFlow ---------------------------------------------------------------------


def _consolidation_keeps_apart(binding: Binding, _provider: Provider) -> None:
    from crewai.memory.encoding_flow import EncodingFlow

    def make_find(find: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(find)
        def find_similar(self: Any) -> None:
            find(self)
            # Merging a private memory into a public one publishes it, and deleting a public one
            # in favour of a private one hides it: only records seen by the same callers may meet.
            for item in self.state.items:
                similar = [r for r in item.similar_records if _audience(r) == _audience(item)]
                item.similar_records = similar
                if not similar:
                    item.top_similarity = 0.0

        return find_similar

    def make_execute(execute: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(execute)
        def execute_plans(self: Any) -> None:
            found = {}
            for item in self.state.items:
                offered = {record.id: record for record in item.similar_records}
                found.update(offered)
                if item.plan is not None:
                    # The plan is a model's answer to text that anybody may have written. It is
                    # about the records that were put before the model and no others.
                    item.plan.actions = [a for a in item.plan.actions if a.record_id in offered]
            self._storage = _KeepsProvenance(self._storage, found)
            execute(self)

        return execute_plans

    # A flow knows its steps by name and by the objects that the decorators made: the function
    # inside is replaced, so that a step stays the object that it is.
    binding.stand_in(vars(EncodingFlow)["parallel_find_similar"], "_meth", make_find)
    binding.stand_in(vars(EncodingFlow)["execute_plans"], "_meth", make_execute)


def _embedder_is_known(binding: Binding, _provider: Provider) -> None:
    from crewai.memory.encoding_flow import EncodingFlow

    def make(execute: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(execute)
        def execute_plans(self: Any) -> None:
            made_by = getattr(self._storage, "made_by", None)
            if made_by is not None:
                made_by(self._embedder)
            execute(self)

        return execute_plans

    binding.stand_in(vars(EncodingFlow)["execute_plans"], "_meth", make)


class _KeepsProvenance:
    """A store as one save sees it: an updated record keeps the source and privacy it had."""

    def __init__(self, storage: Any, found: Mapping[str, Any]) -> None:
        self._storage = storage
        self._found = found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def update(self, record: Any) -> None:
        """Update a record that consolidation rebuilt from only some fields of the old one."""
        old = self._found[record.id]
        record.source, record.private = old.source, old.private
        self._storage.update(record)


# --- recalling: RecallFlow --------------------------------------------------------------------


def _recall_stays_inside(binding: Binding, _provider: Provider) -> None:
    from crewai.memory.recall_flow import RecallFlow
    from crewai.memory.utils import normalize_scope_path

    def make(filter_and_chunk: Callable[..., list[str]]) -> Callable[..., list[str]]:
        @functools.wraps(filter_and_chunk)
        def scopes_inside(self: Any) -> list[str]:
            filter_and_chunk(self)
            root = normalize_scope_path(self.state.scope or "/")
            analysis = self.state.query_analysis
            paths = (normalize_scope_path(path) for path in self.state.candidate_scopes)
            inside = list(dict.fromkeys(path for path in paths if _within(path, root)))
            narrowed = analysis is not None and any(analysis.suggested_scopes)
            if root not in inside and not (narrowed and inside):
                # The children that stock goes through, at most 20 of them, do not hold what was
                # saved at the scope itself.
                inside.insert(0, root)
            self.state.candidate_scopes = inside
            return inside

        return scopes_inside

    binding.stand_in(vars(RecallFlow)["filter_and_chunk"], "_meth", make)


def _shallow_recall_filters_first(binding: Binding, _provider: Provider) -> None:
    from crewai.memory.unified_memory import Memory

    def make(recall: Callable[..., Any]) -> Callable[..., Any]:
        arguments = inspect.signature(recall)

        @functools.wraps(recall)
        def recall_filtered(self: Any, *args: Any, **kwargs: Any) -> Any:
            recalling = getattr(self._storage, "recalling", None)
            given = arguments.bind(self, *args, **kwargs)
            given.apply_defaults()
            asked = given.arguments
            # A deep recall searches in threads of its own, which the other repair reaches.
            if recalling is None or asked["depth"] != "shallow":
                return recall(self, *args, **kwargs)
            with recalling(
                asked["query"], source=asked["source"], include_private=asked["include_private"]
            ):
                return recall(self, *args, **kwargs)

        return recall_filtered

    binding.stand_in(Memory, "recall", make)


def _deep_recall_filters_first(binding: Binding, _provider: Provider) -> None:
    from crewai.memory.recall_flow import RecallFlow

    def make(do_search: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(do_search)
        def search_filtered(self: Any) -> Any:
            storage = self._storage
            # The application may have made a store of its own, which takes what CrewAI passes.
            if not _takes_conditions(type(storage).search):
                return do_search(self)
            self._storage = _Filtered(storage, self.state)
            try:
                return do_search(self)
            finally:
                self._storage = storage

        return search_filtered

    binding.stand_in(RecallFlow, "_do_search", make)


class _Filtered:
    """A store as one recall sees it: ranked is only what the caller may get."""

    def __init__(self, storage: Any, state: Any) -> None:
        self._storage = storage
        self._texts = state.query_embeddings
        self._conditions = {
            "created_from": state.time_cutoff,
            "source": state.source,
            "include_private": state.include_private,
        }

    def search(self, embedding: Any, **kwargs: Any) -> Any:
        """Search with what CrewAI applies to the best few results only, and with the words."""
        text = next((text for text, vector in self._texts if vector is embedding), None)
        return self._storage.search(embedding, text=text, **kwargs, **self._conditions)


@functools.cache
def _takes_conditions(search: Any) -> bool:
    taken = set(inspect.signature(search).parameters)
    return {"created_from", "source", "include_private", "text"} <= taken


def _time_filter_with_zone(binding: Binding, _provider: Provider) -> None:
    from crewai.memory.recall_flow import RecallFlow

    def make(analyze: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(analyze)
        def analyze_query_step(self: Any) -> Any:
            analysis = analyze(self)
            cutoff = self.state.time_cutoff
            if cutoff is not None and cutoff.tzinfo is not None:
                # Records carry naive UTC; comparing the two raises, which the search takes for
                # "nothing found".
                self.state.time_cutoff = cutoff.astimezone(dt.UTC).replace(tzinfo=None)
            return analysis

        return analyze_query_step

    binding.stand_in(vars(RecallFlow)["analyze_query_step"], "_meth", make)


def _audience(item: Any) -> tuple[bool, str | None]:
    """Return who may recall a record or an item to be saved, as something to compare."""
    return (True, item.source) if item.private else (False, None)


def _within(scope: str, root: str) -> bool:
    from crewai.memory.utils import normalize_scope_path

    inner, outer = normalize_scope_path(scope), normalize_scope_path(root)
    return outer in ("/", inner) or inner.startswith(f"{outer}/")


def _code(*paths: str, passes_on: bool = True) -> tuple[Target, ...]:
    return tuple(Target(path, wrapped=True, passes_on=passes_on) for path in paths)


REPAIRS: Final = (
    Repair(
        name="forget-waits",
        summary="forget() overtakes pending background saves, and what was forgotten comes back",
        targets=_code(f"{_MEMORY}.forget", f"{_MEMORY}._submit_save"),
        feature="isolated",
        bind=_forget_waits,
    ),
    Repair(
        name="update-inside-root",
        summary="update() changes records of other roots, and update(scope=) leaves root_scope",
        targets=_code(f"{_MEMORY}.update"),
        feature="isolated",
        bind=_update_stays_inside,
    ),
    Repair(
        name="consolidation",
        summary="consolidation drops source and privacy, merges private records into public ones, "
        "and deletes whatever ids the model names",
        targets=_code(f"{_ENCODING}.parallel_find_similar", f"{_ENCODING}.execute_plans"),
        feature="isolated",
        bind=_consolidation_keeps_apart,
    ),
    Repair(
        name="embedder-known",
        summary="nothing says which embedder made a store's vectors, and vectors of another one "
        "are mixed in",
        targets=_code(f"{_ENCODING}.execute_plans"),
        feature="reembeds",
        bind=_embedder_is_known,
    ),
    Repair(
        name="recall-inside-scope",
        summary="deep recall searches scopes that the model suggests outside its own, and misses "
        "records saved exactly at its scope or below the first 20 children",
        targets=_code(f"{_RECALL}.filter_and_chunk"),
        feature="isolated",
        bind=_recall_stays_inside,
    ),
    Repair(
        name="shallow-recall-filters-first",
        summary="shallow recall drops private records from the best few results instead of "
        "leaving them out of the search, and returns fewer than it could",
        targets=_code(f"{_MEMORY}.recall"),
        feature="isolated",
        bind=_shallow_recall_filters_first,
    ),
    # Apart, as CrewAI imports what it mends with the first deep recall.
    Repair(
        name="deep-recall-filters-first",
        summary="deep recall drops private and old records from the best few results instead of "
        "leaving them out of the search, and returns fewer than it could",
        targets=_code(f"{_RECALL}._do_search"),
        feature="isolated",
        bind=_deep_recall_filters_first,
    ),
    Repair(
        name="recall-time-zone",
        summary="a time filter with a time zone finds nothing",
        targets=_code(f"{_RECALL}.analyze_query_step"),
        feature="isolated",
        bind=_time_filter_with_zone,
    ),
    Repair(
        name="memory-browser",
        summary="`crewai memory` opens LanceDB, whatever store serves",
        targets=(),
        feature="isolated",
        bind=_browser_opens_it,
    ),
    Repair(
        name="async-off-loop",
        summary="arecall(), aremember() and their like block the event loop",
        targets=_code(*(f"{_MEMORY}.a{name}" for name in _ASYNC_TWINS), passes_on=False),
        feature="isolated",
        bind=_async_leaves_the_loop,
    ),
)
"""What ``memory.storage`` mends, each on its own."""
