"""Tools that a policy runs in a process of their own: how a call of CrewAI's comes to a worker."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import math
import sys
import threading
from typing import TYPE_CHECKING, Any, Final

from crewai_native_tools import isolation
from crewai_native_tools.execution import current

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from crewai_native_tools.execution import Plan

_LIMITS: Final = ("cpu_seconds", "memory_mb", "open_files", "file_size")

_pool: isolation.Pool | None = None
_lock = threading.Lock()


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
    function = tool.func if _has_function(tool) else tool
    return isolation.check_transferable(function, name=name)


def limits(plan: Plan) -> isolation.Limits:
    """Return what a plan says about processes."""
    said = {field: plan.values[field] for field in _LIMITS}
    return isolation.Limits(
        **{field: value for field, value in said.items() if value not in {None, math.inf}}
    )


# Plan and function of the call that is to be diverted, in the context of that call.
_diverted: contextvars.ContextVar[tuple[Plan, isolation.Target] | None] = contextvars.ContextVar(
    "crewai_native_tool_diverted", default=None
)
# Tools whose function is forked at present: by tool and name, how many calls use that and what stood there.
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
        with _forked(tool, name), _in_context(plan, target):
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
        with _forked(tool, name), _in_context(plan, target):
            return await proceed()

    return call


@contextlib.contextmanager
def _in_context(plan: Plan, target: isolation.Target) -> Iterator[None]:
    token = _diverted.set((plan, target))
    try:
        yield
    finally:
        _diverted.reset(token)


@contextlib.contextmanager
def _forked(tool: Any, name: str) -> Iterator[None]:
    key = (id(tool), name)
    with _lock:
        users, before = _forks.get(key, (0, None))
        if users == 0:
            before = vars(tool).get(name)
            object.__setattr__(tool, name, _fork(getattr(tool, name)))
        _forks[key] = (users + 1, before)
    try:
        yield
    finally:
        with _lock:
            users, before = _forks.pop(key)
            if users > 1:
                _forks[key] = (users - 1, before)
            elif before is None:
                object.__delattr__(tool, name)
            else:
                object.__setattr__(tool, name, before)


def _fork(function: Any) -> Any:
    if asyncio.iscoroutinefunction(function):

        @functools.wraps(function)
        async def afork(*args: Any, **kwargs: Any) -> Any:
            where = _diverted.get()
            if where is None:
                return await function(*args, **kwargs)
            return await asyncio.to_thread(in_process, *where, args, kwargs)

        return afork

    @functools.wraps(function)
    def fork(*args: Any, **kwargs: Any) -> Any:
        where = _diverted.get()
        if where is None:
            return function(*args, **kwargs)
        return in_process(*where, args, kwargs)

    return fork


def _has_function(tool: Any) -> bool:
    """Whether a tool of CrewAI's calls what it has as its ``func``."""
    base_tool = sys.modules.get("crewai.tools.base_tool")
    structured = sys.modules.get("crewai.tools.structured_tool")
    return (base_tool is not None and isinstance(tool, base_tool.Tool)) or (
        structured is not None and isinstance(tool, structured.CrewStructuredTool)
    )
