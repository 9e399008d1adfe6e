"""Identical calls at the same time, of agents whose results CrewAI keeps: one of them is made.

CrewAI looks a call up among the kept results, runs the tool, and keeps what it returned. Calls that
come while the first one is under way find nothing there, and run the tool again. Here they wait for
the first one and get a copy of its result, if it is one that CrewAI keeps: no failure, and accepted
by the tool's ``cache_function``. Otherwise each of them runs, at once and by itself, as in CrewAI.

Who waits never makes anybody wait. A call that is made inside another that others may be waiting for
runs by itself, so no two can wait for each other; and none that blocks its thread waits for one that is
awaited, whose event loop that thread may be needed for.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import os
import time
from concurrent.futures import FIRST_COMPLETED, Future, InvalidStateError, wait
from typing import TYPE_CHECKING, Any, Final

from crewai_native_tools import _native
from crewai_native_tools.errors import ToolCancelled, ToolTimeout, describe, redacted
from crewai_native_tools.execution import answer
from crewai_native_tools.outputs import is_failure

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from crewai_native.slots.tools_guard import ToolCall
    from crewai_native_tools.execution import Plan, Run

_Key = tuple[int, int, bool, str, str]

_NOTHING: Final = object()
"""The outcome of a call that raised."""

_awaited: contextvars.ContextVar[bool] = contextvars.ContextVar(
    "crewai_native_tool_awaited", default=False
)


class Flights:
    """The calls of a guard that others may be waiting for."""

    def __init__(self) -> None:
        from pydantic import BaseModel

        self._models = BaseModel
        self._under_way: dict[_Key, Future[Any]] = {}

    def key(self, call: ToolCall) -> _Key | None:
        """Return what identical calls have in common, or None where each is to be made."""
        cache = getattr(getattr(call.agent, "tools_handler", None), "cache", None)
        if cache is None or call.args or _awaited.get():
            return None
        try:
            arguments = _native.canonical_json(call.arguments)
        except (TypeError, ValueError):
            # CrewAI cannot look them up either.
            return None
        # A child of a fork has the entries of calls that are under way in its parent alone.
        return os.getpid(), id(cache), call.asynchronous, call.name, arguments

    def once(
        self,
        key: _Key,
        call: ToolCall,
        plan: Plan,
        run: Run,
        make: Callable[[float | None], Any],
    ) -> Any:
        """Make a call, or wait for an identical one and return a copy of its result.

        Args:
            key: What :meth:`key` has returned for it.
            call: The call.
            plan: What counts for it.
            run: Its run.
            make: Makes the call, in the seconds that are left of its timeout; None: all of it.

        Raises:
            ToolTimeout: Its time was up while it was waiting.
            ToolCancelled: Its run was cancelled meanwhile.
            BaseException: What ``make`` and the tool's ``cache_function`` raise.
        """
        first, mine = self._claim(key)
        if mine:
            return self._lead(key, first, functools.partial(make, None))
        waiting = _Waiting(call, plan, run)
        with waiting:
            wait((first, waiting.told), waiting.left(), FIRST_COMPLETED)
        found = self._result_of(first, call, waiting)
        return make(waiting.left()) if found is _NOTHING else found

    async def aonce(
        self,
        key: _Key,
        call: ToolCall,
        plan: Plan,
        run: Run,
        make: Callable[[float | None], Awaitable[Any]],
    ) -> Any:
        """As :meth:`once`, without blocking the event loop."""
        first, mine = self._claim(key)
        if mine:
            return await self._alead(key, first, make)
        waiting = _Waiting(call, plan, run)
        with waiting:
            loop = asyncio.get_running_loop()
            turn = loop.create_future()
            for future in (first, waiting.told):
                future.add_done_callback(functools.partial(answer, loop, turn))
            await asyncio.wait((turn,), timeout=waiting.left())
        found = self._result_of(first, call, waiting)
        return await make(waiting.left()) if found is _NOTHING else found

    def _claim(self, key: _Key) -> tuple[Future[Any], bool]:
        mine: Future[Any] = Future()
        # One step, and no lock: a fork would leave it taken to the child.
        first = self._under_way.setdefault(key, mine)
        return first, first is mine

    def _lead(self, key: _Key, flight: Future[Any], make: Callable[[], Any]) -> Any:
        result, token = _NOTHING, _awaited.set(True)
        try:
            result = make()
        finally:
            _awaited.reset(token)
            self._land(key, flight, result)
        return result

    async def _alead(
        self, key: _Key, flight: Future[Any], make: Callable[[float | None], Awaitable[Any]]
    ) -> Any:
        result, token = _NOTHING, _awaited.set(True)
        try:
            result = await make(None)
        finally:
            _awaited.reset(token)
            self._land(key, flight, result)
        return result

    def _land(self, key: _Key, flight: Future[Any], result: Any) -> None:
        del self._under_way[key]
        flight.set_result(result)

    def _result_of(self, first: Future[Any], call: ToolCall, waiting: _Waiting) -> Any:
        """Return a copy of the first call's result, or nothing where it is none to be kept."""
        left = waiting.left()
        if not first.done() or (left is not None and left <= 0):
            waiting.stop()
        result = first.result()
        # CrewAI's cache has no None: it stands for nothing kept.
        if result is _NOTHING or result is None or is_failure(result):
            return _NOTHING
        keeps = getattr(call.author_tool, "cache_function", None)
        if keeps is not None and not keeps(call.arguments, result):
            return _NOTHING
        try:
            return _native.copied(result, self._models)
        except Exception:  # noqa: BLE001 - what cannot be copied is not kept either
            return _NOTHING


class _Waiting:
    """A call that waits for another, as its run knows it: it can be cancelled.

    Attributes:
        told: Done when it was cancelled.
    """

    def __init__(self, call: ToolCall, plan: Plan, run: Run) -> None:
        self.told: Future[Any] = Future()
        self._call = call
        self._plan = plan
        self._run = run
        self._began = time.monotonic()

    def __enter__(self) -> None:
        self._run.active.add(self)
        if self._run.cancelled:
            self.cancel()

    def __exit__(self, *_: object) -> None:
        self._run.active.discard(self)

    def cancel(self) -> bool:
        """Let its caller go. False: it is let go already."""
        try:
            # Not its own `cancel`, which wakes nobody.
            self.told.set_result(None)
        except InvalidStateError:
            return False
        return True

    def left(self) -> float | None:
        """Return the seconds that are left of its timeout."""
        timeout = self._plan.timeout
        return None if timeout is None else timeout - (time.monotonic() - self._began)

    def stop(self) -> None:
        """Raise what tells the caller that it was let go."""
        plan = self._plan
        details = {
            "tool": plan.tool,
            "call_id": None,
            "arguments": redacted(self._call.arguments, plan.redact),
            "policy": plan.text,
            "elapsed": time.monotonic() - self._began,
            "chain": [plan.tool],
        }
        stopped: ToolCancelled | ToolTimeout
        if self.told.done():
            message = f"'{plan.tool}' was not waited for: the run was cancelled."
            stopped = ToolCancelled(message, code="cancelled", details=details)
        else:
            stopped = ToolTimeout(
                f"'{plan.tool}' did not answer within {plan.timeout:g} s, at an identical call that "
                "this one waited for.",
                code="timeout",
                retryable=True,
                details=details,
            )
        stopped.add_note(describe(details))
        raise stopped
