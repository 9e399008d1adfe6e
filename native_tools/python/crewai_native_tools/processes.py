"""Tools that a policy runs in a process of their own: how a call of CrewAI's comes to a worker."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import math
import sys
from typing import TYPE_CHECKING, Any, Final

from crewai_native_tools import isolation
from crewai_native_tools.execution import current
from crewai_native_tools.locks import Lock

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from crewai_native_tools.execution import Plan

_LIMITS: Final = ("cpu_seconds", "memory_mb", "open_files", "file_size")

_pool: isolation.Pool | None = None
_lock = Lock()


def pool() -> isolation.Pool:
    """Return the worker processes of this process."""
    global _pool  # noqa: PLW0603 - made on first use
    with _lock:
        if _pool is None:
            from crewai_native_tools import plugin

            _pool = isolation.Pool(plugin.options().isolation_workers)
        return _pool


def in_process(
    plan: Plan, target: isolation.Target, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Call a function in a worker, under the plan's limits, until the caller's time is up."""
    execution = current()

    def started(cancel: Callable[[], None]) -> None:
        if execution is None:
            return
        before = execution.on_cancel

        def both() -> None:
            cancel()
            if before is not None:
                before()

        execution.on_cancel = both
        if execution.call.cancelled:
            # It was, a moment before there was anything to call.
            cancel()

    return pool().run(
        target,
        args,
        kwargs,
        limits=limits(plan),
        timeout=None if execution is None else execution.call.left,
        on_start=started,
    )


def target_of(tool: Any, name: str) -> isolation.Target:
    """Return how a worker finds a function, or a tool's with the state that it has now.

    Raises:
        NotTransferable: No other process can have it.
    """
    function = isolation.unforked(tool.func) if _has_function(tool) else tool
    return isolation.check_transferable(function, name=name)


def limits(plan: Plan) -> isolation.Limits:
    """Return what a plan says about processes."""
    said = {field: plan.values[field] for field in _LIMITS}
    return isolation.Limits(
        **{field: value for field, value in said.items() if value not in {None, math.inf}}
    )


# Tool, plan and function of the call that is to be diverted, in the context of that call.
_diverted: contextvars.ContextVar[tuple[Any, Plan, isolation.Target] | None] = (
    contextvars.ContextVar("crewai_native_tool_diverted", default=None)
)
_NOTHING: Final = object()
# Where a function is forked at present: by holder and name, how many calls use that, and what stood there.
_forks: dict[tuple[int, str], tuple[int, Any]] = {}


def isolated(
    plan: Plan, tool: Any, author_tool: Any, proceed: Callable[[], Any]
) -> Callable[[], Any]:
    """Return what makes a call of a tool of CrewAI's with its author's function in a worker.

    CrewAI's own code validates the arguments and counts the use, and then calls the function of the
    tool's author. For the time of the call another function stands there, which goes to a worker in
    the context of this call, and to the author's function in all others.

    Args:
        plan: What counts for it.
        tool: What is called: a ``BaseTool`` or a ``CrewStructuredTool``.
        author_tool: The ``BaseTool`` behind it, or the same.
        proceed: CrewAI's code.

    Raises:
        NotTransferable: No other process can have the tool.
    """
    name = "func" if _has_function(tool) else "_run"
    target = target_of(author_tool, plan.tool)

    def call() -> Any:
        with _forked(tool, name), _in_context(tool, plan, target):
            return proceed()

    return call


def aisolated(
    plan: Plan, tool: Any, author_tool: Any, proceed: Callable[[], Awaitable[Any]]
) -> Callable[[], Awaitable[Any]]:
    """As :func:`isolated`, for a call that is awaited."""
    name = "func" if _has_function(tool) else "_arun"
    function = getattr(tool, name)
    if not asyncio.iscoroutinefunction(function):
        # CrewAI would run it on a thread that does not know of which call it is.
        raise isolation.NotTransferable(
            f"tool {plan.tool!r} is awaited and is no coroutine function; in a process of its own "
            "it can be called, but not awaited"
        )
    called = author_tool if _has_function(author_tool) else author_tool._arun  # noqa: SLF001 - what CrewAI calls
    target = target_of(called, plan.tool)

    async def call() -> Any:
        with _forked(tool, name), _in_context(tool, plan, target):
            return await proceed()

    return call


@contextlib.contextmanager
def _in_context(tool: Any, plan: Plan, target: isolation.Target) -> Iterator[None]:
    token = _diverted.set((tool, plan, target))
    try:
        yield
    finally:
        _diverted.reset(token)


@contextlib.contextmanager
def _forked(tool: Any, name: str) -> Iterator[None]:
    """Have a fork stand where CrewAI finds a tool's function.

    That is the tool where it has the function itself, and a copy that is made meanwhile takes the fork
    along, which means the same function there. A method is its class's, and goes on being the copy's own.
    """
    holder = tool if name in vars(tool) else type(tool)
    key = (id(holder), name)
    with _lock:
        users, before = _forks.get(key, (0, None))
        if users == 0:
            before = vars(holder).get(name, _NOTHING)
            fork = _fork_of(tool, name) if holder is tool else _fork_of_method(holder, name)
            _put(holder, name, fork)
        _forks[key] = (users + 1, before)
    try:
        yield
    finally:
        with _lock:
            users, before = _forks.pop(key)
            if users > 1:
                _forks[key] = (users - 1, before)
            else:
                _put(holder, name, before)


def _put(holder: Any, name: str, value: Any) -> None:
    # A model's own way would validate it.
    set_ = type.__setattr__ if isinstance(holder, type) else object.__setattr__
    delete = type.__delattr__ if isinstance(holder, type) else object.__delattr__
    if value is _NOTHING:
        delete(holder, name)
    else:
        set_(holder, name, value)


def _fork_of(tool: Any, name: str) -> Any:
    function = getattr(tool, name)
    # A copy of a tool may have the fork of the one that it was copied from.
    function = isolation.unforked(function)
    return _fork(function, lambda args: (tool, function, args))


def _fork_of_method(cls: type, name: str) -> Any:
    method = isolation.unforked(inspect.getattr_static(cls, name))

    def parts(args: tuple[Any, ...]) -> tuple[Any, Any, tuple[Any, ...]]:
        tool, *others = args
        return tool, method.__get__(tool, type(tool)), tuple(others)

    return _fork(method, parts)


def _fork(
    function: Any, parts: Callable[[tuple[Any, ...]], tuple[Any, Any, tuple[Any, ...]]]
) -> Any:
    """Return a function that goes to a worker where a call of this tool is to.

    Args:
        function: What it stands for.
        parts: Gives, of the arguments that it is called with, the tool, its function, and the others.
    """
    if asyncio.iscoroutinefunction(function):

        @functools.wraps(function)
        async def afork(*args: Any, **kwargs: Any) -> Any:
            tool, called, args = parts(args)
            where = _diverted.get()
            if where is None or where[0] is not tool:
                return await called(*args, **kwargs)
            return await asyncio.to_thread(in_process, *where[1:], args, kwargs)

        return isolation.forked(afork, function)

    @functools.wraps(function)
    def fork(*args: Any, **kwargs: Any) -> Any:
        tool, called, args = parts(args)
        where = _diverted.get()
        if where is None or where[0] is not tool:
            return called(*args, **kwargs)
        return in_process(*where[1:], args, kwargs)

    return isolation.forked(fork, function)


def _has_function(tool: Any) -> bool:
    """Whether a tool of CrewAI's calls what it has as its ``func``."""
    base_tool = sys.modules.get("crewai.tools.base_tool")
    structured = sys.modules.get("crewai.tools.structured_tool")
    return (base_tool is not None and isinstance(tool, base_tool.Tool)) or (
        structured is not None and isinstance(tool, structured.CrewStructuredTool)
    )
