"""The cache itself: the results of the calls that were used last."""

from __future__ import annotations

import collections
import threading
from typing import Any


class BoundedCache:
    """Keeps a limited number of results, forgetting those that were not used for longest.

    CrewAI calls it from several threads at once.

    Args:
        size: Results kept at a time, at least 1.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"size is {size}; it accepts 1 and more")
        self._size = size
        self._results: collections.OrderedDict[tuple[str, str], Any] = collections.OrderedDict()
        self._lock = threading.Lock()

    def add(self, tool: str, input: str, output: Any) -> None:  # noqa: A002 - CrewAI's name
        """Keep a result."""
        with self._lock:
            self._results[tool, input] = output
            self._results.move_to_end((tool, input))
            if len(self._results) > self._size:
                self._results.popitem(last=False)

    def read(self, tool: str, input: str) -> Any | None:  # noqa: A002 - CrewAI's name
        """Return the kept result, or None."""
        with self._lock:
            if (tool, input) not in self._results:
                return None
            self._results.move_to_end((tool, input))
            return self._results[tool, input]

    def __len__(self) -> int:
        return len(self._results)
