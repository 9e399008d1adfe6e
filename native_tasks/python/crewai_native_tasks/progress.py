"""What a batch tells whoever watches: a bar on a terminal, lines in the log elsewhere."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Final

from crewai_native.slots.tasks_batch import ItemState

if TYPE_CHECKING:
    from crewai_native.slots.tasks_batch import BatchItem
    from crewai_native_tasks.batch_run import Run

_logger = logging.getLogger("crewai_native.tasks")
# Seconds between lines in the log, and between changes of the bar.
_LINE: Final = 10.0
_BAR: Final = 0.1
_BAD: Final = (ItemState.FAILED, ItemState.TIMED_OUT, ItemState.CANCELLED)


class Silent:
    """Shows nothing."""

    def __call__(self, run: Run, item: BatchItem | None) -> None:
        """Take no note."""

    def close(self) -> None:
        """Do nothing."""


class Progress:
    """Shows how a batch comes on.

    Args:
        total: Its number of items, or None where that is not known.
        console: Where to; the standard error by default.
    """

    def __init__(self, total: int | None, console: Any = None) -> None:
        from rich.console import Console

        self._total = total
        self._console = console or Console(stderr=True)
        self._began = self._shown = time.monotonic()
        self._tokens = 0
        self._finished = 0
        self._known = 0
        self._failed = 0
        self._bar: Any = None
        self._task: Any = None
        if self._console.is_terminal:
            self._start()

    def _start(self) -> None:
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        self._bar = Progress(
            SpinnerColumn(),
            BarColumn(),
            TextColumn("{task.description}"),
            console=self._console,
            auto_refresh=False,
            transient=False,
        )
        self._task = self._bar.add_task("starting", total=self._total)
        self._bar.start()

    def __call__(self, run: Run, item: BatchItem | None) -> None:
        """Take note of an item; without one, of the time."""
        if item is not None:
            self._finished += 1
            self._known += item.attempts == 0 and item.state is ItemState.DONE
            self._failed += item.state in _BAD
            self._tokens += getattr(item.usage, "total_tokens", 0)
        now = time.monotonic()
        over = self._finished == self._total
        pause = _BAR if self._bar is not None else _LINE
        if not over and now - self._shown < pause:
            return
        self._shown = now
        text = self.line(run.counts().get(ItemState.RUNNING, 0), now - self._began)
        if self._bar is None:
            _logger.info("batch: %s", text)
            return
        self._bar.update(self._task, completed=self._finished, description=text)
        self._bar.refresh()
        if over:
            self.close()

    def line(self, running: int, seconds: float) -> str:
        """Return how the batch stands: items, rate, failures, tokens, time left."""
        of = "" if self._total is None else f"/{self._total}"
        parts = [f"{self._finished}{of}", f"{running} running"]
        worked = self._finished - self._known
        rate = worked / seconds if seconds > 0 else 0.0
        parts.append(f"{rate:.1f}/s")
        if self._failed:
            parts.append(f"{self._failed} failed")
        if self._tokens:
            parts.append(f"{self._tokens:,} tokens")
        if self._total is not None and rate > 0 and self._total > self._finished:
            left = round((self._total - self._finished) / rate)
            parts.append(f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02} left")
        return ", ".join(parts)

    def close(self) -> None:
        """Leave the bar as it stands."""
        # First out of reach, as the threads of a batch may find at the same time that nobody asks.
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.stop()
