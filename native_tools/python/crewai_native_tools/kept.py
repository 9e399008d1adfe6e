"""Results of tool calls that outlive the process, for the tools of which ``cache_persist`` says so.

They lie in ``native/tool_results.db`` under CrewAI's storage directory, and every crew of every
process on that directory is given them: ``cache_persist`` is for tools whose results do not depend
on who asks. Results are kept as JSON; one that would not come back equal stays in the memory of its
process, as without the setting. Nothing is pickled.

``cache_ttl`` counts from when a result was added, whoever added it. ``cache_tool_max_bytes`` and
``cache_max_bytes`` bound the JSON of the file's results too; those go first that were not asked for
longest, to about a minute.
"""

from __future__ import annotations

import json
import math
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

from crewai_native import ConfigurationError
from crewai_native_tools import _native

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from crewai_native_tools._native import ResultCache

FILE_NAME: Final = "tool_results.db"
# What JSON has besides lists and dictionaries.
_JSON: Final = {str, int, float, bool, type(None)}

_ASKED_FOR: Final = 60.0
"""Seconds within which it is written down once that a result was asked for."""
_GOING: Final = 64
"""Results that go at a time when room is needed."""

_SCHEMA: Final = (
    """
    CREATE TABLE IF NOT EXISTS results (
        tool TEXT NOT NULL, input TEXT NOT NULL, result TEXT NOT NULL, bytes INTEGER NOT NULL,
        added REAL NOT NULL, used REAL NOT NULL, PRIMARY KEY (tool, input)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX IF NOT EXISTS results_used ON results (used)",
    "CREATE INDEX IF NOT EXISTS results_tool_used ON results (tool, used)",
    # Adding up all results for each new one would make the thousandth slower than the first.
    """
    CREATE TABLE IF NOT EXISTS weights (
        tool TEXT PRIMARY KEY, bytes INTEGER NOT NULL
    ) WITHOUT ROWID
    """,
    """
    CREATE TRIGGER IF NOT EXISTS results_come AFTER INSERT ON results BEGIN
        INSERT INTO weights VALUES (new.tool, new.bytes)
        ON CONFLICT DO UPDATE SET bytes = bytes + new.bytes;
    END
    """,
    """
    CREATE TRIGGER IF NOT EXISTS results_go AFTER DELETE ON results BEGIN
        UPDATE weights SET bytes = bytes - old.bytes WHERE tool = old.tool;
    END
    """,
)

_default: Store | None = None

counts: Final = {"hits": 0, "misses": 0, "evictions": 0}
"""What became of this process's lookups in the file, and the results that went to make room."""


class _Work(Protocol):
    def execute(self, sql: str, parameters: Sequence[Any] = ..., /) -> int: ...
    def query(self, sql: str, parameters: Sequence[Any] = ..., /) -> list[dict[str, Any]]: ...


class _Database(_Work, Protocol):
    """What is used of ``crewai_native_db.Database``."""

    def transaction(self) -> AbstractContextManager[_Work]: ...


class Store:
    """The file of results.

    Args:
        database: Where they lie.
        clock: The time in seconds since 1970.
    """

    def __init__(self, database: _Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock
        for statement in _SCHEMA:
            database.execute(statement)

    def put(
        self,
        tool: str,
        key: str,
        result: str,
        *,
        ttl: float | None,
        most: int | None,
        most_of_all: int | None,
    ) -> None:
        """Keep a result in place of an older one.

        Args:
            tool: The tool's name.
            key: Its arguments, as the one text that stands for all of the same.
            result: As JSON.
            ttl: Seconds after which the tool's results are no longer given; None: never.
            most: Bytes that the tool's results may take; None: any.
            most_of_all: Bytes that all results may take; None: any.
        """
        now, size = self._clock(), len(result.encode()) + len(key.encode())
        with self._database.transaction() as work:
            _forget(work, tool, key)
            if ttl is not None:
                work.execute("DELETE FROM results WHERE tool = ? AND added < ?", [tool, now - ttl])
            if size > min(_any(most), _any(most_of_all)):
                return
            work.execute(
                "INSERT INTO results (tool, input, result, bytes, added, used) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                [tool, key, result, size, now, now],
            )
            _make_room(work, "WHERE tool = ?", [tool], _any(most))
            _make_room(work, "", [], _any(most_of_all))

    def get(self, tool: str, key: str, *, ttl: float | None) -> str | None:
        """Return a result as JSON, or None where there is none, or one that is too old."""
        now = self._clock()
        for row in self._database.query(
            "SELECT result, used FROM results WHERE tool = ? AND input = ? AND added >= ?",
            [tool, key, -math.inf if ttl is None else now - ttl],
        ):
            if row["used"] < now - _ASKED_FOR:
                self._database.execute(
                    "UPDATE results SET used = ? WHERE tool = ? AND input = ?", [now, tool, key]
                )
            found: str = row["result"]
            return found
        return None

    def forget(self, tool: str, key: str) -> None:
        """Drop a result."""
        _forget(self._database, tool, key)


def _forget(work: _Work, tool: str, key: str) -> None:
    work.execute("DELETE FROM results WHERE tool = ? AND input = ?", [tool, key])


def _any(limit: int | None) -> float:
    return math.inf if limit is None else limit


def _make_room(work: _Work, which: str, whose: list[str], most: float) -> None:
    """Drop the results that were not asked for longest until the others are no more than allowed."""
    if most == math.inf:
        return
    while True:
        (total,) = work.query(f"SELECT total(bytes) AS bytes FROM weights {which}", whose)  # noqa: S608
        excess = total["bytes"] - most
        if excess <= 0:
            return
        oldest = work.query(
            f"SELECT tool, input, bytes FROM results {which} ORDER BY used LIMIT {_GOING}",  # noqa: S608
            whose,
        )
        for row in oldest:
            if excess <= 0:
                break
            _forget(work, row["tool"], row["input"])
            counts["evictions"] += 1
            excess -= row["bytes"]


class KeptResults:
    """The results of one ``CacheHandler``, some tools' in the file and the others' in memory.

    Args:
        memory: Those in memory.
        store: The file.
        policy: Gives, by a tool's name, whether its results go to the file, their time to live in
            seconds and the bytes that they may take.
        max_bytes: Bytes that all results may take.
        spell: Writes a tool's name as CrewAI does.
    """

    def __init__(
        self,
        memory: ResultCache,
        store: Store,
        policy: Callable[[str], tuple[bool, float | None, int | None]],
        max_bytes: int | None,
        spell: Callable[[str], str],
    ) -> None:
        self._memory = memory
        self._store = store
        self._policy = policy
        self._max_bytes = max_bytes
        self._spell = spell

    def add(self, tool: str, input: str, output: Any) -> None:  # noqa: A002 - CrewAI's name
        """Keep a result."""
        name = self._spell(tool)
        persists, ttl, most = self._policy(name)
        if persists and (key := _key(input)) is not None:
            if (text := exact_json(output)) is not None:
                self._store.put(name, key, text, ttl=ttl, most=most, most_of_all=self._max_bytes)
                return
            # An older one in the file would be found first.
            self._store.forget(name, key)
        self._memory.add(tool, input, output)

    def read(self, tool: str, input: str) -> Any:  # noqa: A002 - CrewAI's name
        """Return the kept result, or None where there is none."""
        name = self._spell(tool)
        persists, ttl, _ = self._policy(name)
        if persists and (key := _key(input)) is not None:
            found = self._store.get(name, key, ttl=ttl)
            counts["misses" if found is None else "hits"] += 1
            if found is not None:
                return json.loads(found)
        return self._memory.read(tool, input)


def _key(input: str) -> str | None:  # noqa: A002 - CrewAI's name
    """Return arguments as the text that stands for all of the same, if SQLite can have it."""
    try:
        return _native.canonical_json(input)
    except UnicodeEncodeError:
        return None


def exact_json(result: Any) -> str | None:
    """Return a result as JSON, or None where it would come back as something else."""
    try:
        return json.dumps(result, allow_nan=False) if _is_json(result) else None
    except (ValueError, RecursionError):
        return None


def _is_json(value: Any) -> bool:
    """Whether JSON has just this: not what is only equal to it, as a subclass or a tuple may be."""
    kind = type(value)
    if kind is list:
        return all(map(_is_json, value))
    if kind is dict:
        return all(type(key) is str for key in value) and all(map(_is_json, value.values()))
    return kind in _JSON


def default_store(path: Path | None = None) -> Store:
    """Return this process's file of results.

    Args:
        path: The file; by default ``native/tool_results.db`` under CrewAI's storage directory.

    Raises:
        ConfigurationError: ``crewai-native-db`` is not installed.
        OSError: The system refuses.
        crewai_native_db.DatabaseError: The file is damaged, or of a newer format.
    """
    global _default  # noqa: PLW0603 - made on first use
    try:
        import crewai_native_db
    except ImportError:
        raise ConfigurationError(
            'tools.cache_persist needs crewai-native-db: pip install "crewai-native[db]"'
        ) from None
    if path is not None:
        return Store(crewai_native_db.Database(path, synchronous="normal"))
    if _default is None:
        from pathlib import Path as FilePath

        from crewai_core.paths import db_storage_path

        path = FilePath(db_storage_path()) / "native" / FILE_NAME
        # Threads may make two, which then share what is behind them.
        _default = Store(crewai_native_db.Database(path, synchronous="normal"))
    return _default
