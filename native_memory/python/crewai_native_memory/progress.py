"""Showing how far a long operation is."""

from __future__ import annotations

import logging
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_logger = logging.getLogger("crewai_native_memory")

_LOG_EVERY: Final = 10_000


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show how far something is: a bar on a terminal, a log line now and then elsewhere.

    Args:
        what: What is done.
        total: How many steps it has.

    Yields:
        A function to be called with the number of steps that were taken.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda count: bar.advance(task, count)
        return
    _logger.info("%s: %d records", what, total)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        before, done = done, done + count
        if done // _LOG_EVERY > before // _LOG_EVERY:
            _logger.info("%s: %d of %d", what, done, total)

    yield advance
