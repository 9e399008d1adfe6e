"""Events on their way into the record: what is left of them is what CrewAI's own code leaves."""

from __future__ import annotations

import contextvars
import os
import re
import threading
from typing import Any, ClassVar
from uuid import UUID

import pytest
from crewai.events import event_bus, event_context
from crewai.events.base_events import BaseEvent
from crewai.events.event_bus import CrewAIEventsBus, crewai_event_bus
from crewai.events.event_context import EventContextConfig, MismatchBehavior
from crewai.events.stream_context import add_stream_sink
from crewai.state.event_record import EventNode, EventRecord
from crewai.state.runtime import RuntimeState
from crewai.tools.structured_tool import CrewStructuredTool
from crewai.utilities.logger import Logger
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ConfigDict

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
