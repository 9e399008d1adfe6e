"""A kickoff from beginning to end: what ``Flow.kickoff_async`` does around the methods of a flow."""

from __future__ import annotations

import contextlib
import logging
from concurrent.futures import Future
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from crewai.events.base_events import reset_emission_counter
from crewai.events.event_bus import crewai_event_bus
from crewai.events.event_context import (
    get_current_parent_id,
    reset_last_event_id,
    restore_event_scope,
)
from crewai.events.types.flow_events import (
    FlowFailedEvent,
    FlowFinishedEvent,
    FlowPausedEvent,
    FlowStartedEvent,
)
from crewai.flow.async_feedback.types import HumanFeedbackPending
from crewai.flow.flow_context import (
    current_flow_defer_trace_finalization,
    current_flow_id,
    current_flow_name,
    current_flow_request_id,
)
from crewai.hooks.contexts import (
    ExecutionEndContext,
    ExecutionStartContext,
    InputContext,
    OutputContext,
)
from crewai.hooks.dispatch import HookAborted, InterceptionPoint
from crewai.telemetry.tracing.context import get_trace_session
from crewai.types.usage_metrics import UsageMetrics
from crewai.utilities.env import get_env_context
from opentelemetry import baggage
from opentelemetry.context import attach, detach
from pydantic import BaseModel

from crewai_native_tasks.executor import steps

if TYPE_CHECKING:
    from crewai_native.slots.tasks_executor import FlowRun
    from crewai_native_tasks.executor.classes import FlowClass
    from crewai_native_tasks.executor.ground import Ground

# CrewAI's: it warns under the name of its runtime.
_logger = logging.getLogger("crewai.flow.runtime")

# The attributes of CrewAI's runtime are its own, here and below.
# ruff: noqa: SLF001


async def whole(run: FlowRun, ground: Ground, known: FlowClass) -> Any:
    """Run a flow and return its output."""
    flow, inputs = run.flow, run.inputs
    run.begin()
    flow._reset_tool_action_usage_budgets()
    flow._cel_now = datetime.now(UTC)

    context = baggage.set_baggage("flow_inputs", inputs or {})
    context = baggage.set_baggage("flow_input_files", run.input_files or {}, context=context)
    flow_token = attach(context)
    tokens = _name_flow(flow)
    execution_token = None
    runtime_scope = crewai_event_bus._enter_runtime_scope()

    # A kickoff of the same flow inside of it shares what the outer one counts.
    counts_usage = flow._usage_aggregation_handler is None
    if counts_usage:
        flow._flow_match_id = current_flow_id.get()
        flow._aggregated_usage_metrics = UsageMetrics()
        flow._attach_usage_aggregation_listener()

    ends = _Ends(flow)
    try:
        execution_token = flow._begin_trace_execution()
        return await _between(run, ends, ground, known)
    except Exception as error:
        if ends.owed():
            flow._dispatch_execution_end_failure(error)
        if ends.scope_open:
            await _emit_failed(flow, error, ground)
        raise
    finally:
        flow._drain_memory_writes()
        if counts_usage:
            crewai_event_bus.flush()
            flow._detach_usage_aggregation_listener()
        for variable, token in reversed(tokens):
            variable.reset(token)
        if ends.inputs_token is not None:
            detach(ends.inputs_token)
        flow._end_trace_execution(execution_token)
        detach(flow_token)
        crewai_event_bus._exit_runtime_scope(runtime_scope)


async def _between(run: FlowRun, ends: _Ends, ground: Ground, known: FlowClass) -> Any:
    """Run a flow from the hooks of its start to those of its end."""
    flow = run.flow
    try:
        inputs = ends.start(run.inputs)
    except HookAborted:
        if ends.inputs and "id" in ends.inputs:
            flow._stamp_state_id(ends.inputs["id"])
        ends.scope_open = await _open_scope(flow, ends.inputs, ground)
        raise
    ends.inputs_token = attach(baggage.set_baggage("flow_inputs", inputs or {}))
    _prepare(flow, inputs, run.restore_from_state_id)
    ends.scope_open = await _open_scope(flow, inputs, ground)
    if flow._should_apply_pending_kickoff_context():
        flow._apply_pending_kickoff_context()
    if inputs is not None and "id" not in inputs:
        flow._initialize_state(inputs)
    if flow._is_execution_resuming:
        await ground.loop()
        await flow._replay_recorded_events()
    try:
        await steps.from_starts(run, _starts(flow), ground, known)
    except HumanFeedbackPending as pending:
        return await _pause(flow, pending, ground)
    flow._is_execution_resuming = False
    return await _finish(flow, ends, ground, known)


class _Ends:
    """Hooks at both ends of a run, each of which runs once.

    Attributes:
        inputs: The inputs as the hooks left them.
        inputs_token: Takes these out of the context again.
        scope_open: Whether the event of the start has been emitted, so that one of the end is due.
    """

    def __init__(self, flow: Any) -> None:
        self.flow = flow
        self.inputs: Any = None
        self.inputs_token: Any = None
        self.scope_open = False
        self._started = False
        self._ended = False

    def owed(self) -> bool:
        """Whether the hook at the end has not run that belongs to the one at the start."""
        return self._started and not self._ended

    def start(self, inputs: Any) -> Any:
        """Run the hooks of the start and of the inputs; return what they made of these."""
        flow = self.flow
        self.inputs = inputs
        # They see the inputs themselves: what they change in place counts too.
        start = ExecutionStartContext(
            flow=flow, inputs=inputs if inputs is not None else {}, payload=inputs
        )
        try:
            self._started = flow._dispatch_interception(InterceptionPoint.EXECUTION_START, start)
        finally:
            inputs = self.inputs = start.payload
        given = InputContext(flow=flow, inputs=inputs if inputs is not None else {}, payload=inputs)
        try:
            flow._dispatch_interception(InterceptionPoint.INPUT, given)
        finally:
            self.inputs = given.payload
        return self.inputs

    def end(self, output: Any) -> Any:
        """Run the hooks of the output and of the end; return what they made of it."""
        flow = self.flow
        after = OutputContext(flow=flow, output=output, payload=output)
        flow._dispatch_interception(InterceptionPoint.OUTPUT, after)
        output = after.payload
        end = ExecutionEndContext(flow=flow, output=output, payload=output)
        # Before they run: where one of them aborts the run, they do not run again for that.
        self._ended = not flow._skip_interception(InterceptionPoint.EXECUTION_END)
        flow._dispatch_interception(InterceptionPoint.EXECUTION_END, end)
        return end.payload


def _name_flow(flow: Any) -> list[Any]:
    """Say in the context which flow is running, where none is yet."""
    values: list[tuple[Any, Any]] = []
    if current_flow_id.get() is None:
        values += [
            (current_flow_id, flow.flow_id),
            (current_flow_name, flow.name or flow.__class__.__name__),
            (current_flow_defer_trace_finalization, flow._should_defer_trace_finalization()),
        ]
    if current_flow_request_id.get() is None:
        values.append((current_flow_request_id, flow.flow_id))
    return [(variable, variable.set(value)) for variable, value in values]


def _prepare(flow: Any, inputs: Any, restore_from: str | None) -> None:
    """Give the flow the state that the run begins with."""
    restoring = (
        inputs and "id" in inputs and flow.persistence is not None
    ) or flow._restored_from_checkpoint
    if not restoring:
        flow._completed_methods.clear()
        flow._method_outputs.clear()
        flow._pending_events.clear()
        flow._clear_or_listeners()
        flow._method_call_counts.clear()
    elif flow._completed_methods:
        flow._is_execution_resuming = True
    flow._restored_from_checkpoint = False

    forked = False
    if restore_from is not None and flow.persistence is not None:
        stored = flow.persistence.load_state(restore_from)
        if stored:
            flow._log_flow_event(f"Forking flow state from UUID: {restore_from}")
            flow._restore_state(stored)
            flow._stamp_state_id((inputs.get("id") if inputs else None) or str(uuid4()))
            forked = True
        else:
            flow._log_flow_event(
                "No flow state found for restore_from_state_id: "
                f"{restore_from}; proceeding without hydration",
                color="yellow",
            )
    if not inputs:
        return
    if "id" in inputs and not forked:
        flow._stamp_state_id(inputs["id"])
        if flow.persistence is not None and not flow._skip_persistence_restore:
            stored = flow.persistence.load_state(inputs["id"])
            if stored:
                flow._log_flow_event(f"Loading flow state from memory for UUID: {inputs['id']}")
                flow._restore_state(stored)
            else:
                flow._log_flow_event(f"No flow state found for UUID: {inputs['id']}", color="red")
    if filtered := {key: value for key, value in inputs.items() if key != "id"}:
        flow._initialize_state(filtered)


async def _open_scope(flow: Any, inputs: Any, ground: Ground) -> bool:
    """Emit the event of the start; return whether the end needs one."""
    deferred = flow._should_defer_trace_finalization()
    started_before = flow._deferred_flow_started_event_id
    scope_open = False
    if deferred and started_before and get_current_parent_id() is None:
        restore_event_scope(((started_before, "flow_started"),))
        scope_open = True
    elif get_current_parent_id() is None:
        reset_emission_counter()
        reset_last_event_id()
    if not (deferred and started_before):
        event = FlowStartedEvent(
            type="flow_started", flow_name=flow._definition.name, inputs=inputs
        )
        future = crewai_event_bus.emit(flow, event)
        scope_open = True
        if future:
            await _settle(future, "FlowStartedEvent handler failed", ground)
        if deferred:
            object.__setattr__(flow, "_deferred_flow_started_event_id", event.event_id)
    get_env_context()
    return scope_open


def _starts(flow: Any) -> list[str]:
    """Return the methods that a kickoff begins with."""
    starts: list[str] = flow._start_method_names()
    unconditional = [start for start in starts if flow._start_condition(start) is None]
    return unconditional or starts


async def _pause(flow: Any, pending: HumanFeedbackPending, ground: Ground) -> HumanFeedbackPending:
    """Save a flow that waits for a human, and return what it waits with."""
    if flow.persistence is None:
        from crewai.flow.persistence.factory import default_flow_persistence

        flow.persistence = default_flow_persistence()
    state = flow._state if isinstance(flow._state, dict) else flow._state.model_dump()
    asked = pending.context
    future = crewai_event_bus.emit(
        flow,
        FlowPausedEvent(
            type="flow_paused",
            flow_name=flow._definition.name,
            flow_id=asked.flow_id,
            method_name=asked.method_name,
            state=flow._copy_and_serialize_state(),
            message=asked.message,
            emit=asked.emit,
        ),
    )
    if future and isinstance(future, Future):
        flow._event_futures.append(future)
    await _settle_all(flow, ground)
    if session := get_trace_session():
        asked.trace_context = session.context.otel_resume_context
    flow.persistence.save_pending_feedback(flow_uuid=asked.flow_id, context=asked, state_data=state)
    return pending


async def _finish(flow: Any, ends: _Ends, ground: Ground, known: FlowClass) -> Any:
    """Emit the event of the end and return the output."""
    outputs = flow.method_outputs
    output = ends.end(outputs[-1] if outputs else None)
    flow._record_kickoff_output(output)
    await _settle_all(flow, ground)
    if not flow._should_defer_trace_finalization():
        # What memory still has to write emits events, and they belong before this one.
        await ground.call(flow._drain_memory_writes)
        await ground.call(crewai_event_bus.flush)
        future = crewai_event_bus.emit(
            flow,
            FlowFinishedEvent(
                type="flow_finished",
                flow_name=flow._definition.name,
                result=output,
                state=_state_of(flow, known),
            ),
        )
        if future:
            await _settle(future, "FlowFinishedEvent handler failed", ground)
    return output


def _state_of(flow: Any, known: FlowClass) -> Any:
    """Return what ``Flow._copy_and_serialize_state`` does.

    That copies all of the state first, of which nothing is left in what can be JSON.
    """
    state = flow._state
    if known.internal and isinstance(state, BaseModel):
        with contextlib.suppress(Exception):  # CrewAI's code has other ways for it
            return state.model_dump(mode="json")
    return flow._copy_and_serialize_state()


async def _emit_failed(flow: Any, error: Exception, ground: Ground) -> None:
    """Emit the event of a failed end."""
    if flow._should_defer_trace_finalization():
        return
    try:
        await _settle_all(flow, ground, return_exceptions=True)
        await ground.call(flow._drain_memory_writes)
        await ground.call(crewai_event_bus.flush)
        future = crewai_event_bus.emit(
            flow,
            FlowFailedEvent(type="flow_failed", flow_name=flow._definition.name, error=error),
        )
        if future and isinstance(future, Future):
            await _settle(future, "FlowFailedEvent handler failed", ground)
    except Exception:
        _logger.warning("Failed to signal flow failure", exc_info=True)


async def _settle(future: Future[Any], failed: str, ground: Ground) -> None:
    """Wait for an event's handlers, whatever becomes of them."""
    try:
        await ground.wait(future)
    except Exception:
        _logger.warning(failed, exc_info=True)


async def _settle_all(flow: Any, ground: Ground, *, return_exceptions: bool = False) -> None:
    """Wait for the handlers of the events of methods."""
    futures = flow._event_futures
    if futures:
        only = [future for future in futures if isinstance(future, Future)]
        await ground.wait_for_all(only, return_exceptions=return_exceptions)
        futures.clear()
