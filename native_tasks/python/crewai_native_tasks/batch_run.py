"""One batch while it runs."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import contextvars
import dataclasses
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Final, Self

from crewai_native.slots.tasks_batch import BatchItem, ItemState
from crewai_native_tasks import batch_floor, limits
from crewai_native_tasks._native import Cancelled, Scope
from crewai_native_tasks.batch_target import copied
from crewai_native_tasks.control import LeftBehind, cancel, observer, running, scope_of_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from crewai_native.slots.tasks_batch import BatchOptions
    from crewai_native_tasks.batch_floor import Hall
    from crewai_native_tasks.batch_target import Target
    from crewai_native_tasks.journal import Journal
    from crewai_native_tasks.progress import Progress, Silent

# The item that the current context works on: its hall, batch and ticket.
_item: Final[contextvars.ContextVar[tuple[Hall, int, int] | None]] = contextvars.ContextVar(
    "crewai_native_tasks_item", default=None
)
# Seconds between looks at whether threads have died.
_LOOK: Final = 1.0
# What an iterator gives that has nothing more; None is an input.
_END: Final[Any] = object()
# Inputs are taken this many times ahead of what may run, so that threads need not wait for them.
_AHEAD: Final = 2
_CLOSING: Final = 5.0


def _wake(run: weakref.ref[Run]) -> None:
    if (alive := run()) is not None:
        alive.wake()


class Over(Exception):  # noqa: N818 - not an error
    """There are no more items."""


@dataclasses.dataclass(slots=True, eq=False)
class _Job:
    """An attempt at an item."""

    index: int
    inputs: Mapping[str, Any] | None
    scope: Scope
    key: str | Exception = ""  # of the inputs, for the journal; or why they have none
    attempt: int = 1
    began: float = 0.0
    claimed: bool = False
    outcome: _Outcome | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class _Outcome:
    state: ItemState
    output: Any = None
    error: BaseException | None = None
    usage: Any = None
    seconds: float = 0.0


class Run:
    """Takes inputs as there is room, has them worked, and gives items out as they end.

    One thread, or event loop, asks for items; workers report from theirs.

    Args:
        target: What to run.
        inputs: The inputs, taken on the thread that asks for items.
        options: How.
        bounds: The fewest and the most items at work.
        extra: Limits of this batch alone.
        journal: Of finished items.
        notify: Called, from any thread, when there is something to look at.
    """

    def __init__(
        self,
        target: Target,
        inputs: Iterable[Mapping[str, Any] | None],
        options: BatchOptions,
        *,
        bounds: tuple[int, int],
        extra: tuple[limits.Limit, ...] = (),
        journal: Journal | None = None,
        notify: Callable[[], None] | None = None,
    ) -> None:
        self.hall = batch_floor.hall()
        self._floor = self.hall.floor
        self._process = os.getpid()
        self._target = target
        self._inputs: Iterator[Mapping[str, Any] | None] | None = iter(inputs)
        self._options = options
        # Where what a kickoff makes of its inputs would be seen by another attempt, or resumption.
        self._copies = journal is not None or options.retries > 0
        self._journal = journal
        self._notify = notify
        self._around = scope_of_run.get()
        within = _item.get()
        # The item of a parent process, of which this is a fork, has none of its threads here.
        self._within = within if within is not None and within[0] is self.hall else None
        self.scope = Scope(self._around)
        # Weakly: what a scope holds is beyond the reach of Python's collector.
        me = weakref.ref(self)
        self._woken = self.scope.on_end(lambda: _wake(me))
        self._context = contextvars.copy_context()
        self._context.run(limits.of_batch.set, limits.of_batch.get() + extra)
        self._index = 0
        self._tickets = 0
        self._jobs: dict[int, _Job] = {}
        self._out: collections.deque[BatchItem] = collections.deque()
        self._input_error: BaseException | None = None
        self._wound_up = False
        self._closed = False
        # Taken once, by whichever thread closes the batch: several may find that nobody asks.
        self._open = threading.Lock()
        self._looked = time.monotonic()
        self.tally: collections.Counter[ItemState] = collections.Counter()
        self.left_behind: list[LeftBehind] = []
        self.number = self.hall.admit(
            self, priority=options.priority, bounds=bounds, limit=options.timeout
        )

    # Asking for items

    def poll(self, *, wait: bool) -> BatchItem | None:  # noqa: C901 - in order of urgency
        """Return the next item; None if there is none yet (after a moment, with ``wait``).

        Raises:
            Over: There are no more.
        """
        if os.getpid() != self._process:
            raise RuntimeError("a batch cannot be continued in a forked process; start another")
        while True:
            if self._around is not None:
                self._around.check()
            if self._out:
                return self._give(self._out.popleft())
            if self._closed:
                raise Over
            if self.scope.ended and not self._wound_up:
                self._wind_up()
                continue
            # First, so that a caller who takes their time over each item leaves no thread idle.
            while not self._out and self._pull():
                pass
            if self._out:
                continue
            ticket, empty = self._floor.next(self.number, wait=False)
            if ticket is None:
                if empty:
                    raise self._input_error or Over
                ticket = self._wait() if wait else None
            if ticket is None:
                return None
            if (item := self._settle(ticket)) is not None:
                return self._give(item)

    def _wait(self) -> int | None:
        now = time.monotonic()
        if now - self._looked > _LOOK:
            self._looked = now
            self.hall.dead()
        with self.paused():
            ticket, _ = self._floor.next(self.number)
        return ticket

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Wait, and let others work where this is an item of another batch that waits."""
        if self._within is None:
            yield
            return
        hall, batch, ticket = self._within
        hall.start(hall.floor.pause(batch, ticket))
        try:
            yield
        finally:
            hall.floor.resume(batch, ticket)

    def _give(self, item: BatchItem) -> BatchItem:
        self.tally[item.state] += 1
        return item

    def _pull(self) -> bool:
        """Take an input, if there is room and there is one."""
        if self._inputs is None:
            return False
        ready, at_work, ended, _, window = self._floor.counts(self.number)
        if ready + at_work + ended >= _AHEAD * window:
            return False
        try:
            inputs = next(self._inputs, _END)
        except BaseException as error:
            self._inputs = None
            if not isinstance(error, Exception):
                raise
            # What has begun is still given out, and this after it.
            error.add_note(f"raised by the inputs of a batch, after {self._index} of them")
            self._input_error = error
            return True
        if inputs is _END:
            self._inputs = None
            return True
        index, self._index = self._index, self._index + 1
        # Before a kickoff can change them.
        key = self._key(inputs)
        known = None
        if self._journal is not None and isinstance(key, str):
            known = self._journal.find(index, key)
        if known is not None:
            self._out.append(
                BatchItem(index, ItemState.DONE, known.output, attempts=0, usage=known.usage)
            )
        else:
            self._submit(_Job(index, inputs, Scope(self.scope), key))
        return True

    def _key(self, inputs: Mapping[str, Any] | None) -> str | Exception:
        if self._journal is None:
            return ""
        try:
            return self._journal.key_of(inputs)
        except Exception as error:  # noqa: BLE001 - it is the item's
            return error

    def _submit(self, job: _Job) -> None:
        self._tickets += 1
        self._jobs[self._tickets] = job
        self.hall.start(self._floor.submit(self.number, self._tickets))

    def _settle(self, ticket: int) -> BatchItem | None:
        """Return the item of an attempt that has ended, unless there is to be another."""
        job = self._jobs.pop(ticket)
        outcome = job.outcome
        if outcome is None:
            outcome = self._late(job)
        good = outcome.state is ItemState.DONE
        stopped = self.scope.ended or outcome.state is ItemState.CANCELLED
        if not good and not stopped and job.attempt <= self._options.retries:
            again = _Job(job.index, job.inputs, Scope(self.scope), job.key, job.attempt + 1)
            self._submit(again)
            return None
        item = BatchItem(
            job.index,
            outcome.state,
            outcome.output,
            outcome.error,
            job.attempt,
            outcome.seconds,
            outcome.usage,
        )
        if good or self._wound_up:
            return item
        failed = outcome.state in {ItemState.FAILED, ItemState.TIMED_OUT}
        if self._options.on_error == "raise" and failed and outcome.error is not None:
            raise outcome.error
        if self._options.on_error == "stop":
            self._inputs = None
            self._withdraw(ItemState.PENDING)
        return item

    def _late(self, job: _Job) -> _Outcome:
        job.scope.end(expired=True)
        seconds = self._options.timeout
        error = TimeoutError(f"item {job.index} took longer than {seconds} seconds")
        return _Outcome(ItemState.TIMED_OUT, error=error, seconds=time.perf_counter() - job.began)

    def _withdraw(self, state: ItemState) -> None:
        for ticket in self._floor.withdraw(self.number):
            job = self._jobs.pop(ticket)
            self._out.append(BatchItem(job.index, state, attempts=job.attempt - 1))

    def _wind_up(self) -> None:
        """Give out what was cancelled as such."""
        self._wound_up = True
        self._inputs = None
        self._withdraw(ItemState.CANCELLED)
        abandoned, more = self._floor.abandon(self.number)
        for ticket in abandoned:
            job = self._jobs.pop(ticket)
            seconds = time.perf_counter() - job.began if job.began else 0.0
            self._out.append(
                BatchItem(job.index, ItemState.CANCELLED, attempts=job.attempt, seconds=seconds)
            )
        self.hall.start(more)

    def cancel(self) -> list[LeftBehind]:
        """End all items; see :func:`crewai_native_tasks.control.cancel`."""
        self.left_behind = cancel(self.scope)
        return self.left_behind

    def close(self) -> None:
        """End all items, and give none out any more."""
        if os.getpid() != self._process or not self._open.acquire(blocking=False):
            return
        self._closed = True
        self.scope.forget(self._woken)
        if not self.scope.ended:
            self.scope.end()
        self._floor.withdraw(self.number)
        _, more = self._floor.abandon(self.number)
        self.hall.start(more)
        # What has just ended in time is written to its end.
        deadline = time.monotonic() + _CLOSING
        while self._floor.counts(self.number)[1] and time.monotonic() < deadline:
            self._floor.next(self.number)
        self.left_behind = self.left_behind or [LeftBehind(*place) for place in self.scope.places()]
        self.hall.dismiss(self.number, self._options.timeout)
        if self._journal is not None:
            self._journal.close()
        self._jobs.clear()

    def counts(self) -> dict[ItemState, int]:
        """Return how many items stand where, those that were taken from the inputs so far."""
        ready, at_work, ended, _, _ = self._floor.counts(self.number)
        counts = {state: self.tally[state] for state in ItemState}
        counts[ItemState.PENDING] += ready
        counts[ItemState.RUNNING] += at_work + ended
        return counts

    def wake(self) -> None:
        """Have whoever waits for an item look around."""
        self._floor.interrupt()
        self._tell()

    def _tell(self) -> None:
        if self._notify is not None:
            self._notify()

    # Working, on the hall's threads

    def work(self, ticket: int) -> None:
        """Make an attempt."""
        job = self._jobs.get(ticket)
        if job is None:  # withdrawn or closed meanwhile
            self._floor.claim(self.number, ticket)
            return
        # A copy for each: what one sets, another must not see, and a context is entered once.
        self._context.copy().run(self._attempt, job, ticket)

    def _attempt(self, job: _Job, ticket: int) -> None:
        _item.set((self.hall, self.number, ticket))
        observer.set(self._observe)
        job.began = time.perf_counter()
        try:
            with running(job.scope):
                outcome = self._kickoff(job)
                if os.getpid() != self._process:
                    return  # a fork that goes on after the item: the outcome is the parent's to tell
                if not self._floor.claim(self.number, ticket):
                    return
                job.claimed = True
                job.outcome = self._written(job, outcome)
        finally:
            if job.claimed:
                self._end(ticket)

    def _kickoff(self, job: _Job) -> _Outcome:
        output = usage = None
        error: BaseException | None = None
        try:
            job.scope.check()
            output, usage = self._target.kickoff(self._given(job))
            state = ItemState.DONE
        except Cancelled as raised:
            state, error = ItemState.CANCELLED, raised
        except BaseException as raised:  # noqa: BLE001 - it is the item's, whatever it is
            state, error = ItemState.FAILED, raised
        return _Outcome(state, output, error, usage, time.perf_counter() - job.began)

    def _given(self, job: _Job) -> Mapping[str, Any] | None:
        if isinstance(job.key, Exception):
            raise job.key
        return copied(job.inputs) if self._copies else job.inputs

    def _written(self, job: _Job, outcome: _Outcome) -> _Outcome:
        if (
            self._journal is None
            or outcome.state is not ItemState.DONE
            or not isinstance(job.key, str)
        ):
            return outcome
        try:
            self._journal.write(job.index, job.key, outcome.output, outcome.usage)
        except Exception as error:  # noqa: BLE001 - what is not in the journal is not done
            return dataclasses.replace(outcome, state=ItemState.FAILED, error=error)
        return outcome

    def _end(self, ticket: int) -> None:
        self.hall.start(self._floor.end(self.number, ticket))
        self._tell()

    def _observe(self, seconds: float, error: BaseException | None) -> None:
        if os.getpid() != self._process:
            return  # a model that a forked child of the item has asked
        from crewai.llms.retry import _ThrottlingErrorClassifier

        refused = error is not None and _ThrottlingErrorClassifier.is_throttling_error(error)
        if refused or error is None:
            self.hall.start(self._floor.observe(self.number, seconds, refused))

    def overdue(self, ticket: int) -> None:
        """Stop an attempt that has taken too long."""
        if (job := self._jobs.get(ticket)) is not None:
            job.scope.end(expired=True)
        self._tell()

    def lost(self, ticket: int) -> None:
        """Fail an attempt whose thread has died."""
        job = self._jobs.get(ticket)
        if job is None:
            return
        if job.outcome is None:
            error = RuntimeError(f"the thread of item {job.index} has died")
            job.outcome = _Outcome(ItemState.FAILED, error=error)
        _, more = self._floor.lost(self.number, ticket)
        self.hall.start(more)
        self._tell()

    def stop(self) -> None:
        """End, with the process."""
        self.scope.end()


class BatchRun:
    """A batch, item by item as they end; made by :func:`~crewai_native_tasks.imap_crew`.

    Leaving it early (``close``, or the end of a ``with`` block) cancels what has not ended.
    """

    def __init__(self, run: Run, show: Progress | Silent) -> None:
        self._run = run
        self._show = show

    def __iter__(self) -> BatchRun:
        """Return itself."""
        return self

    def __next__(self) -> BatchItem:
        """Return the next item to end."""
        try:
            while True:
                item = self._run.poll(wait=True)
                self._show(self._run, item)
                if item is not None:
                    return item
        except Over:
            self.close()
            raise StopIteration from None
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
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
        """Foreign code that items were inside of when they were cancelled."""
        return self._run.left_behind


class AsyncBatchRun:
    """A batch for a caller on an event loop; made by :func:`~crewai_native_tasks.aimap_crew`."""

    def __init__(self, make: Callable[[Callable[[], None]], Run], show: Progress | Silent) -> None:
        self._make = make
        self._show = show
        self._run: Run | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._event = asyncio.Event()

    def __aiter__(self) -> AsyncBatchRun:
        """Return itself."""
        return self

    async def __anext__(self) -> BatchItem:
        """Return the next item to end.

        Raises:
            RuntimeError: The batch was begun on another event loop.
        """
        loop = asyncio.get_running_loop()
        if self._run is None:
            self._loop = loop
            self._run = self._make(self._notifier(loop))
        elif loop is not self._loop:
            raise RuntimeError("a batch cannot be continued on another event loop; start another")
        run = self._run
        try:
            while True:
                self._event.clear()
                item = run.poll(wait=False)
                self._show(run, item)
                if item is not None:
                    return item
                await self._wait(run, loop)
        except Over:
            self._close()
            raise StopAsyncIteration from None
        except BaseException:
            self._close()
            raise

    async def _wait(self, run: Run, loop: asyncio.AbstractEventLoop) -> None:
        # Looks around now and then, for threads that have died. The timeout of `asyncio.wait_for`
        # would hold the task that waits, so that one left pending would be the collector's to find.
        look = loop.call_later(_LOOK, self._event.set)
        try:
            with run.paused():
                await self._event.wait()
        finally:
            look.cancel()
        run.hall.dead()

    def _notifier(self, loop: asyncio.AbstractEventLoop) -> Callable[[], None]:
        event, me = self._event, weakref.ref(self)

        def notify() -> None:
            try:
                loop.call_soon_threadsafe(event.set)
            except RuntimeError:
                # The loop is closed: nobody will ask for the items any more. The collector may not
                # find that out, as a task left pending was set aside when the batch began.
                if (batch := me()) is not None:
                    batch._close()  # noqa: SLF001 - its own

        return notify

    async def aclose(self) -> None:
        """Cancel what has not ended and give no more items."""
        self._close()

    def _close(self) -> None:
        if self._run is not None:
            self._run.close()
        self._show.close()

    def __del__(self) -> None:
        """Close it."""
        self._close()

    def cancel(self) -> list[LeftBehind]:
        """Cancel what has not ended; the iteration ends with those items, as ``cancelled``."""
        return [] if self._run is None else self._run.cancel()

    @property
    def counts(self) -> dict[ItemState, int]:
        """How many items stand where, of those that were taken from the inputs so far."""
        return {} if self._run is None else self._run.counts()

    @property
    def left_behind(self) -> list[LeftBehind]:
        """Foreign code that items were inside of when they were cancelled."""
        return [] if self._run is None else self._run.left_behind
