"""A lock that a fork leaves free to the child."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Self

_all: weakref.WeakSet[Lock] = weakref.WeakSet()


class Lock:
    """As ``threading.Lock`` in a ``with`` statement, but nobody's in a child that was forked.

    The child has none of its parent's threads but the one that forked, so that a lock that another held
    would be taken for ever. It must not be held by the thread that forks.
    """

    def __init__(self) -> None:
        self._free()
        _all.add(self)

    def _free(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._lock.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def _free_all() -> None:
    for lock in list(_all):
        lock._free()  # noqa: SLF001 - this module's own


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_free_all)
