"""A pool of worker processes."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import os
import pickle
import signal
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Final, Self

from crewai_native_tools.isolation import _transfer
from crewai_native_tools.isolation._errors import (
    Cancelled,
    CpuLimitExceeded,
    Crashed,
    DeadlineExceeded,
    Exited,
    IsolationError,
    MemoryLimitExceeded,
    NotStarted,
    NotTransferable,
    RemoteError,
    ResultTooLarge,
    signal_name,
)
from crewai_native_tools.isolation._limits import Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from crewai_native_tools._native import WorkerProcess
    from crewai_native_tools.isolation._transfer import Target

_BOOTSTRAP: Final = (
    "import sys; sys.path[:] = sys.argv[1:]; "
    "from crewai_native_tools.isolation._worker import main; main()"
)
# What stands around a result in its message.
_ENVELOPE: Final = 64 * 1024
_FEWEST: Final = 4

_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


@dataclasses.dataclass(slots=True, eq=False)
class _Member:
    """A worker of a pool."""

    process: WorkerProcess
    loaded: set[bytes] = dataclasses.field(default_factory=set)
    calls: int = 0
    cancelled: bool = False


class _Preparation:
    """A worker that is being started, or is loading a function."""

    def __init__(self) -> None:
        self.over = False
        self.error: BaseException | None = None


class Pool:
    """Worker processes that run tools and can be killed.

    Each worker is a fresh interpreter that leads a process group of its own. Workers are started
    when calls need them, keep what they have loaded, and end with this process, however that ends.
    Any number of threads may call; in a child that was forked the pool is empty and starts its own.

    Args:
        max_workers: How many workers there are at most; by default as many as processors, but four
            at least. Further calls wait for one.
        recycle_after: Calls after which a worker is replaced.
        start_timeout: Seconds that starting a worker and importing a tool's module may take. They
            are not part of a call's time, except that a caller does not wait longer than that.

    Raises:
        NotImplementedError: The system has no process groups.
        ValueError: An argument means nothing.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        recycle_after: int = 1000,
        start_timeout: float = 60.0,
    ) -> None:
        if max_workers is None:
            max_workers = max(os.cpu_count() or 1, _FEWEST)
        if os.name != "posix":
            raise NotImplementedError(
                f"isolation needs process groups; {sys.platform} has none, POSIX systems have"
            )
        for name, value in (
            ("max_workers", max_workers),
            ("recycle_after", recycle_after),
            ("start_timeout", start_timeout),
        ):
            if not value > 0:
                raise ValueError(f"{name} is {value}; it accepts a number above 0")
        self._max_workers = max_workers
        self._recycle_after = recycle_after
        self._start_timeout = start_timeout
        self._start_empty()
        _pools.add(self)

    def _start_empty(self) -> None:
        self._changed = threading.Condition()
        # The one that was used last is at the end.
        self._idle: list[_Member] = []
        self._busy: set[_Member] = set()
        self._preparing = 0
        self._closed = False
        self._counts = dict.fromkeys(("started", "calls", "killed", "recycled"), 0)

    def run(
        self,
        function: Callable[..., Any] | Target,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        limits: Limits | None = None,
        timeout: float | None = None,
        on_start: Callable[[Callable[[], None]], None] | None = None,
    ) -> Any:
        """Call a function in a worker and return its result. Other threads run meanwhile.

        Args:
            function: What :func:`check_transferable` returned for it, or what that accepts.
            args: Positional arguments.
            kwargs: Arguments by name.
            limits: What the call may take.
            timeout: Seconds until the caller has its answer, waiting for a worker included.
            on_start: Called with a function that cancels the call, before the call begins. That
                function may be called from any thread, at any time.

        Raises:
            DeadlineExceeded: The call took longer than ``timeout``; a ``TimeoutError``.
            NotStarted: So did the start of a worker; a ``TimeoutError``, too.
            Killed: The worker ended: the subclass and the message say why.
            NotTransferable: The function, an argument or the result cannot go.
            ResultTooLarge: The result takes more than ``limits.result_bytes``.
            RemoteError: The tool raised what cannot be made again here.
            Exception: What the tool raised, with the worker's traceback as a note.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        limits = Limits() if limits is None else limits
        target = self._target(function)
        arguments, context = _transfer.pack_arguments(target, tuple(args), kwargs or {})
        message = pickle.dumps(("call", target.digest, arguments, context, limits), protocol=5)
        member = self._take(target, deadline, timeout)
        keep = False
        try:
            if on_start is not None:
                number = member.calls
                on_start(lambda: self._cancel(member, number))
            left = None if deadline is None else deadline - time.monotonic()
            answer = member.process.call(
                message, most=limits.result_bytes + _ENVELOPE, timeout=left
            )
            if member.cancelled:
                raise Cancelled(f"tool {target.name!r}: the call was cancelled")
            outcome, keep = self._understand(target, answer, limits, timeout)
        finally:
            self._give_back(member, keep=keep)
        return outcome(member.process.pid)

    def warm(self, function: Callable[..., Any] | Target, *, timeout: float | None = None) -> None:
        """Start a worker and have it load a function, so that the first call need not wait.

        Raises:
            NotStarted: That took longer than ``timeout`` seconds.
            IsolationError: The worker cannot load it.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        member = self._take(self._target(function), deadline, timeout)
        self._give_back(member, keep=True)

    def stats(self) -> dict[str, int]:
        """Return how many workers there are, and what has happened since the pool was made."""
        with self._changed:
            return {
                **self._counts,
                "idle": len(self._idle),
                "busy": len(self._busy),
                "starting": self._preparing,
            }

    def close(self) -> None:
        """Kill every worker. Calls that are under way raise ``Cancelled``."""
        with self._changed:
            self._closed = True
            idle, self._idle = self._idle, []
            for member in self._busy:
                self._kill_busy(member)
            self._changed.notify_all()
        for member in idle:
            member.process.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- workers ------------------------------------------------------------------------------

    def _target(self, function: Callable[..., Any] | Target) -> Target:
        if isinstance(function, _transfer.Target):
            return function
        return _transfer.check_transferable(function)

    def _take(self, target: Target, deadline: float | None, timeout: float | None) -> _Member:
        """Return a worker that has loaded the target, and is ours until it is given back."""
        mine: _Preparation | None = None
        with self._changed:
            while True:
                if self._closed:
                    raise IsolationError(f"tool {target.name!r}: the pool of workers is closed")
                if (member := self._idle_with(target)) is not None:
                    self._busy.add(member)
                    return member
                if mine is not None and mine.error is not None:
                    raise mine.error
                if mine is None or mine.over:
                    mine = self._prepare(target)
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    doing = "all workers were busy" if mine is None else "a worker was starting"
                    raise NotStarted(
                        f"tool {target.name!r} has not run: {doing} for all of its {timeout} s"
                    )
                self._changed.wait(left)

    def _idle_with(self, target: Target) -> _Member | None:
        for member in reversed(self._idle):
            if target.digest in member.loaded:
                self._idle.remove(member)
                if member.process.ready():
                    return member
                # It has ended while it was idle.
                member.process.kill()
                return self._idle_with(target)
        return None

    def _prepare(self, target: Target) -> _Preparation | None:
        """Have an idle worker, or a new one if there may be, load the target."""
        member = self._idle.pop(0) if self._idle else None
        if member is None and self._preparing + len(self._busy) >= self._max_workers:
            return None
        preparation = _Preparation()
        # In a thread of its own, so that it comes to its end when the caller has no more time.
        thread = threading.Thread(
            target=self._load,
            args=(target, member, preparation, self._changed),
            name="crewai-native-worker-start",
            daemon=True,
        )
        self._preparing += 1
        try:
            thread.start()
        except BaseException:
            # The system has no more threads. What is not prepared must not be waited for.
            self._preparing -= 1
            if member is not None:
                self._idle.append(member)
            self._changed.notify_all()
            raise
        return preparation

    def _load(
        self,
        target: Target,
        member: _Member | None,
        preparation: _Preparation,
        changed: threading.Condition,
    ) -> None:
        ready = None
        try:
            if member is None or not member.process.ready():
                if member is not None:
                    member.process.kill()
                member = _Member(_start())
                with changed:
                    self._counts["started"] += 1
            if target.digest not in member.loaded:
                self._have_loaded(member, target)
            ready = member
        except BaseException as error:  # noqa: BLE001 - the caller raises it
            preparation.error = error
        finally:
            if ready is None and member is not None:
                member.process.kill()
            with changed:
                self._preparing -= 1
                preparation.over = True
                if ready is not None:
                    self._put_back(ready)
                changed.notify_all()

    def _have_loaded(self, member: _Member, target: Target) -> None:
        message = pickle.dumps(("load", target.digest, target.data), protocol=5)
        kind, value = member.process.call(message, most=_ENVELOPE, timeout=self._start_timeout)
        if kind == "timeout":
            raise NotStarted(
                f"tool {target.name!r} has not run: its worker needed more than "
                f"{self._start_timeout} s to start and to import its module"
            )
        outcome, _ = self._understand(target, (kind, value), Limits(), None)
        try:
            outcome(member.process.pid)
        except Exception as error:
            raise NotTransferable(
                f"tool {target.name!r} cannot be loaded in a process of its own: "
                f"{type(error).__name__}: {error}"
            ) from error
        member.loaded.add(target.digest)

    def _give_back(self, member: _Member, *, keep: bool) -> None:
        member.calls += 1
        keep = keep and not member.cancelled
        worn = member.calls >= self._recycle_after
        with self._changed:
            self._busy.discard(member)
            self._counts["calls"] += 1
            if keep and not worn:
                self._put_back(member)
            else:
                self._counts["recycled" if keep else "killed"] += 1
            self._changed.notify_all()
        if not keep or worn:
            member.process.kill()

    def _put_back(self, member: _Member) -> None:
        if self._closed:
            member.process.kill()
        else:
            self._idle.append(member)

    def _cancel(self, member: _Member, number: int) -> None:
        with self._changed:
            # It may be at another's call by now.
            if member in self._busy and member.calls == number:
                self._kill_busy(member)

    def _kill_busy(self, member: _Member) -> None:
        member.cancelled = True
        # While it is among the busy ones, nobody has waited for it: its id is its own.
        member.process.kill_busy()

    # --- answers ------------------------------------------------------------------------------

    def _understand(
        self,
        target: Target,
        answer: tuple[str, Any],
        limits: Limits,
        timeout: float | None,
    ) -> tuple[Callable[[int], Any], bool]:
        """Return what gives the result, or raises, and whether the worker can go on."""
        kind, value = answer
        tool = f"tool {target.name!r}"
        if kind == "timeout":
            raise DeadlineExceeded(
                f"{tool} took longer than its {timeout} s and was killed (timeout)",
                signal=signal.SIGKILL,
            )
        if kind == "large":
            raise ResultTooLarge(
                f"{tool}: the result takes more than {limits.result_bytes} bytes (result_bytes)"
            )
        if kind == "ended":
            raise _ended(tool, value, limits)
        outcome, payload, go_on = pickle.loads(value)  # noqa: S301 - from our worker
        if outcome == "exit":
            raise Exited(f"{tool} called sys.exit({payload})")
        if outcome == "memory":
            error = MemoryLimitExceeded(
                f"{tool} wanted more memory than its {limits.memory_mb} MiB (memory_mb)"
            )
            error.add_note(payload[-1])
            raise error

        def deliver(pid: int) -> Any:
            if outcome == "raised":
                raise _made_again(tool, pid, payload)
            if outcome == "loaded":
                return None
            try:
                return pickle.loads(payload)  # noqa: S301 - as above
            except Exception as error:
                raise NotTransferable(
                    f"{tool}: the result cannot be read in this process "
                    f"({type(error).__name__}: {error})"
                ) from error

        return deliver, go_on


def _start() -> WorkerProcess:
    from crewai_native import _children
    from crewai_native_tools._native import WorkerProcess

    try:
        python = _children.interpreter()
    except LookupError as error:
        raise IsolationError(f"isolation starts Python anew: {error.args[0]}") from error
    return WorkerProcess(python, ["-c", _BOOTSTRAP, *sys.path])


def _ended(tool: str, end: tuple[int | None, int | None, str], limits: Limits) -> BaseException:
    number, code, words = end
    error: BaseException
    if number == signal.SIGXCPU:
        seconds = limits.cpu_seconds
        error = CpuLimitExceeded(
            f"{tool} took more than its {seconds} s of processor time and was killed (cpu_seconds)",
            signal=number,
        )
    elif number is not None:
        hint = ""
        if number == signal.SIGKILL:
            hint = "; somebody killed it, as the system does when memory is short"
        elif limits.memory_mb is not None:
            hint = f"; it may have run into its {limits.memory_mb} MiB of memory (memory_mb)"
        error = Crashed(
            f"{tool}: its process was ended by {signal_name(number)}{hint}", signal=number
        )
    elif code is not None:
        error = Exited(f"{tool} ended its process with exit code {code}", exit_code=code)
    else:
        error = Exited(f"{tool} broke its process's connection and went on")
    if words:
        error.add_note(f"The process's last words:\n{words}")
    return error


def _made_again(tool: str, pid: int, raised: tuple[bytes | None, str, str, str]) -> BaseException:
    """Make the exception that a tool raised again, as far as that goes."""
    data, type_name, text, trace = raised
    error: BaseException = RemoteError(f"{tool} raised {text}", type_name=type_name)
    if data is not None:
        with contextlib.suppress(Exception):
            found = pickle.loads(data)  # noqa: S301 - from our worker
            if type(found) in (NotTransferable, ResultTooLarge):
                return type(found)(f"{tool}: {found}")
            if isinstance(found, Exception):
                error = found
    error.add_note(f"In the tool's process {pid}:\n{trace.rstrip()}")
    return error


@atexit.register
def _close_all() -> None:
    for pool in list(_pools):
        pool.close()


def _start_anew() -> None:
    # The workers are the parent's. Letting go of them closes this process's copies of the sockets.
    for pool in list(_pools):
        pool._start_empty()  # noqa: SLF001 - this module's own


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)
