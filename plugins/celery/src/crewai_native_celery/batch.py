"""One batch on a cluster, as whoever sent it sees it."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import hashlib
import json
import logging
import os
import time
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Self

from crewai_native.slots.tasks_batch import BatchItem, ItemState
from crewai_native_celery import app as celery_app
from crewai_native_celery import kickoff, targets
from crewai_native_celery.errors import KickoffError, WorkerLostError
from crewai_native_celery.ledger import MOST_LOST
from crewai_native_tasks import LeftBehind, outputs
from crewai_native_tasks.control import scope_of_run

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

    from crewai_native.slots.tasks_batch import BatchOptions
    from crewai_native_celery.ledger import Entry, Outcome
    from crewai_native_celery.options import Options
    from crewai_native_tasks.progress import Progress, Silent

# Seconds between looks at the ledger: at first, and where nothing happens for a while.
_SOON: Final = 0.02
_LATER: Final = 0.5
# Seconds before the first further attempt at what failed, doubling up to the most.
_BACKOFF: Final = 1.0
_BACKOFF_MOST: Final = 60.0
# Seconds up to which the time doubles after which what nobody takes is sent again.
_RESEND_MOST: Final = 600.0
# Seconds beyond those that stopping takes at most, after which it is not waited for.
_MARGIN: Final = 5.0
# How Celery tries to reach a broker that is gone: about two minutes.
_SENDING: Final = {
    "max_retries": 30,
    "interval_start": 0.1,
    "interval_step": 0.5,
    "interval_max": 5.0,
}
_logger = logging.getLogger("crewai_native.celery")


class Over(Exception):  # noqa: N818 - not an error
    """There are no more items."""


@dataclasses.dataclass(slots=True, eq=False)
class _Job:
    """An item that has not ended.

    Attributes:
        index: The place of its inputs.
        key: Its key in the ledger.
        inputs: Its inputs.
        token: The present attempt; empty while it waits for its turn.
        attempts: How many were made.
        lost: How many of them died with their process.
        due: When the next attempt is sent.
        sent: When the present one was, for the last time.
        patience: Seconds after which it is sent again if nobody takes it.
        running: Whether somebody has taken it.
        lapsed: Since when its lease has been seen to have lapsed.
    """

    index: int
    key: str
    inputs: dict[str, Any] | None
    token: str = ""
    attempts: int = 0
    lost: int = 0
    due: float = 0.0
    sent: float = 0.0
    patience: float = 0.0
    running: bool = False
    lapsed: float | None = None


class Run:
    """Sends items as there is room, looks what became of them, and gives them out as they end.

    Args:
        target: What to run.
        inputs: The inputs, JSON each.
        options: How.
        settings: The cluster.
    """

    def __init__(
        self,
        target: Any,
        inputs: Iterable[Mapping[str, Any] | None],
        options: BatchOptions,
        settings: Options,
    ) -> None:
        self._window = options.concurrency or CONCURRENCY
        self._target = targets.named(target)
        self._options = options
        self._settings = settings
        self._app = celery_app.made(settings)
        self._ledger = celery_app.ledger(settings)
        self._process = os.getpid()
        self._around = scope_of_run.get()
        self._session = uuid.uuid4().hex
        self._batch = self._session
        if options.resume is not None:
            # Whoever names the same batch finds what is finished of it.
            self._batch = _digest([options.resume, self._target])
        self._inputs: Iterator[Mapping[str, Any] | None] | None = iter(inputs)
        self._input_error: BaseException | None = None
        self._index = 0
        self._jobs: dict[int, _Job] = {}
        self._out: collections.deque[BatchItem] = collections.deque()
        self._tally: collections.Counter[ItemState] = collections.Counter()
        self._pause = _SOON
        self._looked = self._taken = time.monotonic()
        self._warned = False
        self._closed = False
        self._ending = False
        self._cancelled = False
        self.left_behind: list[LeftBehind] = []

    # Asking for items

    @property
    def pause(self) -> float:
        """Seconds until it is worth asking again."""
        return self._pause

    def poll(self) -> BatchItem | None:
        """Return the next item; None if there is none yet.

        Raises:
            Over: There are no more.
        """
        if os.getpid() != self._process:
            raise RuntimeError("a batch cannot be continued in a forked process; start another")
        if self._around is not None:
            self._around.check()
        if not self._out and not self._closed:
            self._fill()
        if not self._out and self._jobs and not self._closed:
            self._look()
        if self._out:
            self._pause = _SOON
            return self._give(self._out.popleft())
        if self._closed or (self._inputs is None and not self._jobs):
            raise self._input_error or Over
        self._pause = min(self._pause * 1.5, _LATER)
        return None

    def _give(self, item: BatchItem) -> BatchItem:
        self._tally[item.state] += 1
        bad = item.state in {ItemState.FAILED, ItemState.TIMED_OUT}
        if bad and not self._ending:
            if self._options.on_error == "raise" and item.error is not None:
                raise item.error
            if self._options.on_error == "stop":
                self._stop()
        return item

    def _stop(self) -> None:
        """Begin nothing further; what runs goes on."""
        self._ending = True
        self._inputs = None
        for job in [*self._jobs.values()]:
            if not job.token or (not job.running and self._ledger.withdraw(job.key, job.token)):
                del self._jobs[job.index]
                attempts = job.attempts - bool(job.token)
                self._out.append(BatchItem(job.index, ItemState.PENDING, attempts=attempts))

    def _fill(self) -> None:
        """Take inputs as there is room, and send them."""
        fresh: list[_Job] = []
        while self._inputs is not None and len(self._jobs) < self._window:
            try:
                inputs = next(self._inputs, _OVER)
                plain = None if inputs is _OVER else _plain(inputs)
            except Exception as error:  # noqa: BLE001 - raised when what has begun has ended
                error.add_note(f"raised by the inputs of a batch, after {self._index} of them")
                self._input_error = error
                inputs = _OVER
            if inputs is _OVER:
                self._inputs = None
                break
            index, self._index = self._index, self._index + 1
            key = f"{self._batch}:{index}:{_digest(plain)[:16]}"
            self._jobs[index] = job = _Job(index, key, plain)
            fresh.append(job)
        if self._options.resume is not None and fresh:
            entries, _ = self._ledger.look([job.key for job in fresh])
            for job, entry in zip(fresh, entries, strict=True):
                if entry is not None and entry.done:
                    self._end(job, entry)
        now = time.monotonic()
        for job in [*self._jobs.values()]:
            if not job.token and job.due <= now:
                job.token = uuid.uuid4().hex
                job.attempts += 1
                job.patience = self._settings.celery_lost_after
                self._send(job)

    def _send(self, job: _Job) -> None:
        job.sent = time.monotonic()
        limit = self._options.timeout or self._settings.celery_time_limit
        self._app.send_task(
            celery_app.TASK,
            kwargs={
                "session": self._session,
                "key": job.key,
                "token": job.token,
                "limit": limit,
                "target": self._target,
                "inputs": job.inputs,
            },
            task_id=job.token,
            time_limit=limit + celery_app.BACKSTOP,
            ignore_result=True,
            retry=True,
            retry_policy=_SENDING,
        )

    # Looking

    def _look(self) -> None:
        jobs = [job for job in self._jobs.values() if job.token]
        entries, then = self._ledger.look([job.key for job in jobs])
        now = time.monotonic()
        gap, self._looked = now - self._looked, now
        for job, entry in zip(jobs, entries, strict=True):
            if gap > self._settings.celery_lost_after / 2:
                # Whoever could not look, could not see signs of life either.
                job.lapsed = None
            self._see(job, entry, then, now)
        self._resend(now)

    def _see(self, job: _Job, entry: Entry | None, then: float, now: float) -> None:
        """Take note of what the ledger says of an item."""
        mine = entry is not None and entry.token == job.token
        if entry is not None and (entry.done or (mine and entry.outcome is not None)):
            self._taken = now
            self._end(job, entry)
            return
        alive = entry is not None and entry.until > then
        job.running = alive or mine
        if job.running:
            self._taken = max(self._taken, job.sent)
        if alive or not mine:
            job.lapsed = None
        elif job.lapsed is None:
            job.lapsed = now
        elif now - job.lapsed > self._settings.celery_lost_after:
            self._lose(job)

    def _lose(self, job: _Job) -> None:
        """Begin an item anew whose process has died."""
        job.lost += 1
        _logger.warning("the process of item %d has died; it is begun anew", job.index)
        if job.lost < MOST_LOST:
            self._again(job, 0.0)
        else:
            error = WorkerLostError(f"the process of item {job.index} died {job.lost} times")
            self._conclude(job, ItemState.FAILED, error=error)

    def _resend(self, now: float) -> None:
        """Send again what seems to have been lost on its way: later ones were taken, or none is.

        What was not lost is dropped when it arrives for the second time.
        """
        lost_after = self._settings.celery_lost_after
        waiting = [job for job in self._jobs.values() if job.token and not job.running]
        idle = len(waiting) == len(self._jobs)
        if idle and now - self._taken > lost_after and not self._warned:
            self._warned = True
            _logger.warning(
                "no worker has taken any of %d items of queue %r for %.0f seconds",
                len(waiting),
                self._settings.celery_queue,
                now - self._taken,
            )
        for job in waiting:
            if now - job.sent > job.patience and (idle or self._taken > job.sent):
                job.patience = min(job.patience * 2, _RESEND_MOST)
                self._send(job)

    def _end(self, job: _Job, entry: Entry) -> None:
        """Take note of an outcome; see to another attempt where there is to be one."""
        outcome = entry.outcome or {}
        state, seconds = outcome["state"], outcome.get("seconds", 0.0)
        if state == ItemState.DONE:
            self._done(job, outcome, seconds)
            return
        if state == ItemState.CANCELLED:
            self._conclude(job, ItemState.CANCELLED, seconds=seconds)
            return
        if job.attempts - job.lost <= self._options.retries and not self._ending:
            made = job.attempts - job.lost - 1
            # What they are short of the whole keeps apart those that failed together.
            share = 0.5 + (job.index * 0.618 % 1) / 2
            self._again(job, min(_BACKOFF * 2**made, _BACKOFF_MOST) * share)
            return
        found: BaseException
        if state == ItemState.TIMED_OUT:
            found = TimeoutError(f"item {job.index} took longer than {seconds:g} seconds")
        elif state == ItemState.FAILED:
            found = KickoffError(outcome["kind"], outcome["message"], outcome["traceback"])
            found.add_note(f"on the worker:\n{found.traceback}")
        else:
            found = WorkerLostError(f"item {job.index}: {outcome.get('message', state)}")
        failed = ItemState.TIMED_OUT if state == ItemState.TIMED_OUT else ItemState.FAILED
        self._conclude(job, failed, error=found, seconds=seconds)

    def _done(self, job: _Job, outcome: Outcome, seconds: float) -> None:
        more = {"seconds": seconds, "usage": outputs.usage(outcome["usage"])}
        try:
            output = outputs.restored(outcome["output"], {})
        except outputs.UnreadableError as error:  # a worker may have another version of its model
            message = f"the output of item {job.index} is {error}"
            self._conclude(job, ItemState.FAILED, error=TypeError(message), **more)
        else:
            self._conclude(job, ItemState.DONE, output, **more)

    def _again(self, job: _Job, after: float) -> None:
        job.token, job.lapsed, job.running = "", None, False
        job.due = time.monotonic() + after

    def _conclude(self, job: _Job, state: ItemState, output: Any = None, **more: Any) -> None:
        del self._jobs[job.index]
        self._out.append(BatchItem(job.index, state, output, attempts=job.attempts, **more))

    # Ending

    def cancel(self) -> list[LeftBehind]:
        """Cancel what has not ended, wait for it to stop, and say what has not.

        Kickoffs stop before their next step, or after :data:`~crewai_native_celery.kickoff.GRACE`
        seconds with their process.
        """
        if self._closed or self._cancelled or os.getpid() != self._process:
            return self.left_behind
        self._cancelled = self._ending = True
        self._inputs = None
        self._ledger.cancel(self._session)
        jobs, self._jobs = [*self._jobs.values()], {}
        for job in jobs:
            attempts = job.attempts - bool(job.token and not job.running)
            self._out.append(BatchItem(job.index, ItemState.CANCELLED, attempts=attempts))
        began = time.monotonic()
        deadline = began + celery_app.beat(self._settings) + kickoff.GRACE + _MARGIN
        while (left := self._at_work(jobs)) and time.monotonic() < deadline:
            time.sleep(_SOON * 5)
        self.left_behind = [
            LeftBehind(f"kickoff of item {job.index}", "", time.monotonic() - began) for job in left
        ]
        return self.left_behind

    def _at_work(self, jobs: list[_Job]) -> list[_Job]:
        """Return those that a process is at work on."""
        entries, now = self._ledger.look([job.key for job in jobs])
        return [
            job
            for job, entry in zip(jobs, entries, strict=True)
            if entry is not None and entry.token == job.token and entry.until > now
        ]

    def close(self) -> None:
        """Cancel what has not ended, and give no more items."""
        if self._closed or os.getpid() != self._process:
            return
        self._closed = True
        if self._jobs:
            self._ledger.cancel(self._session)
        self._jobs.clear()
        self._out.clear()

    def counts(self) -> dict[ItemState, int]:
        """Return how many items stand where, those that were taken from the inputs so far."""
        counts = {state: self._tally[state] for state in ItemState}
        for job in self._jobs.values():
            counts[ItemState.RUNNING if job.running else ItemState.PENDING] += 1
        for item in self._out:
            counts[item.state] += 1
        return counts


CONCURRENCY: Final = 64
"""Kickoffs that are with the cluster at a time, unless told otherwise."""


class CeleryBatch:
    """A batch on a cluster, item by item as they end; made by ``imap_crew(engine="celery")``.

    Leaving it early (``close``, or the end of a ``with`` block) cancels what has not ended.
    """

    def __init__(self, run: Run, show: Progress | Silent) -> None:
        self._run = run
        self._show: Any = show

    def __iter__(self) -> CeleryBatch:
        """Return itself."""
        return self

    def __next__(self) -> BatchItem:
        """Return the next item to end."""
        try:
            while True:
                item = self._run.poll()
                self._show(self._run, item)
                if item is not None:
                    return item
                time.sleep(self._run.pause)
        except Over:
            self.close()
            raise StopIteration from None
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def __del__(self) -> None:
        """Close it."""
        self.close()

    def cancel(self) -> list[LeftBehind]:
        """Cancel what has not ended; the iteration ends with those items, as ``cancelled``."""
        return self._run.cancel()

    def close(self) -> None:
        """Cancel what has not ended and give no more items."""
        self._run.close()
        self._show.close()

    @property
    def counts(self) -> dict[ItemState, int]:
        """How many items stand where, of those that were taken from the inputs so far."""
        return self._run.counts()

    @property
    def left_behind(self) -> list[LeftBehind]:
        """Kickoffs that had not stopped when cancelling had waited for them."""
        return self._run.left_behind


class AsyncCeleryBatch:
    """The same for a caller on an event loop; made by ``aimap_crew(engine="celery")``."""

    def __init__(self, run: Run, show: Progress | Silent) -> None:
        self._run = run
        self._show: Any = show

    def __aiter__(self) -> AsyncCeleryBatch:
        """Return itself."""
        return self

    async def __anext__(self) -> BatchItem:
        """Return the next item to end."""
        try:
            while True:
                # Over there broker and results are waited for; one call at a time.
                item = await asyncio.to_thread(_polled, self._run)
                self._show(self._run, None if item is _OVER else item)
                if item is _OVER:
                    break
                if item is not None:
                    return item
                await asyncio.sleep(self._run.pause)
        except BaseException:
            await self.aclose()
            raise
        await self.aclose()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Cancel what has not ended and give no more items."""
        await asyncio.to_thread(self._run.close)
        self._show.close()

    def __del__(self) -> None:
        """Close it."""
        self._run.close()

    def cancel(self) -> list[LeftBehind]:
        """Cancel what has not ended; the iteration ends with those items, as ``cancelled``."""
        return self._run.cancel()

    @property
    def counts(self) -> dict[ItemState, int]:
        """How many items stand where, of those that were taken from the inputs so far."""
        return self._run.counts()

    @property
    def left_behind(self) -> list[LeftBehind]:
        """Kickoffs that had not stopped when cancelling had waited for them."""
        return self._run.left_behind


_OVER: Final[Any] = object()


def _polled(run: Run) -> BatchItem | None:
    try:
        return run.poll()
    except Over:
        # An exception that is no error may not pass a future's border.
        return _OVER


def _plain(inputs: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return inputs as workers will have them.

    Raises:
        TypeError: They are no JSON.
    """
    if inputs is None:
        return None
    if not isinstance(inputs, Mapping):
        raise TypeError(f"inputs must be a dict or Mapping, got {type(inputs).__name__}")
    try:
        text = json.dumps(dict(inputs), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"inputs of engine celery are JSON; these hold another thing: {error}"
        ) from error
    plain: dict[str, Any] = json.loads(text)
    if plain != inputs:
        raise TypeError(f"inputs of engine celery are JSON; {inputs!r} would arrive as {text}")
    return plain


def _digest(value: Any) -> str:
    # The YAML of a project may have dates in it.
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
