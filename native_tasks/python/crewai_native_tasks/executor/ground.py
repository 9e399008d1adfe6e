"""What a run stands on: the calling thread alone, or an event loop."""

from __future__ import annotations

import asyncio
import contextvars
import types
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator, Iterable
    from concurrent.futures import Future

_Result = TypeVar("_Result")


class Ground:
    """Waits and calls for a coroutine, which without a loop is never suspended by that.

    Attributes:
        on_loop: Whether there is a loop.
    """

    __slots__ = ("on_loop",)

    def __init__(self, *, on_loop: bool) -> None:
        self.on_loop = on_loop

    async def loop(self) -> None:
        """Have a loop from here on; see :func:`go_on`."""
        if not self.on_loop:
            await _suspended()
            self.on_loop = True

    async def wait(self, future: Future[Any]) -> None:
        """Wait for the handlers of an event."""
        if self.on_loop:
            await asyncio.wrap_future(future)
        else:
            future.result()

    async def wait_for_all(
        self, futures: Iterable[Future[Any]], *, return_exceptions: bool = False
    ) -> None:
        """Wait for the handlers of several events."""
        if self.on_loop:
            wrapped = [asyncio.wrap_future(future) for future in futures]
            await asyncio.gather(*wrapped, return_exceptions=return_exceptions)
            return
        for future in futures:
            try:
                future.result()
            except Exception:
                if not return_exceptions:
                    raise

    async def call(self, function: Callable[[], _Result]) -> _Result:
        """Call something that may block, in a copy of the context."""
        if self.on_loop:
            return await asyncio.to_thread(function)
        return contextvars.copy_context().run(function)


async def in_context(context: contextvars.Context, work: Coroutine[Any, Any, _Result]) -> _Result:
    """Await something on the loop in a context of its own."""
    return await asyncio.get_running_loop().create_task(work, context=context)


async def go_on(work: Coroutine[Any, Any, _Result]) -> _Result:
    """Take a coroutine that waits for a loop further, on the loop that runs this one."""
    return await _rest(work)


@types.coroutine
def _suspended() -> Generator[None, None, None]:
    yield


@types.coroutine
def _rest(work: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
    # Not `await work`: that refuses a coroutine which stands at an await already.
    return (yield from work)
