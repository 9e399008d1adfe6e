"""What a policy has done around a call, beside its limits.

That is a process of its own, a journal, further attempts, and a bound for the result. From the inside out: the tool runs in a process; what takes effect is written down as it happens,
even when the caller has left; each attempt is an execution under the policy's limits, all of them
within one ``timeout``; and what comes out in the end is cut.
"""

from __future__ import annotations

import asyncio
import functools
import time
from typing import TYPE_CHECKING, Any, Final

from crewai_native_tools import outputs, retry
from crewai_native_tools.errors import ToolStopped
from crewai_native_tools.execution import aexecute, execute

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from crewai_native_tools.execution import Plan, Run

_LOOK: Final = 0.05
_SHORTEST: Final = 0.001


def run(
    plan: Plan,
    belongs_to: Run,
    arguments: Any,
    proceed: Callable[[], Any],
    *,
    task: str = "",
    detached: bool = False,
    left: float | None = None,
) -> Any:
    """Run a call under a plan and return the tool's result.

    Args:
        plan: What counts for it.
        belongs_to: Its run.
        arguments: The tool's arguments, by name.
        proceed: Calls the tool.
        task: What tells its task from others of the run.
        detached: As for :func:`~crewai_native_tools.execution.execute`.
        left: What is left of the plan's timeout, where waiting took some of it.

    Raises:
        ToolStopped: The engine ended it.
        BaseException: What the tool raised.
    """
    if plan.side_effects:
        proceed = functools.partial(_once, plan, belongs_to, task, arguments, proceed)
    if plan.retry is None:
        result = execute(plan, belongs_to, arguments, proceed, detached=detached, left=left)
    else:
        clock = _clock(plan, left)
        try:
            result = execute(plan, belongs_to, arguments, proceed, detached=detached, left=left)
        except Exception as error:  # noqa: BLE001 - raised where there is no other attempt
            result = retry.run(
                lambda: execute(
                    plan, belongs_to, arguments, proceed, left=_some(clock()), detached=detached
                ),
                plan.retry,
                failed=error,
                final=_final,
                left=clock,
                wait=functools.partial(_wait, belongs_to),
            )
    # Most results are short, and seen to be so at once.
    if plan.max_output is None or (isinstance(result, str) and len(result) <= plan.surely_short):
        return result
    return _cut(plan, result)


async def arun(
    plan: Plan,
    belongs_to: Run,
    arguments: Any,
    proceed: Callable[[], Any],
    *,
    task: str = "",
    on_thread: bool = False,
    left: float | None = None,
) -> Any:
    """As :func:`run`, without blocking the event loop."""
    if plan.side_effects:
        once = _once if on_thread else _aonce
        proceed = functools.partial(once, plan, belongs_to, task, arguments, proceed)
    if plan.retry is None:
        result = await aexecute(
            plan, belongs_to, arguments, proceed, on_thread=on_thread, left=left
        )
    else:
        clock = _clock(plan, left)
        try:
            result = await aexecute(
                plan, belongs_to, arguments, proceed, on_thread=on_thread, left=left
            )
        except Exception as error:  # noqa: BLE001 - raised where there is no other attempt
            result = await retry.arun(
                lambda: aexecute(
                    plan, belongs_to, arguments, proceed, left=_some(clock()), on_thread=on_thread
                ),
                plan.retry,
                failed=error,
                final=_final,
                left=clock,
                wait=functools.partial(_await, belongs_to),
            )
    if plan.max_output is None:
        return result
    # It may write a file.
    return await asyncio.to_thread(_cut, plan, result)


def _once(
    plan: Plan, belongs_to: Run, task: str, arguments: Any, proceed: Callable[[], Any]
) -> Any:
    from crewai_native_tools import journal

    return journal.default().once(proceed, **_entry(plan, belongs_to, task, arguments))


async def _aonce(
    plan: Plan, belongs_to: Run, task: str, arguments: Any, proceed: Callable[[], Awaitable[Any]]
) -> Any:
    from crewai_native_tools import journal

    return await journal.default().aonce(proceed, **_entry(plan, belongs_to, task, arguments))


def _entry(plan: Plan, belongs_to: Run, task: str, arguments: Any) -> dict[str, Any]:
    from crewai_native_tools import isolation, journal

    return {
        "run": journal.current_name() or belongs_to.name,
        "task": task,
        "tool": plan.tool,
        "arguments": arguments,
        # After these nobody knows whether the tool has done its work.
        "unknown": (TimeoutError, isolation.Killed, asyncio.CancelledError),
        "not_made": (isolation.NotStarted,),
    }


def _cut(plan: Plan, result: Any) -> Any:
    assert plan.max_output is not None
    return outputs.cap(result, plan.max_output, tool=plan.tool)


def _clock(plan: Plan, left: float | None) -> Callable[[], float | None]:
    """Return what says how many seconds are left for the attempts together."""
    seconds = plan.timeout if left is None else left
    if seconds is None:
        return lambda: None
    end = time.monotonic() + seconds
    return lambda: end - time.monotonic()


def _some(left: float | None) -> float | None:
    """Return what an attempt may take: its deadline is one even when it has passed meanwhile."""
    return None if left is None else max(left, _SHORTEST)


def _final(error: Exception) -> bool:
    """Whether another attempt would end alike."""
    if isinstance(error, ToolStopped):
        return not error.retryable
    from crewai_native_tools import isolation, journal

    return isinstance(error, journal.Uncertain | isolation.NotTransferable)


def _wait(belongs_to: Run, seconds: float) -> None:
    """Wait, or until the run is cancelled, which the next attempt then says."""
    end = time.monotonic() + seconds
    while not belongs_to.cancelled and (left := end - time.monotonic()) > 0:
        time.sleep(min(left, _LOOK))


async def _await(belongs_to: Run, seconds: float) -> None:
    """As :func:`_wait`, without blocking the event loop."""
    end = time.monotonic() + seconds
    while not belongs_to.cancelled and (left := end - time.monotonic()) > 0:  # noqa: ASYNC110 - as there
        await asyncio.sleep(min(left, _LOOK))
