"""``tasks.control``: time limits of agents, and the points at which a run can be stopped."""

from __future__ import annotations

import enum
import functools
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, Protocol

from crewai_native.slots._base import Slot, Target
from crewai_native.slots.tasks_executor import around_step

if TYPE_CHECKING:
    from collections.abc import Callable

    from crewai_native._bind import Binding
    from crewai_native.slots._base import Provider

PROTOCOL: Final = ("limit", "alimit", "check", "done", "call", "acall", "used")


class Point(enum.StrEnum):
    """What a run is about to do."""

    TASK = "task"
    """Begin a task; the subject is the ``Task``."""
    STEP = "step"
    """Run a method of a flow, CrewAI's internal ones included: an agent's loop is such a flow, and
    so are the stages of a memory write. The subject is the ``Flow``."""
    TOOL = "tool"
    """Call a tool; the subject is the ``ToolCallHookContext``."""
    MEMORY = "memory"
    """Hand a memory write to its background thread; the subject is the ``Memory``."""


class LimitedRun(NamedTuple):
    """An agent's work on a task under ``max_execution_time``.

    Attributes:
        agent: The agent.
        task: The task.
        timeout: The limit in seconds.
        proceed: Runs it without a limit; awaitable in :meth:`RunControl.alimit`. An agent runs one
            task at a time, so work that is left behind keeps the agent busy.
    """

    agent: Any
    task: Any
    timeout: float
    proceed: Callable[[], Any]


class ModelCall(NamedTuple):
    """A call of a language model.

    A model whose ``call`` calls that of its base class arrives twice, the second time within the
    first.

    Attributes:
        attempt: Asks the model once; awaitable in :meth:`RunControl.acall`.
        proceed: Makes attempts, ``proceed(attempt, sleep=time.sleep)``, again after a pause where
            the provider answers that its rate is exceeded; awaitable in :meth:`RunControl.acall`,
            and ``sleep`` with it.
    """

    attempt: Callable[[], Any]
    proceed: Callable[..., Any]


class RunControl(Protocol):
    """Ends runs: at their time limit, or when somebody asks."""

    def limit(self, run: LimitedRun) -> Any:
        """Return what ``run.proceed()`` returns, in time.

        It may be called on another thread, in a copy of the caller's context.

        Raises:
            TimeoutError: The limit has passed. CrewAI reports it and fails the task.
            RuntimeError: What an exception of the run becomes in CrewAI's own code, from which it
                may try the task again; those that stop a run deliberately pass as they are.
        """

    async def alimit(self, run: LimitedRun) -> Any:
        """Do the same for an agent that is awaited."""

    def check(self, point: Point, subject: Any) -> None:
        """Return if the run of the current context may go on, else raise.

        Called often, on the thread and in the context of the run, so it must take microseconds.
        Between here and the caller of the run much of CrewAI catches ``Exception``: what shall
        end the run is a ``BaseException`` such as :class:`asyncio.CancelledError`.
        """

    def done(self, point: Point, subject: Any) -> None:
        """Take note that a step or a tool call that :meth:`check` let pass has ended.

        It may raise as :meth:`check` does; nothing of what has ended is used then.
        """

    def call(self, call: ModelCall) -> Any:
        """Return ``call.proceed(call.attempt)``, at a time of its choosing, or raise."""

    async def acall(self, call: ModelCall) -> Any:
        """Do the same for a model that is awaited."""

    def used(self, tokens: int) -> None:
        """Take note of the tokens that a model call of the current context has reported."""


class TasksControl(Slot):
    """Serves ``max_execution_time`` and the points before whatever costs or writes."""

    name: ClassVar = "tasks.control"
    summary: ClassVar = "time limits and cancellation"
    how: ClassVar = (
        "Agent._execute_with_timeout, Task._execute_core, Flow._execute_method, "
        "run_with_rate_limit_retry, BaseLLM._track_token_usage_internal, "
        "run_before_tool_call_hooks, run_after_tool_call_hooks, Memory._submit_save"
    )
    targets: ClassVar = (
        Target("crewai.agent.core:Agent._execute_with_timeout", wrapped=True),
        Target("crewai.agent.core:Agent._aexecute_with_timeout", wrapped=True),
        Target("crewai.task:Task._execute_core", wrapped=True, passes_on=True),
        Target("crewai.task:Task._aexecute_core", wrapped=True, passes_on=True),
        Target("crewai.task:Task._execute_task_async", wrapped=True, passes_on=True),
        Target("crewai.flow.runtime:Flow._execute_method", wrapped=True, passes_on=True),
        # Every `call` and `acall` of a BaseLLM subclass is wrapped by CrewAI and runs through
        # these, looked up in this module.
        Target("crewai.llms.base_llm:run_with_rate_limit_retry", wrapped=True, passes_on=True),
        Target("crewai.llms.base_llm:arun_with_rate_limit_retry", wrapped=True, passes_on=True),
        Target(
            "crewai.llms.base_llm:BaseLLM._track_token_usage_internal", wrapped=True, passes_on=True
        ),
        Target("crewai.hooks.tool_hooks:run_before_tool_call_hooks", wrapped=True),
        Target("crewai.hooks.tool_hooks:run_after_tool_call_hooks", wrapped=True),
        Target("crewai.memory.unified_memory:Memory._submit_save", wrapped=True, passes_on=True),
    )

    def bind(self, binding: Binding, provider: Provider) -> None:
        """Put the provider behind the time limit and before each point."""
        from crewai.agent.core import Agent
        from crewai.flow.runtime import Flow
        from crewai.hooks import tool_hooks
        from crewai.llms import base_llm
        from crewai.llms.base_llm import BaseLLM
        from crewai.memory.unified_memory import Memory
        from crewai.task import Task

        control = provider.require(provider.call(), PROTOCOL, "a RunControl")
        meter = binding.watch.meter
        limit, alimit, check = meter(control.limit), meter(control.alimit), meter(control.check)
        call, acall, done = meter(control.call), meter(control.acall), control.done

        binding.stand_in(Agent, "_execute_with_timeout", functools.partial(_limited, limit))
        binding.stand_in(Agent, "_aexecute_with_timeout", functools.partial(_alimited, alimit))
        for owner, name, point in (
            (Task, "_execute_core", Point.TASK),
            (Memory, "_submit_save", Point.MEMORY),
        ):
            binding.stand_in(owner, name, functools.partial(_checked, check, point))
        binding.stand_in(Task, "_aexecute_core", functools.partial(_achecked, check, Point.TASK))
        binding.stand_in(Task, "_execute_task_async", _settled)
        # Whoever drives flows in the place of Flow._execute_method asks as well.
        step = (functools.partial(check, Point.STEP), functools.partial(done, Point.STEP))
        around_step.append(step)
        binding.on_undo(lambda: around_step.remove(step))
        binding.stand_in(Flow, "_execute_method", functools.partial(_step, check, done))
        binding.stand_in(base_llm, "run_with_rate_limit_retry", functools.partial(_call, call))
        binding.stand_in(base_llm, "arun_with_rate_limit_retry", functools.partial(_acall, acall))
        binding.stand_in(
            BaseLLM, "_track_token_usage_internal", functools.partial(_used, control.used)
        )
        before, after = tool_hooks.run_before_tool_call_hooks, tool_hooks.run_after_tool_call_hooks
        watch = binding.watch

        @functools.wraps(before)
        def before_tool_call(context: Any) -> Any:
            if watch.serving:
                check(Point.TOOL, context)
            return before(context)

        @functools.wraps(after)
        def after_tool_call(context: Any) -> Any:
            if watch.serving:
                done(Point.TOOL, context)
            return after(context)

        binding.replace_functions([(before, before_tool_call), (after, after_tool_call)])


def _limited(limit: Any, stock: Any) -> Any:  # noqa: ARG001 - the provider replaces it whole
    # CrewAI's parameter names: its callers may pass them as keywords.
    def execute(agent: Any, task_prompt: str, task: Any, timeout: float) -> Any:
        proceed = functools.partial(agent._execute_without_timeout, task_prompt, task)  # noqa: SLF001
        return limit(LimitedRun(agent, task, timeout, proceed))

    return execute


def _alimited(alimit: Any, stock: Any) -> Any:  # noqa: ARG001
    async def execute(agent: Any, task_prompt: str, task: Any, timeout: float) -> Any:  # noqa: ASYNC109
        proceed = functools.partial(agent._aexecute_without_timeout, task_prompt, task)  # noqa: SLF001
        return await alimit(LimitedRun(agent, task, timeout, proceed))

    return execute


def _checked(check: Any, point: Point, stock: Any) -> Any:
    def checked(subject: Any, /, *args: Any, **kwargs: Any) -> Any:
        check(point, subject)
        return stock(subject, *args, **kwargs)

    return checked


def _achecked(check: Any, point: Point, stock: Any) -> Any:
    async def checked(subject: Any, /, *args: Any, **kwargs: Any) -> Any:
        check(point, subject)
        return await stock(subject, *args, **kwargs)

    return checked


def _step(check: Any, done: Any, stock: Any) -> Any:
    async def execute_method(flow: Any, /, *args: Any, **kwargs: Any) -> Any:
        check(Point.STEP, flow)
        try:
            return await stock(flow, *args, **kwargs)
        finally:
            done(Point.STEP, flow)

    return execute_method


def _settled(stock: Any) -> Any:
    def execute_task_async(task: Any, agent: Any, context: Any, tools: Any, future: Any) -> None:
        try:
            stock(task, agent, context, tools, future)
        except BaseException as error:  # noqa: BLE001 - it goes to whoever waits for the task
            # CrewAI hands over an Exception only. What ends a run is none, and the crew would wait
            # for a thread that is no more.
            future.set_exception(error)

    return execute_task_async


def _call(call: Any, stock: Any) -> Any:
    def run(operation: Any, **kwargs: Any) -> Any:
        return call(ModelCall(operation, functools.partial(stock, **kwargs)))

    return run


def _acall(acall: Any, stock: Any) -> Any:
    async def run(operation: Any, **kwargs: Any) -> Any:
        return await acall(ModelCall(operation, functools.partial(stock, **kwargs)))

    return run


def _used(used: Any, stock: Any) -> Any:
    def track(llm: Any, usage_data: Any) -> Any:
        counted = llm._token_usage  # noqa: SLF001 - there is no other place
        before = counted["total_tokens"]
        answer = stock(llm, usage_data)
        used(counted["total_tokens"] - before)
        return answer

    return track


SLOT: Final = TasksControl()
