"""Connections to MCP servers that are used again.

CrewAI connects to a server for every call of one of its tools: it starts the server's program, or
opens an HTTP session, initialises it, makes one call and takes it all down. Here a run keeps its
connections until it ends. A connection carries one call at a time, so that a call that hangs, or
that breaks its connection, takes no other down with it: calls at the same time have connections of
their own, and one after the other use the same.

A connection that is used again is asked first whether it is alive, and replaced if it is not. A
connection whose call failed is not used again. No call is made twice on account of a connection. Of a
server that has never answered such a question, and leaves one open, no connection is used again.

Connections belong to a run, so the state that a server keeps for its client is never another run's.
They are closed when the run ends, when they have lain idle for five minutes, and at exit. A run is a
crew's kickoff, or that of an agent without a crew. A call outside of these has its connection to itself.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import contextvars
import functools
import os
import threading
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Hashable

IDLE: Final = 300.0
"""Seconds after which a connection that is not used is closed."""
_ALIVE: Final = 5.0
"""Seconds in which a server says that it is there, if it was ever known to say so."""
_FIRST_ALIVE: Final = 1.0
"""Seconds for a server that may be one of those that never do."""
_CLOSING: Final = 5.0
_SESSION_TERMINATED: Final = 32600
"""What the MCP library itself says where a server, started anew perhaps, does not know the session."""
_PLAIN: Final = (str, int, float, bool, type(None))


class Connections:
    """The connections of this process, on an event loop of their own.

    The loop runs on a thread that starts with the first connection. After a fork the child has
    none, and starts its own.

    Args:
        idle: Seconds after which a connection that is not used is closed.
    """

    def __init__(self, *, idle: float = IDLE) -> None:
        self._time_idle = idle
        self._start_empty()

    def _start_empty(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        # From here on only the loop's thread looks at them.
        self._idle: dict[Hashable, list[_Connection]] = {}
        self._open: set[_Connection] = set()
        self._dropping: set[asyncio.Task[None]] = set()
        self._opened = 0
        # Whether servers answer when they are asked whether they are there; by their hashes, because
        # their identities have credentials in them.
        self._answers: dict[int, bool] = {}

    def client(self, make: Callable[[], Any]) -> Any:
        """Return what CrewAI uses like an ``MCPClient`` of its own, for one call.

        Args:
            make: Returns an unconnected ``MCPClient``.
        """
        return _Borrowed(self, make())

    def agent_ended(self, _source: Any, event: Any) -> None:
        """Have the connections of an agent's kickoff closed, of whose end this is the event."""
        self.end_run(event.started_event_id)

    def end_run(self, run: str) -> None:
        """Have a run's connections closed: those in use, as soon as they are given back."""
        if self._loop is not None:
            self._start(self._end_run(run))

    def close(self) -> None:
        """Close every connection, and wait a few seconds for that."""
        if self._loop is None:
            return
        for event in _agent_ends():
            _bus().off(event, self.agent_ended)
        with contextlib.suppress(TimeoutError):
            self._start(self._close_all()).result(_CLOSING)
        with self._lock:
            loop, thread, self._loop = self._loop, self._thread, None
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(_CLOSING)

    def stats(self) -> dict[str, int]:
        """Return how many connections are open, and how many were opened."""
        return {"open": len(self._open), "opened": self._opened}

    # --- used by borrowers, on their own event loops ------------------------------------------

    async def borrow(self, client: Any) -> _Connection:
        """Return a connection to the client's server that is nobody else's until given back."""
        crew, kickoff = _run()
        if kickoff is not None:
            # Every time, because a program can take all handlers off.
            for event in _agent_ends():
                _bus().register_handler(event, self.agent_ended)
        key = (crew or kickoff, _identity(client.transport))
        return await asyncio.wrap_future(self._start(self._borrow(key, client)))

    async def call(self, connection: _Connection, name: str, *args: Any) -> Any:
        """Await a method of a connection's client."""
        return await asyncio.wrap_future(self._start(connection.call(name, *args)))

    async def give_back(self, connection: _Connection) -> None:
        """Let others have a connection."""
        await asyncio.wrap_future(self._start(self._give_back(connection)))

    # --- on the loop --------------------------------------------------------------------------

    def _start(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Begin something on the loop, in the caller's context, which its events belong to."""
        import concurrent.futures

        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=_serve, args=(self._loop,), name="crewai-native-mcp", daemon=True
                )
                self._thread.start()
            loop = self._loop
        answer: concurrent.futures.Future[Any] = concurrent.futures.Future()
        context = contextvars.copy_context()

        def begin() -> None:
            task = loop.create_task(work, context=context)
            answer.add_done_callback(
                lambda _: answer.cancelled() and loop.call_soon_threadsafe(task.cancel)
            )
            task.add_done_callback(functools.partial(_tell, answer))

        loop.call_soon_threadsafe(begin)
        return answer

    async def _borrow(self, key: Hashable, client: Any) -> _Connection:
        idle = self._idle.get(key, [])
        while idle:
            connection = idle.pop()
            connection.in_use()
            if await self._is_alive(connection):
                return connection
            # Nobody waits while a server that says nothing is told good-bye.
            task = asyncio.create_task(self._drop(connection))
            self._dropping.add(task)
            task.add_done_callback(self._dropping.discard)
        connection = _Connection(key, client)
        self._open.add(connection)
        self._opened += 1
        try:
            await connection.open()
        except BaseException:
            await self._drop(connection)
            raise
        return connection

    async def _is_alive(self, connection: _Connection) -> bool:
        server = hash(connection.key[1])
        answers = self._answers.get(server)
        if answers is False:
            return False
        try:
            alive = await connection.is_alive(_ALIVE if answers else _FIRST_ALIVE)
        except TimeoutError:
            self._answers.setdefault(server, False)
            return False
        if alive:
            self._answers[server] = True
        return alive

    async def _give_back(self, connection: _Connection) -> None:
        run, server = connection.key
        answers = self._answers.get(hash(server))
        if run is None or answers is False or not connection.good:
            has_failed = connection.failed
            await self._drop(connection)
            # As CrewAI: what the server has refused is known when the connection is taken down.
            if has_failed and connection.refusal is not None:
                raise connection.refusal
            return
        self._idle.setdefault(connection.key, []).append(connection)
        connection.idle_for(self._time_idle, lambda: asyncio.ensure_future(self._drop(connection)))

    async def _drop(self, connection: _Connection) -> None:
        self._open.discard(connection)
        idle = self._idle.get(connection.key, [])
        if connection in idle:
            idle.remove(connection)
        if not idle:
            self._idle.pop(connection.key, None)
        await connection.close()

    async def _end_run(self, run: str) -> None:
        for connection in list(self._open):
            if connection.key[0] == run:
                connection.good = False
                if connection in self._idle.get(connection.key, []):
                    await self._drop(connection)

    async def _close_all(self) -> None:
        drops = [self._drop(connection) for connection in list(self._open)]
        await asyncio.gather(*drops, *self._dropping)


class _Connection:
    """A connected client, opened and closed by one task, as its cancel scopes demand.

    Attributes:
        key: The run, or None outside of one, and the server that it belongs to.
        good: Whether it may be used again.
        failed: Whether a call has failed.
        refusal: What the server was found to have refused when it was closed.
    """

    def __init__(self, key: Any, client: Any) -> None:
        self.key = key
        self.good = True
        self.failed = False
        self.refusal: Exception | None = None
        self._client = client
        self._enough = asyncio.Event()
        self._connected = False
        self._life: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def open(self) -> None:
        """Connect."""
        connected: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._life = asyncio.create_task(self._live(connected))
        await connected

    async def _live(self, connected: asyncio.Future[None]) -> None:
        try:
            await self._client.connect()
        except BaseException as error:  # noqa: BLE001 - who wants to connect is told
            if not connected.done():
                connected.set_exception(
                    error if isinstance(error, Exception) else ConnectionError(repr(error))
                )
            return
        self._connected = True
        try:
            if not connected.done():
                connected.set_result(None)
            await self._enough.wait()
        finally:
            self.good = False
            await self._disconnect()

    async def _disconnect(self) -> None:
        try:
            await self._client.disconnect()
        except Exception as error:  # noqa: BLE001 - the server may be gone, in whatever way
            if _is_refusal(error):
                self.refusal = error

    async def call(self, name: str, *args: Any) -> Any:
        """Await a method of the client; if that fails the connection is not used again."""
        call = asyncio.create_task(getattr(self._client, name)(*args))
        try:
            await asyncio.wait({call, *self._lives()}, return_when=asyncio.FIRST_COMPLETED)
            if call.done():
                return call.result()
        except BaseException:
            self.good, self.failed = False, True
            call.cancel()
            raise
        self.good, self.failed = False, True
        call.cancel()
        raise ConnectionError("the connection to the MCP server ended during the call")

    async def is_alive(self, within: float) -> bool:
        """Ask the server whether it is there.

        Raises:
            TimeoutError: It did not answer within so many seconds.
        """
        if not self.good or not self._lives():
            return False
        from mcp.shared.exceptions import McpError
        from mcp.types import CONNECTION_CLOSED

        try:
            async with asyncio.timeout(within):
                await self._client.session.send_ping()
        except TimeoutError:
            raise
        except McpError as error:
            # An answer, be it that it does not know the question, is a sign of life.
            return error.error.code not in {CONNECTION_CLOSED, _SESSION_TERMINATED}
        except Exception:  # noqa: BLE001 - whatever it is, a new connection is the way on
            return False
        return True

    def idle_for(self, seconds: float, act: Callable[[], object]) -> None:
        """Act after so much time, unless it is used before."""
        self._timer = asyncio.get_running_loop().call_later(seconds, act)

    def in_use(self) -> None:
        """Act no more."""
        if self._timer is not None:
            self._timer.cancel()

    async def close(self) -> None:
        """Disconnect."""
        self.in_use()
        self._enough.set()
        if self._life is None:
            return
        if not self._connected:
            # There is nobody to take leave of, and a server that says nothing would never be left.
            self._life.cancel()
        _, too_long = await asyncio.wait({self._life}, timeout=_CLOSING)
        for life in too_long:
            life.cancel()

    def _lives(self) -> set[asyncio.Task[None]]:
        return set() if self._life is None or self._life.done() else {self._life}


class _Borrowed:
    """What a tool uses for one call in place of a client of its own."""

    def __init__(self, connections: Connections, client: Any) -> None:
        self._connections = connections
        self._client = client
        self._connection: _Connection | None = None

    async def connect(self) -> _Borrowed:
        """Have a connection."""
        if self._connection is None:
            self._connection = await self._connections.borrow(self._client)
        return self

    async def disconnect(self) -> None:
        """Give it back."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await self._connections.give_back(connection)

    @property
    def connected(self) -> bool:
        """Whether it has one."""
        return self._connection is not None

    def __getattr__(self, name: str) -> Any:
        """Return what awaits the client's method of this name."""
        if name.startswith("_") or not asyncio.iscoroutinefunction(getattr(self._client, name)):
            return getattr(self._client, name)

        async def call(*args: Any) -> Any:
            await self.connect()
            assert self._connection is not None
            return await self._connections.call(self._connection, name, *args)

        return call


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()


def _tell(answer: Any, task: asyncio.Task[Any]) -> None:
    if answer.cancelled() or not answer.set_running_or_notify_cancel():
        # Nobody waits; an error that nobody has looked at would be reported as lost.
        _ = task.cancelled() or task.exception()
    elif task.cancelled():
        answer.set_exception(ConnectionError("the call of the MCP server was cancelled"))
    elif (error := task.exception()) is not None:
        answer.set_exception(error)
    else:
        answer.set_result(task.result())


def _run() -> tuple[str | None, str | None]:
    """Return the crew whose run this is, or else the event that an agent's own kickoff began with."""
    from crewai.events.event_context import _event_id_stack
    from crewai.utilities.crew.crew_context import get_crew_context

    if (crew := get_crew_context()) is not None:
        return str(crew.id), None
    for event, kind in reversed(_event_id_stack.get()):
        if kind == "lite_agent_execution_started":
            return None, event
        if kind == "task_started":
            break
    return None, None


def _is_refusal(error: Exception) -> bool:
    """Whether a server has answered with an HTTP status that says no."""
    # CrewAI has it since it tells them apart.
    with contextlib.suppress(ImportError):
        from crewai.mcp.exceptions import MCPConnectionError

        return isinstance(error, MCPConnectionError)
    return False


def _bus() -> Any:
    from crewai.events.event_bus import crewai_event_bus

    return crewai_event_bus


def _agent_ends() -> tuple[type[Any], ...]:
    from crewai.events.types import agent_events

    return agent_events.LiteAgentExecutionCompletedEvent, agent_events.LiteAgentExecutionErrorEvent


def _identity(transport: Any) -> Hashable:
    """Return what is the same for two transports to one server, with the same credentials."""
    parts = [
        (name, _spelled(value))
        for name, value in sorted(vars(transport).items())
        if not name.startswith("_")
    ]
    return type(transport), tuple(parts)


def _spelled(value: Any) -> Hashable:
    if isinstance(value, _PLAIN):
        return type(value), value
    if isinstance(value, list | tuple):
        return tuple(_spelled(item) for item in value)
    if isinstance(value, dict):
        return tuple((_spelled(key), _spelled(item)) for key, item in value.items())
    # Something that no other transport has: nothing is shared.
    return object()


CONNECTIONS: Final = Connections()
"""The connections of this process."""

atexit.register(CONNECTIONS.close)
if hasattr(os, "register_at_fork"):
    # The connections are the parent's, whose thread is not here.
    os.register_at_fork(after_in_child=CONNECTIONS._start_empty)  # noqa: SLF001 - this module's own
