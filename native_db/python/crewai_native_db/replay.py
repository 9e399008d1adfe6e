"""The log behind ``crewai replay``: the outputs of tasks, by run."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Final

from crewai_native_db import _native, mirror
from crewai_native_db.encoding import dumps

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ReplayLog", "ReplayStore"]

FILE_NAME = "replay.db"
KEEP: Final = 100

_logger = logging.getLogger("crewai_native")
_FIELDS: Final = ("task_id", "task_key", "expected_output", "output", "inputs", "was_replayed")


_live: weakref.WeakSet[ReplayLog] = weakref.WeakSet()


class ReplayStore:
    """Keeps the runs of every project that CrewAI keeps one for.

    CrewAI's own file at a place holds the newest run there as well, for
    ``crewai log-tasks-outputs``. It is written on a thread, and before the interpreter exits.

    Args:
        path: The file in which the runs are.
        durable: Whether a logged output survives a power cut, and not only the death of the
            process.
        keep: How many runs to keep at each place.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, durable: bool = True, keep: int = KEEP
    ) -> None:
        self._store = _native.ReplayStore(path, durable)
        self._keep = keep
        self._mirror = mirror.Mirror(self._store)

    def open(self, path: str) -> ReplayLog:
        """Return the log for a crew whose runs CrewAI would keep in the file at ``path``."""
        return ReplayLog(self._store, self._mirror, os.path.realpath(path), self._keep)

    def flush(self) -> None:
        """Wait until CrewAI's own files have what was logged."""
        self._mirror.flush()

    def close(self) -> None:
        """Write what is left to CrewAI's own files, and let go of ours."""
        self._mirror.flush()
        self._store.close()


class ReplayLog:
    """The outputs of one crew's tasks. It may be used by several threads.

    Raises:
        OSError: From every method, when the system refuses (space, permissions).
        DatabaseError: From every method, when the file is damaged or of a newer format.
    """

    def __init__(
        self, store: _native.ReplayStore, mirror: mirror.Mirror, place: str, keep: int
    ) -> None:
        self._store = store
        self._mirror = mirror
        self._place = place
        self._keep = keep
        self._run: int | None = None
        self._begun = False
        # Tasks of one crew end on several threads; their first outputs begin one run.
        self._lock = threading.Lock()
        _live.add(self)

    def __repr__(self) -> str:
        return f"ReplayLog({self._place!r}, run={self._run})"

    def add(
        self,
        *,
        task_id: str,
        task_key: str,
        expected_output: str,
        output: dict[str, Any],
        task_index: int,
        inputs: dict[str, Any],
        was_replayed: bool,
    ) -> None:
        """Add the output of a task, or replace that of the same ``task_id``."""
        row = (
            task_id,
            task_key,
            expected_output,
            _json(output),
            task_index,
            _json(inputs),
            bool(was_replayed),
            time.time_ns() // 1000,
        )
        run = self._run
        if run is None:
            with self._lock:
                run = self._run
                if run is None:
                    self._run = self._store.add(None, self._place, self._keep, [row])
        if run is not None:
            self._store.add(run, self._place, self._keep, [row])
        self._mirror.changed(self._place)

    def update(self, task_index: int, fields: Mapping[str, Any]) -> None:
        """Change fields of the task at an index.

        Raises:
            ValueError: There is no such field.
        """
        if unknown := fields.keys() - set(_FIELDS):
            raise ValueError(
                f"a logged output has no {', '.join(sorted(unknown))}; it has {', '.join(_FIELDS)}"
            )
        changes: dict[str, Any] = {
            name: _json(value) if name in ("output", "inputs") else value
            for name, value in fields.items()
        }
        run = self._known_run()
        if run is not None and self._store.update(run, task_index, **changes):
            self._mirror.changed(self._place)
        else:
            _logger.warning("no output was logged for task %d; none is updated", task_index)

    def load(self) -> list[dict[str, Any]]:
        """Return the outputs of this crew's run, or else of the newest one, by index."""
        run = self._known_run()
        if run is None:
            return []
        return [
            {
                "task_id": task_id,
                "task_key": task_key,
                "expected_output": expected_output,
                "output": json.loads(output),
                "task_index": task_index,
                "inputs": json.loads(inputs),
                "was_replayed": int(was_replayed),
                "timestamp": mirror.timestamp(saved_at),
            }
            for (
                task_id,
                task_key,
                expected_output,
                output,
                task_index,
                inputs,
                was_replayed,
                saved_at,
            ) in self._store.load(run)
        ]

    def clear(self) -> None:
        """Begin a new run. Until its first output the newest one elsewhere stays the newest."""
        with self._lock:
            self._run = None
            self._begun = True

    def delete_all(self) -> None:
        """Delete every run at the place, of other crews as well, also in CrewAI's own file.

        The file is rewritten, so that no text of theirs is left in it.
        """
        with self._lock:
            mirror.delete_all(self._store, self._place)
            self._run = None
            self._begun = True
        self._store.vacuum()

    def _known_run(self) -> int | None:
        """This crew's run; where it has begun none, from now on the newest one at the place."""
        with self._lock:
            if self._run is None and not self._begun:
                self._run = self._newest()
            return self._run

    def _newest(self) -> int | None:
        """The newest run, be it one that CrewAI itself has logged since ours."""
        run = self._store.newest(self._place)
        ours = [] if run is None else self._store.load(run)
        theirs = mirror.read(self._place)
        if {row[0] for row in theirs} <= {row[0] for row in ours}:
            return run
        # CrewAI's times have no fractions.
        if (
            max(row[7] for row in theirs)
            < max((row[7] for row in ours), default=0) // 10**6 * 10**6
        ):
            return run
        return self._store.add(None, self._place, self._keep, theirs)


def _unlock() -> None:
    # In a forked child: whoever held a lock in the parent is not here to release it.
    for log in list(_live):
        log._lock = threading.Lock()  # noqa: SLF001 - of this module


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock)


def _json(value: Any) -> str:
    from crewai.utilities.crew_json_encoder import CrewJSONEncoder

    return dumps(value, cls=CrewJSONEncoder)
