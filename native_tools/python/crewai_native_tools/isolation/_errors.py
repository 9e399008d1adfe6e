"""What goes wrong with tools in processes of their own."""

from __future__ import annotations

import signal as _signal


class IsolationError(RuntimeError):
    """A call in a worker process failed for a reason that is not the tool's own exception."""


class NotTransferable(IsolationError, TypeError):  # noqa: N818 - a finding about a tool
    """A function, an argument or a result cannot go from one process to another."""


class NotStarted(IsolationError, TimeoutError):  # noqa: N818 - names what happened
    """The call's time was over before a worker was free, or had loaded the tool.

    The tool has not run. A worker that is loading it goes on, for the next call.
    """


class RemoteError(IsolationError):
    """The tool raised what cannot be made again in this process.

    Attributes:
        type_name: The exception's class, with its module.
    """

    def __init__(self, message: str, *, type_name: str) -> None:
        super().__init__(message)
        self.type_name = type_name


class ResultTooLarge(IsolationError, ValueError):  # noqa: N818 - a finding about a result
    """The result takes more bytes than ``Limits.result_bytes``."""


class Killed(IsolationError):  # noqa: N818 - names what happened
    """The worker ended, or was ended, during the call.

    Attributes:
        signal: The signal that ended it, where one did.
        exit_code: What it exited with, where it did.
    """

    def __init__(
        self, message: str, *, signal: int | None = None, exit_code: int | None = None
    ) -> None:
        super().__init__(message)
        self.signal = signal
        self.exit_code = exit_code


class DeadlineExceeded(Killed, TimeoutError):  # noqa: N818 - as above
    """The call took longer than it may, and its worker was killed."""


class CpuLimitExceeded(Killed):
    """The call took more processor time than ``Limits.cpu_seconds``."""


class MemoryLimitExceeded(Killed):
    """The call wanted more memory than ``Limits.memory_mb``."""


class Cancelled(Killed):
    """The call was cancelled, and its worker killed."""


class Crashed(Killed):
    """A signal ended the worker: a crash, or somebody's ``kill``."""


class Exited(Killed):
    """The tool ended its process."""


def signal_name(number: int) -> str:
    """Return a signal's name, such as ``SIGSEGV``."""
    try:
        return _signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
