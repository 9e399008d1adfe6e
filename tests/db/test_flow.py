"""The states of flows: what is stored is what CrewAI's own persistence stores."""

from __future__ import annotations

import copy
import json
import math
import pickle
import random
import sqlite3
import tempfile
import uuid
from contextlib import closing
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from crewai.flow.async_feedback.types import HumanFeedbackPending, PendingFeedbackContext
from crewai.flow.flow import Flow, start
from crewai.flow.human_feedback import human_feedback
from crewai.flow.persistence import persist
from crewai.flow.persistence.sqlite import SQLiteFlowPersistence
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, RootModel

from crewai_native_db import DatabaseError
from crewai_native_db.persistence import NativeFlowPersistence

ALL = 2**31


class Point(BaseModel):
    x: int
    when: datetime | None = None


class Odd(BaseModel):
    """A model that has no JSON form."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    thing: object

    def __str__(self):
        return "odd"


class Plain:
    def __str__(self):
        return "plain"


class Numbers(RootModel[list[int]]):
    pass


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
ODD = (
    st.sets(st.integers(), max_size=1)
    | st.tuples(st.integers(), st.text())
    | st.datetimes()
    | st.dates()
    | st.floats()
    | st.binary()
    | st.text(st.characters(categories=["Cs"]), max_size=2)
    | st.builds(Point, x=st.integers(), when=st.none() | st.datetimes())
    | st.builds(Odd, thing=st.just({1, 2}))
    | st.builds(Plain)
    | st.dictionaries(st.integers() | st.booleans() | st.none(), st.integers(), max_size=2)
)
STATES = (
    st.dictionaries(st.text(), JSON | ODD, max_size=6)
    | st.builds(Point, x=st.integers(), when=st.datetimes())
    | st.builds(Odd, thing=JSON)
    | st.builds(Numbers, st.lists(st.integers()))
)
FLOWS = st.sampled_from(["a", "b", "ö", "a'b", ""])


def context(flow: str, message: str = "?") -> PendingFeedbackContext:
    return PendingFeedbackContext(
        flow_id=flow, flow_class="m.F", method_name="asked", method_output={"o": 1}, message=message
    )


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["save", "pend", "clear", "reopen"]), FLOWS, STATES), max_size=12
    )
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_it_stores_what_stock_stores_byte_for_byte(steps):  # noqa: C901 - a list of steps
    with tempfile.TemporaryDirectory() as place:
        stock = SQLiteFlowPersistence(f"{place}/stock.db")
        native = NativeFlowPersistence(f"{place}/native.db", synchronous="normal")
        for number, (step, flow, state) in enumerate(steps):
            for store in (stock, native):
                if step == "save":
                    store.save_state(flow, f"m{number}", state)
                elif step == "pend":
                    store.save_pending_feedback(flow, context(flow, f"{number}"), state)
                elif step == "clear":
                    store.clear_pending_feedback(flow)
            if step == "reopen":
                native.close()
                native = NativeFlowPersistence(f"{place}/native.db")
            for known in ("a", "b", "ö", "a'b", "", "unknown"):
                ours, theirs = native.load_state(known), stock.load_state(known)
                assert json.dumps(ours) == json.dumps(theirs)
                pending = native.load_pending_feedback(known), stock.load_pending_feedback(known)
                if pending[1] is None:
                    assert pending[0] is None
                else:
                    (ours, asked), (theirs, expected) = pending
                    assert json.dumps(ours) == json.dumps(theirs)
                    assert (asked.message, asked.method_name) == (expected.message, "asked")
        with closing(sqlite3.connect(f"{place}/stock.db")) as db:
            rows = db.execute(
                "SELECT flow_uuid, method_name, state_json FROM flow_states"
            ).fetchall()
        kept = []
        for flow in native._store.flows():
            for number, method, _, size, _ in native._store.history(flow, ALL):
                text = native._store.load_at(number)
                assert len(text) == size
                kept.append((number, (flow, method, text)))
        assert [row for _, row in sorted(kept)] == rows
        assert native._store.check() == []
        native.close()


@given(state=st.dictionaries(st.text(), JSON, max_size=5), odd=ODD)
@settings(max_examples=60, deadline=None)
def test_strict_takes_what_comes_back_and_nothing_else(state, odd):
    with tempfile.TemporaryDirectory() as place:
        store = NativeFlowPersistence(f"{place}/native.db", strict=True, synchronous="normal")
        store.save_state("f", "m", state)
        assert store.load_state("f") == state
        hostile = {**state, "odd": [odd]}
        if odd in ("", {}) or (isinstance(odd, float) and math.isfinite(odd)):
            store.save_state("f", "m", hostile)
        else:
            with pytest.raises(ValueError, match=r"\$\.odd\[0\]"):
                store.save_state("f", "m", hostile)
            assert store.load_state("f") == state
        store.close()


def test_strict_takes_a_model_that_survives_json_and_names_the_field_that_does_not(tmp_path):
    class Lossy(BaseModel):
        good: int = 1
        bad: object = None

    store = NativeFlowPersistence(str(tmp_path / "n.db"), strict=True)
    store.save_state("f", "m", Point(x=1, when=datetime(2026, 1, 2, tzinfo=UTC)))
    assert Point.model_validate(store.load_state("f")) == Point(
        x=1, when=datetime(2026, 1, 2, tzinfo=UTC)
    )
    with pytest.raises(ValueError, match="Lossy would not come back as it is: bad"):
        store.save_state("f", "m", Lossy(bad=(1, 2)))


@pytest.mark.parametrize("state", [None, [1], "text", 7])
def test_what_is_no_state_is_refused_as_stock_does(native, stock, state):
    for store in (native, stock):
        with pytest.raises(ValueError, match="must be either a Pydantic BaseModel or dict"):
            store.save_state("f", "m", state)
    assert native.load_state("f") is None


def conversation(length: int, seed: int = 1) -> list[dict[str, object]]:
    chance = random.Random(seed)
    words = ["alpha", "river", "invoice", "seven", "please", "Berlin", "order", "the", "of"]
    messages: list[dict[str, str]] = []
    states = []
    for turn in range(length):
        text = " ".join(chance.choices(words, k=60)) + f" {chance.random()}"
        messages.append({"role": "user" if turn % 2 else "assistant", "content": text})
        states.append({"id": "chat", "turn": turn, "messages": list(messages)})
    return states


@pytest.mark.parametrize("number", [42, -1, 2**40, True, 7.5])
def test_an_id_that_is_a_number_is_its_text(native, stock, number):
    for store in (native, stock):
        store.save_state(number, "m", {"id": number})
        assert store.load_state(number) == {"id": number}
        assert store.load_state(str(int(number) if number is True else number)) == {"id": number}
        context = PendingFeedbackContext(
            flow_id=str(number), flow_class="x.Y", method_name="m", method_output=1, message="?"
        )
        store.save_pending_feedback(number, context, {"waits": True})
        assert store.load_pending_feedback(number)[0] == {"waits": True}
        store.clear_pending_feedback(number)
        assert store.load_pending_feedback(number) is None


def test_an_id_of_another_type_is_refused(native):
    for wrong in (None, [1], uuid.UUID(int=1)):
        with pytest.raises(TypeError, match="flow_uuid accepts a str, a number or bytes, got"):
            native.save_state(wrong, "m", {})


def test_an_id_of_bytes_works_as_in_stock(native, stock):
    for store in (native, stock):
        store.save_state(b"\xff", "m", {"id": b"\xff"})
        assert store.load_state(b"\xff") == {"id": "b'\\xff'"}
        assert store.load_state(b"x") is None


def test_no_id_has_no_state(native, stock):
    class Plain(Flow):
        @start()
        def begin(self):
            return self.state["x"]

    for store in (native, stock):
        store.save_state("None", "m", {"id": "None"})
        assert store.load_state(None) is None
        assert store.load_pending_feedback(None) is None
        assert store.clear_pending_feedback(None) is None
        assert Plain(persistence=store).kickoff(inputs={"id": None, "x": 1}) == 1


def test_every_state_of_a_long_history_comes_back_and_takes_little_space(tmp_path):
    states = conversation(300)
    store = NativeFlowPersistence(str(tmp_path / "n.db"), synchronous="normal")
    for turn, state in enumerate(states):
        if turn % 50 == 25:
            store.close()
        store.save_state("chat", f"m{turn}", state)
    history = store._store.history("chat", ALL)
    assert [method for _, method, *_ in history] == [f"m{n}" for n in range(299, -1, -1)]
    for (number, *_), state in zip(reversed(history), states, strict=True):
        assert json.loads(store._store.load_at(number)) == state
    totals = store._store.totals()
    store.close()
    on_disk = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert totals["text_bytes"] == sum(len(json.dumps(state)) for state in states)
    assert on_disk < totals["text_bytes"] / 20


@pytest.mark.parametrize(
    "store",
    [
        "native",
        pytest.param("stock", marks=pytest.mark.xfail(reason="every state is stored whole")),
    ],
)
def test_what_grows_is_what_changed(request, store):
    store = request.getfixturevalue(store)
    states = conversation(60)
    for state in states:
        store.save_state("chat", "m", state)
    whole = sum(len(json.dumps(state)) for state in states)
    if isinstance(store, NativeFlowPersistence):
        store.close()
    assert Path(store.db_path).stat().st_size < whole / 4


@pytest.mark.parametrize("keep", [1, 2, 7])
def test_a_bounded_history_keeps_the_newest_readable(tmp_path, keep):
    store = NativeFlowPersistence(str(tmp_path / "n.db"), keep=keep, synchronous="normal")
    states = conversation(40)
    for state in states:
        store.save_state("chat", "m", state)
        store.save_state("other", "m", {"n": state["turn"]})
        newest = store._store.history("chat", keep)
        for (number, *_), expected in zip(
            newest, reversed(states[: state["turn"] + 1]), strict=False
        ):
            assert json.loads(store._store.load_at(number)) == expected
        # The newest ones, and what they are stored as differences from.
        assert len(store._store.history("chat", ALL)) <= 2 * keep
    assert store.load_state("other") == {"n": 39}
    assert store._store.check() == []


def test_a_bounded_history_keeps_what_waits_for_an_answer(tmp_path):
    store = NativeFlowPersistence(str(tmp_path / "n.db"), keep=1)
    states = conversation(20)
    store.save_state("chat", "m", states[0])
    store.save_pending_feedback("chat", context("chat"), states[1])
    for state in states[2:]:
        store.save_state("chat", "m", state)
    assert store.load_pending_feedback("chat")[0] == states[1]
    assert store.load_state("chat") == states[-1]


def test_prune_drops_what_is_old_or_too_many_and_keeps_the_waiting(native):
    for state in conversation(10):
        native.save_state("chat", "m", state)
    native.save_pending_feedback("waits", context("waits"), {"n": 1})
    store = native._store
    assert store.prune(keep=3) > 0
    assert 3 <= len(store.history("chat", ALL)) <= 6
    assert native.load_state("chat")["turn"] == 9
    newest = store.history("chat", 1)[0][2]
    assert store.prune(before=newest) == 0
    assert store.prune(before=2**60) > 0
    assert store.flows() == ["waits"]
    assert native.load_state("chat") is None
    assert native.load_pending_feedback("waits")[0] == {"n": 1}
    native.save_state("chat", "m", {"again": True})
    assert native.load_state("chat") == {"again": True}
    before = Path(native.db_path).stat().st_size
    store.vacuum()
    assert Path(native.db_path).stat().st_size <= before
    assert store.check() == []


def test_a_store_that_is_replaced_under_a_running_process_costs_no_state(native):
    states = conversation(10)
    for state in states[:5]:
        native.save_state("chat", "m", state)
    place = Path(native.db_path)
    for file in place.parent.glob("native.db*"):
        file.unlink()
    assert native.load_state("chat") is None
    # What the handle would make a delta against is gone with the file.
    for state in states[5:]:
        native.save_state("chat", "m", state)
        assert native.load_state("chat") == state
    assert native._store.check() == []


@pytest.mark.parametrize(
    "cls",
    [
        NativeFlowPersistence,
        pytest.param(
            SQLiteFlowPersistence, marks=pytest.mark.xfail(reason="needs the directory to exist")
        ),
    ],
)
def test_a_place_that_does_not_exist_yet_is_made(tmp_path, cls):
    store = cls(str(tmp_path / "not" / "yet" / "flows.db"))
    store.save_state("f", "m", {"n": 1})
    assert store.load_state("f") == {"n": 1}


def test_copies_and_pickles_are_handles_on_the_same_file(native):
    native.save_state("f", "m", {"n": 1})
    for other in (
        copy.copy(native),
        copy.deepcopy(native),
        pickle.loads(pickle.dumps(native)),
        native.model_copy(deep=True),
        NativeFlowPersistence.model_validate(native.model_dump(mode="json")),
    ):
        assert other.load_state("f") == {"n": 1}
        other.save_state("f", "m", {"n": 1})


def test_nothing_is_touched_by_reading_a_place_where_nothing_is(tmp_path):
    store = NativeFlowPersistence(str(tmp_path / "deep" / "n.db"))
    assert store.load_state("f") is None
    assert store.load_pending_feedback("f") is None
    assert store._store.flows() == []
    assert store._store.prune(keep=1) == 0
    assert store._store.check() == []
    assert store._store.totals()["states"] == 0
    store._store.vacuum()
    store.clear_pending_feedback("f")
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize("bad", [{"keep": 0}, {"keep": -1}, {"synchronous": "off"}])
def test_a_setting_that_means_nothing_is_an_error(tmp_path, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        NativeFlowPersistence(str(tmp_path / "n.db"), **bad)


# Taking over CrewAI's own file


@pytest.fixture
def old(crewai_home):
    """States and a question in CrewAI's own store at the default place."""
    stock = SQLiteFlowPersistence()
    for state in conversation(30):
        stock.save_state("chat", f"m{state['turn']}", state)
        stock.save_state(f"flow{state['turn'] % 7}", "m", {"turn": state["turn"]})
    stock.save_pending_feedback("chat", context("chat", "go on?"), {"id": "chat", "turn": 99})
    return stock


def test_what_stock_has_stored_is_taken_over_once(old, stock_rows, monkeypatch):
    before = Path(old.db_path).read_bytes()
    monkeypatch.setattr("crewai_native_db.imports._BATCH", 7)
    store = NativeFlowPersistence()
    for flow in ("chat", *(f"flow{n}" for n in range(7))):
        assert store.load_state(flow) == old.load_state(flow)
    state, asked = store.load_pending_feedback("chat")
    assert (state, asked) == old.load_pending_feedback("chat")
    kept = [
        (number, (flow, method, store._store.load_at(number)))
        for flow in store._store.flows()
        for number, method, *_ in store._store.history(flow, ALL)
    ]
    assert [row for _, row in sorted(kept)] == stock_rows(old)
    assert Path(old.db_path).read_bytes() == before

    store.save_state("chat", "m", {"newer": True})
    store.clear_pending_feedback("chat")
    old.save_state("late", "m", {})
    for again in (store, NativeFlowPersistence()):
        again.init_db()
        assert again.load_state("chat") == {"newer": True}
        assert again.load_pending_feedback("chat") is None
        assert again.load_state("late") is None


@pytest.mark.parametrize("name", ["plain", "c#", "what?", "100%41", "a b&c=d", "é"])
def test_states_are_taken_over_whatever_the_place_is_called(tmp_path, name):
    home = tmp_path / name
    home.mkdir()
    old = SQLiteFlowPersistence(str(home / "flow_states.db"))
    old.save_state("chat", "m", {"turn": 1})
    store = NativeFlowPersistence(str(tmp_path / "n.db"), import_from=str(home / "flow_states.db"))
    assert store.load_state("chat") == {"turn": 1}
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [name]


def test_an_interrupted_take_over_goes_on_where_it_stopped(old, stock_rows, monkeypatch):
    monkeypatch.setattr("crewai_native_db.imports._BATCH", 7)
    from crewai_native_db import imports

    class InterruptedHereError(Exception):
        pass

    batches = imports._batches

    def breaking(rows):
        for number, batch in enumerate(batches(rows)):
            if number == 3:
                raise InterruptedHereError
            yield batch

    monkeypatch.setattr(imports, "_batches", breaking)
    with pytest.raises(InterruptedHereError):
        NativeFlowPersistence()
    monkeypatch.setattr(imports, "_batches", batches)
    store = NativeFlowPersistence()
    assert store._store.totals()["states"] == len(stock_rows(old))
    assert store.load_state("chat") == old.load_state("chat")


def test_a_file_that_cannot_be_taken_over_is_named(crewai_home):
    from crewai_core.paths import db_storage_path

    place = Path(db_storage_path()) / "flow_states.db"
    place.write_text("Dear diary")
    with pytest.raises(DatabaseError, match=r"flow_states\.db.*cannot be taken over"):
        NativeFlowPersistence()
    assert place.read_text() == "Dear diary"


def test_rows_that_cannot_be_read_stay_behind_and_are_named(old, caplog):
    rows = [
        ("f1", "m", "2026-01-01", b'{"n": 1}'),
        (b"f2", "m", "2026-01-01", '{"n": 2}'),
        ("f3", "m", "yesterday", '{"n": 3}'),
        ("f4", "m", 1767225600, '{"n": 4}'),
        ("f5", "m", "2026-01-01", "{oops"),
        ("f6", "m", "2026-01-01", b"\xff"),
        ("f7", b"\xff", "2026-01-01", "{}"),
    ]
    contexts = [
        ("f1", "{"),
        ("f2", "{}"),
        ("f3", "[]"),
        ("f4", b"\xff"),
        ("f5", '{"method_name":1}'),
    ]
    contexts.append(("f6", '{"method_name": "\\ud800"}'))
    with closing(sqlite3.connect(old.db_path)) as db, db:
        db.executemany(
            "INSERT INTO flow_states (flow_uuid, method_name, timestamp, state_json)"
            " VALUES (?, ?, ?, ?)",
            rows,
        )
        db.execute(
            "INSERT INTO flow_states (flow_uuid, method_name, timestamp, state_json)"
            " VALUES ('f8', 'm', '2026-01-01', CAST(x'ff' AS TEXT))"
        )
        db.executemany(
            "INSERT INTO pending_feedback (flow_uuid, context_json, state_json, created_at)"
            " VALUES (?, ?, '{}', '2026-01-01')",
            contexts,
        )
    store = NativeFlowPersistence()
    for flow in ("f1", b"f2", "f3", "f4", "chat"):
        assert store.load_state(flow) == old.load_state(flow) is not None
    for persistence in (store, old):
        with pytest.raises(json.JSONDecodeError):
            persistence.load_state("f5")
    for flow in ("f6", "f7", "f8"):
        assert store.load_state(flow) is None
    assert store.load_pending_feedback("chat") == old.load_pending_feedback("chat")
    for flow, _ in contexts:
        assert store.load_pending_feedback(flow) is None
    told = [message for message in caplog.messages if old.db_path in message]
    assert sum("stays behind" in message for message in told) == 3 + len(contexts)
    assert sum("has no time" in message for message in told) == 2
    assert any(
        "row 3 of pending_feedback cannot be read and stays behind: its context has no "
        "'method_name'" in message
        for message in told
    )
    caplog.clear()
    NativeFlowPersistence()
    assert not caplog.messages


def test_another_place_takes_over_nothing_unless_told(old, tmp_path):
    assert NativeFlowPersistence(str(tmp_path / "n.db")).load_state("chat") is None
    told = NativeFlowPersistence(str(tmp_path / "n.db"), import_from=old.db_path)
    assert told.load_state("chat") == old.load_state("chat")


# In real flows


class Counter(BaseModel):
    id: str = "counter"
    count: int = 0
    day: date = date(2026, 1, 1)


@pytest.mark.parametrize("cls", [NativeFlowPersistence, SQLiteFlowPersistence])
def test_a_flow_goes_on_where_it_stopped(tmp_path, cls):
    store = cls(str(tmp_path / "flows.db"))

    @persist(store)
    class Counting(Flow[Counter]):
        @start()
        def step(self):
            self.state.count += 1
            return self.state.count

    assert [Counting().kickoff(inputs={"id": "counter"}) for _ in range(3)] == [1, 2, 3]
    assert store.load_state("counter")["count"] == 3
    # A fork of the history: a new flow that begins with the state of another.
    assert Counting().kickoff(restore_from_state_id="counter") == 4
    assert store.load_state("counter")["count"] == 3


class Later:
    def request_feedback(self, context, flow):
        raise HumanFeedbackPending(context=context)


class Reviewed(Flow[Counter]):
    @start()
    @human_feedback(message="good?", provider=Later())
    def draft(self):
        self.state.count = 7
        return "a draft"


@pytest.mark.parametrize("cls", [NativeFlowPersistence, SQLiteFlowPersistence])
def test_a_flow_waits_for_an_answer_and_goes_on_with_it(tmp_path, cls):
    store = cls(str(tmp_path / "flows.db"))
    flow = Reviewed(persistence=store)
    paused = flow.kickoff(inputs={"id": "r"})
    assert isinstance(paused, HumanFeedbackPending)
    assert store.load_state("r")["count"] == 7
    state, asked = store.load_pending_feedback("r")
    assert state["count"] == 7
    assert asked.message == "good?"
    resumed = Reviewed.from_pending("r", store)
    assert resumed.state.count == 7
    result = resumed.resume("yes")
    assert result.feedback == "yes"
    assert store.load_pending_feedback("r") is None


def test_the_class_is_found_again_by_its_name(native):
    from crewai.flow.persistence.base import _persistence_registry
    from crewai.flow.runtime import _resolve_persistence

    assert _persistence_registry[native.persistence_type] is NativeFlowPersistence
    native.save_state("f", "m", {"n": 1})
    restored = _resolve_persistence(json.loads(native.model_dump_json()))
    assert isinstance(restored, NativeFlowPersistence)
    assert restored.load_state("f") == {"n": 1}
    assert restored.keep == native.keep
    assert restored.db_path == native.db_path
