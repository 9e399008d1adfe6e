"""A database for a program's own tables, shared by threads and processes."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime as Datetime  # noqa: N812 - a parameter has CrewAI's name for it
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar
from weakref import WeakValueDictionary

from crewai_native_db import _native

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    Value = str | bytes | float | None


T = TypeVar("T")


class Database:
    """A SQLite file with tables of a program's own, and what crews remember of their tasks.

    One connection writes and several read, whatever the number of threads; statements are prepared
    once; threads that write at the same time share a commit. The GIL is released meanwhile. All
    handles on one file in one process share what they need, and go on in a forked child. The file
    is opened with the first call, and closed by :meth:`close`, with the last handle or when the
    interpreter exits.

    Every method may be called from several threads, and has a twin for coroutines whose name
    begins with ``a``.

    Args:
        path: The file. It is created with the first call, with its directory. Any other SQLite
            file is refused, and this one must not be opened by Python's ``sqlite3`` in a process
            that has it open here: two copies of SQLite drop one another's locks.
        pool_size: Connections that are kept open for reading.
        synchronous: What a write that has returned survives: ``full`` a power cut, ``normal`` the
            end of the process.

    Raises:
        OSError: From every method, when the system refuses (space, permissions).
        DatabaseError: From every method, when the file is damaged, of a newer format or no such
            file, or when SQLite refuses a statement.
        ValueError: From every method, when an argument means nothing.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        pool_size: int = 8,
        synchronous: Literal["full", "normal"] = "full",
    ) -> None:
        if pool_size < 1:
            raise ValueError(f"pool_size must be 1 or more; got {pool_size}")
        if synchronous not in ("full", "normal"):
            raise ValueError(f"synchronous must be full or normal; got {synchronous!r}")
        self._file = _native.Database(path, synchronous == "full", pool_size)

    def __repr__(self) -> str:
        return f"Database({os.fspath(self._file.path)!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def execute(self, sql: str, parameters: Sequence[Value] = ()) -> int:
        """Run a statement that changes something; return how many rows it changed."""
        (changed,) = self._file.execute([(sql, [_by_position(parameters)])])
        return changed

    def executemany(self, sql: str, rows: Iterable[Sequence[Value]]) -> int:
        """Run a statement once for each row of values, all or none; return the rows changed."""
        (changed,) = self._file.execute([(sql, [_by_position(row) for row in rows])])
        return changed

    def query(self, sql: str, parameters: Sequence[Value] = ()) -> list[dict[str, Any]]:
        """Return the rows that a statement gives, each as a dict by the names of its columns."""
        return self._file.query(sql, _by_position(parameters))

    def transaction(self, *, timeout: float = 60.0) -> Transaction:
        """Return a block whose statements are kept together when it ends, or not at all.

        Its queries see what it has done; everybody else sees that when it has ended. While it is
        open nobody else writes to the file. It belongs to the thread that entered it, or with
        ``async with`` to the task: other tasks wait for their turn.

        Args:
            timeout: Seconds to wait for others that write, and for which others wait for it. Then
                the next of them rolls it back, and its own next call raises.

        Example:
            >>> with database.transaction() as work:
            ...     work.execute("UPDATE accounts SET sum = sum - 1 WHERE name = ?", ["a"])
            ...     left = work.query("SELECT sum FROM accounts WHERE name = ?", ["a"])
            ...     work.execute("UPDATE accounts SET sum = sum + 1 WHERE name = ?", ["b"])
        """
        return Transaction(self._file, timeout)

    def save_memory(
        self,
        task_description: str,
        metadata: Mapping[str, Any],
        datetime: str | Datetime,
        score: float,
    ) -> int:
        """Remember how a task went; return the number of the memory.

        Args:
            task_description: The task.
            metadata: What is worth knowing of it, as JSON has it.
            datetime: When; text is kept as it is, and ISO text is what sorts.
            score: How well it went.
        """
        moment = datetime.isoformat() if isinstance(datetime, Datetime) else datetime
        return self._file.save_memory(task_description, _json(metadata), moment, float(score))

    def load_memories(self, task_description: str, latest_n: int = 3) -> list[dict[str, Any]]:
        """Return the newest memories of a task; of those of one time the worst first.

        Returns:
            Dicts of ``task_description``, ``metadata``, ``datetime`` and ``score``.
        """
        return _memories(self._file.load_memories(task_description, latest_n))

    def search_memories(self, text: str, limit: int = 10) -> list[dict[str, Any]]:
        """Return the memories whose task or metadata have any of the words, best match first.

        Of scripts that have no spaces between words, two letters side by side count as one.
        """
        return _memories(self._file.search_memories(text, limit))

    def statistics(self) -> dict[str, int]:
        """Return what this process did with the file: ``reads``, ``writes``, ``commits``, ``failures``.

        There are fewer commits than writes where threads shared one.
        """
        return self._file.statistics()

    def check(self) -> list[str]:
        """Return what is wrong with the file, one entry for each finding."""
        return self._file.check()

    def close(self) -> None:
        """Let go of the file; the next call opens it again."""
        self._file.close()

    async def aexecute(self, sql: str, parameters: Sequence[Value] = ()) -> int:
        """As :meth:`execute`, on a thread."""
        return await asyncio.to_thread(self.execute, sql, parameters)

    async def aexecutemany(self, sql: str, rows: Iterable[Sequence[Value]]) -> int:
        """As :meth:`executemany`, on a thread."""
        return await asyncio.to_thread(self.executemany, sql, list(rows))

    async def aquery(self, sql: str, parameters: Sequence[Value] = ()) -> list[dict[str, Any]]:
        """As :meth:`query`, on a thread."""
        return await asyncio.to_thread(self.query, sql, parameters)

    async def asave_memory(
        self,
        task_description: str,
        metadata: Mapping[str, Any],
        datetime: str | Datetime,
        score: float,
    ) -> int:
        """As :meth:`save_memory`, on a thread."""
        return await asyncio.to_thread(
            self.save_memory, task_description, metadata, datetime, score
        )

    async def aload_memories(
        self, task_description: str, latest_n: int = 3
    ) -> list[dict[str, Any]]:
        """As :meth:`load_memories`, on a thread."""
        return await asyncio.to_thread(self.load_memories, task_description, latest_n)

    async def asearch_memories(self, text: str, limit: int = 10) -> list[dict[str, Any]]:
        """As :meth:`search_memories`, on a thread."""
        return await asyncio.to_thread(self.search_memories, text, limit)

    async def aclose(self) -> None:
        """As :meth:`close`, on a thread."""
        await asyncio.to_thread(self.close)


class Transaction:
    """Statements that are kept together when the block ends; none of them, if by an exception.

    A statement that fails is taken back alone, and the block may go on. With ``async with`` it
    begins and ends on a thread of its own, statements run where they are called, and other tasks of
    the event loop that enter a block wait for their turn without stopping the loop.

    Raises:
        TimeoutError: From every method, when others wrote for longer than the time-out, or when
            the transaction was rolled back: when it was open for longer than that and somebody
            waited, when its thread forked, or when the file was closed.
        RuntimeError: From every method, when the block is not entered, or was by another thread.
        ValueError: From a write to the file by the thread that is in the block, unless it is
            through it, and from a block within a block of one task: it would wait for itself.
    """

    def __init__(self, file: _native.Database, timeout: float) -> None:
        self._file = file
        self._timeout = timeout
        self._open: _native.Transaction | None = None
        self._owner: int | None = None

    def execute(self, sql: str, parameters: Sequence[Value] = ()) -> int:
        """Run a statement that changes something; return how many rows it changed."""
        (changed,) = self._own().execute([(sql, [_by_position(parameters)])])
        return changed

    def executemany(self, sql: str, rows: Iterable[Sequence[Value]]) -> int:
        """Run a statement once for each row of values, all or none; return the rows changed."""
        (changed,) = self._own().execute([(sql, [_by_position(row) for row in rows])])
        return changed

    def query(self, sql: str, parameters: Sequence[Value] = ()) -> list[dict[str, Any]]:
        """Return the rows that a statement gives, by what the transaction has come to."""
        return self._own().query(sql, _by_position(parameters))

    def __enter__(self) -> Self:
        self._refuse_again()
        owner = threading.get_ident()
        self._open, self._owner = self._file.begin(owner, False, self._timeout), owner
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        _end(self._leave(), keep=kind is None)

    async def __aenter__(self) -> Self:
        self._refuse_again()
        owner, task = threading.get_ident(), asyncio.current_task()
        # Other tasks wait for their turn; this one would wait for itself.
        if task is not None and _tasks.get(self._file.path) is task:
            raise ValueError(
                "this task has a transaction open on the file: write through it, or after it"
            )
        self._file.refuse(owner)
        beginning = _on_a_thread(lambda: self._file.begin(owner, True, self._timeout))
        try:
            self._open = await asyncio.wrap_future(beginning)
        except BaseException:
            # Cancelled while it waits, it has its turn all the same, later.
            beginning.add_done_callback(_give_up)
            raise
        self._owner = owner
        if task is not None:
            _tasks[self._file.path] = task
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        opened = self._leave()
        if _tasks.get(self._file.path) is asyncio.current_task():
            del _tasks[self._file.path]
        ending = _on_a_thread(lambda: _end(opened, keep=kind is None))
        # It ends also where nobody waits for it any more.
        await asyncio.shield(asyncio.wrap_future(ending))

    def _refuse_again(self) -> None:
        if self._open is not None:
            raise RuntimeError("the transaction is open already")

    def _leave(self) -> _native.Transaction:
        opened, self._open = self._own(), None
        return opened

    def _own(self) -> _native.Transaction:
        if self._open is None:
            raise RuntimeError(
                "the transaction is not open: use it in its block, with database.transaction()"
            )
        if self._owner != threading.get_ident():
            raise RuntimeError("the transaction belongs to the thread that entered its block")
        return self._open


# The task that has a transaction open, by the file.
_tasks: WeakValueDictionary[Path, asyncio.Task[Any]] = WeakValueDictionary()


def _on_a_thread(work: Callable[[], T]) -> Future[T]:
    # Not of the loop's pool: all of those may be waiting for this transaction to end.
    pool = ThreadPoolExecutor(1, "crewai-native-transaction")
    try:
        return pool.submit(work)
    finally:
        pool.shutdown(wait=False)


def _end(opened: _native.Transaction, *, keep: bool) -> None:
    if keep:
        opened.commit()
    else:
        opened.rollback()


def _give_up(begun: Future[_native.Transaction]) -> None:
    if not begun.cancelled() and begun.exception() is None:
        begun.result().rollback()


def _by_position(values: Sequence[Value]) -> list[Value]:
    # Of a dict that is meant by name this would be the keys, and of a set any order.
    if isinstance(values, Mapping | set | frozenset):
        raise TypeError(
            "a statement takes its values by position, as a list or a tuple;"
            f" got a {type(values).__name__}"
        )
    return list(values)


def _json(metadata: Mapping[str, Any]) -> str:
    # As it is, so that its words are found.
    text = json.dumps(dict(metadata), ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(dict(metadata))  # a half of a character has no other form
    return text


def _memories(rows: list[tuple[str, str, str, float]]) -> list[dict[str, Any]]:
    return [
        {
            "task_description": task,
            "metadata": json.loads(metadata),
            "datetime": moment,
            "score": score,
        }
        for task, metadata, moment, score in rows
    ]
