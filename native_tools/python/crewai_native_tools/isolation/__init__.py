"""Tools in processes of their own, which can be killed.

Python cannot end a thread: a tool that hangs in C code, or that allocates without end, takes its
process with it. Here the process is a worker, and a call costs no more than that worker.

This keeps tools from doing harm by accident. It is no sandbox for code that wants to do harm: a
worker runs as the same user, may write the same files and may open the same connections.
"""

import sys

from crewai_native_tools.isolation._errors import (
    Cancelled,
    CpuLimitExceeded,
    Crashed,
    DeadlineExceeded,
    Exited,
    IsolationError,
    Killed,
    MemoryLimitExceeded,
    NotStarted,
    NotTransferable,
    RemoteError,
    ResultTooLarge,
)
from crewai_native_tools.isolation._limits import Limits
from crewai_native_tools.isolation._pool import Pool
from crewai_native_tools.isolation._transfer import Target, check_transferable, forked, unforked

__all__ = [
    "Cancelled",
    "CpuLimitExceeded",
    "Crashed",
    "DeadlineExceeded",
    "Exited",
    "IsolationError",
    "Killed",
    "Limits",
    "MemoryLimitExceeded",
    "NotStarted",
    "NotTransferable",
    "Pool",
    "RemoteError",
    "ResultTooLarge",
    "Target",
    "check_transferable",
    "forked",
    "in_worker",
    "unforked",
]


def in_worker() -> bool:
    """Return whether this process is a worker: then limits are its parent's business."""
    worker = sys.modules.get(f"{__name__}._worker")
    return worker is not None and worker.running
