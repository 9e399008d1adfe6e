"""The threads on which tools run whose callers may leave before they end.

They are Python's own threads, so that Python's thread-locals, profilers and debuggers work on them.
They are daemons and never joined: a tool that hangs holds up neither its caller nor the end of the
process.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import threading
from typing import TYPE_CHECKING, Final, Protocol

from crewai_native_tools._native import Worker

if TYPE_CHECKING:
    from crewai_native_tools._native import Call

_PATIENCE: Final = 30.0
"""Seconds for which an idle thread waits for its next job."""

_numbers = itertools.count(1)
# Threads without a job, the latest last. Appending and popping are one step each.
_idle: list[Thread] = []
# How many forks lie between the first of its processes and this one.
_forks = 0


class Job(Protocol):
    """What a thread works on."""

    def work(self) -> Call:
        """Do it, and return the call that has thereby ended. Never raises."""


class Thread:
    """A thread that does one job after another.

    Attributes:
        desk: Where its next job is laid down.
        ident: Python's number of the thread.
        job: What it works on right now.
    """

    __slots__ = ("desk", "ident", "job")

    def __init__(self) -> None:
        self.desk = Worker()
        self.job: Job | None = None
        thread = threading.Thread(
            target=self._work, name=f"crewai-native-tool-{next(_numbers)}", daemon=True
        )
        thread.start()
        self.ident = thread.ident or 0

    def _work(self) -> None:
        forks, finished = _forks, None
        while True:
            job = self.desk.next(finished, _PATIENCE)
            if job is None:
                finished = None
                try:
                    _idle.remove(self)
                except ValueError:
                    # Somebody has just taken it, and will lay down a job.
                    continue
                return
            self.job = job
            finished = job.work()
            self.job = job = None
            # A tool that forks leaves its child on this thread, where nobody waits for anything.
            if _forks != forks:
                return
            _idle.append(self)


def take() -> Thread:
    """Return a thread without a job, which is the caller's until it has done one."""
    try:
        return _idle.pop()
    except IndexError:
        return Thread()


def cancel_coroutines(thread: Thread, job: Job) -> None:
    """Cancel what a job runs under ``asyncio.run`` on a thread, if it does."""
    frame = sys._current_frames().get(thread.ident)  # noqa: SLF001 - documented, for this kind of use
    loop = None
    while frame is not None:
        if frame.f_code is asyncio.BaseEventLoop.run_forever.__code__:
            loop = frame.f_locals["self"]
        frame = frame.f_back
    # It may have ended by itself, and the thread may have begun with the next one. While it has not,
    # what was found before is its own.
    if loop is None or thread.job is not job:
        return

    def cancel() -> None:
        for task in asyncio.all_tasks(loop):
            task.cancel()

    try:
        loop.call_soon_threadsafe(cancel)
    except RuntimeError:
        # It has ended meanwhile.
        return


def _forked() -> None:
    global _forks  # noqa: PLW0603 - of this process, as its threads are
    _forks += 1
    # A child has none of its parent's threads.
    _idle.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
