"""Running a plan: on one thread, on several, or on an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from crewai_native_tasks import control
from crewai_native_tasks._native import Cancelled, Schedule

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from crewai_native_tasks.plan import Plan, PlanTask, Work

    _Outcome = tuple[Any, BaseException | None]

Status = Literal["waiting", "running", "done", "failed", "skipped", "cancelled"]
_T = TypeVar("_T")

# How long an interrupted run waits for tasks that cannot be stopped, in seconds.
_PATIENCE: Final = 1.0


class PlanRun:
    """What became of the tasks of a plan.

    Attributes:
        results: What tasks returned, by name.
        errors: What tasks raised, by name.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        do: Work | None,
        concurrency: int,
        on_error: Literal["continue", "stop"],
    ) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency is {concurrency}; it accepts a number above 0")
        if on_error not in {"continue", "stop"}:
            raise ValueError(f"on_error is {on_error!r}; it accepts 'continue' or 'stop'")
        idle = [task.name for task in plan.tasks if task.do is None]
        if do is None and idle:
            raise ValueError(f"nothing does {', '.join(idle)}; pass do, or give the tasks one")
        self.plan = plan
        self.results: dict[str, Any] = {}
        self.errors: dict[str, BaseException] = {}
        self._do = do
        self._stop = on_error == "stop"
        self._context = contextvars.copy_context()
        self._scope = control.scope_of_run.get()
        # Queues, which a signal handler can put into: an Event it could find locked.
        self._over: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._woken: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self.schedule = Schedule(
            plan.order,
            concurrency=concurrency,
            lanes=plan.lanes(),
            priorities=[task.priority for task in plan.tasks],
        )

    @property
    def statuses(self) -> dict[str, Status]:
        """Where each task stands, by name."""
        names: Any = self.schedule.STATES
        found = {
            task.name: names[state]
            for task, state in zip(self.plan.tasks, self.schedule.states(), strict=True)
        }
        for name, error in self.errors.items():
            if isinstance(error, Cancelled | asyncio.CancelledError):
                found[name] = "cancelled"
        return found

    @property
    def done(self) -> bool:
        """Whether every task is done."""
        return len(self.results) == len(self.plan.tasks)

    def check(self) -> None:
        """Return if every task is done.

        Raises:
            BaseExceptionGroup: The errors of tasks.
            RuntimeError: Without any, some did not run.
        """
        if self.errors:
            raise BaseExceptionGroup("tasks of the plan failed", list(self.errors.values()))
        if not self.done:
            idle = ", ".join(name for name, status in self.statuses.items() if status != "done")
            raise RuntimeError(f"tasks that did not run: {idle}")

    def cancel(self) -> None:
        """Begin nothing further. From any thread; again, it does nothing."""
        self._act(0, 0, self.schedule.cancel())

    # --- for the runners below ----------------------------------------------------------------

    def work_of(self, number: int) -> tuple[PlanTask, Callable[[], Any]]:
        """Return a task, and what does it."""
        task = self.plan.tasks[number]
        given = {name: self.results[name] for name in task.after}
        if task.do is not None:
            return task, functools.partial(task.do, given)
        assert self._do is not None
        return task, functools.partial(self._do, task, given)

    def call(self, number: int) -> bool:
        """Do a task on this thread, in a context of its own; return whether that went well."""
        task, work = self.work_of(number)
        try:
            self.results[task.name] = self._context.copy().run(_finish, work)
        except BaseException as error:  # noqa: BLE001 - kept for whoever asks
            return self.failed(task, error)
        return True

    def take_note(self, number: int, work: asyncio.Task[_Outcome]) -> None:
        """Keep what a task on an event loop came to."""
        task = self.plan.tasks[number]
        error = asyncio.CancelledError() if work.cancelled() else work.exception()
        if error is None:
            result, error = work.result()
        if error is None:
            self.results[task.name] = result
        else:
            self.failed(task, error)
        self.schedule.finish(number, error is None)

    def failed(self, task: PlanTask, error: BaseException) -> bool:
        """Keep an error; returns False."""
        self.errors[task.name] = error
        if self._stop:
            self.cancel()
        return False

    @contextlib.contextmanager
    def watching(self, stop: Callable[[], object]) -> Iterator[None]:
        """Call ``stop`` when somebody ends the scope around the run.

        Nobody does when its time is up: see :meth:`look`.

        Raises:
            Cancelled: That was before everything had run.
        """
        scope = self._scope
        if scope is None:
            yield
            return
        key = scope.on_end(stop)
        try:
            yield
        finally:
            scope.forget(key)
        if scope.overdue and "cancelled" in self.statuses.values():
            scope.check()

    def look(self) -> None:
        """Begin nothing further if the time of the scope is up."""
        if self._scope is not None and self._scope.ended:
            self.cancel()

    @property
    def left(self) -> float | None:
        """Seconds until the time of the scope is up; None where it has no limit."""
        return None if self._scope is None else self._scope.left

    def run_on_threads(self) -> None:
        """Run everything on threads and wait for them."""
        self._act(0, self.schedule.begin(), 0)
        if not self._threads:  # there is nothing to do
            return
        try:
            self._over.get()
            for thread in self._threads:
                thread.join()
        finally:
            if not self.schedule.over:  # Ctrl-C
                self.cancel()
                with contextlib.suppress(queue.Empty):
                    self._over.get(timeout=_PATIENCE)

    def _act(self, wake: int, add: int, end: int) -> None:
        for _ in range(wake):
            self._woken.put(True)
        for _ in range(add):
            self._add_worker()
        for _ in range(end):
            self._woken.put(False)
        if end:
            self._over.put(None)

    def _add_worker(self) -> None:
        # A daemon: a program that wants to end is not held up by a task.
        thread = threading.Thread(
            target=self._worker, name=f"crewai-native plan {len(self._threads)}", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:  # the system has no thread left
            if not self.schedule.lost():
                raise
        else:
            self._threads.append(thread)

    def _worker(self) -> None:
        step, call = self.schedule.step, self.call
        number, well = None, True
        while True:
            self.look()
            number, wake, add, end = step(number, well)
            if wake or add or end:
                self._act(wake, add, end)
            if number is not None:
                well = call(number)
            elif not self._woken.get():
                return


def _finish(work: Callable[[], Any]) -> Any:
    result = work()
    return _on_new_loop(result) if inspect.iscoroutine(result) else result


def _on_new_loop(work: Coroutine[Any, Any, _T]) -> _T:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    # A thread runs one loop at a time, and this one's caller is a coroutine.
    with ThreadPoolExecutor(1, "crewai-native plan loop") as thread:
        return thread.submit(contextvars.copy_context().run, asyncio.run, work).result()


def in_sequence(run: PlanRun) -> None:
    """Run the tasks on this thread."""
    with run.watching(run.cancel):
        while True:
            run.look()
            number = run.schedule.take()
            if number is None:
                return
            well = run.call(number)
            run.schedule.finish(number, well)
            if not well:
                error = run.errors[run.plan.tasks[number].name]
                if isinstance(error, KeyboardInterrupt):
                    run.cancel()
                    raise error


def in_parallel(run: PlanRun) -> None:
    """Run the tasks on threads."""
    with run.watching(run.cancel):
        run.run_on_threads()


def on_own_loop(run: PlanRun) -> None:
    """Run the tasks on an event loop of the run's own."""
    _on_new_loop(on_loop(run))


async def on_loop(run: PlanRun) -> None:
    """Run the tasks on the running event loop."""
    loop = asyncio.get_running_loop()
    running: dict[asyncio.Task[_Outcome], int] = {}
    interrupted: asyncio.CancelledError | None = None
    stopped = False

    def stop() -> None:
        nonlocal stopped
        if stopped:  # how tasks come to an end is not to be interrupted
            return
        stopped = True
        run.cancel()
        for work in running:
            work.cancel()

    with run.watching(lambda: loop.call_soon_threadsafe(stop)), _called_in(run.left, stop):
        while True:
            run.look()
            while (number := run.schedule.take()) is not None:
                running[asyncio.create_task(_await(run.work_of(number)[1]))] = number
            if not running:
                break
            try:
                ended, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            except asyncio.CancelledError as error:
                stop()
                interrupted, ended = error, set()
            for work in sorted(ended, key=running.__getitem__):
                run.take_note(running.pop(work), work)
        if interrupted is not None:
            raise interrupted


@contextlib.contextmanager
def _called_in(seconds: float | None, function: Callable[[], object]) -> Iterator[None]:
    """Have the running event loop call a function, unless the block is over by then."""
    if seconds is None:
        yield
        return
    timer = asyncio.get_running_loop().call_later(seconds, function)
    try:
        yield
    finally:
        timer.cancel()


async def _await(work: Callable[[], Any]) -> _Outcome:
    function = work.func if isinstance(work, functools.partial) else work
    if inspect.iscoroutinefunction(function):
        return await work(), None
    result, error = await asyncio.to_thread(_outcome, work)
    return (await result if inspect.isawaitable(result) else result), error


def _outcome(work: Callable[[], Any]) -> _Outcome:
    try:
        return work(), None
    except Exception as error:  # noqa: BLE001 - kept for whoever asks
        # A value: no future takes a StopIteration, and whoever waits for one would wait for ever.
        return None, error
