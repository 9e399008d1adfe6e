"""What is left out around the runs of agents, and what is not."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import json
import threading
from typing import Any, ClassVar
from uuid import UUID, uuid4

import pytest
from crewai import Agent, CheckpointConfig
from crewai.agents import agent_executor
from crewai.events.event_bus import crewai_event_bus
from crewai.events.types.checkpoint_events import CheckpointStartedEvent
from crewai.events.types.llm_events import LLMCallCompletedEvent
from crewai.events.types.tool_usage_events import ToolUsageStartedEvent
from crewai.execution import set_execution_uuid
from crewai.flow.flow import Flow, listen, router, start
from crewai.llms import base_llm
from crewai.tools.base_tool import BaseTool
from crewai.tools.base_tool import Tool as MadeTool
from crewai.tools.structured_tool import CrewStructuredTool
from crewai.tools.tool_failure import ToolFailure
from crewai.utilities import file_store
from crewai.utilities.i18n import I18N
from pydantic import BaseModel, PrivateAttr, ValidationError

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


def emitted(kind, source=None, /, **fields):
    """Emit an event as within a kickoff and return what emit returned."""

    def emit():
        set_execution_uuid("run")
        return crewai_event_bus.emit(source, kind(**fields))

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


def test_handlers_of_every_kind_of_event_have_run_when_emit_returns(monkeypatch):
    from crewai.events.event_listener import event_listener
    from crewai.events.types.flow_events import FlowCreatedEvent

    threads = []
    monkeypatch.setattr(
        event_listener._telemetry,
        "flow_creation_span",
        lambda _: threads.append(threading.current_thread()),
    )
    handlers = crewai_event_bus._sync_handlers
    own = {h for h in handlers[FlowCreatedEvent] if h.__module__ == event_listener.__module__}
    monkeypatch.setitem(handlers, FlowCreatedEvent, frozenset(own))
    assert emitted(FlowCreatedEvent, flow_name="f").done()
    assert threads == [threading.current_thread()]


def test_what_streams_is_handled_as_ever(monkeypatch):
    from crewai.events.event_listener import event_listener
    from crewai.events.types.llm_events import LLMStreamChunkEvent

    def handler(source, event):
        chunks.append(event.chunk)

    handler.__module__ = event_listener.__module__
    chunks = []
    monkeypatch.setitem(crewai_event_bus._sync_handlers, LLMStreamChunkEvent, frozenset({handler}))
    assert emitted(LLMStreamChunkEvent, chunk="c", call_id="i") is None
    assert chunks == ["c"]


def test_signals_keep_their_thread(monkeypatch):
    from crewai.events.event_listener import event_listener
    from crewai.events.types.system_events import SigTermEvent

    def handler(source, event):
        threads.append(threading.current_thread())

    handler.__module__ = event_listener.__module__
    threads = []
    monkeypatch.setitem(crewai_event_bus._sync_handlers, SigTermEvent, frozenset({handler}))
    emitted(SigTermEvent).result(60)
    assert len(threads) == 1
    assert threads != [threading.current_thread()]


@pytest.fixture
def checkpoints(monkeypatch):
    """What the handler of checkpoints is asked, and on which thread; it alone listens to tools."""
    from crewai.state import checkpoint_listener

    handled = []
    monkeypatch.setattr(
        checkpoint_listener,
        "_do_checkpoint",
        lambda _state, config, event: handled.append(
            (config, event.type, threading.current_thread())
        ),
    )
    handlers = crewai_event_bus._sync_handlers
    for kind in (ToolUsageStartedEvent, CheckpointStartedEvent):
        only = frozenset({checkpoint_listener._on_any_event})
        monkeypatch.setitem(handlers, kind, only)
    return handled


def checkpointed(**said):
    config = CheckpointConfig(**said)
    return config, Agent(role="r", goal="g", backstory="b", checkpoint=config)


def test_the_handler_of_checkpoints_is_called_where_one_is_due(checkpoints):
    config, agent = checkpointed(on_events=["tool_usage_started"])
    emitted(ToolUsageStartedEvent, agent, **TOOL).result(60)
    ((found, kind, thread),) = checkpoints
    assert (found, kind) == (config, "tool_usage_started")
    assert thread is not threading.current_thread()


def test_the_handler_of_checkpoints_waits_for_no_thread_where_none_is_due(checkpoints):
    config, agent = checkpointed(on_events=["*"])
    about = {"location": config.location, "provider": "p"}
    seen = emitted(CheckpointStartedEvent, agent, **about)
    _, other = checkpointed(on_events=["task_completed"])
    for source in (None, other):
        assert emitted(ToolUsageStartedEvent, source, **TOOL) is seen
    assert checkpoints == []


def test_outside_of_a_kickoff_events_go_through_the_pool():
    future = contextvars.Context().run(
        crewai_event_bus.emit, None, ToolUsageStartedEvent(tool_name="t", tool_args={})
    )
    assert future in crewai_event_bus._pending_futures or future.done()
    assert future.result(60) is None


# --- attributes -------------------------------------------------------------------------------


def doubled(this):
    return (type(this).__name__, 2)


class Described:
    """A descriptor."""

    def __get__(self, instance, owner=None):
        return "described"

    def __set__(self, instance, value):
        raise AttributeError("fixed")


class Tool(BaseTool):
    name: str = "tool"
    description: str = "does"
    _plain: int = PrivateAttr(default=1)
    _made: list[int] = PrivateAttr(default_factory=list)
    _function: Any = PrivateAttr(default=doubled)
    _described: Any = PrivateAttr(default=Described())
    _never_set: int = PrivateAttr()

    def _run(self) -> str:
        return "ran"


def looked_at(tool):
    """What comes of looking at each attribute: its value, or the error."""
    seen = {}
    for name in ("_plain", "_function", "_described", "_never_set", "_nothing", "nothing", "name"):
        try:
            value = getattr(tool, name)
            seen[name] = value() if callable(value) else value
        except AttributeError as error:
            seen[name] = str(error)
    return seen


def test_private_attributes_are_what_pydantic_makes_of_them():
    mine = looked_at(Tool())
    with crewai_native.using({SLOT: "stock"}):
        assert "__getattr__" not in vars(BaseTool)
        assert looked_at(Tool()) == mine
    assert mine["_function"] == ("Tool", 2)
    one, two = Tool(), Tool()
    one._made.append(1)
    one._plain = 5
    assert (one._made, one._plain, two._made, two._plain) == ([1], 5, [], 1)
    del one._plain
    with pytest.raises(AttributeError):
        _ = one._plain
    unmade = Tool.__new__(Tool)
    with pytest.raises(AttributeError):
        _ = unmade._plain


def test_a_class_with_attributes_of_its_own_making_keeps_them():
    class Guessing(Tool):
        def __getattr__(self, name):
            if name == "guessed":
                return "yes"
            return super().__getattr__(name)

    assert Guessing().guessed == "yes"
    assert Guessing()._plain == 1
    with pytest.raises(AttributeError, match="other"):
        _ = Guessing().other


def test_attributes_of_a_flow_are_set_as_ever():
    class Internal(Flow[State]):
        is_crewai_internal = True
        _skip_auto_memory = True
        _counted: int = PrivateAttr(default=0)

    flow = Internal()
    flow.name, flow._counted, flow.other = "n", 3, "o"
    assert (flow.name, flow._counted, flow.other) == ("n", 3, "o")
    assert "name" in flow.model_fields_set
    assert flow.__pydantic_private__["_counted"] == 3
    assert vars(flow)["other"] == "o"


# --- methods ----------------------------------------------------------------------------------


def test_a_bound_method_is_what_crewais_own_binding_makes():
    class Internal(Flow[State]):
        is_crewai_internal = True
        _skip_auto_memory = True

        @start()
        def begin(self) -> str:
            """Begins."""
            return self.state.topic

        @listen(begin)
        async def go_on(self, given: str) -> str:
            return given

        @router(go_on)
        def choose(self):
            return "x"

    flow = Internal()
    for name in ("begin", "go_on", "choose"):
        mine = getattr(flow, name)
        with crewai_native.using({SLOT: "stock"}):
            theirs = getattr(flow, name)
        assert type(mine) is type(theirs)
        assert vars(mine) == vars(theirs)
        assert inspect.iscoroutinefunction(mine) == inspect.iscoroutinefunction(theirs)
        assert asyncio.iscoroutinefunction(mine) == asyncio.iscoroutinefunction(theirs)
        assert inspect.signature(mine) == inspect.signature(theirs)
    assert flow.begin() == "t"
    assert Internal.begin is vars(Internal)["begin"]


# --- tools ------------------------------------------------------------------------------------


class Empty(BaseModel):
    """No arguments."""


class One(BaseModel):
    """One argument."""

    x: int = 0


def test_a_signature_is_checked_again_when_it_or_the_schema_has_changed(monkeypatch):
    checked = []
    signature = inspect.signature
    monkeypatch.setattr(inspect, "signature", lambda f: checked.append(1) or signature(f))

    def function(x):
        return x

    def structured(schema):
        before = len(checked)
        CrewStructuredTool(name="t", description="d", args_schema=schema, func=function)
        return len(checked) - before

    assert [structured(One), structured(One)] == [1, 0]
    for _ in range(2):
        with pytest.raises(ValueError, match="not found in args_schema"):
            structured(Empty)
    function.__code__ = (lambda y: y).__code__
    with pytest.raises(ValueError, match="'y' not found"):
        structured(One)
    function.__defaults__ = (1,)
    assert structured(One) == 1
    assert structured(Empty) == 1


def test_functions_that_say_of_themselves_what_they_are_get_checked_each_time(monkeypatch):
    def inner(x):
        return x

    @functools.wraps(inner)
    def outer(*args):
        return inner(*args)

    def structured():
        CrewStructuredTool(name="t", description="d", args_schema=One, func=outer)

    structured()
    outer.__wrapped__ = lambda z: z
    with pytest.raises(ValueError, match="'z' not found"):
        structured()


# --- prompts ----------------------------------------------------------------------------------


def test_prompts_are_read_once_and_are_each_ones_own(tmp_path, monkeypatch):
    first = I18N()
    read = []
    monkeypatch.setattr(json, "load", lambda file: read.append(file.name) or {"slices": {"a": "b"}})
    second = I18N()
    assert not read
    assert second._prompts == first._prompts
    second._prompts["slices"]["task"] = "changed"
    assert I18N().slice("task") == first.slice("task") != "changed"
    own = tmp_path / "prompts.json"
    own.write_text("{}")
    assert I18N(prompt_file=str(own)).slice("a") == "b"
    assert read == [str(own)]
    with crewai_native.using({SLOT: "stock"}):
        assert I18N().slice("a") == "b"


# --- what agents call of tools ----------------------------------------------------------------


class Text(str):
    """A text that pydantic makes a plain one of."""

    __slots__ = ()


class Counted(BaseTool):
    name: str = "counted"
    description: str = "counts"
    max_usage_count: int | None = 3
    result_as_answer: bool = True

    def _run(self, number: int, text: str = "x") -> str:
        return text * number


class Unfitting(BaseTool):
    name: str = "unfitting"
    description: str = "asks for what its schema does not have"
    args_schema: type[BaseModel] = State

    def _run(self, missing: int) -> int:
        return missing


def never(_args=None, _result=None):
    return False


def echo(topic: str) -> str:
    return topic


def contents(structured):
    return (
        type(structured),
        list(structured.__dict__.items()),
        sorted(structured.__pydantic_fields_set__),
        structured.__pydantic_extra__,
        list(structured.__pydantic_private__.items()),
    )


@pytest.mark.parametrize(
    "tool",
    [
        Counted(),
        Counted(name=Text("a subclass"), cache_function=never),
        MadeTool(name="made", description="of a function", args_schema=State, func=echo),
        Counted.model_construct(name=7, description="never validated", args_schema=State),
    ],
    ids=["class", "text", "function", "constructed"],
)
def test_what_agents_call_of_a_tool_is_what_crewai_makes(tool):
    # A value that pydantic refuses is refused; else both sides have equal and equally typed ones.
    sides = []
    for make in (type(tool).to_structured_tool, type(tool).to_structured_tool.__wrapped__):
        try:
            sides.append(contents(make(tool)))
        except Exception as error:  # noqa: BLE001 - compared
            sides.append((type(error), str(error)))
    assert sides[0] == sides[1]
    assert repr(sides[0]) == repr(sides[1])


def test_what_agents_call_of_a_tool_is_made_anew_each_time():
    tool = Counted()
    one, two = tool.to_structured_tool(), tool.to_structured_tool()
    one.current_usage_count, one.name = 2, "other"
    assert (two.current_usage_count, two.name, tool.name) == (0, "counted", "counted")
    assert one._logger is not two._logger
    assert one._original_tool is two._original_tool is tool


def test_a_tool_that_does_not_fit_its_schema_is_refused_in_pydantics_words():
    with pytest.raises(ValidationError, match="parameter 'missing' not found in args_schema"):
        Unfitting().to_structured_tool()


class Formatting(Counted):
    def format_output_for_agent(self, raw_result: Any) -> Any:
        return [raw_result]


class Unformatted(Counted):
    format_output_for_agent: ClassVar[Any] = None


@pytest.mark.parametrize("raw", ["text", 7, None, State(), ToolFailure(message="failed")])
@pytest.mark.parametrize(
    "tool", [Counted(), Formatting(), Unformatted(), Counted().to_structured_tool(), object()]
)
def test_what_a_tool_gave_is_formatted_as_by_crewai(tool, raw):
    found = agent_executor.format_native_tool_output_for_agent
    assert found.__wrapped__ is not found
    assert found(tool, raw) == found.__wrapped__(tool, raw)


def test_a_model_call_has_an_identifier_while_it_lasts():
    with base_llm.llm_call_context() as outer:
        assert base_llm.get_current_call_id() == outer
        inner = base_llm.llm_call_context()
        assert inner.__enter__() == base_llm.get_current_call_id() != outer
        error = KeyError()
        assert not inner.__exit__(KeyError, error, None)
        assert base_llm.get_current_call_id() == outer
    assert UUID(outer).version == 4
