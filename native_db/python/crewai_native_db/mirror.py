"""CrewAI's own log of the newest run, kept up to date beside ours.

``crewai log-tasks-outputs`` reads that file itself, without importing CrewAI. It is only ever
touched through Python's ``sqlite3``: two copies of SQLite in one process would drop one another's
locks on it.
"""

from __future__ import annotations

import atexit
import logging
import os
import sqlite3
import threading
import weakref
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from crewai_native_db import _native

_logger = logging.getLogger("crewai_native")
_TIMEOUT: Final = 30.0
# Seconds from a change to its writing. That costs some accesses to the disk, and crews that run side by
# side end many tasks a second.
_PAUSE: Final = 0.25
_TABLE: Final = """
CREATE TABLE IF NOT EXISTS latest_kickoff_task_outputs (
    task_id TEXT PRIMARY KEY,
    task_key TEXT,
    expected_output TEXT,
    output JSON,
    task_index INTEGER,
    inputs JSON,
    was_replayed BOOLEAN,
    timestamp DATETIME DEFAULT CURRENT_TIMESTAMP
)
"""
_COLUMNS: Final = (
    "task_id, task_key, expected_output, output, task_index, inputs, was_replayed, timestamp"
)

_live: weakref.WeakSet[Mirror] = weakref.WeakSet()


def timestamp(microseconds: int) -> str:
    """A time as CrewAI's log states it: ``2026-01-31 12:59:59``, UTC."""
    return datetime.fromtimestamp(microseconds / 10**6, UTC).strftime("%Y-%m-%d %H:%M:%S")


def read(place: str) -> list[tuple[Any, ...]]:
    """The rows of CrewAI's log at ``place``, in the order of our columns; none without a file.

    Raises:
        DatabaseError: The file cannot be read.
    """
    from crewai_native_db import DatabaseError

    if not Path(place).exists():
        return []
    try:
        with closing(sqlite3.connect(place, timeout=_TIMEOUT)) as db:
            if not _columns(db):
                return []
            # Projects from before CrewAI logged keys have no such column.
            key = "task_key" if "task_key" in _columns(db) else "NULL"
            rows = db.execute(
                f"SELECT task_id, {key}, expected_output, output, task_index, inputs,"  # noqa: S608
                " was_replayed, timestamp FROM latest_kickoff_task_outputs ORDER BY task_index"
            ).fetchall()
    except sqlite3.Error as error:
        raise DatabaseError(f"{place}: CrewAI's log of the last run: {error}") from error
    return [(*row[:6], bool(row[6]), _microseconds(row[7])) for row in rows]


def write(store: _native.ReplayStore, place: str) -> None:
    """Bring CrewAI's log at ``place`` up to date with the newest run there.

    Raises:
        sqlite3.Error: The file cannot be written.
    """
    from crewai_core.lock_store import lock

    # The lock under which CrewAI writes it, and under which other processes mirror it.
    with lock(f"sqlite:{place}"):
        found = store.unmirrored(place)
        if found is None:
            return
        run, change, whole, rows = found
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(place, timeout=_TIMEOUT)) as db, db:
            db.execute("PRAGMA journal_mode=WAL")
            # Whatever a power cut takes from this file is in ours.
            db.execute("PRAGMA synchronous=NORMAL")
            db.execute(_TABLE)
            if "task_key" not in _columns(db):
                db.execute("ALTER TABLE latest_kickoff_task_outputs ADD COLUMN task_key TEXT")
            if not whole:
                known = {row[0] for row in store.load(run)}
                there = db.execute("SELECT task_id FROM latest_kickoff_task_outputs")
                if not {task_id for (task_id,) in there} <= known:
                    # CrewAI itself has logged another run meanwhile; ours has gone on since.
                    whole, rows = True, store.load(run)
            if whole:
                db.execute("DELETE FROM latest_kickoff_task_outputs")
            db.executemany(
                f"INSERT OR REPLACE INTO latest_kickoff_task_outputs ({_COLUMNS})"  # noqa: S608
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [(*row[:7], timestamp(row[7])) for row in rows],
            )
        store.mirrored(place, run, change)


def delete_all(store: _native.ReplayStore, place: str) -> None:
    """Delete every run at ``place``, and what CrewAI's log there has of them.

    Raises:
        DatabaseError: CrewAI's file cannot be written.
    """
    from crewai_core.lock_store import lock

    from crewai_native_db import DatabaseError

    # Between the two nobody may mirror a run again.
    with lock(f"sqlite:{place}"):
        store.delete_all(place)
        if not Path(place).exists():
            return
        try:
            with closing(sqlite3.connect(place, timeout=_TIMEOUT)) as db, db:
                if _columns(db):
                    db.execute("PRAGMA secure_delete=ON")
                    db.execute("DELETE FROM latest_kickoff_task_outputs")
        except sqlite3.Error as error:
            raise DatabaseError(f"{place}: CrewAI's log of the last run: {error}") from error


class Mirror:
    """Writes CrewAI's logs on a thread of its own, which begins with the first change."""

    def __init__(self, store: _native.ReplayStore) -> None:
        self._store = store
        self._begin()
        _live.add(self)

    def _begin(self) -> None:
        self._places: set[str] = set()
        self._state = threading.Condition()
        self._writing = False
        self._waiting = 0
        self._thread: threading.Thread | None = None

    def changed(self, place: str) -> None:
        """Say that the newest run at a place is to be written."""
        with self._state:
            begins = not self._places
            self._places.add(place)
            if self._thread is None:
                thread = threading.Thread(
                    target=self._work, name="crewai-native-replay", daemon=True
                )
                try:
                    thread.start()
                except RuntimeError:
                    # The system has none left, or the program ends: from Python 3.12 on no thread
                    # is started then, while those that there are go on.
                    self._write()
                    return
                self._thread = thread
            # With places to write it waits for the time to pass, and waking it would only cost.
            if begins:
                self._state.notify_all()

    def flush(self) -> None:
        """Wait until everything is written that was said to have changed."""
        with self._state:
            self._waiting += 1
            self._state.notify_all()
            try:
                self._state.wait_for(lambda: not self._places and not self._writing)
            finally:
                self._waiting -= 1

    def _work(self) -> None:
        while True:
            with self._state:
                self._writing = False
                self._state.notify_all()
                self._state.wait_for(lambda: bool(self._places))
                # Further tasks may end. Whoever waits for what has ended does not wait for those.
                self._state.wait_for(lambda: self._waiting > 0, _PAUSE)
                self._writing = True
            self._write()

    def _write(self) -> None:
        with self._state:
            places, self._places = self._places, set()
        for place in places:
            try:
                write(self._store, place)
            except Exception:
                # Our own log has it. A thread cannot tell anybody but the log.
                _logger.exception(
                    "%s: crewai log-tasks-outputs will not show the newest run", place
                )


def _columns(db: sqlite3.Connection) -> set[str]:
    return {row[1] for row in db.execute("PRAGMA table_info(latest_kickoff_task_outputs)")}


def _microseconds(text: str) -> int:
    moment = datetime.strptime(text, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
    return round(moment.timestamp() * 10**6)


@atexit.register
def _finish() -> None:
    for mirror in list(_live):
        mirror.flush()


def _begin_anew() -> None:
    # In a forked child: the thread is the parent's, and so is what it has still to write.
    for mirror in list(_live):
        mirror._begin()  # noqa: SLF001 - of this module


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
