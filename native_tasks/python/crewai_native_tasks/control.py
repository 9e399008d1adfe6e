"""Ends runs: at their time limit, or when somebody asks.

Whatever runs under a :class:`CancelScope` asks it, before each task, step, model call, tool call and
memory write, whether it may go on. The scope travels in a context variable, so it reaches every
thread that CrewAI starts. Foreign code, a model's call or a tool, cannot be interrupted; it is left
behind on its thread and nothing comes after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import logging
import threading
import time
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from crewai_native.slots.tasks_control import Point
from crewai_native_tasks import limits
from crewai_native_tasks._native import Cancelled, Gate, Scope

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType

    from crewai_native.slots.tasks_control import LimitedRun, ModelCall

    Observer = Callable[[float, BaseException | None], None]

_logger = logging.getLogger("crewai_native.tasks")
GRACE: Final = 0.5
"""Seconds that cancelling waits, at most, for what is between two points: a few milliseconds as a
rule, more where many runs want the interpreter at once."""
# Seconds after which a coroutine that waits for room in the limits looks whether it may still wait.
_LOOK: Final = 0.1

scope_of_run: Final[contextvars.ContextVar[Scope | None]] = contextvars.ContextVar(
    "crewai_native_tasks_scope", default=None
)
# Told of each answer of a model: how long it took, and what it raised.
observer: Final[contextvars.ContextVar[Observer | None]] = contextvars.ContextVar(
    "crewai_native_tasks_observer", default=None
)
# What this context is inside of, the scope that knows, and the scope's key for it.
_inside: Final[contextvars.ContextVar[tuple[tuple[Point, Scope, int], ...]]] = (
    contextvars.ContextVar("crewai_native_tasks_inside", default=())
)
# Whether a model call is under way; a subclass that calls its parent's makes a second one.
_asking: Final[contextvars.ContextVar[bool]] = contextvars.ContextVar(
    "crewai_native_tasks_asking", default=False
)


class LeftBehind(NamedTuple):
    """Foreign code that was running when its run was cancelled, and may run on.

    Attributes:
        what: Such as ``model call`` or ``tool search``; ``code between two points`` where runs were
            in a callback or in CrewAI's own code when waiting for them came to its end.
        thread: The name of its thread, where that is known.
        seconds: For how long it had been running.
    """

    what: str
    thread: str
    seconds: float


def cancel(scope: Scope, *, grace: float = GRACE) -> list[LeftBehind]:
    """End a scope, wait until nothing of it runs but foreign code, and say what that is."""
    scope.end()
    quiet = scope.quiet(threading.get_ident(), grace)
    left = [LeftBehind(*place) for place in scope.places()]
    if not quiet:
        # Somebody's callback, or a guardrail: the run ends when it returns.
        left.append(LeftBehind("code between two points", "", grace))
    return left


class CancelScope:
    """Runs that can be stopped together; made by :func:`cancel_scope`.

    The block ends with :class:`~crewai_native_tasks.Cancelled`, a ``BaseException``, if it was
    cancelled, and with ``TimeoutError`` if its time was up.
    """

    def __init__(self, timeout: float | None = None) -> None:
        self._timeout = timeout
        self._scope: Scope | None = None
        self._cancelled = False
        self._until = float("inf")
        self._undo = contextlib.ExitStack()

    @property
    def cancelled(self) -> bool:
        """Whether :meth:`cancel` was called."""
        return self._cancelled

    def cancel(self) -> list[LeftBehind]:
        """Stop what runs in the block, before it does anything further.

        From any thread, and from a signal handler. When this returns nothing of the runs is done or
        written any more but by foreign code that they were inside of, and by the caller's own
        thread, which goes no further than its next point.

        Returns:
            That foreign code; empty if the block was not entered yet, which then does nothing.
        """
        self._cancelled = True
        return [] if self._scope is None else cancel(self._scope)

    def __enter__(self) -> Self:
        """Enter the block.

        Raises:
            RuntimeError: It was entered before.
        """
        if self._scope is not None:
            raise RuntimeError("a cancel scope can be entered once; make another")
        scope = self._scope = Scope(scope_of_run.get(), self._timeout)
        if self._timeout is not None:
            self._until = time.monotonic() + self._timeout
        self._undo.enter_context(running(scope))
        with contextlib.suppress(RuntimeError):  # no event loop
            if (task := asyncio.current_task()) is not None:
                self._undo.enter_context(_interrupting(scope, task, self._timeout))
        if self._cancelled:
            scope.end()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the block."""
        scope = self._scope
        self._undo.close()
        if scope is None:
            return
        if error is None:
            if self._cancelled or time.monotonic() >= self._until:
                _warn_where_nothing_stops()
            return
        if isinstance(error, Cancelled | asyncio.CancelledError) and scope.expired:
            raise TimeoutError(f"the block took longer than {self._timeout} seconds") from error
        if isinstance(error, asyncio.CancelledError) and self._cancelled and not _cancelling():
            raise Cancelled("the run was cancelled") from error


def _warn_where_nothing_stops() -> None:
    """Warn of a block that ended by itself, where the crews in it could not have been stopped."""
    import crewai_native
    from crewai_native_tasks.graph import DISTRIBUTION

    served = crewai_native.status()["tasks.control"]
    if served.provider != DISTRIBUTION:
        _logger.warning(
            "a cancel scope has ended and stopped no crew: tasks.control is served by %s (%s)",
            served.provider,
            served.reason,
        )


def _cancelling() -> bool:
    """Whether somebody else has cancelled the task as well."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def cancel_scope(*, timeout: float | None = None) -> CancelScope:
    """Return a block whose runs can be stopped.

    For instance by a signal::

        with crewai_native_tasks.cancel_scope() as scope:
            signal.signal(signal.SIGTERM, lambda *_: scope.cancel())
            crew.kickoff()

    Args:
        timeout: Seconds after which it stops them by itself, at their next point; in a coroutine at
            once.
    """
    return CancelScope(timeout)


@contextlib.contextmanager
def running(scope: Scope) -> Iterator[None]:
    """Do the work of a scope on this thread, and in this context."""
    token = scope_of_run.set(scope)
    run = scope.begin(threading.get_ident())
    try:
        yield
    finally:
        scope.over(run)
        scope_of_run.reset(token)


@contextlib.contextmanager
def _interrupting(scope: Scope, task: asyncio.Task[Any], timeout: float | None) -> Iterator[None]:
    """Have a task interrupted where it waits when the scope ends."""
    loop = asyncio.get_running_loop()
    asked = False

    def interrupt() -> None:
        nonlocal asked
        if not asked and not task.done():
            asked = True
            task.cancel()

    def end() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and the task with it
            loop.call_soon_threadsafe(interrupt)

    key = scope.on_end(end)
    timer = None
    if timeout is not None:
        timer = loop.call_later(timeout, functools.partial(scope.end, expired=True))
    try:
        yield
    finally:
        scope.forget(key)
        if timer is not None:
            timer.cancel()
        if asked:
            task.uncancel()
        asked = True


class RunHandle:
    """A kickoff on a thread of its own; made by :func:`start`."""

    def __init__(
        self, target: Any, inputs: Mapping[str, Any] | None, timeout: float | None
    ) -> None:
        self._scope = CancelScope(timeout)
        self._over = Gate()
        self._output: Any = None
        self._error: BaseException | None = None
        self._finished = False
        context = contextvars.copy_context()
        work = functools.partial(context.run, self._work, target, inputs)
        # Foreign code may never return. It must not keep the process from ending.
        self._thread = threading.Thread(target=work, name="crewai-native-run", daemon=True)
        self._thread.start()

    def _work(self, target: Any, inputs: Mapping[str, Any] | None) -> None:
        try:
            with self._scope:
                self._output = target.kickoff(inputs=None if inputs is None else dict(inputs))
        except BaseException as error:  # noqa: BLE001 - raised to whoever asks for the result
            self._error = error
        finally:
            self._finished = True
            self._over.open()

    @property
    def done(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self._over.wait(0)

    def cancel(self) -> list[LeftBehind]:
        """Stop it: see :meth:`CancelScope.cancel`."""
        left = self._scope.cancel()
        self._over.open()
        return left

    def result(self, timeout: float | None = None) -> Any:
        """Return what the kickoff returned.

        Args:
            timeout: Seconds to wait.

        Raises:
            TimeoutError: It is not over by then, or the run's own time was up.
            concurrent.futures.CancelledError: It was cancelled.
        """
        if not self._over.wait(timeout):
            raise TimeoutError(f"the run is not over after {timeout} seconds")
        if not self._finished or isinstance(self._error, Cancelled):
            raise CancelledError("the run was cancelled") from self._error
        if self._error is not None:
            raise self._error
        return self._output


def start(
    target: Any, inputs: Mapping[str, Any] | None = None, *, timeout: float | None = None
) -> RunHandle:
    """Kick a crew or flow off on a thread of its own, and return at once.

    Args:
        target: The crew or flow.
        inputs: Its inputs.
        timeout: Seconds that it may take, to its next point.
    """
    return RunHandle(target, inputs, timeout)


class NativeControl:
    """Serves ``tasks.control``."""

    def limit(self, run: LimitedRun) -> Any:
        """Return what the run returns, in time."""
        scope = Scope(scope_of_run.get())
        wake = Gate()
        outcome: list[tuple[Any, BaseException | None]] = []

        def work() -> None:
            try:
                with running(scope):
                    outcome.append((run.proceed(), None))
            except BaseException as error:  # noqa: BLE001 - raised on the caller's thread
                outcome.append((None, error))
            finally:
                wake.open()

        key = scope.on_end(wake.open)
        context = contextvars.copy_context()
        threading.Thread(
            target=functools.partial(context.run, work), name="crewai-native-limited", daemon=True
        ).start()
        try:
            wake.wait(run.timeout)
        finally:
            scope.forget(key)
            if not outcome:
                _leave_behind(scope, run)
        if not outcome:
            if (around := scope_of_run.get()) is not None:
                around.check()
            raise _too_long(run)
        value, error = outcome[0]
        if error is not None:
            raise _as_crewai_says(error)
        return value

    async def alimit(self, run: LimitedRun) -> Any:
        """Do the same for an agent that is awaited."""
        scope = Scope(scope_of_run.get())

        async def work() -> Any:
            with running(scope):
                return await run.proceed()

        task = asyncio.ensure_future(work())
        try:
            done, _ = await asyncio.wait({task}, timeout=run.timeout)
        except BaseException:
            scope.end()
            task.cancel()
            raise
        if done:
            return task.result()
        _leave_behind(scope, run)
        task.cancel()
        # Whatever it ends with, nobody waits for it.
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
        raise _too_long(run)

    def check(self, point: Point, subject: Any) -> None:
        """Return if the run may go on."""
        scope = scope_of_run.get()
        if scope is None:
            return
        scope.check()
        if point is Point.TOOL:
            _arrive(scope, point, f"tool {subject.tool_name}")
        elif point is Point.STEP:
            internal = type(subject).is_crewai_internal
            _arrive(scope, point, None if internal else f"a method of {type(subject).__name__}")

    def done(self, point: Point, subject: Any) -> None:  # noqa: ARG002 - as the slot calls it
        """Note that a step or a tool call has ended."""
        scope = scope_of_run.get()
        if scope is None:
            return
        # CrewAI leaves out the end of a tool call here and there; what lies above ours is over too.
        places = _inside.get()
        while places:
            *rest, (began, inside, key) = places
            places = tuple(rest)
            inside.leave(key)
            if began is point:
                break
        _inside.set(places)
        if point is Point.TOOL:
            scope.check()

    def call(self, call: ModelCall) -> Any:
        """Ask a model, when the limits allow it."""
        asking = _asking_of()
        if asking is None:
            return call.proceed(call.attempt)
        scope = asking.scope

        def attempt() -> Any:
            while wait := asking.wait():
                _sleep(scope, wait)
            with asking:
                return call.attempt()

        token = _asking.set(True)
        try:
            scope.check()
            return call.proceed(attempt, sleep=functools.partial(_sleep, scope))
        finally:
            _asking.reset(token)

    async def acall(self, call: ModelCall) -> Any:
        """Do the same for a model that is awaited."""
        asking = _asking_of()
        if asking is None:
            return await call.proceed(call.attempt)
        scope = asking.scope

        async def attempt() -> Any:
            while wait := asking.wait():
                scope.check()
                await asyncio.sleep(min(wait, _LOOK))
            with asking:
                return await call.attempt()

        token = _asking.set(True)
        try:
            scope.check()
            return await call.proceed(attempt)
        finally:
            _asking.reset(token)

    def used(self, tokens: int) -> None:
        """Note the tokens of a model call."""
        limits.used(tokens)


class _Asking:
    """One model call; entered for each attempt."""

    def __init__(
        self, scope: Scope, limiters: tuple[limits.Limit, ...], observe: Observer | None
    ) -> None:
        self.scope = scope
        self._limiters = limiters
        self._observe = observe
        self._admission: limits.Admission | None = None
        self._place = 0
        self._began = 0.0

    def wait(self) -> float:
        """Return for how many seconds the limits hold it up; 0 once it is admitted."""
        self.scope.check()
        if not self._limiters:
            return 0.0
        self._admission, wait = limits.admit(self._limiters)
        return wait

    def __enter__(self) -> None:
        self._place = self.scope.arrive("model call", threading.current_thread().name)
        self._began = time.perf_counter()

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self.scope.leave(self._place)
        if self._admission is not None:
            self._admission.settle(failed=error is not None)
        if self._observe is not None:
            self._observe(time.perf_counter() - self._began, error)
        # Nothing is made of an answer that comes too late.
        self.scope.check()


def _asking_of() -> _Asking | None:
    scope, observe, limiters = scope_of_run.get(), observer.get(), limits.in_force()
    if _asking.get() or (scope is None and observe is None and not limiters):
        return None
    return _Asking(scope or Scope(), limiters, observe)


def _arrive(scope: Scope, point: Point, label: str | None) -> None:
    key = 0 if label is None else scope.arrive(label, threading.current_thread().name)
    _inside.set((*_inside.get(), (point, scope, key)))


def _sleep(scope: Scope, seconds: float) -> None:
    """Sleep, unless the run is to end."""
    wake = Gate()
    key = scope.on_end(wake.open)
    try:
        wake.wait(seconds)
    finally:
        scope.forget(key)
    scope.check()


def _leave_behind(scope: Scope, run: LimitedRun) -> None:
    """Let nothing come after the foreign code that a run is inside of."""
    scope.end(expired=True)
    # The executor stays with that code. The agent gets another one for its next task.
    run.agent.agent_executor = None


def _too_long(run: LimitedRun) -> TimeoutError:
    error = TimeoutError(
        f"Task '{run.task.description}' execution timed out after {run.timeout} seconds. Consider "
        "increasing max_execution_time or optimizing the task."
    )
    # CrewAI's comes from that of the wait, which programs may look for.
    error.__cause__ = TimeoutError()
    return error


def _as_crewai_says(error: BaseException) -> BaseException:
    """Return what CrewAI's own code makes of an error of a limited run."""
    from crewai.agent.core import _passthrough_exceptions

    if not isinstance(error, Exception) or isinstance(
        error, (TimeoutError, *_passthrough_exceptions)
    ):
        return error
    failed = RuntimeError(f"Task execution failed: {error!s}")
    failed.__cause__ = error
    return failed
