"""One call of a tool under the policy that counts for it.

In this order: how deep it is inside other tools; whether its run goes on and has uses left; its turn
by rate and by concurrency; then the tool itself. The clock of ``timeout`` starts before all that.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import itertools
import secrets
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol

from crewai_native_tools import _native, workers
from crewai_native_tools._native import Admission, Call, Rules, Tally, Uses
from crewai_native_tools.errors import (
    ToolCancelled,
    ToolRefused,
    ToolStopped,
    ToolTimeout,
    describe,
    redacted,
)
from crewai_native_tools.policy import DEFAULTS, Budget, Rate, Retry, Size

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from crewai_native_tools.budget import Purse
    from crewai_native_tools.policy import Saying

_ids = itertools.count(1)
_current: contextvars.ContextVar[Execution | None] = contextvars.ContextVar(
    "crewai_native_tool_execution", default=None
)
# The tool that an engine is calling: a guard around it leaves that call to the engine.
_engines: contextvars.ContextVar[Any] = contextvars.ContextVar(
    "crewai_native_tool_in_engine", default=None
)
_SILENT: Final = {"loop", "loop_abort", "loop_near", "redact"}
_SHOWN_IN_CHAIN: Final = 12
_MOST_NOTES: Final = 16
_UNLIMITED: Final = 2**63


def cancelled() -> bool:
    """Whether the caller of the tool that runs here has left, so that going on is of no use.

    For tools that want to stop by themselves when their time is up or their run was cancelled.
    """
    execution = _current.get()
    while execution is not None:
        if execution.call.cancelled:
            return True
        execution = execution.parent
    return False


def from_engine(tool: Any, call: Callable[[], Any]) -> Any:
    """Call a tool whose call is under an engine's policy already."""
    token = _engines.set(tool)
    try:
        return call()
    finally:
        _engines.reset(token)


def current() -> Execution | None:
    """Return the call that this is part of, if the engine has it under a policy."""
    return _current.get()


def in_engine(tool: Any) -> bool:
    """Whether this is the very call of a tool that an engine makes and has under its policy."""
    if _engines.get() is not tool:
        return False
    # What the tool itself calls is another call.
    _engines.set(None)
    return True


class Cancellable(Protocol):
    """A call that is under way, and whose caller can be let go."""

    def cancel(self) -> bool:
        """Let its caller go. False: it is let go, or answered, already."""


class Run:
    """What belongs to one run: how often its tools were used, and what is under way in it.

    Attributes:
        cancelled: Whether it was cancelled; nothing more starts in it.
        active: Calls that can be cancelled.
        name: What tells it from others, in other processes too.
        purses: What was spent, by the ids of the run and of its agents.
    """

    __slots__ = ("__weakref__", "_uses", "active", "cancelled", "name", "purses")

    def __init__(self, name: str | None = None) -> None:
        self.cancelled = False
        self.active: set[Cancellable] = set()
        self.purses: dict[int, Purse] = {}
        self.name = secrets.token_hex(16) if name is None else name
        self._uses: dict[Any, Uses] = {}

    def uses(self, plan: Plan) -> Uses:
        """Return the uses that a plan's tool has in this run."""
        uses = self._uses.get(plan.uses_key)
        if uses is None:
            # One step: of two threads that make one, both get the first.
            uses = self._uses.setdefault(plan.uses_key, Uses())
        return uses

    def cancel(self) -> int:
        """Cancel it; return how many calls were under way. Twice is the same as once."""
        self.cancelled = True
        return sum(call.cancel() for call in list(self.active))


class Shared:
    """What the plans of a guard or an engine share: queues and counts, by tool.

    Args:
        max_threads: Threads on which calls may run whose callers can leave.
    """

    def __init__(self, max_threads: int) -> None:
        self.max_threads = max_threads
        self.threads = Admission(max_threads, gives_way=True)
        self._doors: dict[Any, Admission] = {}
        self._tallies: dict[str, Tally] = {}

    def door(self, key: Any, make: Callable[[], Admission]) -> Admission:
        """Return the queue of this key."""
        return self._doors.get(key) or self._doors.setdefault(key, make())

    def tally(self, tool: str) -> Tally:
        """Return the counts of a tool."""
        return self._tallies.get(tool) or self._tallies.setdefault(tool, Tally())

    def stats(self) -> dict[str, dict[str, Any]]:
        """Return what became of the calls, by tool."""
        return {tool: tally.stats() for tool, tally in sorted(self._tallies.items())}


class Plan:
    """What counts for the calls of a tool from one place, ready to be applied.

    Attributes:
        tool: The tool's name.
        free: Whether nothing is to be done about a call but watch for loops.
        text: What it says, for messages.
    """

    def __init__(self, tool: str, sayings: Mapping[str, Saying], shared: Shared) -> None:
        values = {field: saying.value for field, saying in sayings.items()}
        self.tool = tool
        self.shared = shared
        self.values = values
        self.timeout: float | None = values["timeout"]
        self.max_calls: int | None = values["max_calls"]
        self.uses_key = (sayings["max_calls"].owner, tool)
        self.depth: int | None = values["max_recursion_depth"]
        self.loop: int | None = values["loop"]
        self.loop_abort: int | None = values["loop_abort"]
        self.loop_near: int | None = values["loop_near"]
        self.watches_loops = not (self.loop is self.loop_abort is self.loop_near is None)
        self.redact = tuple(name.lower() for name in values["redact"] or ())
        self.max_output: Size | None = values["max_output"]
        # Four bytes of UTF-8 are the most that a character takes, and a token is no fewer than one.
        self.surely_short = 0 if self.max_output is None else self.max_output.amount // 4
        self.retry: Retry | None = values["retry"]
        self.side_effects: bool = bool(values["side_effects"])
        self.isolated: bool = values["isolation"] == "process"
        self.run_budget: Budget | None = values["run_budget"]
        self.agent_budget: Budget | None = values["agent_budget"]
        self.doors = tuple(self._doors(sayings))
        self.rules = Rules(
            tool,
            shared.tally(tool),
            self.doors,
            shared.threads,
            shared.max_threads,
            self.max_calls,
            self.depth,
        )
        self.free = not (
            self.doors
            or self.side_effects
            or self.isolated
            or any(
                part is not None
                for part in (
                    self.timeout,
                    self.max_calls,
                    self.depth,
                    self.max_output,
                    self.retry,
                    self.run_budget,
                    self.agent_budget,
                )
            )
        )
        defaults = DEFAULTS.said()
        self.text = ", ".join(
            f"{field} {value:g}" if isinstance(value, float) else f"{field} {value}"
            for field, value in values.items()
            if value is not None and field not in _SILENT and defaults.get(field) != value
        )

    def _doors(self, sayings: Mapping[str, Saying]) -> list[Admission]:
        doors = []
        key: tuple[Any, ...]
        rate = sayings["rate"].value
        if isinstance(rate, Rate):
            waits = sayings["rate_excess"].value == "wait"
            key = ("rate", sayings["rate"].owner, self.tool, rate, waits)
            make = functools.partial(Admission, None, rate.calls, rate.seconds, waits)
            doors.append(self.shared.door(key, make))
        limit = sayings["max_concurrency"].value
        if limit is not None:
            key = ("concurrency", sayings["max_concurrency"].owner, self.tool, limit)
            doors.append(self.shared.door(key, functools.partial(Admission, limit)))
        return doors


class Execution:
    """One call, from when it comes until it is answered."""

    # Most calls never set these, and what is not set costs nothing.
    runs = False
    on_cancel: Callable[[], object] | None = None
    _doors: tuple[Admission, ...] = ()
    _context: contextvars.Context | None = None
    _result: Any = None
    _error: BaseException | None = None

    def __init__(
        self,
        plan: Plan,
        run: Run,
        arguments: Any,
        proceed: Callable[[], Any],
        left: float | None,
        *,
        on_thread: bool,
        event_loop: int,
        awaited: bool = False,
    ) -> None:
        self.parent = parent = _current.get()
        self.depth: int = 1 if parent is None else parent.depth + 1
        self.call: Call = plan.rules.begin(
            plan.timeout if left is None else left,
            run.uses(plan),
            self.depth,
            (parent is None or not plan.doors) and not run.cancelled,
            on_thread,
            None if parent is None else parent.call,
            event_loop,
            awaited,
        )
        self.id = next(_ids)
        self.plan = plan
        self.run = run
        self.arguments = arguments
        self.on_thread = on_thread
        self._proceed = proceed
        # From now on it can be cancelled.
        run.active.add(self)

    def end(self, error: BaseException | None = None) -> None:
        """Count how it has ended, and note on an error which call it was."""
        self.run.active.discard(self)
        self.call.end("done" if error is None else _explain(self, error))

    # --- what is known of it ---------------------------------------------------------------

    def details(self) -> dict[str, Any]:
        """Return what messages say of it."""
        return {
            "tool": self.plan.tool,
            "call_id": self.id,
            "arguments": redacted(self.arguments, self.plan.redact),
            "policy": self.plan.text,
            "elapsed": self.call.elapsed,
            "chain": self.chain(),
        }

    def chain(self) -> list[str]:
        """Return the names of the tools that it is inside of, from the outermost to itself."""
        names: list[str] = []
        execution: Execution | None = self
        while execution is not None:
            names.append(execution.plan.tool)
            execution = execution.parent
        names.reverse()
        if len(names) > _SHOWN_IN_CHAIN:
            half = _SHOWN_IN_CHAIN // 2
            left_out = f"({len(names) - 2 * half} more)"
            names = [*names[:half], left_out, *names[-half:]]
        return names

    def stop(
        self, error: type[ToolStopped], code: str, message: str, *, retryable: bool = False
    ) -> NoReturn:
        """Raise the error that ends it."""
        details = self.details()
        stopped = error(message, code=code, retryable=retryable, details=details)
        stopped.add_note(describe(details))
        raise stopped

    # --- admission ---------------------------------------------------------------------------

    def before_queueing(self) -> None:
        """Refuse it if it need not even wait.

        Raises:
            ToolRefused: It is too deep, or its tool has no uses left.
            ToolCancelled: Its run was cancelled.
        """
        plan = self.plan
        if self.run.cancelled:
            self._was_cancelled()
        if plan.depth is not None and self.depth > plan.depth:
            chain = " -> ".join(self.chain())
            self.stop(
                ToolRefused,
                "max_recursion_depth",
                f"'{plan.tool}' was not run: it would be tool number {self.depth} inside each "
                f"other, and at most {plan.depth} may be ({chain}).",
            )
        if plan.max_calls is not None and self.run.uses(plan).used >= plan.max_calls:
            self._used_up()
        # A tool inside itself goes in under the place that it holds: waiting for that to be given
        # back, it would wait for itself. So does any under the thread of the one that waits for it.
        outer = self._outer()
        held = {door for one in outer for door in one.plan.doors}
        held |= {one.plan.shared.threads for one in outer if one.on_thread}
        doors = (*plan.doors, plan.shared.threads) if self.on_thread else plan.doors
        self._doors = tuple(door for door in doors if door not in held)
        if self.on_thread and _native.abandoned() >= plan.shared.max_threads:
            self.stop(
                ToolRefused,
                "max_threads",
                f"'{plan.tool}' was not run: all {plan.shared.max_threads} threads are taken "
                "by calls that never ended.",
                retryable=True,
            )

    def _outer(self) -> list[Execution]:
        """Return the calls that it is inside of, without those that have ended and left it behind."""
        found = []
        execution = self.parent
        while execution is not None:
            if not execution.call.ended:
                found.append(execution)
            execution = execution.parent
        return found

    def queue(self) -> None:
        """Wait for its turn, and take a use of the tool.

        Raises:
            ToolStopped: There is none.
        """
        self.before_queueing()
        for door in self._doors:
            self._entered(door.enter(self.call))
        self._claim()

    async def aqueue(self) -> None:
        """As :meth:`queue`, without blocking the event loop."""
        self.before_queueing()
        for door in self._doors:
            loop = asyncio.get_running_loop()
            turn: asyncio.Future[Any] = loop.create_future()
            tell = functools.partial(answer, loop, turn)
            got = door.enter_later(self.call, tell)
            if got is True:
                continue
            if got is False:
                try:
                    got = await turn
                except BaseException:
                    self.call.cancel()
                    raise
            self._entered(got)
        self._claim()

    def _entered(self, got: float | str | list[tuple[str, str, bool]] | None) -> None:
        if got is None:
            return
        if isinstance(got, list):
            ring = ", ".join(
                f"'{holder}' for '{waiter}'" + (", which blocks its event loop" if blocks else "")
                for holder, waiter, blocks in got
            )
            self.stop(
                ToolRefused,
                "max_concurrency",
                f"'{self.plan.tool}' was not run: its turn would never come, because calls would "
                f"wait for each other: {ring}.",
                retryable=True,
            )
        if isinstance(got, float):
            self.stop(
                ToolRefused,
                "rate",
                f"'{self.plan.tool}' was not run: it may be called {self.plan.values['rate']}; "
                f"the next call can start in {got:.1f} s.",
                retryable=True,
            )
        self.settled_as(got, waiting=True)

    def _claim(self) -> None:
        # Counted without a limit, too: one that is set later counts what was before it.
        limit = self.plan.max_calls
        if not self.run.uses(self.plan).claim(_UNLIMITED if limit is None else limit):
            self._used_up()

    def _used_up(self) -> NoReturn:
        limit = self.plan.max_calls
        self.stop(
            ToolRefused,
            "max_calls",
            f"'{self.plan.tool}' was not run: it may be called {limit} "
            f"{'time' if limit == 1 else 'times'} in a run, and has been. Go on without it.",
        )

    # --- running -----------------------------------------------------------------------------

    def inline(self) -> Any:
        """Run it on the caller's thread."""
        token = _current.set(self)
        try:
            return self._proceed()
        finally:
            _current.reset(token)

    def detached(self) -> Any:
        """Run it on a thread of its own, and wait until it ends or its time is up."""
        self._context = contextvars.copy_context()
        thread = workers.take()
        verdict = thread.desk.run(self.call, self)
        if verdict != "done":
            workers.cancel_coroutines(thread, self)
            self.settled_as(verdict)
        return self.outcome()

    async def adetached(self) -> Any:
        """Run it on a thread of its own without blocking the event loop meanwhile."""
        loop = asyncio.get_running_loop()
        settled: asyncio.Future[str] = loop.create_future()
        self._context = contextvars.copy_context()
        self.call.when_settled(functools.partial(answer, loop, settled))
        try:
            thread = workers.take()
        except BaseException:
            # The system has no more threads: what waits for the call's end must not go on waiting.
            self.call.cancel()
            raise
        thread.desk.give(self)
        try:
            verdict = await settled
        except asyncio.CancelledError:
            self.cancel()
            workers.cancel_coroutines(thread, self)
            raise
        if verdict != "done":
            workers.cancel_coroutines(thread, self)
            self.settled_as(verdict)
        return self.outcome()

    def work(self) -> Call:
        """Run it: what a thread does."""
        context, self._context = self._context, None
        try:
            if context is not None and self.call.start():
                self._result = context.run(self._inside)
        except BaseException as error:  # noqa: BLE001 - raised where the caller waits
            self._error = error
        return self.call

    def _inside(self) -> Any:
        # The context is the call's own: there is nothing to set back.
        _current.set(self)
        return self._proceed()

    def outcome(self) -> Any:
        """Return what the tool returned, or raise what it raised."""
        error, self._error = self._error, None
        if error is None:
            return self._result
        try:
            raise error
        finally:
            # The error has this frame in its traceback.
            del error

    def settled_as(self, verdict: str, *, waiting: bool = False) -> NoReturn:
        """Raise what tells the caller that it was let go."""
        if verdict == "cancelled":
            self._was_cancelled()
        what = "was not run: its turn did not come within" if waiting else "did not answer within"
        self.stop(
            ToolTimeout,
            "timeout",
            f"'{self.plan.tool}' {what} {self.plan.timeout:g} s.",
            retryable=True,
        )

    def _was_cancelled(self) -> NoReturn:
        self.stop(
            ToolCancelled,
            "cancelled",
            f"'{self.plan.tool}' was not run or not waited for: the run was cancelled.",
        )

    def cancel(self) -> bool:
        """Let its caller go. False: it has its answer."""
        first = self.call.cancel()
        if first and self.on_cancel is not None:
            self.on_cancel()
        return first


def answer(loop: asyncio.AbstractEventLoop, turn: asyncio.Future[Any], got: Any) -> None:
    """Bring a coroutine what it waits for, from another thread."""

    def give() -> None:
        if not turn.done():
            turn.set_result(got)

    # The loop may be closed.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(give)


def execute(
    plan: Plan,
    run: Run,
    arguments: Any,
    proceed: Callable[[], Any],
    *,
    detached: bool = False,
    left: float | None = None,
) -> Any:
    """Run a call under a plan and return the tool's result.

    Args:
        plan: What counts for it.
        run: The run that it belongs to.
        arguments: The tool's arguments, for messages.
        proceed: Calls the tool.
        detached: Whether it can be cancelled, so needs a thread even without a deadline.
        left: What is left of the plan's timeout, where an attempt before this one took some of it.

    Raises:
        ToolStopped: The engine ended it.
        BaseException: What the tool raised, with a note that says of which call.
    """
    on_thread = detached or plan.timeout is not None
    this = Execution(
        plan, run, arguments, proceed, left, on_thread=on_thread, event_loop=_event_loop()
    )
    try:
        if not this.call.admitted:
            this.queue()
        this.runs = True
        result = this.detached() if on_thread else this.inline()
    except BaseException as error:
        this.end(error)
        raise
    this.end()
    return result


async def aexecute(
    plan: Plan,
    run: Run,
    arguments: Any,
    proceed: Callable[[], Any],
    *,
    on_thread: bool = False,
    left: float | None = None,
) -> Any:
    """Run a call that is awaited; see :func:`execute`.

    Args:
        plan: What counts for it.
        run: The run that it belongs to.
        arguments: The tool's arguments, for messages.
        proceed: Returns what is awaited on the caller's event loop. When its time is up that is
            cancelled, and the caller goes on whether it obeys or not.
        on_thread: Whether ``proceed`` returns the result itself, and is called on a thread.
        left: As there.
    """
    # What runs on a thread needs no event loop to come to its end.
    awaited = not on_thread
    loop = _event_loop() if awaited else 0
    this = Execution(
        plan, run, arguments, proceed, left, on_thread=on_thread, event_loop=loop, awaited=awaited
    )
    try:
        if not this.call.admitted:
            await this.aqueue()
        this.runs = True
        result = await (this.adetached() if on_thread else _on_loop(this))
    except BaseException as error:
        this.end(error)
        raise
    this.end()
    return result


def _event_loop() -> int:
    """Return a number of the event loop that runs on this thread, or 0."""
    loop = asyncio._get_running_loop()  # noqa: SLF001 - public, and raises nothing where there is none
    return 0 if loop is None else id(loop)


async def _on_loop(this: Execution) -> Any:
    loop = asyncio.get_running_loop()
    context = contextvars.copy_context()
    context.run(_current.set, this)
    if not this.call.start():
        this.settled_as("cancelled")
    told = loop.create_future()
    task = loop.create_task(_awaited(this._proceed), context=context)  # noqa: SLF001
    task.add_done_callback(functools.partial(_ended, this))

    def tell() -> None:
        if not told.done():
            told.set_result(None)

    this.on_cancel = lambda: loop.call_soon_threadsafe(tell)
    try:
        await asyncio.wait(
            {task, told}, timeout=this.call.left, return_when=asyncio.FIRST_COMPLETED
        )
    except asyncio.CancelledError:
        this.cancel()
        task.cancel()
        raise
    finally:
        told.cancel()
    if task.done() and not task.cancelled():
        return task.result()
    if this.call.cancelled:
        task.cancel()
        this.settled_as("cancelled")
    if task.done():
        # Cancelled by the tool's own doing.
        return task.result()
    if this.call.time_out():
        task.cancel()
        this.settled_as("timeout")
    return await task


async def _awaited(proceed: Callable[[], Awaitable[Any]]) -> Any:
    return await proceed()


def _ended(this: Execution, task: asyncio.Task[Any]) -> None:
    this.call.finish()
    if not task.cancelled():
        # Nobody is left to whom an error would be news.
        task.exception()


def _explain(this: Execution, error: BaseException) -> str:
    """Note on an error which call it was; return how the call is counted."""
    if isinstance(error, ToolStopped) and error.details.get("call_id") == this.id:
        if isinstance(error, ToolTimeout):
            return "timeout"
        return "cancelled" if isinstance(error, ToolCancelled) else "refused"
    # Some tools raise one and the same object again and again.
    noted = len(getattr(error, "__notes__", ())) >= _MOST_NOTES
    if not noted and not isinstance(error, asyncio.CancelledError):
        error.add_note(describe(this.details()))
    return "failed" if this.runs else "refused"
