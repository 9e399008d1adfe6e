"""Running tools under a policy from one's own code."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import functools
import graphlib
import inspect
import json
import queue
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Final

from crewai_native_tools import _native, isolation, measures, processes, workers
from crewai_native_tools.errors import ToolSkipped
from crewai_native_tools.execution import Plan, Run, Shared, from_engine
from crewai_native_tools.locks import Lock
from crewai_native_tools.plans import Plans
from crewai_native_tools.policy import Layers, Policy, check_policy

Arguments = Mapping[str, Any] | str | None
"""A tool's arguments by name, or the JSON text of them."""
ManyCall = tuple[str, "Arguments | Callable[[Mapping[int, Any]], Arguments]"]
"""A tool's name and its arguments, or what makes them of the results that the call depends on."""

_MAX_THREADS: Final = 128


class ToolEngine:
    """Runs tools so that none can hang, loop or run away.

    Every method may be called from several threads at once, and by a tool.

    Example:
        >>> engine = ToolEngine(timeout_seconds=10, tool_usage_limits={"send_mail": 1})
        >>> engine.register("add", lambda a, b: a + b)
        >>> engine.execute_tool("add", {"a": 1, "b": 2})
        3

    Args:
        max_recursion_depth: How many tools may be inside each other.
        timeout_seconds: Seconds of wall clock after which a caller has its answer.
        tool_usage_limits: Executions in one run by the name of a tool.
        max_threads: Threads on which calls may run whose callers can leave before they end.
        **policy: Any other field of a :class:`~crewai_native_tools.Policy`, about every tool.

    Raises:
        ValueError: A limit means nothing.
        TypeError: There is no such field.
    """

    def __init__(
        self,
        *,
        max_recursion_depth: float | None = None,
        timeout_seconds: float | None = None,
        tool_usage_limits: Mapping[str, int] | None = None,
        max_threads: int = _MAX_THREADS,
        **policy: Any,
    ) -> None:
        if max_threads < 1:
            raise ValueError(f"max_threads is {max_threads}; it accepts a whole number above 0")
        self._default = Policy(
            timeout=timeout_seconds, max_recursion_depth=max_recursion_depth, **policy
        )
        self._policies: dict[str, Policy] = {
            _spell(name): Policy(max_calls=limit)
            for name, limit in (tool_usage_limits or {}).items()
        }
        self._max_threads = max_threads
        self._shared = Shared(max_threads)
        self._tools: dict[str, _Tool] = {}
        self._runs: dict[Hashable, Run] = {None: Run()}
        self._lock = Lock()
        self._plans = self._resolved(self._policies)

    def register(
        self, name: str, tool: Callable[..., Any] | Any, policy: Policy | None = None
    ) -> None:
        """Add a tool.

        Args:
            name: What it is called by.
            tool: A function, a coroutine function, or a tool of CrewAI's.
            policy: What counts for its calls; what is left open there is said by the engine.

        Raises:
            ValueError: The name is taken, or the policy has a budget.
            TypeError: It cannot be called, or ``policy`` is none; or it is to run in a process of
                its own and cannot go there.
        """
        made = _Tool(tool)
        with self._lock:
            if name in self._tools:
                raise ValueError(f"a tool {name!r} is registered already")
            # A tool that is refused leaves nothing behind.
            policies, plans = self._policies, self._plans
            if policy is not None:
                check_policy(f"the policy of {name!r}", policy)
                limit = policies.get(_spell(name), Policy()).said()
                policies = {**policies, _spell(name): Policy(**{**limit, **policy.said()})}
                plans = self._resolved(policies)
            if plans.of(name).isolated:
                made.check_transferable(name)
            self._policies, self._plans, self._tools[name] = policies, plans, made

    def set_tool_limit(self, name: str, limit: float | None) -> None:
        """Say how often a tool may be executed in one run; None: what the engine says counts.

        Executions so far count. The tool may be registered later.

        Raises:
            ValueError: The limit is not a whole number above 0.
        """
        with self._lock:
            policy = self._policies.get(_spell(name), Policy())
            self._policies[_spell(name)] = dataclasses.replace(policy, max_calls=limit)
            self._plans = self._resolved(self._policies)

    def execute_tool(self, name: str, args: Arguments = None, *, run: Hashable = None) -> Any:
        """Run a tool and return its result.

        Args:
            name: Its name.
            args: Its arguments.
            run: The run that the call belongs to, by any name. Calls of a named run can be
                cancelled; the others belong to the engine's own.

        Raises:
            KeyError: No such tool is registered.
            ToolStopped: The engine ended the call, or did not let it start.
            BaseException: What the tool raised.
        """
        tool, plan, arguments = self._look_up(name, args)
        inside_loop = tool.makes_loop and _loop_runs_here()
        return measures.run(
            plan,
            self._run(run),
            arguments,
            tool.step(plan, arguments),
            # A coroutine cannot be waited for on a thread whose event loop is running.
            detached=run is not None or inside_loop,
        )

    async def aexecute_tool(
        self, name: str, args: Arguments = None, *, run: Hashable = None
    ) -> Any:
        """Run a tool without blocking the event loop; see :meth:`execute_tool`.

        Coroutines run on the caller's event loop, other tools on a thread.
        """
        tool, plan, arguments = self._look_up(name, args)
        awaits = tool.awaits and not plan.isolated
        step = functools.partial(tool.acall, arguments) if awaits else tool.step(plan, arguments)
        return await measures.arun(plan, self._run(run), arguments, step, on_thread=not awaits)

    def execute_many(
        self,
        calls: Sequence[ManyCall],
        depends_on: Mapping[int, Sequence[int]] | None = None,
        *,
        run: Hashable = None,
        max_parallel: int | None = None,
        return_exceptions: bool = False,
    ) -> list[Any]:
        """Run calls side by side, each as soon as those that it depends on have succeeded.

        Args:
            calls: Names of tools with their arguments. In place of arguments there may be a
                function, which makes them of the results that the call depends on, by place.
            depends_on: Places of calls by the place of the call that needs their results.
            run: As in :meth:`execute_tool`.
            max_parallel: How many may be under way at once; as many as the engine has threads by
                default.
            return_exceptions: Whether errors are returned in their place.

        Returns:
            The results in the order of the calls.

        Raises:
            ValueError: A place does not exist, or calls depend on each other in a circle.
            KeyError: No such tool is registered.
            ExceptionGroup: Calls failed, after all others have ended. Those that depend on them
                were not made: :class:`~crewai_native_tools.ToolSkipped`.
        """
        order = _order(len(calls), depends_on or {})
        for name, _ in calls:
            self._look_up(name, None)
        limit = max_parallel or self._max_threads
        if limit < 1:
            raise ValueError(f"max_parallel is {limit}; it accepts a whole number above 0")
        results = _Many(self, calls, depends_on or {}, run).finish(order, limit)
        errors = [result.error for result in results if result.error is not None]
        if errors and not return_exceptions:
            message = f"{len(errors)} of {len(calls)} calls failed"
            raise BaseExceptionGroup(message, errors)
        return [result.value if result.error is None else result.error for result in results]

    def cancel(self, run: Hashable) -> int:
        """Let go whoever waits for a call of a run, and start nothing more in it.

        Tools that are under way in threads go on until they end or ask ``cancelled()``;
        coroutines are cancelled.

        Returns:
            How many calls were under way; 0 the second time.
        """
        return self._run(run).cancel()

    def end_run(self, run: Hashable) -> None:
        """Forget a run: what was counted in it, and that it was cancelled."""
        if run is not None:
            self._runs.pop(run, None)

    def stats(self) -> dict[str, Any]:
        """Return what became of the calls so far.

        Returns:
            ``tools``: by name, ``calls``, ``running`` and, of those that have ended, ``done``,
            ``failed``, ``timeout``, ``cancelled`` and ``refused``; ``seconds`` that callers waited
            in all, and ``longest``. ``abandoned``: calls of the process that go on although their
            callers have left.
        """
        return {"tools": self._shared.stats(), "abandoned": _native.abandoned()}

    def _resolved(self, policies: Mapping[str, Policy]) -> Plans:
        from crewai_native_tools import plugin

        own = Layers(default=self._default, tools=dict(policies))
        return Plans(own, plugin.options().layers, self._shared, _spell)

    def _look_up(self, name: str, args: Arguments) -> tuple[_Tool, Any, dict[str, Any]]:
        tool = self._tools.get(name)
        if tool is None:
            names = ", ".join(sorted(self._tools)) or "none"
            raise KeyError(f"no tool {name!r} is registered; there are: {names}")
        return tool, self._plans.of(name), _by_name(name, args)

    def _run(self, run: Hashable) -> Run:
        return self._runs.get(run) or self._runs.setdefault(run, Run(name=repr(run)))


ToolExecutor = ToolEngine


class _Tool:
    """What was registered, as a function of its arguments by name.

    Attributes:
        awaits: Whether it can be awaited on the caller's event loop.
        makes_loop: Whether running it to its end runs an event loop.
    """

    def __init__(self, tool: Any) -> None:
        self._tool = self._author_tool = tool
        self._is_function = False
        run = getattr(tool, "run", None)
        if callable(run) and hasattr(tool, "_run"):
            # CrewAI's: its own code validates arguments and counts uses.
            self._under: Callable[[Callable[[], Any]], Any] = functools.partial(from_engine, tool)
            self.awaits = inspect.iscoroutinefunction(getattr(tool, "func", None))
            self.makes_loop = self.awaits or inspect.iscoroutinefunction(
                inspect.getattr_static(tool, "_run")
            )
            self._run = run
            self._arun: Any = tool.arun
        elif callable(invoke := getattr(tool, "invoke", None)) and hasattr(tool, "args_schema"):
            self._author_tool = getattr(tool, "_original_tool", None) or tool
            self._under = functools.partial(from_engine, self._author_tool)
            self.awaits = self.makes_loop = inspect.iscoroutinefunction(tool.func)
            self._run = lambda **arguments: invoke(arguments)
            self._arun = lambda **arguments: tool.ainvoke(arguments)
        elif callable(tool):
            self._is_function = True
            self._under = lambda call: call()
            self.awaits = self.makes_loop = inspect.iscoroutinefunction(
                tool
            ) or inspect.iscoroutinefunction(type(tool).__call__)
            self._run = self._arun = tool
        else:
            raise TypeError(
                f"a {type(tool).__name__} is no tool; it accepts a function or one of CrewAI's tools"
            )

    def call(self, arguments: dict[str, Any]) -> Any:
        """Run it to its end."""
        result = self._under(functools.partial(self._run, **arguments))
        return asyncio.run(_awaited(result)) if inspect.isawaitable(result) else result

    def step(self, plan: Plan, arguments: dict[str, Any]) -> Callable[[], Any]:
        """Return what runs it to its end, in a process of its own where the plan says so."""
        call = functools.partial(self.call, arguments)
        if not plan.isolated or isolation.in_worker():
            return call
        if self._is_function:
            target = self.check_transferable(plan.tool)
            return functools.partial(processes.in_process, plan, target, (), arguments)
        return processes.isolated(plan, self._tool, self._author_tool, call)

    def check_transferable(self, name: str) -> isolation.Target:
        """Return how a worker finds it.

        Raises:
            NotTransferable: It cannot go there.
        """
        return processes.target_of(self._author_tool, name)

    async def acall(self, arguments: dict[str, Any]) -> Any:
        """Await it."""
        return await self._under(functools.partial(self._arun, **arguments))


async def _awaited(result: Any) -> Any:
    return await result


def _loop_runs_here() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _spell(name: str) -> str:
    """Return a tool's name so that its spellings in settings are alike."""
    return re.sub(r"\W+", "_", name.casefold()).strip("_")


def _by_name(tool: str, args: Arguments) -> dict[str, Any]:
    if isinstance(args, str):
        try:
            args = json.loads(args)
        except ValueError as error:
            raise ValueError(f"the arguments of {tool!r} are no JSON: {error}") from None
    if args is None:
        return {}
    if not isinstance(args, Mapping):
        raise TypeError(
            f"the arguments of {tool!r} are a {type(args).__name__}; they accept a mapping by "
            "name, or JSON text of an object"
        )
    return dict(args)


def _order(count: int, depends_on: Mapping[int, Sequence[int]]) -> graphlib.TopologicalSorter[int]:
    places = range(count)
    for place, needs in depends_on.items():
        for number in (place, *needs):
            if number not in places:
                raise ValueError(
                    f"depends_on names call {number}; there are calls 0 to {count - 1}"
                )
    order = graphlib.TopologicalSorter({place: depends_on.get(place, ()) for place in places})
    try:
        order.prepare()
    except graphlib.CycleError as error:
        circle = " -> ".join(map(str, error.args[1]))
        raise ValueError(f"calls depend on each other in a circle: {circle}") from None
    return order


@dataclasses.dataclass(slots=True)
class _Result:
    value: Any = None
    error: BaseException | None = None


class _Many:
    """The calls of one ``execute_many``."""

    def __init__(
        self,
        engine: ToolEngine,
        calls: Sequence[ManyCall],
        depends_on: Mapping[int, Sequence[int]],
        run: Hashable,
    ) -> None:
        self._engine = engine
        self._calls = calls
        self._depends_on = depends_on
        self._run = run
        self._ended: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.results = [_Result() for _ in calls]

    def finish(self, order: graphlib.TopologicalSorter[int], limit: int) -> list[_Result]:
        ready: list[int] = []
        running = 0
        while order.is_active():
            ready += order.get_ready()
            # As a loop over what is ready: skipping a call makes others ready.
            while ready and running < limit:
                place = ready.pop(0)
                if self._skips(place):
                    order.done(place)
                    ready += order.get_ready()
                    continue
                workers.take().desk.give(_Step(self, place))
                running += 1
            if running:
                order.done(self._ended.get())
                running -= 1
        return self.results

    def _skips(self, place: int) -> bool:
        failed = [n for n in self._depends_on.get(place, ()) if self.results[n].error is not None]
        if failed:
            name = self._calls[place][0]
            self.results[place].error = ToolSkipped(
                f"call {place} ({name!r}) was not made: call {failed[0]} "
                f"({self._calls[failed[0]][0]!r}), which it depends on, failed"
            )
        return bool(failed)

    def make(self, place: int) -> None:
        name, args = self._calls[place]
        result = self.results[place]
        try:
            if callable(args):
                needs = self._depends_on.get(place, ())
                args = args({number: self.results[number].value for number in needs})
            result.value = self._engine.execute_tool(name, args, run=self._run)
        except BaseException as error:  # noqa: BLE001 - the caller's, who waits on another thread
            result.error = error
        finally:
            self._ended.put(place)


class _Step:
    """One call of an ``execute_many``, as a thread's job."""

    def __init__(self, many: _Many, place: int) -> None:
        self._many = many
        self._place = place
        self._context = contextvars.copy_context()

    def work(self) -> _native.Call:
        call = _native.Call()
        self._context.run(self._many.make, self._place)
        return call
