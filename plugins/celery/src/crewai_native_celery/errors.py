"""What goes wrong with kickoffs elsewhere."""

from crewai_native import CrewAINativeError


class KickoffError(CrewAINativeError):
    """A kickoff failed on a worker.

    Attributes:
        kind: The exception's type there, such as ``builtins.KeyError``.
        traceback: Its traceback, as text.
    """

    def __init__(self, kind: str, message: str, traceback: str = "") -> None:
        super().__init__(f"{kind.removeprefix('builtins.')}: {message}")
        self.kind = kind
        self.traceback = traceback


class WorkerLostError(CrewAINativeError):
    """The process of a kickoff died, as often as it was begun."""


class TargetError(TypeError):
    """What a batch should run cannot be named to a worker, or is not there."""
