"""Events on their way into the record: what is left of them is what CrewAI's own code leaves."""

from __future__ import annotations

import contextvars
import os
import re
import threading
from datetime import UTC, date, datetime
from typing import Any, ClassVar
from uuid import UUID

import pytest
from crewai.events import event_bus, event_context
from crewai.events.base_events import BaseEvent
from crewai.events.event_bus import CrewAIEventsBus, crewai_event_bus
from crewai.events.event_context import EventContextConfig, MismatchBehavior
from crewai.events.stream_context import add_stream_sink
from crewai.events.types.llm_events import (
    LLMCallCompletedEvent,
    LLMCallStartedEvent,
    LLMCallType,
)
from crewai.events.types.tool_usage_events import ToolUsageFinishedEvent, ToolUsageStartedEvent
from crewai.state.event_record import EventNode, EventRecord
from crewai.state.runtime import RuntimeState
from crewai.tools.structured_tool import CrewStructuredTool
from crewai.tools.tool_failure import ToolFailure
from crewai.utilities.logger import Logger
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

import crewai_native
from crewai_native.slots import event_repairs

SLOT = "tasks.executor"


@pytest.fixture(autouse=True, scope="module")
def alone():
    slots = {status.slot: "stock" for status in crewai_native.status().slots}
    crewai_native.activate(enabled=True, slots={**slots, SLOT: "crewai-native-tasks"})
    yield
    crewai_native.deactivate()


class Checked(BaseEvent):
    """An event that pydantic validates at each assignment."""

    model_config = ConfigDict(validate_assignment=True)


class Noisy(BaseEvent):
    """An event that takes note of what is set on it."""

    seen: ClassVar[list[str]] = []

    def __setattr__(self, name: str, value: Any) -> None:
        self.seen.append(name)
        super().__setattr__(name, value)


class Frozen(BaseEvent):
    """An event that the bus cannot stamp."""

    model_config = ConfigDict(frozen=True)


class Plain(BaseEvent):
    """An event of a user."""


class StockRecord(EventRecord):
    """A record that is kept by CrewAI's own code."""

    add = EventRecord.add


NAMES = (
    "crew_kickoff_started",
    "crew_kickoff_completed",
    "task_started",
    "task_completed",
    "other",
)
EVENTS = st.lists(
    st.tuples(
        st.sampled_from([Plain, Plain, Plain, BaseEvent, Checked, Noisy, Frozen]),
        st.sampled_from(NAMES),
        st.sampled_from([None, None, None, "e0", "elsewhere"]),
        st.sampled_from([None, None, "e0", "e1"]),
    ),
    max_size=12,
)
CONFIGS = st.sampled_from(
    [
        EventContextConfig(),
        EventContextConfig(
            empty_pop_behavior=MismatchBehavior.RAISE, mismatch_behavior=MismatchBehavior.RAISE
        ),
        EventContextConfig(max_stack_depth=2),
    ]
)


def told(prepare, record_class, events, config, recorded):
    """Prepare events in a context of their own; return all that is left of it."""

    def run():
        event_context._event_context_config.set(config)
        published, left = [], []
        add_stream_sink(lambda source, event: published.append((source, event.event_id)))
        record = None
        if recorded:
            state = RuntimeState(root=[])
            record = state._event_record = record_class()
            event_bus._runtime_state_var.set(state)
        for number, (kind, name, parent, trigger) in enumerate(events):
            event = kind(
                type=name, event_id=f"e{number}", parent_event_id=parent, timestamp="2026-01-01"
            )
            event_context.set_triggering_event_id(trigger)
            raised = None
            try:
                prepare(crewai_event_bus, "source", event)
            except Exception as error:  # noqa: BLE001 - the other side must raise the same
                raised = (type(error), str(error))
            fields = event.__dict__
            left.append((list(fields.items()), sorted(event.__pydantic_fields_set__), raised))
        nodes = (
            []
            if record is None
            else [
                (
                    key,
                    node.event.event_id,
                    node.edges,
                    node.__pydantic_fields_set__,
                    node.model_dump(),
                )
                for key, node in record.nodes.items()
            ]
        )
        return (
            left,
            nodes,
            published,
            event_context._event_id_stack.get(),
            (event_context.get_last_event_id()),
        )

    return contextvars.Context().run(run)


@pytest.fixture(scope="module")
def stock():
    prepare, add = CrewAIEventsBus._prepare_event, EventRecord.add
    StockRecord.add = add.__wrapped__
    assert prepare.__wrapped__ is not prepare
    return prepare.__wrapped__


@settings(deadline=None, max_examples=150)
@given(EVENTS, CONFIGS, st.booleans())
def test_events_are_stamped_and_recorded_as_by_crewai(stock, events, config, recorded):
    for kind in {kind for kind, *_ in events} - {Frozen}:
        # How a class of events is set is known from its first one on.
        CrewAIEventsBus._prepare_event(crewai_event_bus, None, kind(type="other"))
    mine = told(CrewAIEventsBus._prepare_event, EventRecord, events, config, recorded)
    assert mine == told(stock, StockRecord, events, config, recorded)


def test_what_is_no_event_is_refused_as_ever(stock):
    del stock
    errors = []
    for record in (EventRecord(), StockRecord()):
        with pytest.raises(Exception, match="EventNode") as caught:
            record.add(object())
        errors.append(type(caught.value))
    assert errors[0] is errors[1]


def test_a_reader_is_waited_for():
    record, added = EventRecord(), threading.Event()
    with record._lock.r_locked():
        writer = threading.Thread(target=lambda: (record.add(Plain(type="other")), added.set()))
        writer.start()
        while not record._lock._cond._waiters:
            assert writer.is_alive()
        assert not added.is_set()
        assert not record.nodes
    assert added.wait(60)
    writer.join()
    assert len(record.nodes) == 1


def test_threads_that_record_at_once_lose_nothing():
    record = EventRecord()
    first = Plain(type="other", event_id="first")
    record.add(first)

    def add():
        for _ in range(200):
            record.add(Plain(type="other", parent_event_id="first"))

    threads = [threading.Thread(target=add) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(record.nodes) == 1601
    assert len(record.nodes["first"].edges["child"]) == 1600
    assert isinstance(record.nodes["first"], EventNode)


# --- sources ----------------------------------------------------------------------------------


class Model(BaseModel):
    """A source that is nothing to register."""


class Extra(BaseModel):
    """A source that may have any attribute."""

    model_config = ConfigDict(extra="allow")


class Knowing(BaseModel):
    """A source that knows of attributes that it does not have."""

    def __getattr__(self, name: str) -> Any:
        if name == "entity_type":
            return "crew"
        return super().__getattr__(name)


class Crewlike(BaseModel):
    """A source that says what it is."""

    entity_type: str = "crew"


@pytest.mark.parametrize(
    ("make", "registered"),
    [
        (Model, False),
        (lambda: Extra(entity_type="flow"), True),
        (Extra, False),
        (Knowing, True),
        (Crewlike, True),
        (lambda: Crewlike(entity_type="other"), False),
        (object, False),
    ],
)
def test_sources_are_registered_as_by_crewai(stock, make, registered):
    CrewAIEventsBus._prepare_event(crewai_event_bus, None, Plain(type="other"))

    def of(prepare):
        seen = []
        bus = crewai_event_bus
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(bus), "register_entity", lambda _, entity: seen.append(entity))
            for source in sources:
                prepare(bus, source, Plain(type="other"))
        return seen

    # The second of a class is where it is known.
    sources = [make(), make()]
    mine = contextvars.Context().run(of, CrewAIEventsBus._prepare_event)
    theirs = contextvars.Context().run(of, stock)
    assert [id(source) for source in mine] == [id(source) for source in theirs]
    assert len(mine) == 2 * registered


# --- what pydantic makes of values ------------------------------------------------------------

KINDS = (
    LLMCallStartedEvent,
    LLMCallCompletedEvent,
    ToolUsageStartedEvent,
    ToolUsageFinishedEvent,
)


class Text(str):
    """A text that pydantic may look at."""

    __slots__ = ()


class Odd(dict):
    """A dictionary of a program's own."""


class Someone:
    """An agent or a task."""

    def __init__(self, **said: Any) -> None:
        self.__dict__.update(said)


VALUES = st.sampled_from(
    [
        None,
        "text",
        "\ud800",
        Text("text"),
        "2026-01-01T00:00:00Z",
        b"bytes",
        True,
        0,
        7,
        2**70,
        1.5,
        float("inf"),
        "tool_call",
        LLMCallType.LLM_CALL,
        datetime(2026, 1, 1),  # noqa: DTZ001 - CrewAI's have none
        datetime(2026, 1, 1, tzinfo=UTC),
        date(2026, 1, 1),
        [],
        ["a", "b"],
        ["a", Text("b")],
        ("a", "b"),
        {"a", "b"},
        [1, None],
        {},
        {"a": {"b": [1]}},
        {1: "a"},
        Odd(a=1),
        [{"role": "user", "content": None}, {}],
        [{"role": "user"}, Odd(a=1)],
        [{1: "a"}],
        [{"a": 1}, None],
        object,
        ToolFailure(message="failed"),
    ]
)
PEOPLE = st.sampled_from(
    [
        None,
        0,
        Someone(id=1, role="role", name="name", description="d"),
        Someone(id="i", role=Text("role"), name=None, description="d"),
        Someone(id="i", role=None, name="", description=None),
        Someone(),
    ]
)
NEEDED = {
    "call_id": st.just("c"),
    "response": VALUES,
    "call_type": st.sampled_from([LLMCallType.TOOL_CALL, "llm_call", "no such type"]),
    "tool_name": st.just("t"),
    "tool_args": st.sampled_from([{"a": 1}, "{}", {}, None]),
    "output": VALUES,
    "started_at": st.just(datetime(2026, 1, 1)),  # noqa: DTZ001
    "finished_at": st.just(datetime(2026, 1, 2)),  # noqa: DTZ001
}


@st.composite
def said(draw: st.DrawFn) -> tuple[type, dict[str, Any]]:
    kind = draw(st.sampled_from(KINDS))
    given = {name: draw(value) for name, value in NEEDED.items() if name in kind.model_fields}
    names = st.sampled_from([*kind.model_fields, "unknown"])
    given |= draw(st.dictionaries(names, VALUES, max_size=4))
    given |= draw(st.dictionaries(st.sampled_from(["from_task", "from_agent", "agent"]), PEOPLE))
    for name in draw(st.lists(names, max_size=1)):
        given.pop(name, None)
    return kind, given


def made(initialise, kind, given):
    event = object.__new__(kind)
    try:
        initialise(event, **given)
    except Exception as error:  # noqa: BLE001 - compared
        return (type(error), re.sub(r"0x[0-9a-f]+", "", str(error)))
    # Those that are made for each event differ.
    own = {"timestamp", "event_id"} - given.keys()
    fields = [(name, None if name in own else value) for name, value in vars(event).items()]
    for name in own:
        assert vars(event)[name]
    # What is a container is a copy, except where it may be anything.
    shared = [
        name
        for name, value in fields
        if isinstance(value, list | dict) and value and value is given.get(name)
    ]
    return (
        repr(fields),
        [(name, type(value)) for name, value in fields],
        event.__pydantic_fields_set__,
        event.__pydantic_extra__,
        event.__pydantic_private__,
        shared,
    )


@settings(deadline=None, max_examples=600)
@given(said())
def test_an_event_is_made_as_pydantic_makes_it(what):
    kind, given = what
    assert made(kind.__init__, kind, given) == made(kind.__init__.__wrapped__, kind, given)


def test_an_event_that_fits_is_not_validated(monkeypatch):
    validated = []
    init = BaseEvent.__init__
    monkeypatch.setattr(BaseEvent, "__init__", lambda self, **data: validated.append(data))
    task = Someone(id=1, name=None, description="d")
    agent = Someone(id=2, role="r")
    messages = [{"role": "user", "content": "hello"}]
    event = LLMCallStartedEvent(
        call_id="c", messages=messages, tools=[{"a": {}}], from_task=task, from_agent=agent
    )
    assert not validated
    assert (event.task_id, event.task_name, event.agent_id, event.agent_role) == (
        "1",
        "d",
        "2",
        "r",
    )
    event.messages.append({})
    event.messages[0]["content"] = ""
    assert messages == [{"role": "user", "content": "hello"}]
    monkeypatch.setattr(BaseEvent, "__init__", init)
    assert LLMCallStartedEvent.model_validate(event.model_dump()) == event


# --- identifiers ------------------------------------------------------------------------------


def test_identifiers_are_random_uuids():
    made = [Plain(type="other").event_id for _ in range(1000)]
    assert len(set(made)) == 1000
    for text in made:
        parsed = UUID(text)
        assert (str(parsed), parsed.version, parsed.variant) == (text, 4, "specified in RFC 4122")
    variants = {text[19] for text in made}
    assert variants == set("89ab")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_makes_other_identifiers():
    event_repairs.event_id()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writing, event_repairs.event_id().encode())
        os._exit(0)
    os.waitpid(pid, 0)
    theirs = os.read(reading, 100).decode()
    os.close(reading)
    os.close(writing)
    assert re.fullmatch(r"[0-9a-f-]{36}", theirs)
    # The next of ours would have been the same.
    assert theirs not in {event_repairs.event_id() for _ in range(300)}


# --- loggers ----------------------------------------------------------------------------------


def test_each_tool_has_a_logger_of_its_own():
    def run(x: int) -> int:
        return x

    one, two = (CrewStructuredTool.from_function(run, name="t", description="d") for _ in range(2))
    assert one._logger == two._logger == Logger()
    assert one._logger is not two._logger
    assert one._logger.__pydantic_fields_set__ == Logger().__pydantic_fields_set__
    one._logger.verbose = True
    assert not two._logger.verbose
    assert repr(two._logger) == repr(Logger())
