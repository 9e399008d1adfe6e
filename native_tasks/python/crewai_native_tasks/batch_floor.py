"""The threads that work the batches of this process.

What is next is decided in Rust (:class:`~crewai_native_tasks._native.Floor`); the threads are
Python's own, so profilers, debuggers and thread-local state see what they always do. They are made
when there is work, end after a while without, and do not keep the process from ending.
"""

from __future__ import annotations

import atexit
import gc
import logging
import os
import threading
import weakref
from typing import TYPE_CHECKING, Final, Protocol

from crewai_native_tasks._native import Floor

if TYPE_CHECKING:
    from collections.abc import Callable

_logger = logging.getLogger("crewai_native.tasks")
# Seconds after which an idle thread ends.
_PATIENCE: Final = 10.0
# Python 3.12 freezes by itself what is never freed, 375 objects; a program that does has thousands.
_IMMORTAL: Final = 1000
SLOTS: Final = 256
"""How many items of all batches are worked at a time, unless configured."""


class Work(Protocol):
    """What the threads do for a batch."""

    def work(self, ticket: int) -> None:
        """Make the attempt that has this ticket."""

    def overdue(self, ticket: int) -> None:
        """Take note that an attempt has taken too long."""

    def lost(self, ticket: int) -> None:
        """Take note that the thread of an attempt has died."""

    def stop(self) -> None:
        """End: the process does."""


class Hall:
    """The floor of this process and the threads on it."""

    def __init__(self, slots: int) -> None:
        self.floor = Floor(slots)
        self._process = os.getpid()
        self._batches: weakref.WeakValueDictionary[int, Work] = weakref.WeakValueDictionary()
        # What each thread is at.
        self._at: dict[threading.Thread, tuple[int, int]] = {}
        self._lock = threading.Lock()
        self._keeping = False
        self._timed = 0
        self._heap_set_aside = False

    def admit(
        self, work: Work, *, priority: int, bounds: tuple[int, int], limit: float | None
    ) -> int:
        """Open a batch and return its number."""
        fewest, most = bounds
        number = self.floor.open(priority=priority, fewest=fewest, most=most, limit=limit)
        self._batches[number] = work
        self._set_heap_aside()
        if limit is not None:
            with self._lock:
                self._timed += 1
                if not self._keeping:
                    self._keeping = True
                    self._thread(self._keep, "crewai-native-batch-keeper")
        return number

    def dismiss(self, number: int, limit: float | None) -> None:
        """Close a batch."""
        self._batches.pop(number, None)
        self.start(self.floor.close(number))
        if not self._batches:
            self.take_heap_back()
        if limit is not None:
            with self._lock:
                self._timed -= 1

    def _set_heap_aside(self) -> None:
        """Spare the collector what is there, which is most of the heap, while a batch runs.

        Crews are made and dropped by the hundred, so that it would go through everything that was
        imported again and again. What becomes garbage meanwhile of what was there before, and only
        the collector can free, stays until no batch runs, or all of them have had nothing to do for
        a while: a batch that nobody asks any more may be held by just that. An application that has
        set things aside itself is left alone.

        Without a lock, as a batch may be closed by the collector itself: a batch that is admitted
        just when the last one ends may run without this, and nothing stays aside without a batch.
        """
        if not self._heap_set_aside and gc.isenabled() and gc.get_freeze_count() <= _IMMORTAL:
            # In this order, as what is marked as set aside may be taken back at any time.
            gc.freeze()
            self._heap_set_aside = True

    def take_heap_back(self) -> None:
        """Let the collector have everything again."""
        if self._heap_set_aside:
            self._heap_set_aside = False
            gc.unfreeze()

    def start(self, workers: int) -> None:
        """Start threads, as the floor has asked.

        Raises:
            RuntimeError: The system has no more threads, and there are none at all.
        """
        for started in range(workers):
            try:
                self._thread(self._serve, "crewai-native-batch")
            except RuntimeError as error:
                self.floor.missing(workers - started)
                if not self._at:
                    raise
                # Those that there are go on.
                _logger.warning("a batch has fewer threads than it may have (%s)", error)
                return

    def dead(self) -> None:
        """Find attempts whose threads have died without a word."""
        for thread in list(self._at):
            if not thread.is_alive():
                self._gone(thread)

    @staticmethod
    def _thread(target: Callable[[], None], name: str) -> None:
        threading.Thread(target=target, name=name, daemon=True).start()

    def _serve(self) -> None:
        floor, me = self.floor, threading.current_thread()
        try:
            while (taken := floor.take(_PATIENCE)) is not None:
                batch, ticket, more = taken
                self._at[me] = (batch, ticket)
                self.start(more)
                work = self._batches.get(batch)
                if work is None:
                    floor.claim(batch, ticket)
                else:
                    work.work(ticket)
                # Nothing of a batch is kept alive by a thread that waits for another.
                del work
                if os.getpid() != self._process:
                    return  # the item has forked, and its child came back: the rest is the parent's
                del self._at[me]
                floor.back()
            if not self._at:
                self.take_heap_back()
        finally:
            if os.getpid() == self._process:
                self._gone(me)

    def _gone(self, thread: threading.Thread) -> None:
        held = self._at.pop(thread, None)
        if held is not None and (work := self._batches.get(held[0])) is not None:
            work.lost(held[1])

    def _keep(self) -> None:
        """Notice attempts that take too long, while there are batches with a limit."""
        while True:
            overdue, more = self.floor.expire(_PATIENCE)
            for batch, ticket in overdue:
                if (work := self._batches.get(batch)) is not None:
                    work.overdue(ticket)
                    del work
            self.start(more)
            with self._lock:
                if not self._timed:
                    self._keeping = False
                    return

    def stop(self) -> None:
        """End every batch, and the threads that are in no foreign code."""
        for work in list(self._batches.values()):
            work.stop()
        self.floor.stop()


_slots = SLOTS
_hall: Hall | None = None
_lock: Final = threading.Lock()


def configure(slots: int) -> None:
    """Set how many items of all batches are worked at a time."""
    global _slots  # noqa: PLW0603 - one floor for the process
    with _lock:
        _slots = slots
        if _hall is not None:
            _hall.floor.set_slots(slots)


def hall() -> Hall:
    """Return this process's hall."""
    global _hall  # noqa: PLW0603 - as above
    with _lock:
        if _hall is None:
            _hall = Hall(_slots)
            # Before the thread pools of the standard library are shut, so that what still runs does
            # not fail for their lack; atexit would be after.
            getattr(threading, "_register_atexit", atexit.register)(_stop, os.getpid())
        return _hall


def _stop(process: int) -> None:
    if process == os.getpid() and _hall is not None:
        _hall.stop()


_ruins: Final[list[Hall]] = []


def _anew() -> None:
    """Leave the parent's hall alone in a forked child, which has none of its threads."""
    global _hall, _lock  # noqa: PLW0603 - as above
    _lock = threading.Lock()  # type: ignore[misc] # another thread of the parent may have held it
    if _hall is not None:
        _hall.take_heap_back()
        _ruins.append(_hall)
        _hall = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_anew)
