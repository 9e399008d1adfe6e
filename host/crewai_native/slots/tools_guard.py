"""``tools.guard``: the one place through which every execution of a tool goes."""

from __future__ import annotations

import contextvars
import dataclasses
import functools
import weakref
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, Protocol

from crewai_native.slots import tools_mcp
from crewai_native.slots._base import Repair, Slot, Target

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from crewai_native._bind import Binding
    from crewai_native.slots._base import Provider

PROTOCOL: Final = ("run", "arun")

EXACT_COUNT: Final = "exact-usage-count"
"""The feature of a provider that relies on ``current_usage_count`` being right in every path."""


@dataclasses.dataclass(slots=True, eq=False)
class ToolCall:
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


class ToolGuard(Protocol):
    """Runs tool calls.

    Every call of a tool comes here once, whichever path it takes, on the thread and in the context
    that CrewAI runs it in; a tool that calls another tool comes here for that one too.

    ``proceed`` is CrewAI's own code for the call: it validates the arguments, claims a use where
    the tool has a ``max_usage_count``, and runs the tool. It may be called on another thread (in a
    copy of the caller's context), several times (each is a call of its own to CrewAI) or not at
    all. What the guard returns goes to the caller in place of the tool's result: a
    ``crewai.tools.tool_failure.ToolFailure`` is an error that the agent is told of, once. An
    ``Exception`` that it raises is treated as the tool's, and text-based agents run the call again
    for it, up to five times; a ``BaseException`` ends the run.
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
# The structured tool that the current context invokes.
_invoked: contextvars.ContextVar[Any] = contextvars.ContextVar(
    "crewai_native_tool_invoked", default=None
)


def _bind_exact_count(binding: Binding, provider: Provider) -> None:  # noqa: ARG001
    from crewai.tools.structured_tool import CrewStructuredTool

    def make(stock: Any) -> Any:
        def increment(tool: Any) -> None:
            # `invoke` counts the call; ToolUsage counts it again once `invoke` has returned.
            if _invoked.get() is tool:
                stock(tool)

        return increment

    binding.stand_in(CrewStructuredTool, "_increment_usage_count", make)


class ToolsGuard(Slot):
    """Serves every execution of a tool.

    CrewAI has no one place that runs tools, so the three pairs of methods by which it enters one
    are wrapped, and a subclass's own ``run`` or ``arun``, now or later, as well.
    """

    name: ClassVar = "tools.guard"
    summary: ClassVar = "execution of tools"
    how: ClassVar = "CrewStructuredTool.invoke, BaseTool.run, Tool.run and their async twins"
    targets: ClassVar = (
        Target("crewai.tools.structured_tool:CrewStructuredTool.invoke", wrapped=True),
        Target("crewai.tools.structured_tool:CrewStructuredTool.ainvoke", wrapped=True),
        Target("crewai.tools.base_tool:BaseTool.run", wrapped=True),
        Target("crewai.tools.base_tool:BaseTool.arun", wrapped=True),
        Target("crewai.tools.base_tool:Tool.run", wrapped=True),
        Target("crewai.tools.base_tool:Tool.arun", wrapped=True),
        Target("crewai.tools.base_tool:BaseTool.__init_subclass__", wrapped=True),
        Target("crewai.hooks.tool_hooks:ToolCallHookContext.__init__", wrapped=True),
    )
    repairs: ClassVar = (
        Repair(
            "exact-usage-count",
            "a text-based agent's call counts twice against max_usage_count",
            (
                Target(
                    "crewai.tools.structured_tool:CrewStructuredTool._increment_usage_count",
                    wrapped=True,
                ),
                Target("crewai.tools.tool_usage:ToolUsage._use", wrapped=True),
            ),
            EXACT_COUNT,
            _bind_exact_count,
        ),
        tools_mcp.REPAIR,
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
        runs = _Runs(binding, run, arun)
        for cls in _family(BaseTool):
            runs.wrap(cls)
        runs.wrap_later_ones(BaseTool)


def _make_surroundings(stock: Any) -> Any:
    def init(context: Any, *args: Any, **kwargs: Any) -> None:
        stock(context, *args, **kwargs)
        # The context for the hooks after the call has the result; that call is over.
        if context.tool_result is None:
            _surroundings.set(weakref.ref(context))

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
    return ToolCall(
        tool=tool,
        author_tool=getattr(tool, "_original_tool", None) or tool,
        name=tool.name,
        args=args,
        arguments=arguments.copy() if isinstance(arguments, dict) else arguments,
        path=path,
        asynchronous=asynchronous,
        agent=getattr(around, "agent", None),
        task=getattr(around, "task", None),
        crew=getattr(around, "crew", None),
    )


def _runs_of(tool: Any) -> Any:
    """Return the tool whose ``run`` or ``arun`` a structured tool calls, or None."""
    function = tool.func
    name = getattr(function, "__name__", None)
    return getattr(function, "__self__", None) if name in {"run", "arun"} else None


def _make_invoke(run: Any, stock: Any) -> Any:
    # CrewAI's parameter names: its callers pass them as keywords.
    def invoke(tool: Any, input: Any, config: Any = None, **kwargs: Any) -> Any:  # noqa: A002
        def proceed() -> Any:
            delegate, invoked = _delegate.set(_runs_of(tool)), _invoked.set(tool)
            try:
                return stock(tool, input, config, **kwargs)
            finally:
                _invoked.reset(invoked)
                _delegate.reset(delegate)

        return run(_call(tool, (), input, "react", asynchronous=False), proceed)

    return invoke


def _make_ainvoke(arun: Any, stock: Any) -> Any:
    async def ainvoke(tool: Any, input: Any, config: Any = None, **kwargs: Any) -> Any:  # noqa: A002
        async def proceed() -> Any:
            delegate, invoked = _delegate.set(_runs_of(tool)), _invoked.set(tool)
            try:
                return await stock(tool, input, config, **kwargs)
            finally:
                _invoked.reset(invoked)
                _delegate.reset(delegate)

        return await arun(_call(tool, (), input, "react", asynchronous=True), proceed)

    return ainvoke


class _Runs:
    """Wraps ``run`` and ``arun`` on the classes of tools that define them."""

    def __init__(self, binding: Binding, run: Any, arun: Any) -> None:
        self._binding = binding
        self._run = run
        self._arun = arun
        self._wrapped: dict[str, set[type]] = {"run": set(), "arun": set()}

    def wrap(self, cls: type) -> None:
        for name, make in (("run", self._make_run), ("arun", self._make_arun)):
            if name in vars(cls):
                self._wrapped[name].add(cls)
                self._binding.stand_in(cls, name, functools.partial(make, cls))

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
        if next((base for base in type(tool).__mro__ if base in wrapped), cls) is not cls:
            return True
        if _delegate.get() is tool:
            _delegate.set(None)
            return True
        return False

    def _make_run(self, cls: type, stock: Any) -> Any:
        def run(tool: Any, *args: Any, **kwargs: Any) -> Any:
            proceed = functools.partial(stock, tool, *args, **kwargs)
            if self._inner(tool, "run", cls):
                return proceed()
            return self._run(_call(tool, args, kwargs, "native", asynchronous=False), proceed)

        return run

    def _make_arun(self, cls: type, stock: Any) -> Any:
        async def arun(tool: Any, *args: Any, **kwargs: Any) -> Any:
            proceed = functools.partial(stock, tool, *args, **kwargs)
            if self._inner(tool, "arun", cls):
                return await proceed()
            return await self._arun(_call(tool, args, kwargs, "native", asynchronous=True), proceed)

        return arun


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
