"""The program of a worker process: loads functions and calls them, one at a time."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import faulthandler
import gc
import math
import os
import pickle
import resource
import signal
import struct
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any, Final, NoReturn

from crewai_native_tools import _native
from crewai_native_tools.isolation import _transfer
from crewai_native_tools.isolation._errors import NotTransferable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from crewai_native_tools.isolation._limits import Limits

_HEADER: Final = struct.Struct("<BQ")
_FRAME: Final = 1
_MOST_TEXT: Final = 20_000
_PAGE: Final = resource.getpagesize()
_MEBIBYTE: Final = 1 << 20

running = False
"""Whether this process is a worker."""


def main() -> NoReturn:
    """Serve the parent, which holds the other end of standard input, until it is gone."""
    global running  # noqa: PLW0603 - a process is a worker or it is not
    running = True
    channel = _take_standard_input()
    _native.follow_parent(channel)
    # A tool that crashes would leave a file of the size of its memory each time.
    _set_soft(resource.RLIMIT_CORE, 0)
    # What a crashing interpreter says goes where the parent reads it.
    faulthandler.enable(channel, all_threads=False)
    worker = _Worker()
    while True:
        message = _receive(channel)
        answer = worker.answer(message)
        if os.getpid() != worker.pid:
            # A tool has forked, and its child came back here. The answer is its parent's to give.
            os._exit(0)
        _send(channel, answer)


class _Worker:
    def __init__(self) -> None:
        self.pid = os.getpid()
        self._functions: dict[bytes, Callable[..., Any]] = {}

    def answer(self, message: bytes) -> bytes:
        """Do what a message asks for; return what, whether to go on, and the outcome, pickled."""
        order, digest, *rest = pickle.loads(message)  # noqa: S301 - from the parent
        if order == "load":
            return pickle.dumps(self._load(digest, *rest), protocol=5)
        kind, payload, grown = self._call(self._functions[digest], *rest)
        return pickle.dumps((kind, payload, not grown and not _has_children()), protocol=5)

    def _load(self, digest: bytes, data: bytes) -> tuple[str, Any, bool]:
        try:
            self._functions[digest] = pickle.loads(data)  # noqa: S301 - from the parent
        except BaseException as error:  # noqa: BLE001 - whatever a module raises is told
            return (*_failure(error, _MOST_TEXT), True)
        # What was loaded stays: it need not be looked through at each collection, nor be copied
        # when a tool forks.
        gc.collect()
        gc.freeze()
        return "loaded", None, True

    def _call(
        self, function: Callable[..., Any], arguments: bytes, context: bytes, limits: Limits
    ) -> tuple[str, Any, bool]:
        try:
            args, kwargs = pickle.loads(arguments)  # noqa: S301 - from the parent
        except Exception as error:  # noqa: BLE001 - whatever a class raises is told
            reason = f"{type(error).__name__}: {error}"
            refusal = f"the arguments cannot be read in the tool's process ({reason})"
            return (*_failure(NotTransferable(refusal), limits.result_bytes), False)
        surroundings = contextvars.Context()
        _transfer.restore_context(context, surroundings)
        kind: str
        payload: Any
        before = _address_space() if limits.memory_mb is not None else 0
        try:
            with _within(limits, before):
                result = surroundings.run(_run, function, args, kwargs)
                kind = "result"
                payload = _transfer.pack_result(result, limits.result_bytes)
        except MemoryError as error:
            kind, payload = _failure(error, limits.result_bytes)
            if limits.memory_mb is not None:
                kind = "memory"
        except SystemExit as error:
            kind, payload = "exit", repr(error.code)
        except BaseException as error:  # noqa: BLE001 - whatever a tool raises is told
            kind, payload = _failure(error, limits.result_bytes)
        grown = (
            limits.memory_mb is not None
            and _address_space() - before > limits.memory_mb * _MEBIBYTE // 2
        )
        return kind, payload, grown


def _run(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    result = function(*args, **kwargs)
    # As CrewAI does for a tool whose `_run` is a coroutine.
    return asyncio.run(result) if asyncio.iscoroutine(result) else result


def _failure(error: BaseException, most: int) -> tuple[str, Any]:
    """Describe an exception: itself, if it survives the way, its class, its text and its trace."""
    trace = "".join(traceback.format_exception(error))[-_MOST_TEXT:]
    text = "".join(traceback.format_exception_only(error)).strip()[:_MOST_TEXT]
    data = None
    if isinstance(error, Exception):
        with contextlib.suppress(Exception):
            packed = _transfer.pack_result(error, most)
            # Many exceptions can be pickled and not read again.
            if type(pickle.loads(packed)) is type(error):  # noqa: S301 - made here
                data = packed
    kind = type(error)
    return "raised", (data, f"{kind.__module__}.{kind.__qualname__}", text, trace)


@contextlib.contextmanager
def _within(limits: Limits, address_space: int) -> Iterator[None]:
    """Have the system enforce limits for the time of a call."""
    soft: list[tuple[int, int]] = []
    if limits.cpu_seconds is not None:
        signal.signal(signal.SIGXCPU, signal.SIG_DFL)
        soft.append((resource.RLIMIT_CPU, math.ceil(time.process_time() + limits.cpu_seconds)))
    if limits.memory_mb is not None:
        soft.append((resource.RLIMIT_AS, address_space + limits.memory_mb * _MEBIBYTE))
    if limits.open_files is not None:
        soft.append((resource.RLIMIT_NOFILE, _limit_of_descriptors(limits.open_files)))
    if limits.file_size is not None:
        # Python ignores the signal, so that writing raises OSError.
        soft.append((resource.RLIMIT_FSIZE, limits.file_size))
    before = [(which, resource.getrlimit(which)) for which, _ in soft]
    try:
        for which, value in soft:
            _set_soft(which, value)
        yield
    except OSError as error:
        import errno

        for code, name in ((errno.EMFILE, "open_files"), (errno.EFBIG, "file_size")):
            if error.errno == code and getattr(limits, name) is not None:
                error.add_note(f"{name}={getattr(limits, name)} is this tool's limit")
        raise
    finally:
        for which, values in before:
            resource.setrlimit(which, values)


def _set_soft(which: int, value: int) -> None:
    _, hard = resource.getrlimit(which)
    resource.setrlimit(which, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _address_space() -> int:
    """Return the bytes that this process has mapped."""
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - a path object costs as much again
        return int(file.read().split(maxsplit=1)[0]) * _PAGE


def _descriptors() -> set[int]:
    return {int(name) for name in os.listdir("/dev/fd")}  # noqa: PTH208 - as above


def _limit_of_descriptors(more: int) -> int:
    """Return below which number there is room for so many more: the lowest is always taken."""
    taken, limit = _descriptors(), 0
    while more > 0:
        more -= limit not in taken
        limit += 1
    return limit


def _has_children() -> bool:
    """Whether the tool left processes behind. What they are is not touched: just looked at."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _take_standard_input() -> int:
    """Return the socket that was standard input, which reads as empty from now on. Nothing else stays open."""
    for descriptor in _descriptors() - {0, 1, 2}:
        # What the parent left open to its children; and the list itself, which is closed already.
        with contextlib.suppress(OSError):
            os.close(descriptor)
    channel = os.dup(0)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0, inheritable=True)
    os.close(empty)
    return channel


def _receive(channel: int) -> bytes:
    _, length = _HEADER.unpack(_read(channel, _HEADER.size))
    return _read(channel, length)


def _read(channel: int, length: int) -> bytes:
    parts = []
    while length > 0:
        part = os.read(channel, min(length, _MEBIBYTE))
        if not part:
            # The parent has let this worker go.
            sys.stdout.flush()
            os._exit(0)
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def _send(channel: int, message: bytes) -> None:
    # What the tool printed is seen before its answer is.
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    for part in (_HEADER.pack(_FRAME, len(message)), message):
        left = memoryview(part)
        while left:
            left = left[os.write(channel, left) :]
