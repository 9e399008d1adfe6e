"""The methods of a run, one after another, each as CrewAI's runtime runs it."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import logging
import time
from typing import TYPE_CHECKING, Any, Final

from crewai.events import event_context
from crewai.events.event_bus import crewai_event_bus
from crewai.events.types.flow_events import (
    MethodExecutionFailedEvent,
    MethodExecutionFinishedEvent,
    MethodExecutionPausedEvent,
    MethodExecutionStartedEvent,
)
from crewai.flow.async_feedback.types import HumanFeedbackPending
from crewai.flow.flow_context import current_flow_method_name
from crewai.hooks.contexts import StepContext
from crewai.hooks.dispatch import InterceptionPoint

from crewai_native_tasks._native import FlowWalk
from crewai_native_tasks.executor.ground import in_context

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from crewai_native.slots.tasks_executor import FlowRun
    from crewai_native_tasks.executor.classes import FlowClass, Method
    from crewai_native_tasks.executor.ground import Ground

# CrewAI's: what goes wrong in a flow is logged under the name of its runtime.
_logger = logging.getLogger("crewai.flow.runtime")


async def from_starts(
    run: FlowRun, starts: Sequence[str], ground: Ground, known: FlowClass
) -> None:
    """Run start methods and all that they trigger."""
    flow = run.flow
    starts, one_by_one = flow._order_start_methods_for_kickoff(list(starts))  # noqa: SLF001
    if not starts:
        return
    if one_by_one or len(starts) > 1 or flow._is_execution_resuming:  # noqa: SLF001
        await ground.loop()
        if one_by_one:
            for start in starts:
                await flow._execute_start_method(start)  # noqa: SLF001
        else:
            await asyncio.gather(*map(flow._execute_start_method, starts))  # noqa: SLF001
        return
    await _walk(run, starts[0], ground, known)


async def _walk(run: FlowRun, start: str, ground: Ground, known: FlowClass) -> None:
    flow = run.flow
    walk = FlowWalk(known.graph, flow, flow.__pydantic_private__, start)
    course = _Course(run, walk, known)
    try:
        while (at := course.place()) is not None:
            if not course.quiet(at):
                await _one(course, at, ground)
            elif ground.on_loop:
                await _off_the_loop(course)
            else:
                course.stretch(_never)
    except Exception as error:
        _log(walk.innermost(), error)
        raise


async def _one(course: _Course, at: _Place, ground: Ground) -> None:
    """Run what comes next, where it is no quiet method."""
    run, flow, known = course.run, course.run.flow, course.known
    if type(at.name) is list:
        await ground.loop()
        await in_context(at.context, _side_by_side(flow, at.name, at.given, at.event))
        course.at = None
        return
    name, context = at.name, at.context
    method, traits, arguments = course.call(at)
    step = _Step(flow, name, known, traits, at.event)
    ended = None
    if at.awaitable is not None:
        result = await _finished(run, ground, context, step, at.awaitable)
    elif ground.on_loop or not traits.direct:
        await ground.loop()
        result, ended = await in_context(context, _on_loop(flow, name, method, arguments, at.event))
    else:
        context.run(run.step)
        try:
            result = context.run(step.begin, method, arguments)
            if asyncio.iscoroutine(result):
                # A method that only looks synchronous.
                await ground.loop()
                result = await in_context(context, step.awaited(result))
            result, ended = context.run(step.finish, result)
        finally:
            context.run(run.stepped)
    course.ran(result, ended)


@dataclasses.dataclass(slots=True)
class _Place:
    """Where a run has come to.

    Attributes:
        name: The method that comes next, or the methods that run side by side.
        is_start: Whether it is a start.
        given: Its input.
        event: The event that triggered it.
        context: The context that it runs in.
        awaitable: What it returned, where it has been called and has to be awaited.
    """

    name: Any
    is_start: bool
    given: Any
    event: str | None
    context: contextvars.Context
    awaitable: Any = None


class _Course:
    """The methods of a run in their order.

    Attributes:
        at: The place that has been come to, until it has been run.
    """

    def __init__(self, run: FlowRun, walk: FlowWalk, known: FlowClass) -> None:
        self.run = run
        self.known = known
        self.at: _Place | None = None
        self._walk = walk
        self._methods = run.flow.__pydantic_private__["_methods"]
        # CrewAI makes a task of a start, and of each listener: what they set in their context is
        # theirs.
        self._contexts: list[contextvars.Context] = []

    def place(self) -> _Place | None:
        """Return where the run is; None at its end."""
        if self.at is None:
            name, is_start, given, event, depth, fresh = self._walk.next()
            if name is None:
                return None
            contexts = self._contexts
            if fresh:
                del contexts[depth:]
                contexts.append(contexts[-1].copy() if contexts else contextvars.copy_context())
            self.at = _Place(name, is_start, given, event, contexts[depth])
        return self.at

    def call(self, at: _Place) -> tuple[Any, Method, tuple[Any, ...]]:
        """Return the method of a place, what is known of it and its arguments."""
        method = self._methods[at.name]
        traits = self.known.method(at.name, method)
        if at.is_start:
            flow = self.run.flow
            return flow._inject_trigger_payload_for_start_method(method), traits, ()  # noqa: SLF001
        return method, traits, (at.given,) if traits.takes_input else ()

    def quiet(self, at: _Place) -> bool:
        """Whether a place is a method that no event and no hook tells of, and that needs no loop."""
        return (
            self._silent()
            and type(at.name) is not list
            and at.awaitable is None
            and self.known.method(at.name, self._methods[at.name]).direct
        )

    def stretch(self, stopped: Callable[[], bool]) -> None:
        """Run quiet methods one after another, until there is something else or it is stopped."""
        while not stopped() and (at := self.place()) is not None and self._silent():
            if type(at.name) is list or at.awaitable is not None:
                return
            method, traits, arguments = self.call(at)
            if not traits.direct:
                return
            step = _Step(self.run.flow, at.name, self.known, traits, at.event)
            if traits.plain and getattr(method, "_instance", None) is not None:
                # Calling the wrapper comes to this.
                method, arguments = traits.function, (method._instance, *arguments)  # noqa: SLF001
            result, unfinished = at.context.run(_quietly, self.run, step, method, arguments)
            if unfinished:
                at.awaitable = result
                return
            self.ran(result, None)

    def _silent(self) -> bool:
        """Whether no event and no hook tells of the flow's methods."""
        return self.known.internal and self.run.flow.suppress_flow_events

    def ran(self, result: Any, event: str | None) -> None:
        """Go on from a method that has run."""
        self.at = None
        self._walk.ran(result, event)


# Seconds for which methods run one after another away from the loop. What takes longer, as a model
# does, has the thread for itself, and other runs that share the loop's threads come in between.
_STRETCH: Final = 0.005


def _never() -> bool:
    return False


async def _off_the_loop(course: _Course) -> None:
    """Run methods on a thread, for as long as none needs the loop and they take no time.

    CrewAI goes to a thread and back for each of them.
    """
    # What cancels the task is to be seen at once, not when the task gets to know of it.
    cancelling = getattr(asyncio.current_task(), "cancelling", int)
    before, until, left = cancelling(), None, False

    def stopped() -> bool:
        nonlocal until
        now = time.perf_counter()
        if until is None:
            until = now + _STRETCH
        return left or now > until or cancelling() != before

    try:
        await asyncio.to_thread(course.stretch, stopped)
    finally:
        left = True


async def _on_loop(
    flow: Any, name: str, method: Any, arguments: tuple[Any, ...], event: str | None
) -> tuple[Any, str | None]:
    if not event:
        return await flow._execute_method(name, method, *arguments)  # noqa: SLF001
    with event_context.triggered_by_scope(event):
        return await flow._execute_method(name, method, *arguments)  # noqa: SLF001


async def _side_by_side(flow: Any, names: list[str], given: Any, event: str | None) -> None:
    """Run listeners and all that they trigger, by CrewAI's own code."""
    racing = flow._get_racing_group_for_listeners(names)  # noqa: SLF001
    if racing:
        others = [name for name in names if name not in racing[0]]
        await flow._execute_racing_listeners(racing[0], others, given, event)  # noqa: SLF001
        return
    await asyncio.gather(
        *(flow._execute_single_listener(name, given, event) for name in names)  # noqa: SLF001
    )


class _Step:
    """One method, run where the kickoff was called: what ``Flow._execute_method`` does."""

    __slots__ = ("event", "flow", "known", "name", "silent", "traits")

    def __init__(
        self, flow: Any, name: str, known: FlowClass, traits: Method, event: str | None
    ) -> None:
        self.flow = flow
        self.name = name
        self.known = known
        self.traits = traits
        self.event = event
        self.silent = flow.suppress_flow_events

    def begin(self, method: Any, arguments: tuple[Any, ...]) -> Any:
        """Call the method and return its result."""
        previous = event_context.get_triggering_event_id()
        if self.event:
            event_context.set_triggering_event_id(self.event)
        try:
            return self._begin(method, arguments)
        except Exception as error:
            self.failed(error)
            raise
        finally:
            event_context.set_triggering_event_id(previous)

    def _begin(self, method: Any, arguments: tuple[Any, ...]) -> Any:
        flow = self.flow
        keywords: dict[str, Any] = {}
        params = {f"_{i}": argument for i, argument in enumerate(arguments)}
        if not self.silent:
            self._emit(
                MethodExecutionStartedEvent(
                    type="method_execution_started",
                    method_name=self.name,
                    flow_name=flow._definition.name,  # noqa: SLF001
                    params=params,
                    state=flow._copy_and_serialize_state(),  # noqa: SLF001
                )
            )
        if not flow._skip_interception(InterceptionPoint.PRE_STEP):  # noqa: SLF001
            before = StepContext(
                kind="flow_method", step_name=str(self.name), flow=flow, payload=params
            )
            flow._dispatch_interception(InterceptionPoint.PRE_STEP, before)  # noqa: SLF001
            # Hooks see positional arguments as `_0`, `_1`, and may change them.
            if isinstance(before.payload, dict):
                payload = before.payload
                positional = [key for key in payload if key.startswith("_") and key[1:].isdigit()]
                arguments = tuple(
                    payload[key] for key in sorted(positional, key=lambda key: int(key[1:]))
                )
                keywords = {k: v for k, v in payload.items() if k not in positional}
        token = current_flow_method_name.set(self.name)
        try:
            return contextvars.copy_context().run(method, *arguments, **keywords)
        finally:
            current_flow_method_name.reset(token)

    async def awaited(self, result: Any) -> Any:
        """Await what the method returned."""
        try:
            if not self.event:
                return await result
            with event_context.triggered_by_scope(self.event):
                return await result
        except Exception as error:
            self.failed(error)
            raise

    def finish(self, result: Any) -> tuple[Any, str | None]:
        """Take note of the method's end; return its result and the event of its end."""
        if self.silent and self.known.internal:
            try:
                self.note(result)
            except Exception as error:
                self.failed(error)
                raise
            return result, None
        previous = event_context.get_triggering_event_id()
        if self.event:
            event_context.set_triggering_event_id(self.event)
        try:
            return self._finish(result)
        except Exception as error:
            self.failed(error)
            raise
        finally:
            event_context.set_triggering_event_id(previous)

    def _finish(self, result: Any) -> tuple[Any, str | None]:
        flow = self.flow
        if not flow._skip_interception(InterceptionPoint.POST_STEP):  # noqa: SLF001
            after = StepContext(
                kind="flow_method",
                step_name=str(self.name),
                flow=flow,
                output=result,
                payload=result,
            )
            flow._dispatch_interception(InterceptionPoint.POST_STEP, after)  # noqa: SLF001
            result = after.payload
        self.note(result)
        if self.silent:
            return result, None
        ended = MethodExecutionFinishedEvent(
            type="method_execution_finished",
            method_name=self.name,
            flow_name=flow._definition.name,  # noqa: SLF001
            state=flow._copy_and_serialize_state(),  # noqa: SLF001
            result=result,
        )
        self._emit(ended)
        return result, ended.event_id

    def note(self, result: Any) -> None:
        """Keep the result, and count the method as run."""
        flow, name = self.flow, self.name
        private = flow.__pydantic_private__
        private["_method_outputs"].append({"method": name, "output": result})
        stashed = private["_human_feedback_method_outputs"]
        if name in stashed:
            feedback = stashed.pop(name)
            private["_method_outputs"][-1] = {
                "method": name,
                "output": feedback.output,
                "human_feedback": feedback,
            }
        counts = private["_method_execution_counts"]
        counts[name] = counts.get(name, 0) + 1
        private["_completed_methods"].add(name)
        if self.traits.persisted:
            contextvars.copy_context().run(flow._persist_method_completion, name)  # noqa: SLF001

    def failed(self, error: Exception) -> None:
        """Tell of what the method raised."""
        flow = self.flow
        if isinstance(error, HumanFeedbackPending):
            error.context.method_name = self.name
            if flow.persistence is None:
                from crewai.flow.persistence.factory import default_flow_persistence

                flow.persistence = default_flow_persistence()
            if not self.silent:
                self._emit(
                    MethodExecutionPausedEvent(
                        type="method_execution_paused",
                        method_name=self.name,
                        flow_name=flow._definition.name,  # noqa: SLF001
                        state=flow._copy_and_serialize_state(),  # noqa: SLF001
                        flow_id=error.context.flow_id,
                        message=error.context.message,
                        emit=error.context.emit,
                    )
                )
        elif not self.silent:
            self._emit(
                MethodExecutionFailedEvent(
                    type="method_execution_failed",
                    method_name=self.name,
                    flow_name=flow._definition.name,  # noqa: SLF001
                    error=error,
                )
            )

    def _emit(self, event: Any) -> None:
        future = crewai_event_bus.emit(self.flow, event)
        if future:
            self.flow._event_futures.append(future)  # noqa: SLF001


async def _finished(
    run: FlowRun, ground: Ground, context: contextvars.Context, step: _Step, result: Any
) -> Any:
    """Await what a method returned that :func:`_quietly` has run."""
    try:
        await ground.loop()
        result = await in_context(context, step.awaited(result))
        result, _ = context.run(step.finish, result)
        return result
    finally:
        context.run(run.stepped)


def _quietly(
    run: FlowRun, step: _Step, method: Any, arguments: tuple[Any, ...]
) -> tuple[Any, bool]:
    """Run a method that no event and no hook tells of.

    Returns:
        Its result, and whether that has to be awaited before the method has ended.
    """
    run.step()
    unfinished = False
    try:
        token = current_flow_method_name.set(step.name)
        try:
            result = contextvars.copy_context().run(method, *arguments)
        finally:
            current_flow_method_name.reset(token)
        # Of what a method of an agent returns nearly all is a name, or nothing.
        if result is not None and type(result) is not str and asyncio.iscoroutine(result):
            unfinished = True
        else:
            step.note(result)
    except HumanFeedbackPending as error:
        step.failed(error)
        raise
    finally:
        if not unfinished:
            run.stepped()
    return result, unfinished


def _log(listener: str | None, error: Exception) -> None:
    """Say once what went wrong in which listener."""
    if listener is None or isinstance(error, HumanFeedbackPending):
        return
    if not getattr(error, "_flow_listener_logged", False):
        _logger.error(f"Error executing listener {listener}: {error}")  # noqa: G004 - CrewAI's record
        error._flow_listener_logged = True  # type: ignore[attr-defined]  # noqa: SLF001
