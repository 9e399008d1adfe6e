"""What the options of a batch accept, whichever engine runs it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crewai_native.slots.tasks_batch import BatchOptions


def check(options: BatchOptions) -> None:
    """Check the options that mean the same everywhere.

    Raises:
        ValueError: One means nothing.
    """
    if options.on_error not in {"raise", "collect", "stop"}:
        raise ValueError(f"on_error is {options.on_error!r}; it accepts raise, collect or stop")
    timeout: Any = options.timeout
    if timeout is not None and not (
        (is_whole(timeout) or isinstance(timeout, float)) and 0 < timeout <= threading.TIMEOUT_MAX
    ):
        raise ValueError(f"timeout is {timeout!r}; it accepts seconds above 0")
    if not is_whole(options.priority, -(2**63), 2**63 - 1):
        raise ValueError(f"priority is {options.priority!r}; it accepts a whole number")
    if not is_whole(options.retries, 0):
        raise ValueError(f"retries is {options.retries!r}; it accepts a number from 0")
    if options.resume == "":
        raise ValueError("resume is empty; it accepts the name of a journal")


def is_whole(value: Any, least: int | None = None, most: int | None = None) -> bool:
    """Return whether something is a whole number between two."""
    return (
        isinstance(value, int)
        and not isinstance(value, bool)
        and (least is None or least <= value)
        and (most is None or value <= most)
    )
