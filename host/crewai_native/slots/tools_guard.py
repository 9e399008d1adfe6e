"""``tools.guard``: the one place through which every execution of a tool goes."""

from __future__ import annotations

import contextvars
import functools
import inspect
import types
import weakref
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, NamedTuple, Protocol

from crewai_native.slots import tools_mcp
from crewai_native.slots._base import Repair, Slot, Target

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from crewai_native._bind import Binding
    from crewai_native.slots._base import Provider

PROTOCOL: Final = ("run", "arun")

EXACT_COUNT: Final = "exact-usage-count"
"""The feature of a provider that relies on ``current_usage_count`` being right in every path, and on
one execution of the tool per call."""

STOPS_RUNS: Final = "stops-runs"
"""The feature of a provider whose failures may end a run."""
WATCHES_MODELS: Final = "watches-models"
"""The feature of a guard that may end a run before a language model is asked, with one method more:

``before_model(call)`` takes a :class:`ModelCall` and returns None, or a ``ToolFailure`` that ends the
run with CrewAI's ``ToolExecutionFailedError``.
"""
STOP_RUN: Final = "crewai_native_stop_run"
"""A key in the ``details`` of a ``ToolFailure``: if its value is true, the run ends with it."""


class ToolCall(NamedTuple):
    """One execution of a tool, about to happen.

    Attributes:
        tool: The tool that was called: a ``CrewStructuredTool`` or a ``BaseTool``.
        author_tool: The ``BaseTool`` behind it, of which each executor makes structured tools of
            its own; ``tool`` itself where there is none. Its ``max_usage_count`` and
            ``current_usage_count`` are the shared ones.
        name: The tool's name as its author wrote it.
        args: Positional arguments; only ``BaseTool.run`` called by code has them.
        arguments: Arguments by name, before validation: a new dictionary, but its values are the
            caller's own. Or what else the caller gave: JSON text, or something that the tool's
            validation will refuse.
        path: ``react`` for ``CrewStructuredTool.invoke``, which text-based agents use; ``native``
            for ``BaseTool.run``, which native function calling and programs use.
        asynchronous: Whether the caller awaits it.
        agent: The agent that calls, or None where code does.
        task: The task that it works on, or None.
        crew: Its crew, or None.
        occasion: What CrewAI's hooks were told of: the same object for each attempt that CrewAI
            makes at one call of the agent. None where code calls. It is alive as long as the call.
        step: Stands for the step of a plan that the agent is at, of which several can go on side
            by side; None outside of plans.
    """

    tool: Any
    author_tool: Any
    name: str
    args: tuple[Any, ...]
    arguments: Any
    path: Literal["react", "native"]
    asynchronous: bool
    agent: Any
    task: Any
    crew: Any
    occasion: Any
    step: Any


class ModelCall(NamedTuple):
    """A call of a language model, about to happen.

    Attributes:
        model: The ``BaseLLM``.
        agent: The agent that asks, or None where CrewAI does not say.
        task: The task that it works on, or None.
        crew: The agent's crew, or None.
    """

    model: Any
    agent: Any
    task: Any
    crew: Any


class ToolGuard(Protocol):
    """Runs tool calls.

    Every call of a tool comes here once, whichever path it takes, on the thread and in the context
    that CrewAI runs it in; a tool that calls another tool comes here for that one too.

    ``proceed`` is CrewAI's own code for the call: it validates the arguments, claims a use where
    the tool has a ``max_usage_count``, and runs the tool. It may be called on another thread (in a
    copy of the caller's context), several times (each is a call of its own to CrewAI) or not at
    all. What the guard returns goes to the caller in place of the tool's result: a
    ``crewai.tools.tool_failure.ToolFailure`` is an error that the agent is told of, once; one whose
    ``details`` say so (:data:`STOP_RUN`) ends the run with CrewAI's ``ToolExecutionFailedError``. An
    ``Exception`` that it raises is treated as the tool's. For one of a text-based agent's tool CrewAI
    makes up to five further attempts; once the tool itself has run, those with the same arguments end
    alike without coming here, if the provider has the feature :data:`EXACT_COUNT`. A
    ``BaseException`` ends the run.
    """

    def run(self, call: ToolCall, proceed: Callable[[], Any]) -> Any:
        """Run a call and return its result."""

    async def arun(self, call: ToolCall, proceed: Callable[[], Awaitable[Any]]) -> Any:
        """Run a call that the caller awaits and return its result."""


# The hook context of the tool call that the current context is in. It knows agent, task and crew,
# which the tool itself is not told. Weak: it is gone when the call is over.
_surroundings: contextvars.ContextVar[weakref.ref[Any] | None] = contextvars.ContextVar(
    "crewai_native_tool_surroundings", default=None
)
# The tool whose own `run` a structured tool is about to call: both are one execution.
_delegate: contextvars.ContextVar[Any] = contextvars.ContextVar(
    "crewai_native_tool_delegate", default=None
)
# What stands for the step of a plan that the current context carries out.
_step: contextvars.ContextVar[Any] = contextvars.ContextVar("crewai_native_tool_step", default=None)
# The text-based agent's call that CrewAI is at, outside of its attempts.
_use: contextvars.ContextVar[_Use | None] = contextvars.ContextVar(
    "crewai_native_tool_use", default=None
)
# The one of which an attempt is under way.
_attempted: contextvars.ContextVar[_Use | None] = contextvars.ContextVar(
    "crewai_native_tool_attempted", default=None
)


class _Use:
    """A call that a text-based agent makes of a tool, with all attempts that CrewAI makes at it.

    CrewAI makes the next one for any exception: for arguments that the tool's schema refuses, with
    those that it had left out; and then twice more. When the tool itself has run and raised, running
    it again is not CrewAI's to decide: further attempts with the same arguments end as that one did.

    Attributes:
        usage: The ``ToolUsage`` that makes them.
        tool: The structured tool.
        came: Whether one has come to the guard.
        ran: Whether the tool itself has been run in the latest.
    """

    def __init__(self, usage: Any, tool: Any) -> None:
        self.usage = usage
        # What stands in for a tool has the tool's own methods. Some tools have no such method: those
        # that a program made of something else, and that ToolUsage stops before it runs them.
        self.tool = getattr(getattr(tool, "invoke", None), "__self__", tool)
        self.came = False
        self.ran = False
        self._failed: list[tuple[Any, Exception]] = []

    def begin(self, arguments: Any) -> None:
        """Begin an attempt; raise what it would end with if that is known."""
        self.came, self.ran = True, False
        if not self._failed:
            return
        for tried, error in self._failed:
            if tried == arguments:
                raise error
        # Most of what the model adds is dropped by the tool's validation.
        try:
            parsed = self.tool._parse_args(arguments)  # noqa: SLF001 - as `invoke` does
        except Exception:  # noqa: BLE001 - the tool would not run
            raise self._failed[-1][1] from None
        for tried, error in self._failed:
            if self.tool._parse_args(tried) == parsed:  # noqa: SLF001
                raise error

    def end(self, arguments: Any, error: object) -> None:
        """End an attempt."""
        if self.ran and isinstance(error, Exception):
            self._failed.append((arguments, error))


def _bind_exact_count(binding: Binding, provider: Provider) -> None:  # noqa: ARG001
    from crewai.tools.structured_tool import CrewStructuredTool
    from crewai.tools.tool_usage import ToolUsage

    binding.stand_in(CrewStructuredTool, "_increment_usage_count", _make_increment)
    binding.stand_in(ToolUsage, "_use", _make_use)
    binding.stand_in(ToolUsage, "_ause", _make_ause)


def _make_increment(stock: Any) -> Any:
    def increment(tool: Any) -> None:
        use = _use.get()
        if use is not None and use.tool is tool and use.came:
            # ToolUsage counts once more what `invoke` has counted.
            return
        stock(tool)
        attempted = _attempted.get()
        if attempted is not None and attempted.tool is tool:
            # From here on `invoke` does nothing but run the tool.
            attempted.ran = True

    return increment


def _make_use(stock: Any) -> Any:
    def use(usage: Any, tool_string: Any, tool: Any, calling: Any) -> Any:
        if _is_further(usage):
            return stock(usage, tool_string=tool_string, tool=tool, calling=calling)
        token = _use.set(_Use(usage, tool))
        try:
            return stock(usage, tool_string=tool_string, tool=tool, calling=calling)
        finally:
            _use.reset(token)

    return use


def _make_ause(stock: Any) -> Any:
    async def ause(usage: Any, tool_string: Any, tool: Any, calling: Any) -> Any:
        if _is_further(usage):
            return await stock(usage, tool_string=tool_string, tool=tool, calling=calling)
        token = _use.set(_Use(usage, tool))
        try:
            return await stock(usage, tool_string=tool_string, tool=tool, calling=calling)
        finally:
            _use.reset(token)

    return ause


def _is_further(usage: Any) -> bool:
    """Whether a ``ToolUsage`` goes on with the call that it is at."""
    use = _use.get()
    return use is not None and use.usage is usage


def _bind_stopping(binding: Binding, provider: Provider) -> None:  # noqa: ARG001
    from crewai.tools import tool_failure

    stock: Any = tool_failure.handle_tool_failure

    @functools.wraps(stock)
    def handle_tool_failure(failure: Any, **surroundings: Any) -> Any:
        record = stock(failure, **surroundings)
        if binding.watch.serving and failure.details.get(STOP_RUN):
            # There is none where the program lets failures of tools go unseen.
            record = record or tool_failure.ToolFailureRecord(
                tool_name=surroundings["tool_name"],
                failure=failure,
                tool_args=surroundings.get("tool_args"),
                agent_role=getattr(surroundings.get("agent"), "role", None),
            )
            raise tool_failure.ToolExecutionFailedError(record)
        return record

    binding.replace_functions([(stock, handle_tool_failure)])


def _bind_models(binding: Binding, provider: Provider) -> None:
    from crewai.llms.base_llm import BaseLLM
    from crewai.tools import tool_failure

    before = provider.require(binding.served, ("before_model",), "a ToolGuard").before_model

    def make(stock: Any) -> Any:
        def emit(model: Any, /, *args: Any, **kwargs: Any) -> Any:
            agent = kwargs.get("from_agent")
            call = ModelCall(model, agent, kwargs.get("from_task"), getattr(agent, "crew", None))
            failure = before(call)
            if failure is not None:
                record = tool_failure.ToolFailureRecord(
                    tool_name="language model",
                    failure=failure,
                    tool_args=None,
                    agent_role=getattr(agent, "role", None),
                )
                stop = tool_failure.ToolExecutionFailedError(record)
                # Its own words are about a tool.
                stop.args = (failure.message,)
                raise stop
            return stock(model, *args, **kwargs)

        return emit

    binding.stand_in(BaseLLM, "_emit_call_started_event", make)


def _bind_parallel(binding: Binding, provider: Provider) -> None:  # noqa: ARG001
    from crewai.agents.agent_executor import AgentExecutor

    def make(stock: Any) -> Any:
        def should_parallelize(executor: Any, tool_calls: list[Any]) -> bool:
            return stock(executor, tool_calls) or _only_limits_forbid(executor, tool_calls)

        return should_parallelize

    binding.stand_in(AgentExecutor, "_should_parallelize_native_tool_calls", make)


def _only_limits_forbid(executor: Any, tool_calls: list[Any]) -> bool:
    """Whether a batch runs one by one for limits of uses alone that leave room for all of it."""
    if len(tool_calls) <= 1:
        return False
    from crewai.tools.base_tool import BaseTool
    from crewai.utilities.agent_utils import extract_tool_call_info
    from crewai.utilities.string_utils import sanitize_tool_name

    wanted: dict[int, int] = {}
    tools: dict[int, Any] = {}
    for tool_call in tool_calls:
        info = extract_tool_call_info(tool_call)
        if info is None:
            continue
        mapped = (getattr(executor, "_tool_name_mapping", None) or {}).get(info[1])
        if not isinstance(mapped, BaseTool):
            originals = executor.original_tools or []
            mapped = next((t for t in originals if sanitize_tool_name(t.name) == info[1]), None)
        if mapped is not None:
            tools[id(mapped)] = mapped
            wanted[id(mapped)] = wanted.get(id(mapped), 0) + 1
    return all(
        not tool.result_as_answer
        and (
            tool.max_usage_count is None
            # Else it depended on chance which of the calls are refused.
            or tool.current_usage_count + wanted[key] <= tool.max_usage_count
        )
        for key, tool in tools.items()
    )


class _Step:
    """Stands for a step of a plan; made for each, so that it can be referred to weakly."""

    __slots__ = ("__weakref__",)


def _bind_steps(binding: Binding, provider: Provider) -> None:  # noqa: ARG001
    from crewai.agents.step_executor import StepExecutor

    def make(stock: Any) -> Any:
        def execute(executor: Any, /, *args: Any, **kwargs: Any) -> Any:
            token = _step.set(_Step())
            try:
                return stock(executor, *args, **kwargs)
            finally:
                _step.reset(token)

        return execute

    binding.stand_in(StepExecutor, "execute", make)


class ToolsGuard(Slot):
    """Serves every execution of a tool.

    CrewAI has no one place that runs tools, so the three pairs of methods by which it enters one
    are wrapped, and a subclass's own ``run`` or ``arun``, now or later, as well.
    """

    name: ClassVar = "tools.guard"
    summary: ClassVar = "execution of tools"
    how: ClassVar = "CrewStructuredTool.invoke, BaseTool.run, Tool.run and their async twins"
    targets: ClassVar = (
        Target(
            "crewai.tools.structured_tool:CrewStructuredTool.invoke", wrapped=True, passes_on=True
        ),
        Target(
            "crewai.tools.structured_tool:CrewStructuredTool.ainvoke", wrapped=True, passes_on=True
        ),
        Target("crewai.tools.base_tool:BaseTool.run", wrapped=True, passes_on=True),
        Target("crewai.tools.base_tool:BaseTool.arun", wrapped=True, passes_on=True),
        Target("crewai.tools.base_tool:Tool.run", wrapped=True, passes_on=True),
        Target("crewai.tools.base_tool:Tool.arun", wrapped=True, passes_on=True),
        Target("crewai.tools.base_tool:BaseTool.__init_subclass__", wrapped=True, passes_on=True),
        Target(
            "crewai.hooks.tool_hooks:ToolCallHookContext.__init__", wrapped=True, passes_on=True
        ),
    )
    repairs: ClassVar = (
        Repair(
            "exact-usage-count",
            "a text-based agent's call counts twice against max_usage_count, and runs a tool that "
            "raises six times",
            (
                Target(
                    "crewai.tools.structured_tool:CrewStructuredTool._increment_usage_count",
                    wrapped=True,
                ),
                Target("crewai.tools.tool_usage:ToolUsage._use", wrapped=True, passes_on=True),
                Target("crewai.tools.tool_usage:ToolUsage._ause", wrapped=True, passes_on=True),
            ),
            EXACT_COUNT,
            _bind_exact_count,
        ),
        Repair(
            "parallel-with-limits",
            "one tool with a max_usage_count makes a whole batch of calls run one by one",
            (
                Target(
                    "crewai.agents.agent_executor:AgentExecutor."
                    "_should_parallelize_native_tool_calls",
                    wrapped=True,
                ),
            ),
            EXACT_COUNT,
            _bind_parallel,
        ),
        Repair(
            "steps-apart",
            "what runs a tool is not told which of several steps of a plan the call belongs to",
            (Target("crewai.agents.step_executor:StepExecutor.execute", wrapped=True),),
            STOPS_RUNS,
            _bind_steps,
        ),
        Repair(
            "stopping",
            "nothing but the tool's failure policy can end a run because of what a tool does",
            (Target("crewai.tools.tool_failure:handle_tool_failure", wrapped=True),),
            STOPS_RUNS,
            _bind_stopping,
        ),
        Repair(
            "before-models",
            "nothing can end a run that asks language models and calls no tool",
            (
                Target("crewai.llms.base_llm:BaseLLM._emit_call_started_event", wrapped=True),
                Target("crewai.tools.tool_failure:handle_tool_failure", wrapped=True),
            ),
            WATCHES_MODELS,
            _bind_models,
        ),
        tools_mcp.REPAIR,
        tools_mcp.REPAIR_BY_ADDRESS,
    )

    def bind(self, binding: Binding, provider: Provider) -> None:
        """Put the provider around the methods that run tools."""
        from crewai.hooks.tool_hooks import ToolCallHookContext
        from crewai.tools.base_tool import BaseTool
        from crewai.tools.structured_tool import CrewStructuredTool

        guard = provider.require(provider.call(), PROTOCOL, "a ToolGuard")
        binding.served = guard
        run, arun = binding.watch.meter(guard.run), binding.watch.meter(guard.arun)
        binding.stand_in(ToolCallHookContext, "__init__", _make_surroundings)
        binding.stand_in(CrewStructuredTool, "invoke", functools.partial(_make_invoke, run))
        binding.stand_in(CrewStructuredTool, "ainvoke", functools.partial(_make_ainvoke, arun))
        runs = _Runs(binding, run, arun, BaseTool.__module__)
        for cls in _family(BaseTool):
            runs.wrap(cls)
        runs.wrap_later_ones(BaseTool)


def _make_surroundings(stock: Any) -> Any:
    def init(context: Any, /, *args: Any, **kwargs: Any) -> None:
        stock(context, *args, **kwargs)
        # The context for the hooks after the call has the result. That call is over, even where
        # somebody keeps the context for the hooks before it.
        _surroundings.set(weakref.ref(context) if context.tool_result is None else None)

    return init


def _call(
    tool: Any,
    args: tuple[Any, ...],
    arguments: Any,
    path: Literal["react", "native"],
    *,
    asynchronous: bool,
) -> ToolCall:
    reference = _surroundings.get()
    around = None if reference is None else reference()
    # A BaseTool has no other behind it, and takes its time to say so.
    author_tool = (getattr(tool, "_original_tool", None) if path == "react" else None) or tool
    if isinstance(arguments, dict):
        arguments = arguments.copy()
    # By place, in the order of its fields: by name a dozen arguments take as long again.
    call = (tool, author_tool, tool.name, args, arguments, path, asynchronous)
    if around is None:
        return ToolCall(*call, None, None, None, None, _step.get())
    return ToolCall(*call, around.agent, around.task, around.crew, around, _step.get())


def _runs_of(tool: Any) -> Any:
    """Return the tool whose ``run`` or ``arun`` a structured tool calls, or None."""
    function = tool.func
    name = getattr(function, "__name__", None)
    return getattr(function, "__self__", None) if name in {"run", "arun"} else None


def _make_invoke(run: Any, stock: Any) -> Any:
    # CrewAI's parameter names: its callers pass them as keywords.
    def invoke(tool: Any, /, input: Any, config: Any = None, **kwargs: Any) -> Any:  # noqa: A002
        def proceed() -> Any:
            delegate = _delegate.set(_runs_of(tool))
            try:
                return stock(tool, input, config, **kwargs)
            finally:
                _delegate.reset(delegate)

        call = _call(tool, (), input, "react", asynchronous=False)
        with _Attempt(tool, input):
            return run(call, proceed)

    return invoke


def _make_ainvoke(arun: Any, stock: Any) -> Any:
    async def ainvoke(tool: Any, /, input: Any, config: Any = None, **kwargs: Any) -> Any:  # noqa: A002
        async def proceed() -> Any:
            delegate = _delegate.set(_runs_of(tool))
            try:
                return await stock(tool, input, config, **kwargs)
            finally:
                _delegate.reset(delegate)

        call = _call(tool, (), input, "react", asynchronous=True)
        with _Attempt(tool, input):
            return await arun(call, proceed)

    return ainvoke


class _Attempt:
    """An invocation of a structured tool: CrewAI's attempt at an agent's call, if it is one."""

    def __init__(self, tool: Any, arguments: Any) -> None:
        use = _use.get()
        # What is not: what hooks, tools and programs invoke of their own.
        self._use = use if use is not None and use.tool is tool else None
        self._arguments = arguments

    def __enter__(self) -> None:
        if self._use is not None:
            self._use.begin(self._arguments)
            self._outside, self._before = _use.set(None), _attempted.set(self._use)

    def __exit__(self, _: object, error: object, __: object) -> None:
        if self._use is not None:
            _attempted.reset(self._before)
            _use.reset(self._outside)
            self._use.end(self._arguments, error)


class _Runs:
    """Wraps ``run`` and ``arun`` on the classes of tools that define them."""

    def __init__(self, binding: Binding, run: Any, arun: Any, own: str) -> None:
        self._binding = binding
        self._run = run
        self._arun = arun
        # The module of the classes that are the slot's targets.
        self._own = own
        self._wrapped: dict[str, weakref.WeakSet[type]] = {
            "run": weakref.WeakSet(),
            "arun": weakref.WeakSet(),
        }

    def wrap(self, cls: type) -> None:
        for name, make in (("run", self._make_run), ("arun", self._make_arun)):
            method = vars(cls).get(name)
            if _takes_tool(method, awaited=name == "arun"):
                self._wrapped[name].add(cls)
                # A program's class may go before the slot does.
                passing = cls.__module__ != self._own and type(method) is types.FunctionType
                stand_in = self._binding.stand_in_passing if passing else self._binding.stand_in
                stand_in(cls, name, functools.partial(make, cls))

    def wrap_later_ones(self, base: Any) -> None:
        """Wrap classes that a program defines after this, as they are made."""
        stock = vars(base)["__init_subclass__"].__func__

        def init_subclass(cls: type, /, **kwargs: Any) -> None:
            stock(cls, **kwargs)
            if self._binding.watch.serving:
                self.wrap(cls)

        functools.update_wrapper(init_subclass, stock)
        self._binding.replace(base, "__init_subclass__", classmethod(init_subclass))

    def _inner(self, tool: Any, name: str, cls: type) -> bool:
        """Whether a call of ``cls``'s method is part of one that came here already."""
        # An override that calls super(): the subclass's wrapper took the call.
        wrapped = self._wrapped[name]
        if type(tool) is not cls:
            outermost = next((base for base in type(tool).__mro__ if base in wrapped), cls)
            if outermost is not cls:
                return True
        if _delegate.get() is tool:
            _delegate.set(None)
            return True
        return False

    def _make_run(self, cls: type, stock: Any) -> Any:
        def run(tool: Any, /, *args: Any, **kwargs: Any) -> Any:
            proceed = functools.partial(stock, tool, *args, **kwargs)
            if self._inner(tool, "run", cls):
                return proceed()
            return self._run(_call(tool, args, kwargs, "native", asynchronous=False), proceed)

        return run

    def _make_arun(self, cls: type, stock: Any) -> Any:
        async def arun(tool: Any, /, *args: Any, **kwargs: Any) -> Any:
            proceed = functools.partial(stock, tool, *args, **kwargs)
            if self._inner(tool, "arun", cls):
                return await proceed()
            return await self._arun(_call(tool, args, kwargs, "native", asynchronous=True), proceed)

        return arun


def _takes_tool(method: Any, *, awaited: bool) -> bool:
    """Whether what stands in a class is called with the tool, and awaited where that is asked."""
    # Not one of the class, a property or an object that happens to be callable.
    if not callable(method) or isinstance(method, (staticmethod, type)):
        return False
    if not hasattr(type(method), "__get__"):
        return False
    # What else returns something to await is taken where that comes to CrewAI's own.
    return not awaited or inspect.iscoroutinefunction(inspect.unwrap(method))


def _family(cls: type) -> Iterator[type]:
    """Walk a class and its subclasses, each once."""
    seen: set[type] = set()
    waiting = [cls]
    while waiting:
        member = waiting.pop()
        if member not in seen:
            seen.add(member)
            waiting.extend(member.__subclasses__())
            yield member


SLOT: Final = ToolsGuard()
