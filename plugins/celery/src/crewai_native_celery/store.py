"""Where the states of items lie, for all processes that work on a batch: Redis, or an SQLite file.

Both keep texts by key, change one atomically, and forget it after a time.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Change = Callable[[str | None, float], str | None]
    """Makes the next text of the present one and of the time; None leaves it as it is."""

CLIENTS_PATIENCE: Final = 30
"""How often whoever sends a batch tries to reach Redis, up to five seconds apart."""
FOREVER: Final = -1
_NAMESPACE: Final = "crewai-native:"
# Seconds that a process waits for others' changes of the file at most, each of which waits for the
# disk; a worker's process has nothing better to do.
_FOREVER_BUSY: Final = 7 * 24 * 3600.0
_SWEEP: Final = 3600.0


class Store(Protocol):
    """Texts by key."""

    def read(self, keys: Sequence[str]) -> tuple[list[str | None], float]:
        """Return the texts, None where there is none, and the store's time in seconds."""

    def change(self, key: str, change: Change, *, lasting: bool = True) -> None:
        """Change a text atomically; it is as durable as the store when this returns.

        Args:
            key: Its key.
            change: Makes the next text.
            lasting: Whether the change is worth waiting for the disk; what is not, a power cut may
                undo, and nothing else.
        """


def opened(url: str, *, keep: float, attempts: int = CLIENTS_PATIENCE) -> Store:
    """Return the store at a URL; nothing is connected to yet.

    Args:
        url: ``redis://…``, ``rediss://…`` or ``sqlite:///file``.
        keep: Seconds for which a text is kept after its last change.
        attempts: How often Redis is tried when it cannot be reached, or a second is waited for the
            file; :data:`FOREVER` for no end.
    """
    if url.startswith("sqlite:///"):
        return SqliteStore(Path(url.removeprefix("sqlite://")), keep, attempts)
    return RedisStore(url, keep, attempts)


class RedisStore:
    """Texts in Redis, as durable as that is configured to be.

    Redis's own clock counts, so that those of machines may differ.
    """

    def __init__(self, url: str, keep: float, attempts: int) -> None:
        from redis import Redis, exceptions
        from redis.backoff import EqualJitterBackoff
        from redis.retry import Retry

        self._keep = max(round(keep), 1)
        errors = (exceptions.ConnectionError, exceptions.TimeoutError)
        self._client = Redis.from_url(
            url,
            decode_responses=True,
            socket_timeout=30,
            socket_connect_timeout=10,
            retry=Retry(EqualJitterBackoff(cap=5, base=0.1), attempts, errors),
            retry_on_error=[*errors],
        )

    def read(self, keys: Sequence[str]) -> tuple[list[str | None], float]:
        """See :class:`Store`."""
        found: Any = self._client.mget([_NAMESPACE + key for key in keys]) if keys else []
        return found, self._now()

    def change(self, key: str, change: Change, *, lasting: bool = True) -> None:
        """See :class:`Store`."""
        del lasting  # the server is configured for it
        name = _NAMESPACE + key

        def transact(pipe: Any) -> None:
            text = change(pipe.get(name), self._now())
            pipe.multi()
            if text is not None:
                pipe.set(name, text, ex=self._keep)

        # Begins anew when another process has changed it meanwhile.
        self._client.transaction(transact, name)

    def _now(self) -> float:
        seconds, micros = self._client.time()
        return float(seconds + micros / 1e6)


# A process that is forked while another of its threads is inside of SQLite would find its mutexes
# locked for good.
_lock: Final = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
    )


# Connections of the process that this one was forked from: neither to be used nor to be closed here.
_inherited: Final[list[sqlite3.Connection]] = []


class SqliteStore:
    """Texts in a file, for the processes of one machine."""

    def __init__(self, path: Path, keep: float, attempts: int) -> None:
        self._path = path
        self._keep = keep
        self._busy = _FOREVER_BUSY if attempts == FOREVER else max(float(attempts), 1.0)
        self._swept = 0.0
        self._file: sqlite3.Connection | None = None
        self._process = 0

    def read(self, keys: Sequence[str]) -> tuple[list[str | None], float]:
        """See :class:`Store`."""
        now = time.time()
        with _lock:
            file = self._opened()
            found = [self._text(file, key, now) for key in keys]
        return found, now

    def change(self, key: str, change: Change, *, lasting: bool = True) -> None:
        """See :class:`Store`."""
        with _lock:
            file = self._opened()
            file.execute(f"PRAGMA synchronous={'FULL' if lasting else 'NORMAL'}")
            file.execute("BEGIN IMMEDIATE")
            now = time.time()
            try:
                text = change(self._text(file, key, now), now)
                if text is not None:
                    file.execute(
                        "INSERT OR REPLACE INTO texts VALUES (?, ?, ?)",
                        (key, text, now + self._keep),
                    )
                if now - self._swept > _SWEEP:
                    self._swept = now
                    file.execute("DELETE FROM texts WHERE until <= ?", (now,))
                file.execute("COMMIT")
            except BaseException:
                if file.in_transaction:
                    file.execute("ROLLBACK")
                raise

    @staticmethod
    def _text(file: sqlite3.Connection, key: str, now: float) -> str | None:
        row = file.execute("SELECT text FROM texts WHERE key = ? AND until > ?", (key, now))
        found = row.fetchone()
        return None if found is None else str(found[0])

    def _opened(self) -> sqlite3.Connection:
        if self._file is not None and self._process == os.getpid():
            return self._file
        if self._file is not None:
            _inherited.append(self._file)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Whoever holds `_lock` is the only one to use it.
        file = sqlite3.connect(
            self._path, timeout=self._busy, isolation_level=None, check_same_thread=False
        )
        try:
            _log_ahead(file, time.monotonic() + self._busy)
            file.execute(
                "CREATE TABLE IF NOT EXISTS texts "
                "(key TEXT PRIMARY KEY, text TEXT NOT NULL, until REAL NOT NULL) WITHOUT ROWID"
            )
        except BaseException:
            file.close()
            raise
        self._file, self._process = file, os.getpid()
        return file


def _log_ahead(file: sqlite3.Connection, end: float) -> None:
    """Have a file keep a write-ahead log: one wait for the disk per change, none of readers."""
    while True:
        try:
            file.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            # SQLite itself does not wait while another process is just switching.
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
            time.sleep(0.05)
        else:
            return
