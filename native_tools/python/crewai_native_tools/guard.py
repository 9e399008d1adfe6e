"""Serves ``tools.guard``: every execution of a tool in CrewAI, under the policy that counts for it.

An agent is told of what the engine does as a failure of the tool, which CrewAI's failure policy,
events and task output see as such; code that calls a tool gets an exception.
"""

from __future__ import annotations

import contextvars
import functools
import weakref
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from crewai_native.slots.tools_guard import STOP_RUN
from crewai_native_tools import measures
from crewai_native_tools._native import LoopWatch
from crewai_native_tools.budget import Purse
from crewai_native_tools.errors import RunStopped, ToolStopped
from crewai_native_tools.execution import Run, Shared, in_engine
from crewai_native_tools.flights import Flights
from crewai_native_tools.locks import Lock
from crewai_native_tools.plans import Plans
from crewai_native_tools.policy import MOST_ROUNDS, Layers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from crewai_native.slots.tools_guard import ModelCall, ToolCall
    from crewai_native_tools.execution import Plan
    from crewai_native_tools.options import Options

_Value = TypeVar("_Value")

_MOST_REMEMBERED: Final = 1024
_REASONS: Final = {
    "loop": "REPEATED_CALL",
    "loop_near": "REPEATED_CALL",
    "max_calls": "USAGE_LIMIT",
    "timeout": "EXCEPTION",
}


# The agent's call that the current context is inside of.
_occasion: contextvars.ContextVar[Callable[[], Any]] = contextvars.ContextVar(
    "crewai_native_tools_occasion", default=lambda: None
)


class _Remembered(Generic[_Value]):
    """Values by the objects that they belong to: as long as those live, and so many at the most.

    An object that takes no weak reference is kept alive until its turn to be forgotten comes.
    """

    def __init__(self, make: Callable[[], _Value]) -> None:
        self._make = make
        self._lock = Lock()
        self._entries: dict[tuple[int, ...], tuple[tuple[Callable[[], Any], ...], _Value]] = {}

    def of(self, *owners: Any) -> _Value:
        """Return the value that belongs to these objects together."""
        key = tuple(map(id, owners))
        entry = self._entries.get(key)
        if entry is not None and _are(entry[0], owners):
            return entry[1]
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None and _are(entry[0], owners):
                return entry[1]
            if len(self._entries) >= _MOST_REMEMBERED:
                self._forget()
            value = self._make()
            self._entries[key] = (tuple(map(_reference, owners)), value)
            return value

    def whose(self, wanted: Callable[[Any], bool]) -> list[_Value]:
        """Return the values that belong to an object that is wanted, and to nothing else."""
        with self._lock:
            entries = list(self._entries.values())
        return [value for held, value in entries if len(held) == 1 and wanted(held[0]())]

    def _forget(self) -> None:
        entries = self._entries.items()
        gone = [key for key, (held, _) in entries if any(ref() is None for ref in held)]
        for key in gone or [next(iter(self._entries))]:
            del self._entries[key]


def _is_inside(call: ToolCall) -> bool:
    """Whether a tool calls another, on its own, in the middle of the agent's call of it."""
    return _occasion.get()() is call.occasion


def _is_code_s(call: ToolCall) -> bool:
    """Whether code makes a call, which is told by exceptions."""
    return call.agent is None or (call.occasion is not None and _is_inside(call))


def _are(held: tuple[Callable[[], Any], ...], owners: tuple[Any, ...]) -> bool:
    return all(ref() is owner for ref, owner in zip(held, owners, strict=True))


def _reference(owner: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(owner)
    except TypeError:
        return lambda: owner


class _Course:
    """An agent's way through one execution of a task.

    Attributes:
        watch: Its latest calls.
        occasion: The agent's call that the latest of them belonged to.
    """

    __slots__ = ("_occasion", "watch")

    def __init__(self, *, near: bool) -> None:
        self.watch = LoopWatch(2, MOST_ROUNDS, 2 if near else None)
        self._occasion: Callable[[], Any] = lambda: None

    def finished(self, call: ToolCall, tool: str, result: Any) -> tuple[int, int, int] | None:
        """Take a finished call; return its loop: period, rounds, and rounds to the letter."""
        # CrewAI makes several attempts at one call of a text-based agent: one step of its way.
        again = call.occasion is not None and self._occasion() is call.occasion
        self._occasion = _reference(call.occasion)
        return self.watch.push(tool, call.arguments, result, again)


class NativeGuard:
    """The guard of one process.

    Args:
        options: What the environment and ``pyproject.toml`` say.

    Attributes:
        shared: Queues and counts.
    """

    def __init__(self, options: Options) -> None:
        from crewai.utilities.string_utils import sanitize_tool_name

        self.shared = Shared(options.max_threads)
        self._plans = Plans(Layers(), options.layers, self.shared, sanitize_tool_name)
        self._failure, self._failures = _failure_classes()
        self._crew_context = _crew_contexts()
        self._prices = options.prices
        self._runs: _Remembered[Run] = _Remembered(Run)
        self._program = Run()
        self._flights = Flights()
        self._cancels = False
        self._courses: _Remembered[_Course] = _Remembered(
            lambda: _Course(near=self._plans.near_calls_are_watched())
        )

    def run(self, call: ToolCall, proceed: Callable[[], Any]) -> Any:
        """Run a call and return its result."""
        plan = self._plan(call)
        agent = call.agent
        if self._cancels and (told := self._cancelled(plan.tool, call)) is not None:
            return told
        if agent is not None:
            proceed = _inside(call.occasion, proceed)
        if plan.free and (agent is None or not plan.watches_loops):
            return proceed()
        if in_engine(call.author_tool):
            return proceed()
        key = None if agent is None else self._flights.key(call)
        try:
            if key is None:
                result = self._made(call, plan, proceed)
            else:
                make = functools.partial(self._made, call, plan, proceed)
                result = self._flights.once(key, call, plan, self._run_of(), make)
        except Exception as error:
            if _is_code_s(call):
                raise
            found = self._watched(call, plan, error)
            if found is None:
                raise
            return found
        return result if agent is None else self._watched(call, plan, result, ended=True)

    async def arun(self, call: ToolCall, proceed: Callable[[], Awaitable[Any]]) -> Any:
        """Run a call that the caller awaits and return its result."""
        plan = self._plan(call)
        agent = call.agent
        if self._cancels and (told := self._cancelled(plan.tool, call)) is not None:
            return told
        if agent is not None:
            proceed = _ainside(call.occasion, proceed)
        if plan.free and (agent is None or not plan.watches_loops):
            return await proceed()
        if in_engine(call.author_tool):
            return await proceed()
        key = None if agent is None else self._flights.key(call)
        try:
            if key is None:
                result = await self._amade(call, plan, proceed)
            else:
                make = functools.partial(self._amade, call, plan, proceed)
                result = await self._flights.aonce(key, call, plan, self._run_of(), make)
        except Exception as error:
            if _is_code_s(call):
                raise
            found = self._watched(call, plan, error)
            if found is None:
                raise
            return found
        return result if agent is None else self._watched(call, plan, result, ended=True)

    def _made(
        self, call: ToolCall, plan: Plan, proceed: Callable[[], Any], left: float | None = None
    ) -> Any:
        """Make a call, in the seconds that are left of its timeout, and return its result."""
        if plan.free:
            return proceed()
        arguments = call.arguments if not call.args else _by_place(call)
        step = _in_process(call, plan, proceed) if plan.isolated else proceed
        run, task = self._spending(call, plan), getattr(call.task, "key", "")
        return measures.run(plan, run, arguments, step, task=task, left=left)

    async def _amade(
        self,
        call: ToolCall,
        plan: Plan,
        proceed: Callable[[], Awaitable[Any]],
        left: float | None = None,
    ) -> Any:
        """As :meth:`_made`, for a call that is awaited."""
        if plan.free:
            return await proceed()
        arguments = call.arguments if not call.args else _by_place(call)
        step = _in_process(call, plan, proceed) if plan.isolated else proceed
        run, task = self._spending(call, plan), getattr(call.task, "key", "")
        return await measures.arun(plan, run, arguments, step, task=task, left=left)

    def before_model(self, call: ModelCall) -> Any:
        """Return why a language model must not be asked, or None."""
        run = self._run_of()
        try:
            if run.cancelled:
                raise _run_cancelled("The language model was not asked")
            plan = self._plans.of(
                "", getattr(call.agent, "role", None), getattr(call.crew, "name", None)
            )
            for whose, budget in (("run", plan.run_budget), ("agent", plan.agent_budget)):
                if budget is None:
                    continue
                purse = self._purse(run, call, whose=whose)
                if (report := purse.ask(call.model, budget)) is not None:
                    raise _spent(
                        whose, "The language model was not asked", report, purse, tool=None
                    )
        except RunStopped as stopped:
            if call.agent is None and run is self._program:
                raise
            return self._told(stopped)
        return None

    def cancel(self, crew: Any) -> int:
        """Let go whoever waits for a tool of a crew's runs, and end them.

        Returns:
            How many calls were under way.
        """
        self._cancels = True
        runs = self._runs.whose(lambda context: getattr(context, "id", None) == str(crew.id))
        return sum(run.cancel() for run in runs)

    def _cancelled(self, tool: str, call: ToolCall) -> Any:
        """Return what an agent whose run was cancelled is told, else None."""
        if not self._run_of().cancelled:
            return None
        stopped = _run_cancelled(f"'{tool}' was not run")
        if _is_code_s(call):
            raise stopped
        return self._told(stopped)

    def _plan(self, call: ToolCall) -> Plan:
        plans = self._plans
        return plans.of(
            call.name,
            getattr(call.agent, "role", None) if plans.by_agent else None,
            getattr(call.crew, "name", None) if plans.by_crew else None,
        )

    def _run_of(self) -> Run:
        """Return the run that the current call belongs to."""
        crew = self._crew_context()
        if crew is not None:
            return self._runs.of(crew)
        failures = self._failures()
        return self._program if failures is None else self._runs.of(failures)

    def _spending(self, call: ToolCall, plan: Plan) -> Run:
        """Return the run that the current call belongs to, after taking it out of the budgets.

        Raises:
            RunStopped: One of them is spent.
        """
        run = self._run_of()
        if plan.run_budget is not None:
            purse = self._purse(run, call, whose="run")
            if (report := purse.spend(plan.run_budget)) is not None:
                raise _spent("run", f"'{plan.tool}' was not run", report, purse, tool=plan.tool)
        if plan.agent_budget is not None:
            purse = self._purse(run, call, whose="agent")
            if (report := purse.spend(plan.agent_budget)) is not None:
                raise _spent("agent", f"'{plan.tool}' was not run", report, purse, tool=plan.tool)
        return run

    def _purse(self, run: Run, work: ToolCall | ModelCall, *, whose: str) -> Purse:
        """Return what a run, or the agent that works in it, has spent."""
        owner = run if whose == "run" or work.agent is None else work.agent
        purse = run.purses.get(id(owner))
        if purse is None or purse.owner() is not owner:
            # The program's run outlives its agents, and a new one may have the number of an old one.
            for key, old in list(run.purses.items()):
                if old.owner() is None:
                    run.purses.pop(key, None)
            agents = [work.agent]
            if whose == "run":
                agents = list(getattr(work.crew, "agents", ())) or agents
            models = [m for a in agents if (m := getattr(a, "llm", None)) is not None]
            mine = Purse(models, self._prices, _reference(owner))
            purse = run.purses.setdefault(id(owner), mine)
        return purse

    def _watched(self, call: ToolCall, plan: Plan, outcome: Any, *, ended: bool = False) -> Any:
        """Return what the agent is told of a call, or None where its error is to be raised."""
        told = outcome
        if not ended:
            told = self._told(outcome)
        # What a tool calls of its own, and how often, is no step of the agent's way.
        if not plan.watches_loops or _is_inside(call):
            return told
        execution = self._execution(call)
        if execution is None:
            return told
        course = self._courses.of(call.agent, call.task, *execution)
        found = course.finished(call, plan.tool, self._comparable(outcome, ended=ended))
        if found is None:
            return told
        return self._in_circles(call, plan, outcome, found, told, ended=ended)

    def _comparable(self, outcome: Any, *, ended: bool) -> Any:
        """Return what tells an outcome from others, where its own code is not needed for that."""
        if isinstance(outcome, ToolStopped):
            # What the engine says has times in it; which rule it was stays the same.
            return outcome.code
        if isinstance(outcome, Exception) and not ended:
            return f"{type(outcome).__name__}: {outcome}"
        if self._failure is not None and type(outcome) is self._failure:
            return outcome.code, outcome.message
        return outcome

    def _execution(self, call: ToolCall) -> tuple[Any, ...] | None:
        """Return objects that CrewAI makes for one execution of a task by an agent alone, or None."""
        if call.step is not None:
            return (call.step,)
        # The first is of a Task or of Agent.kickoff, of which one may execute others; the agent
        # begins the second anew whenever it begins, also where a program calls execute_task.
        failures, own = self._failures(), getattr(call.agent, "_tool_failures", None)
        if failures is not None or own is not None:
            return failures, own
        started = getattr(call.task, "start_time", None)
        return None if started is None else (started,)

    def _in_circles(
        self,
        call: ToolCall,
        plan: Plan,
        outcome: Any,
        found: tuple[int, int, int],
        told: Any,
        *,
        ended: bool,
    ) -> Any:
        period, rounds, exact = found
        if period == 0:
            limit = plan.loop_near
            stops = limit is not None and rounds >= 2 * limit
        else:
            limit = plan.loop
            # Where calls differ in how they are typed, that may be the very difference between them.
            stops = plan.loop_abort is not None and exact >= plan.loop_abort
        if not stops and (limit is None or rounds < limit):
            return told
        words = _words(plan.tool, period, rounds)
        text = _text(call.tool, outcome if ended else (told if told is not None else outcome))
        if stops:
            role = getattr(call.agent, "role", None)
            message = f"Agent {role!r} goes round in circles and was stopped. {words}"
        else:
            message = f"{text}\n\n{words} {_ADVICE}"
        return self._as_failure(
            message,
            code="loop_near" if period == 0 else "loop",
            retryable=False,
            details={"tool": plan.tool, "rounds": rounds, "period": period, STOP_RUN: stops},
        )

    def _told(self, error: Any) -> Any:
        """Return what the agent is told of an error that is not the tool's, else None."""
        if isinstance(error, ToolStopped):
            return self._as_failure(
                str(error),
                code=error.code,
                retryable=error.retryable,
                details={**error.details, STOP_RUN: isinstance(error, RunStopped)},
            )
        from crewai_native_tools.isolation import IsolationError
        from crewai_native_tools.journal import Uncertain

        if isinstance(error, IsolationError | Uncertain):
            code = "side_effects" if isinstance(error, Uncertain) else "isolation"
            details = {"tool": getattr(error, "tool", None), "error": type(error).__name__}
            return self._as_failure(str(error), code=code, retryable=False, details=details)
        return None

    def _as_failure(
        self, message: str, *, code: str, retryable: bool, details: dict[str, Any]
    ) -> Any:
        if self._failure is None:
            return message
        return self._failure(
            message=message,
            reason=_REASONS.get(code, "TOOL_REPORTED").lower(),
            code=code,
            retryable=retryable,
            details=details,
        )


_ADVICE: Final = (
    "Doing the same again will give the same again. Use what you have, change the arguments, take "
    "another tool, or give your final answer and say in it what could not be found out."
)


def _words(tool: str, period: int, rounds: int) -> str:
    if period == 1:
        return (
            f"'{tool}' was called {rounds} times in a row with the same arguments, and gave the "
            "same each time."
        )
    if period == 0:
        return (
            f"'{tool}' was called {rounds} times in a row with almost the same arguments, and gave "
            "the same each time."
        )
    return (
        f"The last {period * rounds} tool calls were {rounds} rounds of the same {period} calls, "
        "and each gave the same in every round."
    )


def _text(tool: Any, outcome: Any) -> str:
    """Return a result or an error as the agent would be told of it."""
    try:
        if isinstance(outcome, Exception):
            return f"{type(outcome).__name__}: {outcome}"
        if (message := getattr(outcome, "as_agent_message", None)) is not None:
            return str(message())
        form = getattr(tool, "format_output_for_agent", str)
        return str(form(outcome))
    except Exception as error:  # noqa: BLE001 - whatever a result's own code raises
        return f"(a result that has no text: {type(error).__name__})"


def _run_cancelled(what: str) -> RunStopped:
    return RunStopped(f"{what}, and the run ends: it was cancelled.", code="cancelled", details={})


def _spent(whose: str, what: str, report: str, purse: Purse, *, tool: str | None) -> RunStopped:
    """Return what ends a run whose budget is spent."""
    return RunStopped(
        f"{what}, and the run ends: the {whose}'s {report}.",
        code=f"{whose}_budget",
        details={"tool": tool, "spent": purse.spent()},
    )


def _inside(occasion: Any, proceed: Callable[[], Any]) -> Callable[[], Any]:
    """Return what makes an agent's call, and marks what it calls as part of it."""

    def marked() -> Any:
        token = _occasion.set(_reference(occasion))
        try:
            return proceed()
        finally:
            _occasion.reset(token)

    return marked


def _ainside(occasion: Any, proceed: Callable[[], Awaitable[Any]]) -> Callable[[], Awaitable[Any]]:
    """As :func:`_inside`, for a call that is awaited."""

    async def marked() -> Any:
        token = _occasion.set(_reference(occasion))
        try:
            return await proceed()
        finally:
            _occasion.reset(token)

    return marked


def _in_process(call: ToolCall, plan: Plan, proceed: Callable[[], Any]) -> Callable[[], Any]:
    """Return what makes a call in a process of its own, unless this is one."""
    from crewai_native_tools import isolation, processes

    if isolation.in_worker():
        return proceed
    make = processes.aisolated if call.asynchronous else processes.isolated
    return make(plan, call.tool, call.author_tool, proceed)


def _by_place(call: ToolCall) -> dict[str, Any]:
    """Return arguments of which some were given by place."""
    return {**{str(at): value for at, value in enumerate(call.args)}, **call.arguments}


def _crew_contexts() -> Callable[[], Any]:
    """Return what gives the object that CrewAI makes for each kickoff of a crew, or None."""
    from opentelemetry.baggage import get_baggage
    from opentelemetry.context import get_current

    def crew_context() -> Any:
        context = get_current()
        # Outside of a crew there is mostly nothing at all in it, and copying nothing takes time.
        return get_baggage("crew_context", context) if context else None

    return crew_context


def _failure_classes() -> tuple[Any, Callable[[], list[Any] | None]]:
    """Return CrewAI's class of failures, and what gives the list of those of one execution.

    CrewAI has both since 1.15.9. Without them an agent is told in plain text, as by other tools.
    """
    try:
        from crewai.tools.tool_failure import ToolFailure, active_tool_failures
    except ImportError:
        return None, lambda: None
    return ToolFailure, active_tool_failures
