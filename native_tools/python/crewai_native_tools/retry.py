"""Calls that are tried again when they fail."""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from crewai_native_tools.policy import Retry

LONGEST: Final = 60.0
"""The longest wait before an attempt, in seconds."""
_MOST_DOUBLINGS: Final = 30


def delay(policy: Retry, failed: int, rng: Callable[[], float] = random.random) -> float:
    """Return how many seconds to wait before the next attempt.

    The wait doubles from attempt to attempt, up to :data:`LONGEST`. Half of it is chosen at random,
    so that callers that failed together do not come back together.

    Args:
        policy: Its ``backoff`` is the longest wait before the second attempt.
        failed: How many attempts have failed, at least 1.
        rng: Gives numbers from 0 to 1.
    """
    whole = min(policy.backoff * 2.0 ** min(failed - 1, _MOST_DOUBLINGS), LONGEST)
    return whole * (0.5 + rng() / 2)


def applies(policy: Retry, error: BaseException) -> bool:
    """Whether an exception is one after which a policy tries again.

    Names are those of classes, alone (``ConnectionError``) or with their module
    (``requests.exceptions.Timeout``); derived classes are meant, too. What is no ``Exception``,
    such as Ctrl-C, is never tried again.
    """
    if not isinstance(error, Exception):
        return False
    for cls in type(error).__mro__:
        if cls.__name__ in policy.on or f"{cls.__module__}.{cls.__qualname__}" in policy.on:
            return True
    return False


def run(
    attempt: Callable[[], Any],
    policy: Retry,
    *,
    failed: Exception | None = None,
    final: Callable[[Exception], bool] = lambda _: False,
    left: Callable[[], float | None] = lambda: None,
    wait: Callable[[float], None] = time.sleep,
) -> Any:
    """Call ``attempt`` until it returns, at most ``policy.attempts`` times.

    Args:
        attempt: The call.
        policy: How often, after what, with what waits between.
        failed: How the first attempt has failed, where it was made already.
        final: Whether an exception is never worth another attempt, such as a refusal.
        left: Seconds that are left; None is without end. There is no attempt that would begin
            later.
        wait: Waits so many seconds, or raises what ends the call.

    Raises:
        Exception: What the last attempt raised, with a note on those before it.
    """
    failures: list[Exception] = []
    while True:
        if failed is None:
            try:
                return attempt()
            except Exception as error:  # noqa: BLE001 - raised below where it was the last
                failed = error
        pause = _pause(failed, failures, policy, final, left)
        if pause is None:
            raise failed
        failed = None
        wait(pause)


async def arun(
    attempt: Callable[[], Awaitable[Any]],
    policy: Retry,
    *,
    failed: Exception | None = None,
    final: Callable[[Exception], bool] = lambda _: False,
    left: Callable[[], float | None] = lambda: None,
    wait: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Any:
    """As :func:`run`, for calls that are awaited."""
    failures: list[Exception] = []
    while True:
        if failed is None:
            try:
                return await attempt()
            except Exception as error:  # noqa: BLE001 - raised below where it was the last
                failed = error
        pause = _pause(failed, failures, policy, final, left)
        if pause is None:
            raise failed
        failed = None
        await wait(pause)


def _pause(
    error: Exception,
    failures: list[Exception],
    policy: Retry,
    final: Callable[[Exception], bool],
    left: Callable[[], float | None],
) -> float | None:
    """Return the wait before the next attempt; None: there is none, and the error says of which."""
    before = [f"{type(failure).__name__}: {failure}"[:200] for failure in failures]
    failures.append(error)
    again = applies(policy, error) and not final(error)
    pause = delay(policy, len(failures))
    remaining = left()
    if again and len(failures) < policy.attempts and (remaining is None or pause < remaining):
        return pause
    if before:
        error.add_note(f"This was attempt {len(failures)}; before it: {'; '.join(before)}")
    return None
