"""What CrewAI does over and over around the runs of agents, without anything coming of it.

Each of these is left out only where it can be seen to come to nothing.
"""

from __future__ import annotations

import concurrent.futures
import contextvars
import functools
import inspect
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from crewai_native.slots._base import Repair, Target
from crewai_native.slots.event_repairs import REPAIRS as _OF_EVENTS
from crewai_native.slots.event_validation import REPAIRS as _OF_VALIDATION
from crewai_native.slots.kickoff_repairs import FRUGAL
from crewai_native.slots.kickoff_repairs import REPAIRS as _OF_KICKOFFS

if TYPE_CHECKING:
    from collections.abc import Callable

    from crewai_native._bind import Binding
    from crewai_native._watch import Watch
    from crewai_native.slots._base import Provider

_FILE_STORE: Final = "crewai.utilities.file_store"
# Each of them looks up, writes or clears by a coroutine on an event loop of its own.
_FILE_FUNCTIONS: Final = (
    "store_files",
    "get_files",
    "clear_files",
    "store_task_files",
    "get_task_files",
    "clear_task_files",
    "get_all_files",
)


def _no_loop_without_files(binding: Binding, _provider: Provider) -> None:
    from crewai.utilities import file_store

    stock = [getattr(file_store, name) for name in _FILE_FUNCTIONS]
    binding.replace_functions(
        (function, _only_with_a_store(binding.watch, file_store, function)) for function in stock
    )


def _only_with_a_store(watch: Watch, file_store: Any, stock: Callable[..., Any]) -> Any:
    @functools.wraps(stock)
    def files(*args: Any, **kwargs: Any) -> Any:
        if watch.serving and file_store._file_store is None:  # noqa: SLF001 - CrewAI's own switch
            return None
        return stock(*args, **kwargs)

    return files


def _one_class_of_states(binding: Binding, _provider: Provider) -> None:
    from crewai.flow.runtime import Flow, FlowState
    from pydantic import BaseModel

    classes: dict[type, type] = {}

    def make(stock: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def create_initial_state(flow: Any) -> Any:
            declared = getattr(flow, "_initial_state_t", None)
            if (
                not type(flow).is_crewai_internal
                or flow.initial_state is not None
                or not isinstance(declared, type)
                or not issubclass(declared, BaseModel)
                or issubclass(declared, FlowState)
            ):
                return stock(flow)
            if declared not in classes:
                state = stock(flow)
                if type(state).__bases__ == (FlowState, declared):
                    classes[declared] = type(state)
                return state
            extended = flow._create_default_extension_state()  # noqa: SLF001 - as CrewAI does
            if extended is not None:
                return extended
            state = classes[declared]()
            if not getattr(state, "id", None):
                object.__setattr__(state, "id", str(uuid4()))
            return state

        return create_initial_state

    binding.stand_in(Flow, "_create_initial_state", make)


# Their handlers touch memory, the console and what telemetry has on its way; and those for traces
# return at once within a kickoff, which traces itself.
_OWN_HANDLERS: Final = frozenset(
    {
        "crewai.events.event_listener",
        "crewai.events.listeners.tracing.trace_listener",
        "crewai.flow.runtime",
    }
)
_CHECKPOINTS: Final = "crewai.state.checkpoint_listener"
_IDLE: Final = "TraceCollectionListener._on.<locals>.register.<locals>.legacy_handler"
_SIGNALS: Final = "crewai.events.types.system_events"
_WITH_STATE: Final = 3


class _Handlers:
    """What is to be called for a kind of event whose handlers are all CrewAI's own.

    Attributes:
        registered: The handlers that it was made of. A change of them makes another set.
        left_out: Whether CrewAI itself has to call them.
        called: Those that do something within a kickoff, and whether they take the state too.
        checkpointed: Whether one of them is that of checkpoints, which hears of every event as soon
            as any run in the process has had some, and writes one at very few of them.
    """

    __slots__ = ("called", "checkpointed", "left_out", "registered")

    def __init__(self, registered: Any, kind: type) -> None:
        from crewai.events.types import checkpoint_events
        from crewai.events.types.llm_events import LLMStreamChunkEvent

        self.registered = registered
        others = {handler for handler in registered if not _is_of_checkpoints(handler)}
        # Those about checkpoints themselves are none of its business.
        self.checkpointed = len(others) < len(registered) and not issubclass(
            kind,
            (
                checkpoint_events.CheckpointBaseEvent,
                checkpoint_events.CheckpointForkBaseEvent,
                checkpoint_events.CheckpointRestoreBaseEvent,
            ),
        )
        # CrewAI handles what streams where it arises by itself. A signal's handler sends traces,
        # and may want a lock that is held by what the signal has interrupted.
        self.left_out = (
            kind is LLMStreamChunkEvent
            or kind.__module__ == _SIGNALS
            or not all(
                inspect.isfunction(handler) and handler.__module__ in _OWN_HANDLERS
                for handler in others
            )
        )
        self.called: tuple[tuple[Any, bool], ...] = ()
        if not self.left_out:
            self.called = tuple(
                (handler, _parameters_of(handler) >= _WITH_STATE)
                for handler in others
                if handler.__code__.co_qualname != _IDLE
            )


def _is_of_checkpoints(handler: Any) -> bool:
    said = getattr(handler, "__module__", None), getattr(handler, "__qualname__", None)
    return said == (_CHECKPOINTS, "_on_any_event")


def _is_checkpoint_due(source: Any, event: Any) -> bool:
    # It is there by then: its handler is registered.
    from crewai.state.checkpoint_listener import _should_checkpoint

    return _should_checkpoint(source, event) is not None


def _parameters_of(function: Any) -> int:
    """Return what CrewAI finds out from the signature: each agent's run makes a handler anew."""
    from crewai.events.utils.handlers import _get_param_count

    code = function.__code__
    if vars(function) or code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS):
        return _get_param_count(function)
    return int(code.co_argcount + code.co_kwonlyargcount)


def _own_handlers_at_once(binding: Binding, _provider: Provider) -> None:
    from crewai.events.event_bus import CrewAIEventsBus
    from crewai.execution import get_execution_uuid

    known: dict[type, _Handlers] = {}
    # Whoever waits for it finds that it is done. That is all that there is to one.
    called: concurrent.futures.Future[None] = concurrent.futures.Future()
    called.set_result(None)

    def make(stock: Callable[..., Any]) -> Callable[..., Any]:
        def emit(bus: Any, source: Any, event: Any) -> Any:
            kind = type(event)
            handlers = bus._sync_handlers.get(kind)  # noqa: SLF001 - as its own emit, here and below
            if not handlers:
                return stock(bus, source, event)
            plan = known.get(kind)
            if plan is None or plan.registered is not handlers:
                plan = known[kind] = _Handlers(handlers, kind)
            if (
                plan.left_out
                or kind in bus._async_handlers  # noqa: SLF001
                or kind in bus._handler_dependencies  # noqa: SLF001
                or bus._shutting_down  # noqa: SLF001
                or get_execution_uuid() is None
                # On a thread of the bus, as it takes a while.
                or (plan.checkpointed and _is_checkpoint_due(source, event))
            ):
                return stock(bus, source, event)
            bus._prepare_event(source, event)  # noqa: SLF001
            if plan.called:
                state = bus._runtime_state  # noqa: SLF001
                contextvars.copy_context().run(_call_each, bus, plan.called, source, event, state)
            return called

        return emit

    binding.stand_in(CrewAIEventsBus, "emit", make)


def _call_each(bus: Any, handlers: Any, source: Any, event: Any, state: Any) -> None:
    """Do what ``CrewAIEventsBus._call_handlers`` does."""
    failed = []
    for handler, with_state in handlers:
        try:
            if with_state:
                handler(source, event, state)
            else:
                handler(source, event)
        except Exception as error:  # noqa: BLE001 - CrewAI prints it
            failed.append((handler, error))
    for handler, raised in failed:
        bus._console.print(  # noqa: SLF001
            f"[CrewAIEventsBus] Sync handler error in {handler.__name__}: {raised}"
        )


_BUS: Final = "crewai.events.event_bus:CrewAIEventsBus"
_TRACES: Final = "crewai.events.listeners.tracing.trace_listener:TraceCollectionListener"

REPAIRS: Final = (
    Repair(
        name="no-loop-without-files",
        summary="each look-up of files starts an event loop, also where there is no store of files",
        targets=tuple(
            Target(f"{_FILE_STORE}:{name}", wrapped=True)
            for name in (*_FILE_FUNCTIONS, "_run_sync", "aget_all_files")
        ),
        feature=FRUGAL,
        bind=_no_loop_without_files,
    ),
    Repair(
        name="one-class-of-states",
        summary="each agent and each access to memory builds a pydantic class for its state",
        targets=(Target("crewai.flow.runtime:Flow._create_initial_state", wrapped=True),),
        feature=FRUGAL,
        bind=_one_class_of_states,
    ),
    Repair(
        name="own-handlers-at-once",
        summary="CrewAI's own handlers of events, which take microseconds, go through another thread "
        "each time, and kickoffs wait for it",
        targets=(
            Target(f"{_BUS}.emit", wrapped=True),
            Target(f"{_BUS}._prepare_event", wrapped=True),
            Target(f"{_BUS}._call_handlers", wrapped=True),
            Target("crewai.events.utils.handlers:is_call_handler_safe", wrapped=True),
            Target(f"{_TRACES}._on", wrapped=True),
            Target("crewai.events.event_listener:EventListener.setup_listeners", wrapped=True),
            Target("crewai.flow.runtime:Flow._attach_usage_aggregation_listener", wrapped=True),
            Target(f"{_CHECKPOINTS}:_on_any_event", wrapped=True),
            Target(f"{_CHECKPOINTS}:_should_checkpoint", wrapped=True),
        ),
        feature=FRUGAL,
        bind=_own_handlers_at_once,
        # Small, and otherwise there with the first checkpoint only.
        imports=(_CHECKPOINTS,),
    ),
    *_OF_EVENTS,
    *_OF_VALIDATION,
    *_OF_KICKOFFS,
)
