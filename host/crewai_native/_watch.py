"""Counts and times the calls of a slot, compares them with stock, and gives up on a bad provider.

The counting stands on hot paths, so it costs well under a microsecond: each thread adds to cells
of its own, without a lock, and the cells are summed when somebody asks. The cells of a thread that
has ended are folded into the total.
"""

from __future__ import annotations

import collections
import functools
import inspect
import logging
import os
import random
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from crewai_native._errors import is_failure

if TYPE_CHECKING:
    from collections.abc import Callable

_logger = logging.getLogger("crewai_native")
_Function = TypeVar("_Function", bound="Callable[..., Any]")

# Cells of one thread: errors, fallbacks, then a histogram of durations whose buckets are quarters
# of powers of two of nanoseconds (so a quantile is right to about 12 %), for all that the clock's 63
# bits can hold.
_ERRORS: Final = 0
_FALLBACKS: Final = 1
_FIRST_BUCKET: Final = 2
_TOP_BIT: Final = 63
_LONGEST_SHOWN: Final = 200
_CELLS: Final = _FIRST_BUCKET + 4 * (_TOP_BIT + 1)

FAILURES_BEFORE_REVERTING: Final = 5

# Guards the sums of all watches; held for microseconds, when a thread first calls and when somebody
# asks. A fork waits for it, so that no child inherits it locked by a thread that it does not have.
_lock: Final = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
    )


class Metrics(NamedTuple):
    """What a slot has done since it was bound.

    Attributes:
        slot: The slot.
        calls: Calls that reached the provider.
        errors: Calls that raised.
        fallbacks: Calls that CrewAI's own code had to answer.
        p50: Median duration in seconds; NaN before the first call.
        p99: 99th percentile of the duration in seconds; NaN before the first call.
    """

    slot: str
    calls: int
    errors: int
    fallbacks: int
    p50: float
    p99: float


class _Owner:
    """Lives as long as its thread: when it goes, the thread's cells are folded."""

    __slots__ = ("__weakref__", "cells")

    def __init__(self) -> None:
        self.cells = [0] * _CELLS


class Watch:
    """The counters of one bound slot.

    Args:
        slot: The slot's name.
        verify: Share of the calls of a stateless slot that stock answers too, for comparison.

    Attributes:
        serving: Whether the provider answers. Cleared for good when the slot is reverted or
            unbound: references to our functions live on in other people's variables, and from
            then on those run CrewAI's code.
        failures_in_a_row: Calls that native failed at and stock answered, since native last did.
        reverted: Why the slot was left to stock while it was bound; None where it was not.
    """

    def __init__(self, slot: str, verify: float = 0.0) -> None:
        self.slot = slot
        self.serving = True
        self.reverted: str | None = None
        self._verify = verify
        self._local = threading.local()
        self._live: weakref.WeakSet[_Owner] = weakref.WeakSet()
        # A finaliser runs wherever the collector happens to: it may append, but take no lock.
        self._ended: collections.deque[list[int]] = collections.deque()
        self._total = [0] * _CELLS
        self.failures_in_a_row = 0

    def meter(self, function: _Function) -> _Function:
        """Return the function with its calls counted and timed; coroutine functions stay such."""
        local, clock, new_cells = self._local, time.perf_counter_ns, self._new_cells

        def count(elapsed: int, raised: bool) -> None:
            try:
                cells = local.cells
            except AttributeError:
                cells = new_cells()
            bits = elapsed.bit_length() or 1
            quarter = (elapsed << 2 >> (bits - 1)) & 3  # the two bits after the first
            cells[_FIRST_BUCKET + 4 * bits + quarter] += 1
            if raised:
                cells[_ERRORS] += 1

        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def metered_async(*args: Any, **kwargs: Any) -> Any:
                start = clock()
                try:
                    result = await function(*args, **kwargs)
                except BaseException:
                    count(clock() - start, True)
                    raise
                count(clock() - start, False)
                return result

            return metered_async  # type: ignore[return-value]

        @functools.wraps(function)
        def metered(*args: Any, **kwargs: Any) -> Any:
            start = clock()
            try:
                result = function(*args, **kwargs)
            except BaseException:
                count(clock() - start, True)
                raise
            count(clock() - start, False)
            return result

        return metered  # type: ignore[return-value]

    def guard(
        self,
        native: Callable[..., Any],
        stock: Callable[..., Any],
        same: Callable[[Any, Any], bool] | None = lambda left, right: bool(left == right),
    ) -> Callable[..., Any]:
        """Return a function of a stateless slot: native, with stock to fall back on.

        Stock answers a call that native fails at; where stock fails too, its error is the
        program's own and is raised. After :data:`FAILURES_BEFORE_REVERTING` such calls in a row,
        or one difference found in verify mode, the slot is stock's again.

        Args:
            native: The provider's function.
            stock: CrewAI's function, of the same signature.
            same: Whether two results are equal, for verify mode; None where stock's answer
                says nothing about native's.
        """
        metered = self.meter(native)
        share = self._verify

        @functools.wraps(stock)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            if not self.serving:
                return stock(*args, **kwargs)
            try:
                result = metered(*args, **kwargs)
            except BaseException as error:  # a Rust panic is no Exception
                if not is_failure(error):
                    raise
                answer = stock(*args, **kwargs)
                self.fell_back(error)
                return answer
            self.failures_in_a_row = 0
            # Not for secrets: a cheap coin.
            if share and same is not None and random.random() < share:  # noqa: S311
                expected = stock(*args, **kwargs)
                if not same(result, expected):
                    self.revert(
                        f"its result differs from CrewAI's: {_short(result)} is not "
                        f"{_short(expected)}"
                    )
                    return expected
            return result

        return guarded

    def revert(self, reason: str) -> None:
        """Leave the slot to stock from now on."""
        if self.serving:
            self.serving = False
            self.reverted = reason
            _logger.error("crewai-native: %s is CrewAI's own again: %s", self.slot, reason)

    def close(self) -> None:
        """Leave the slot to stock because it is unbound."""
        self.serving = False

    def fell_back(self, error: BaseException) -> None:
        """Count a call that stock answered because native failed; revert after too many."""
        self._cells()[_FALLBACKS] += 1
        self.failures_in_a_row += 1
        _logger.warning("crewai-native: %s failed, CrewAI's code answered: %r", self.slot, error)
        if self.failures_in_a_row >= FAILURES_BEFORE_REVERTING:
            self.revert(f"{self.failures_in_a_row} failures in a row, the last: {error!r}")

    def metrics(self) -> Metrics:
        """Return the sums over all threads."""
        with _lock:
            while self._ended:
                self._fold(self._ended.popleft())
            cells = list(self._total)
            for owner in list(self._live):
                cells = [total + part for total, part in zip(cells, owner.cells, strict=True)]
        buckets = cells[_FIRST_BUCKET:]
        return Metrics(
            self.slot,
            sum(buckets),
            cells[_ERRORS],
            cells[_FALLBACKS],
            _quantile(buckets, 0.5),
            _quantile(buckets, 0.99),
        )

    def _cells(self) -> list[int]:
        cells: list[int] | None = getattr(self._local, "cells", None)
        return cells if cells is not None else self._new_cells()

    def _new_cells(self) -> list[int]:
        owner = _Owner()
        # The owner for its end; its cells to find them in one step.
        self._local.owner, self._local.cells = owner, owner.cells
        weakref.finalize(owner, self._ended.append, owner.cells).atexit = False
        with _lock:
            while self._ended:
                self._fold(self._ended.popleft())
            self._live.add(owner)
        return owner.cells

    def _fold(self, cells: list[int]) -> None:
        for index, count in enumerate(cells):
            self._total[index] += count


def _quantile(buckets: list[int], share: float) -> float:
    calls = sum(buckets)
    if not calls:
        return float("nan")
    rank = share * calls
    seen = 0
    for index, count in enumerate(buckets):
        seen += count
        if seen >= rank:
            bits, quarter = divmod(index, 4)
            # The middle of the bucket: 2**(bits-1) * (1 + quarter/4 + 1/8) nanoseconds.
            return float(2.0 ** (bits - 1) * (1.125 + quarter / 4)) * 1e-9
    raise AssertionError("unreachable: the buckets sum to the calls")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"
