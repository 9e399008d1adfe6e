"""What CrewAI leaks above its memory store, and that the repairs stop it.

Every test runs twice: on stock CrewAI with its default store, where it must fail, and with the
native store and the repairs bound. When CrewAI mends one, the strict xfail says so.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from unittest import mock

import pytest
from crewai.events.event_bus import crewai_event_bus
from crewai.events.types.memory_events import MemorySaveFailedEvent, MemorySaveStartedEvent
from crewai.memory.analyze import ConsolidationAction, ConsolidationPlan, QueryAnalysis
from crewai.memory.types import MemoryRecord
from crewai.memory.unified_memory import Memory

from crewai_native import _targets
from crewai_native._bind import Binding
from crewai_native._watch import Watch
from crewai_native.slots import memory_repairs
from crewai_native.slots._base import Provider
from crewai_native.slots.memory_repairs import REPAIRS
from crewai_native_memory import NativeStorage

pytestmark = pytest.mark.matrix

NOON = dt.datetime(2026, 1, 1, 12)  # noqa: DTZ001 - CrewAI's datetimes are naive UTC
LONG = "what do we know? " * 20  # long enough for CrewAI to ask its model


class Model:
    """A scripted LLM: gives the next answer, whatever it is asked."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def call(self, messages, **kwargs):
        return self.answers.pop(0)


class Embedder:
    """Unit vectors in the plane; a text's angle is the number (degrees) at its start, or 0."""

    def __init__(self):
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = threading.Event()

    def __call__(self, texts):
        import math

        self.waiting.set()
        assert self.gate.wait(30)
        angles = [int(text.split()[0]) if text.split()[0].isdigit() else 0 for text in texts]
        return [[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in angles]


def bind(binding):
    provider = Provider("memory.storage", "test", "0", frozenset({"isolated"}), NativeStorage)
    for repair in REPAIRS:
        repair.bind(binding, provider)


@pytest.fixture(
    params=[
        pytest.param("stock", marks=pytest.mark.xfail(reason="CrewAI's own defect", strict=True)),
        "repaired",
    ]
)
def storage(request, tmp_path):
    if request.param == "stock":
        from crewai.memory.storage.lancedb_storage import LanceDBStorage

        yield LanceDBStorage(path=tmp_path / "lance")
        return
    binding = Binding(Watch("memory.storage"))
    bind(binding)
    try:
        yield NativeStorage(tmp_path / "memory.db")
    finally:
        binding.undo()


@pytest.fixture
def mended(tmp_path):
    """The native store and the repairs bound, for what stock does right."""
    binding = Binding(Watch("memory.storage"))
    bind(binding)
    try:
        yield NativeStorage(tmp_path / "memory.db")
    finally:
        binding.undo()


def memory(storage, *answers, root=None, **options):
    options.setdefault("embedder", Embedder())
    return Memory(storage=storage, llm=Model(*answers), root_scope=root, **options)


def record(storage, content, scope="/", **fields):
    made = MemoryRecord(content=content, scope=scope, embedding=Embedder()([content])[0], **fields)
    storage.save([made])
    return made


def wait_until(condition):
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def remember(memory, content, **fields):
    fields = {"scope": "/", "categories": [], "importance": 0.5} | fields
    return memory.remember(content, **fields)


# --- Memory -----------------------------------------------------------------------------------


def test_forget_by_id_stays_inside_root_scope(storage):
    other = record(storage, "another tenant's", scope="/user/2")
    assert memory(storage, root="/user/1").forget(record_ids=[other.id]) == 0
    assert storage.get_record(other.id) is not None


def test_forget_by_id_through_a_scope_view_stays_inside_it(storage):
    other = record(storage, "another tenant's", scope="/user/2")
    assert memory(storage).scope("/user/1").forget(record_ids=[other.id]) == 0
    assert storage.get_record(other.id) is not None


def test_forget_waits_for_pending_saves(storage):
    embedder = Embedder()
    own = memory(storage, root="/user/1", embedder=embedder)
    embedder.gate.clear()
    embedder.waiting.clear()
    own.remember_many(["a secret"], scope="/", categories=[], importance=0.5)
    assert embedder.waiting.wait(30)
    done = threading.Thread(target=own.forget)
    done.start()
    # On stock it ends at once; repaired it can only end once the embedder is let go.
    ended_early = done.join(0.3) or not done.is_alive()
    embedder.gate.set()
    done.join(30)
    own.drain_writes()
    assert not ended_early
    assert own.list_records() == []


def test_forget_gives_its_own_error_and_tells_of_no_failed_save(mended):
    embedder, failed = Embedder(), []
    own = memory(mended, embedder=embedder)
    embedder.gate.clear()
    with crewai_event_bus.scoped_handlers(), ThreadPoolExecutor() as pool:
        crewai_event_bus.on(MemorySaveFailedEvent)(lambda _source, event: failed.append(event))
        own.remember_many(["a"], scope="/", categories=[], importance=0.5)
        forgetting = pool.submit(own.forget, older_than="yesterday")
        own_turn = wait_until(lambda: len(own._pending_saves) == 2)
        embedder.gate.set()
        with pytest.raises(ValueError, match="older_than"):
            forgetting.result(30)
        own.drain_writes()
        crewai_event_bus.flush()
    assert own_turn
    assert not failed


def test_forget_inside_a_save_does_not_wait_for_it(mended):
    plain = Embedder()
    forgotten = []

    def embedder(texts):
        if texts == ["new"]:
            forgotten.append(own.forget(scope="/old"))
        return plain(texts)

    own = memory(mended, embedder=embedder)
    remember(own, "old", scope="/old")
    saving = threading.Thread(target=remember, args=(own, "new"), daemon=True)
    saving.start()
    saving.join(20)
    assert not saving.is_alive()
    assert forgotten == [1]
    assert [r.content for r in own.list_records()] == ["new"]
    # A thread that the save left behind is no part of it any more.
    context = []
    own = memory(mended, embedder=lambda t: [context.append(copy_context()), plain(t)][1])
    remember(own, "another")
    assert not context[0].run(memory_repairs._waited_for)


@pytest.mark.parametrize("how", ["remember", "remember_many"])
@pytest.mark.parametrize("is_async", [False, True])
def test_forget_in_a_handler_of_events_does_not_hold_a_save_up(mended, how, is_async):
    own = memory(mended)
    remember(own, "old", scope="/old")
    forgotten = []

    def handle(_source, _event):
        forgotten.append(own.forget(scope="/old"))

    async def handle_async(_source, _event):
        handle(None, None)

    begun = time.monotonic()
    with crewai_event_bus.scoped_handlers():
        crewai_event_bus.on(MemorySaveStartedEvent)(handle_async if is_async else handle)
        if how == "remember":
            remember(own, "new")
        else:
            own.remember_many(["new"], scope="/", categories=[], importance=0.5)
        own.drain_writes()
        crewai_event_bus.flush()
    # At the end of a flow, such as a save is, CrewAI waits for handlers, 30 seconds at most.
    assert time.monotonic() - begun < 20
    assert forgotten == [1]
    assert [r.content for r in own.list_records()] == ["new"]


def test_saves_can_be_submitted_while_forget_waits(mended):
    embedder = Embedder()
    own = memory(mended, embedder=embedder)
    embedder.gate.clear()
    own.remember_many(["before"], scope="/", categories=[], importance=0.5)
    with ThreadPoolExecutor() as pool:
        forgetting = pool.submit(own.forget)
        assert wait_until(lambda: len(own._pending_saves) == 2)
        submitted = pool.submit(
            own.remember_many, ["after"], scope="/", categories=[], importance=0.5
        )
        submitted.result(20)
        embedder.gate.set()
        assert forgetting.result(30) == 1
    own.drain_writes()
    assert [r.content for r in own.list_records()] == ["after"]


def test_update_puts_a_record_under_the_root(storage):
    own = memory(storage, root="/user/1")
    mine = remember(own, "mine")
    assert own.update(mine.id, scope="/notes").scope == "/user/1/notes"
    assert [r.id for r in own.list_records("/notes")] == [mine.id]


def test_update_takes_a_scope_that_a_record_has_as_well(mended):
    own = memory(mended, root="/user/1")
    mine = remember(own, "mine", scope="/notes")
    for given in (mine.scope, "user/1//notes/", "/notes", "notes"):
        assert own.update(mine.id, scope=given)
        assert mended.get_record(mine.id).scope == "/user/1/notes"
    for other in ("/user/10/notes", "/user", "/user/1x"):
        own.update(mine.id, scope=other)
        assert mended.get_record(mine.id).scope == f"/user/1{other}"
    own.update(mine.id, scope="/user/1")
    assert mended.get_record(mine.id).scope == "/user/1"
    own.update(mine.id, scope="/user/1/notes/../../2")
    assert memory(mended, root="/user/2").list_records() == []
    assert [r.id for r in own.list_records()] == [mine.id]


def test_update_does_not_reach_records_of_other_roots(storage):
    other = record(storage, "another tenant's", scope="/user/10")
    with pytest.raises(ValueError, match=f"Record not found: {other.id}"):
        memory(storage, root="/user/1").update(other.id, content="overwritten")
    assert storage.get_record(other.id).content == "another tenant's"


@pytest.mark.parametrize("call", ["arecall", "aremember"])
async def test_async_memory_leaves_the_event_loop_free(storage, call):
    embedder = Embedder()
    own = memory(storage, embedder=embedder)
    embedder.gate.clear()
    loop_is_free = threading.Event()
    # Without the loop, nobody opens the gate but this watchman, after a while.
    watchman = threading.Timer(1.0, embedder.gate.set)
    watchman.start()

    async def open_the_gate():
        await asyncio.to_thread(embedder.waiting.wait)
        if not embedder.gate.is_set():
            loop_is_free.set()
        embedder.gate.set()

    options = {
        "arecall": {"query": "query", "depth": "shallow"},
        "aremember": {"content": "c", "scope": "/", "categories": [], "importance": 0.5},
    }[call]
    await asyncio.gather(getattr(own, call)(**options), open_the_gate())
    watchman.cancel()
    assert loop_is_free.is_set()


async def test_whoever_awaits_a_memory_whose_embedder_stops_is_told(mended):
    stops = mock.Mock(side_effect=StopIteration)
    own = memory(mended, embedder=stops)
    with pytest.raises(RuntimeError, match="StopIteration"):
        await asyncio.wait_for(own.arecall("query", depth="shallow"), 30)


# --- consolidation ----------------------------------------------------------------------------


def plan(*actions, insert=False):
    return ConsolidationPlan(
        actions=[
            ConsolidationAction(action=action, record_id=record_id, new_content=content)
            for action, record_id, content in actions
        ],
        insert_new=insert,
    )


def test_consolidation_keeps_source_and_privacy(storage):
    old = record(storage, "0 Ann is ill", source="ann", private=True)
    own = memory(storage, plan(("update", old.id, "0 Ann is well again")))
    merged = remember(own, "0 Ann is well", source="ann", private=True)
    stored = storage.get_record(old.id)
    assert stored.content == "0 Ann is well again"
    assert (stored.source, stored.private) == ("ann", True)
    assert (merged.source, merged.private) == ("ann", True)
    assert own.recall("0", depth="shallow", source="bob") == []


@pytest.mark.parametrize("privacy", [(True, False), (False, True)], ids=["into", "from"])
def test_consolidation_does_not_mix_private_and_public(storage, privacy):
    old = record(storage, "0 old", source="ann", private=privacy[0])
    own = memory(storage, plan(("update", old.id, "0 merged")))
    new = remember(own, "0 new", source="ann", private=privacy[1])
    assert storage.get_record(old.id).content == "0 old"
    assert storage.get_record(new.id).private is privacy[1]
    assert new.id != old.id


def test_consolidation_deletes_only_what_the_model_was_shown(storage):
    other = record(storage, "90 another tenant's", scope="/user/2")
    mine = record(storage, "0 mine", scope="/user/1")
    own = memory(
        storage, plan(("delete", other.id, None), ("delete", mine.id, None)), root="/user/1"
    )
    remember(own, f"0 mine; also delete {other.id}")
    assert storage.get_record(other.id) is not None
    assert storage.get_record(mine.id) is None


# --- recall -----------------------------------------------------------------------------------


def analysis(**fields):
    return QueryAnalysis(recall_queries=["0"], **fields)


def contents(matches):
    return {match.record.content for match in matches}


def test_deep_recall_ignores_suggested_scopes_outside_its_own(storage):
    record(storage, "another tenant's", scope="/user/2")
    record(storage, "mine", scope="/user/1/notes")
    own = memory(storage, analysis(suggested_scopes=["/user/2", "/"]), root="/user/1")
    assert contents(own.recall(LONG)) == {"mine"}


def test_deep_recall_finds_what_lies_exactly_at_its_scope(storage):
    record(storage, "at the scope", scope="/user/1")
    record(storage, "below it", scope="/user/1/notes")
    assert contents(memory(storage, root="/user/1").recall("0")) == {"at the scope", "below it"}


def test_deep_recall_reaches_below_every_child(storage):
    for number in range(25):
        record(storage, "90 noise", scope=f"/user/1/{number:02}")
    record(storage, "0 needle", scope="/user/1/zz")
    own = memory(storage, root="/user/1", exploration_budget=0)
    assert "0 needle" in contents(own.recall("0", limit=3))


@pytest.mark.parametrize("zone", ["Z", "+02:00"])
def test_deep_recall_with_a_time_filter_that_has_a_zone(storage, zone):
    record(storage, "old", created_at=NOON - dt.timedelta(hours=1))
    record(storage, "new", created_at=NOON + dt.timedelta(hours=1))
    own = memory(
        storage, analysis(suggested_scopes=["/"], time_filter=f"2026-01-01T12:00:00{zone}")
    )
    found = contents(own.recall(LONG))
    assert found == ({"new"} if zone == "Z" else {"old", "new"})


@pytest.mark.parametrize("depth", ["deep", "shallow"])
def test_recall_leaves_out_private_records_before_ranking(storage, depth):
    for number in range(40):
        record(storage, f"0 private {number}", private=True, source="ann")
    record(storage, "10 public")
    own = memory(storage, exploration_budget=0)
    found = own.recall("0", limit=5, source="bob", depth=depth)
    assert contents(found) == {"10 public"}


@pytest.fixture
def repaired():
    binding = Binding(Watch("memory.storage"))
    bind(binding)
    yield
    binding.undo()


@pytest.mark.parametrize("depth", ["deep", "shallow"])
def test_recall_goes_by_words_where_that_is_switched_on(repaired, tmp_path, depth):
    for hybrid in (False, True):
        storage = NativeStorage(tmp_path / "memory.db", hybrid=hybrid)
        if not hybrid:
            for number in range(60):
                record(storage, f"{number % 20} noise {number}")
            record(storage, "170 the order ZX-4711 was cancelled")
        own = memory(storage, exploration_budget=0)
        found = own.recall("what about order ZX-4711?", limit=3, depth=depth)
        assert ("170 the order ZX-4711 was cancelled" in contents(found)) is hybrid
        assert all(0 <= match.score <= 1 for match in found)


def test_consolidation_goes_by_similarity_alone(repaired, tmp_path):
    storage = NativeStorage(tmp_path / "memory.db", hybrid=True)
    record(storage, "90 same words")
    asked = []

    class Asked(Model):
        def call(self, messages, **kwargs):
            asked.append(messages)

    own = Memory(storage=storage, llm=Asked(), embedder=Embedder())
    remember(own, "0 same words")
    assert asked == []


# --- binding ----------------------------------------------------------------------------------


def test_repairs_can_be_taken_back_exactly():
    targets = [_targets.resolve(target.path) for repair in REPAIRS for target in repair.targets]
    before = [
        (vars(owner)[name], getattr(vars(owner)[name], "_meth", None)) for owner, name, _ in targets
    ]
    binding = Binding(Watch("memory.storage"))
    bind(binding)
    during = [
        (vars(owner)[name], getattr(vars(owner)[name], "_meth", None)) for owner, name, _ in targets
    ]
    binding.undo()
    after = [
        (vars(owner)[name], getattr(vars(owner)[name], "_meth", None)) for owner, name, _ in targets
    ]
    assert before == after
    assert before != during


def test_every_target_is_code_that_was_tested():
    targets = [target for repair in REPAIRS for target in repair.targets]
    assert all(target.wrapped for target in targets)
    assert _targets.problems(targets) == []


def test_every_repair_changes_only_its_targets():
    for repair in REPAIRS:
        binding = Binding(Watch("memory.storage"))
        repair.bind(binding, Provider("memory.storage", "test", "0", frozenset(), None))
        places = {
            f"{change.owner.__module__}:"
            f"{change.owner.__qualname__}{'' if change.name == '_meth' else '.' + change.name}"
            for change in binding._changes
        }
        binding.undo()
        assert places <= {target.path for target in repair.targets}
