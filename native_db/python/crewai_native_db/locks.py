"""CrewAI's named locks: those of CrewAI's own code, handed over at once and in order."""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
from typing import TYPE_CHECKING

from crewai_native_db._native import FileLock

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["NamedLock"]


@functools.lru_cache(maxsize=256)
def _path(name: str, directory: str) -> str:
    digest = hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()
    return os.path.join(directory, f"crewai:{digest}.lock")  # noqa: PTH118 - for every lock taken


class NamedLock:
    """Holds a named lock while its block runs, and keeps out every thread and process else.

    It is the lock that CrewAI takes without a backend: ``flock`` on a file in the temporary
    directory. So processes exclude one another whether or not they use this. Who waits in a
    process gets it in order; processes take turns. It may be released on another thread, and is
    released by the death of its process. A child that is forked meanwhile does not hold it.

    Like CrewAI's own it is not re-entrant.

    Args:
        name: Any text.
        timeout: Seconds to wait.

    Raises:
        portalocker.exceptions.LockException: On entering, after ``timeout``. The message names
            the process that holds the lock.
        OSError: On entering, when the file cannot be opened.
    """

    __slots__ = ("_lock", "_name", "_timeout")

    def __init__(self, name: str, timeout: float) -> None:
        self._name = name
        self._timeout = timeout
        self._lock = FileLock(self._file, timeout)

    @property
    def _file(self) -> str:
        return _path(self._name, tempfile.gettempdir())

    def __enter__(self) -> None:
        if not self._lock.acquire_in_time():
            from portalocker.exceptions import LockException

            pid = self._lock.holder()
            holder = "another process" if pid is None else f"process {pid}"
            if pid == os.getpid():
                holder = f"this process ({pid})"
            raise LockException(
                f"Failed to acquire lock {self._name!r} at {self._file} "
                f"(timeout={self._timeout}s): {holder} holds it"
            )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lock.release()
