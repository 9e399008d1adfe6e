"""Calls with side effects, and which of them were made: none is made twice.

A call is known by its run, its task, its tool and its arguments, whose order does not matter and
whose types do: an agent that makes the very same call a second time gets the first one's result. What is written down, and when:

1. before the call, that it begins;
2. after it, what it returned; or, if the tool raised or returned a ``ToolFailure``, nothing: such a
   call may be made again.

A process that ends between the effect and its record leaves a call that has begun and has no
outcome. Nobody can tell whether it took effect. The same goes for a call whose caller left at a
deadline while the tool went on. Such a call is not made again: it raises :class:`Uncertain`, and a
person, or an agent that can look at the other side, decides. That is at most once, as it should be
for payments and letters; exactly once would need the other side's help, such as an idempotency key.

In memory a journal lasts as long as its process. With ``crewai-native-db`` it lies in
``native/tool_journal.db`` under CrewAI's storage directory and outlives a resume or a replay.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import dataclasses
import functools
import hashlib
import json
import os
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final, Protocol

from crewai_native_tools import _native
from crewai_native_tools.execution import answer
from crewai_native_tools.kept import exact_json
from crewai_native_tools.locks import Lock
from crewai_native_tools.outputs import is_failure

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence
    from pathlib import Path

FILE_NAME: Final = "tool_journal.db"
_KEEP: Final = 30 * 86_400.0


_named: contextvars.ContextVar[str | None] = contextvars.ContextVar(
    "crewai_native_tool_run", default=None
)
# The calls that the current context is inside of.
_outer: contextvars.ContextVar[frozenset[Future[None]]] = contextvars.ContextVar(
    "crewai_native_tool_effects", default=frozenset()
)
_default: Journal | None = None
_default_lock = Lock()


@contextlib.contextmanager
def named_run(name: str) -> Iterator[None]:
    """Give a run a name, under which its calls with side effects are known when it comes back.

    CrewAI has no name for a run that a resume, a replay or a second attempt would share: without
    one, every kickoff is a run of its own. Two runs at once must have two names.

    Example:
        >>> with named_run("order 4711"):
        ...     crew.kickoff()  # doctest: +SKIP
    """
    token = _named.set(name)
    try:
        yield
    finally:
        _named.reset(token)


def current_name() -> str | None:
    """Return the name that :func:`named_run` gave to the current run."""
    return _named.get()


def default() -> Journal:
    """Return the journal of this process, durable if it can be."""
    global _default  # noqa: PLW0603 - made on first use
    with _default_lock:
        if _default is None:
            _default = Journal(default_store())
        return _default


class Uncertain(Exception):  # noqa: N818 - a state of affairs
    """A call with side effects has begun once, and whether it took effect is not known."""


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """What is known of a call.

    Attributes:
        begun: When it began, in seconds since 1970.
        done: Whether it has succeeded.
        result: What it returned, if it has.
    """

    begun: float
    done: bool = False
    result: Any = None


class Store(Protocol):
    """Where entries are kept. Called from any thread."""

    def begin(self, key: str, entry: Entry, tool: str) -> Entry | None:
        """Keep an entry if there is none; return the one that there is, or None."""

    def finish(self, key: str, entry: Entry) -> None:
        """Replace an entry."""

    def forget(self, key: str) -> None:
        """Drop an entry."""


class Memory:
    """Entries that last as long as the process. Results come back as the objects that they are."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def begin(self, key: str, entry: Entry, tool: str) -> Entry | None:  # noqa: ARG002 - protocol
        """Keep an entry if there is none; return the one that there is, or None."""
        found = self._entries.setdefault(key, entry)
        return None if found is entry else found

    def finish(self, key: str, entry: Entry) -> None:
        """Replace an entry."""
        self._entries[key] = entry

    def forget(self, key: str) -> None:
        """Drop an entry."""
        self._entries.pop(key, None)


class _Database(Protocol):
    """What is used of ``crewai_native_db.Database``."""

    def execute(self, sql: str, parameters: Sequence[Any] = ..., /) -> int: ...
    def query(self, sql: str, parameters: Sequence[Any] = ..., /) -> list[dict[str, Any]]: ...


class Durable:
    """Entries in a database, each written before the journal goes on.

    Results are kept as JSON, and come back as such; what has no JSON is kept as the text that an
    agent would have been shown. Nothing is pickled. Entries of runs go after 30 days.
    """

    def __init__(self, database: _Database) -> None:
        self._database = database
        database.execute(
            "CREATE TABLE IF NOT EXISTS tool_calls (key TEXT PRIMARY KEY, tool TEXT NOT NULL, "
            "begun REAL NOT NULL, result TEXT) WITHOUT ROWID"
        )
        database.execute("DELETE FROM tool_calls WHERE begun < ?", [time.time() - _KEEP])

    def begin(self, key: str, entry: Entry, tool: str) -> Entry | None:
        """Keep an entry if there is none; return the one that there is, or None."""
        # Of two processes one inserts the row, and the count tells which.
        mine = self._database.execute(
            "INSERT INTO tool_calls (key, tool, begun) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
            [key, tool, entry.begun],
        )
        if mine:
            return None
        found = self._database.query("SELECT begun, result FROM tool_calls WHERE key = ?", [key])
        for row in found:
            done = row["result"] is not None
            return Entry(row["begun"], done, json.loads(row["result"]) if done else None)
        # The other one has failed meanwhile, and took its entry away.
        return self.begin(key, entry, tool)

    def finish(self, key: str, entry: Entry) -> None:
        """Replace an entry."""
        self._database.execute(
            "UPDATE tool_calls SET result = ? WHERE key = ?", [_as_json(entry.result), key]
        )

    def forget(self, key: str) -> None:
        """Drop an entry."""
        self._database.execute("DELETE FROM tool_calls WHERE key = ?", [key])


class Journal:
    """The calls with side effects of any number of runs.

    Args:
        store: Where they are written down; in memory by default.
    """

    def __init__(self, store: Store | None = None) -> None:
        self._store: Store = Memory() if store is None else store
        # With the process, because a child of a fork has the entries of calls that its parent makes.
        self._under_way: dict[tuple[int, str], Future[None]] = {}

    def once(
        self,
        call: Callable[[], Any],
        *,
        run: str,
        task: str,
        tool: str,
        arguments: Any,
        unknown: tuple[type[BaseException], ...] = (TimeoutError,),
        not_made: tuple[type[BaseException], ...] = (),
    ) -> Any:
        """Make a call, or return what it returned when it was made before.

        The same call from two threads is made by the first; the second waits for it.

        Args:
            call: Makes the call.
            run: Tells runs apart, and is the same when one is resumed or replayed.
            task: Tells the tasks of a run apart.
            tool: The tool's name.
            arguments: By name, or as JSON text.
            unknown: What ``call`` raises when it does not know whether the tool has done, or will
                yet do, its work. What is no ``Exception`` is always meant. Anything else says that
                the tool has failed.
            not_made: What of these says all the same that the tool has not run.

        Raises:
            Uncertain: It was begun before, and whether it took effect is not known; or this is
                inside of that very call.
            TypeError: The arguments have no JSON, so that the call could not be recognised.
        """
        key = self._key(run, task, tool, arguments)
        mine: Future[None] = Future()
        while (other := self._claim(key, tool, mine)) is not mine:
            other.result()
        inside = _outer.set(_outer.get() | {mine})
        try:
            found = self._store.begin(key, Entry(time.time()), tool)
            if found is not None:
                return _made(found, tool)
            try:
                result = call()
            except BaseException as error:
                self._failed(key, error, unknown, not_made)
                raise
            self._returned(key, result)
            return result
        finally:
            _outer.reset(inside)
            self._release(key, mine)

    async def aonce(
        self,
        call: Callable[[], Awaitable[Any]],
        *,
        run: str,
        task: str,
        tool: str,
        arguments: Any,
        unknown: tuple[type[BaseException], ...] = (TimeoutError,),
        not_made: tuple[type[BaseException], ...] = (),
    ) -> Any:
        """As :meth:`once`, for calls that are awaited."""
        key = self._key(run, task, tool, arguments)
        mine: Future[None] = Future()
        while (other := self._claim(key, tool, mine)) is not mine:
            loop = asyncio.get_running_loop()
            turn: asyncio.Future[Any] = loop.create_future()
            # No thread waits: the first call may need all that there are.
            other.add_done_callback(functools.partial(answer, loop, turn))
            await turn
        inside = _outer.set(_outer.get() | {mine})
        try:
            found = self._store.begin(key, Entry(time.time()), tool)
            if found is not None:
                return _made(found, tool)
            try:
                result = await call()
            except BaseException as error:
                self._failed(key, error, unknown, not_made)
                raise
            self._returned(key, result)
            return result
        finally:
            _outer.reset(inside)
            self._release(key, mine)

    def _returned(self, key: str, result: Any) -> None:
        if is_failure(result):
            self._store.forget(key)
        else:
            self._store.finish(key, Entry(time.time(), done=True, result=result))

    def _failed(
        self,
        key: str,
        error: BaseException,
        unknown: tuple[type[BaseException], ...],
        not_made: tuple[type[BaseException], ...],
    ) -> None:
        has_failed = isinstance(error, Exception) and not isinstance(error, unknown)
        if has_failed or isinstance(error, not_made):
            self._store.forget(key)

    def _key(self, run: str, task: str, tool: str, arguments: Any) -> str:
        try:
            spelled = _native.canonical_json(arguments)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"tool {tool!r} has side effects, and its arguments have no JSON by which a "
                f"repetition could be recognised: {error}"
            ) from error
        parts = json.dumps([run, task, tool]) + spelled
        return hashlib.blake2b(parts.encode("utf-8", "surrogatepass"), digest_size=24).hexdigest()

    def _claim(self, key: str, tool: str, mine: Future[None]) -> Future[None]:
        """Return the same call that is under way, which may be this one now."""
        # One step, and no lock: a fork would leave it taken to the child.
        other = self._under_way.setdefault((os.getpid(), key), mine)
        if other in _outer.get():
            raise Uncertain(
                f"tool {tool!r} was not run: it was called inside of the same call of it, whose "
                "outcome is not known yet."
            )
        return other

    def _release(self, key: str, mine: Future[None]) -> None:
        # A tool that forks comes here in the child, too, which has no such entry.
        self._under_way.pop((os.getpid(), key), None)
        mine.set_result(None)


def default_store(path: Path | None = None) -> Store:
    """Return a durable store if ``crewai-native-db`` is installed, else one in memory.

    Args:
        path: The file; by default ``native/tool_journal.db`` under CrewAI's storage directory.
    """
    try:
        import crewai_native_db
    except ImportError:
        return Memory()
    if path is None:
        from pathlib import Path as FilePath

        from crewai_core.paths import db_storage_path

        path = FilePath(db_storage_path()) / "native" / FILE_NAME
    return Durable(crewai_native_db.Database(path))


def _made(entry: Entry, tool: str) -> Any:
    if entry.done:
        return entry.result
    begun = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(entry.begun))
    raise Uncertain(
        f"tool {tool!r} was not run: the same call began at {begun} UTC and no outcome was "
        "recorded, so it may have taken effect. Find out whether it has before trying otherwise."
    )


def _as_json(result: Any) -> str:
    text = exact_json(result)
    return json.dumps(str(result)) if text is None else text
