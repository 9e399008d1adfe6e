"""What is left out around the runs of agents, and what is not."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from uuid import uuid4

import pytest
from crewai.events.event_bus import crewai_event_bus
from crewai.events.types.llm_events import LLMCallCompletedEvent
from crewai.events.types.tool_usage_events import ToolUsageStartedEvent
from crewai.execution import set_execution_uuid
from crewai.flow.flow import Flow, start
from crewai.utilities import file_store
from pydantic import BaseModel

import crewai_native

SLOT = "tasks.executor"


@pytest.fixture(autouse=True, scope="module")
def alone():
    slots = {status.slot: "stock" for status in crewai_native.status().slots}
    crewai_native.activate(enabled=True, slots={**slots, SLOT: "crewai-native-tasks"})
    yield
    crewai_native.deactivate()


def test_the_repairs_are_bound():
    status = crewai_native.status()[SLOT]
    assert status.state == "bound", status.reason
    assert "without repair" not in f"{status.reason} {status.how}"


# --- files ------------------------------------------------------------------------------------


class Store:
    """What of aiocache CrewAI uses."""

    def __init__(self):
        self.kept = {}

    async def set(self, key, value, ttl):
        self.kept[key] = value

    async def get(self, key):
        return self.kept.get(key)

    async def delete(self, key):
        self.kept.pop(key, None)


def loops_started(monkeypatch):
    started = []
    stock = asyncio.new_event_loop

    def counted():
        started.append(1)
        return stock()

    monkeypatch.setattr(asyncio.events, "new_event_loop", counted)
    return started


def test_without_a_store_of_files_no_loop_is_started(monkeypatch):
    monkeypatch.setattr(file_store, "_file_store", None)
    started = loops_started(monkeypatch)
    assert file_store.get_all_files(uuid4(), uuid4()) is None
    assert file_store.store_files(uuid4(), {}) is None
    assert file_store.get_files(uuid4()) is None
    assert not started


def test_a_store_of_files_is_asked(monkeypatch):
    monkeypatch.setattr(file_store, "_file_store", Store())
    started = loops_started(monkeypatch)
    crew, task = uuid4(), uuid4()
    file_store.store_files(crew, {"a": 1, "b": 1})
    file_store.store_task_files(task, {"b": 2})
    assert file_store.get_all_files(crew, task) == {"a": 1, "b": 2}
    file_store.clear_files(crew)
    assert file_store.get_files(crew) is None
    assert len(started) == 5


# --- states -----------------------------------------------------------------------------------


class State(BaseModel):
    topic: str = "t"


def test_an_internal_flows_states_share_a_class_and_nothing_else():
    class Internal(Flow[State]):
        is_crewai_internal = True
        _skip_auto_memory = True

        @start()
        def begin(self):
            return self.state.topic

    one, two = Internal(), Internal()
    assert type(one.state) is type(two.state)
    assert one.state.id
    assert one.state.id != two.state.id
    one.state.topic = "x"
    assert two.state.topic == "t"
    with crewai_native.using({SLOT: "stock"}):
        stock = Internal().state
    assert type(stock).__qualname__ == type(one.state).__qualname__
    assert type(stock).__mro__[1:] == type(one.state).__mro__[1:]


def test_a_users_states_have_classes_of_their_own():
    class Mine(Flow[State]):
        _skip_auto_memory = True

        @start()
        def begin(self):
            return None

    assert type(Mine().state) is not type(Mine().state)


# --- events -----------------------------------------------------------------------------------


def emitted(kind, **fields):
    """Emit an event as within a kickoff and return what emit returned."""

    def emit():
        set_execution_uuid("run")
        return crewai_event_bus.emit(None, kind(**fields))

    return contextvars.copy_context().run(emit)


TOOL = {"tool_name": "t", "tool_args": {}, "agent_key": "k"}


def test_own_handlers_have_run_when_emit_returns(monkeypatch):
    from crewai.events.event_listener import event_listener

    threads = []
    monkeypatch.setattr(
        event_listener.formatter,
        "handle_tool_usage_started",
        lambda *_: threads.append(threading.current_thread()),
    )
    # What else listens by now, such as CrewAI's checkpoints, has threads for it.
    handlers = crewai_event_bus._sync_handlers
    own = {h for h in handlers[ToolUsageStartedEvent] if h.__module__ == event_listener.__module__}
    monkeypatch.setitem(handlers, ToolUsageStartedEvent, frozenset(own))
    future = emitted(ToolUsageStartedEvent, **TOOL)
    assert future.done()
    assert threads == [threading.current_thread()]


def test_a_users_handler_keeps_its_thread():
    threads = []
    with crewai_event_bus.scoped_handlers():

        @crewai_event_bus.on(ToolUsageStartedEvent)
        def mine(source, event):
            threads.append((threading.current_thread(), event.tool_name))

        emitted(ToolUsageStartedEvent, **TOOL).result(60)
    ((thread, name),) = threads
    assert name == "t"
    assert thread is not threading.current_thread()


def test_a_handler_that_raises_is_reported(monkeypatch, capsys):
    from crewai.events.event_listener import event_listener

    def fail(*_):
        raise ValueError("no console")

    monkeypatch.setattr(event_listener.formatter, "handle_llm_stream_completed", fail)
    future = emitted(LLMCallCompletedEvent, response="r", call_type="llm_call", call_id="c")
    assert future.result(60) is None
    assert "no console" in capsys.readouterr().out
