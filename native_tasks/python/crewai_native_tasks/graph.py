"""The tasks of a crew as the graph that their contexts describe: ``tasks.graph``.

One thread, that of the kickoff, coordinates: it prepares each task, starts it, and takes note of what
came of it. The tasks themselves run on threads of their own, each in a copy of the kickoff's context,
as CrewAI's asynchronous tasks do; or, under ``akickoff``, on the caller's event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import dataclasses
import logging
import queue
import threading
import time
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from crewai_native_tasks import control
from crewai_native_tasks._native import Schedule, Scope
from crewai_native_tasks.graph_order import Place, dependencies, is_sequence

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crewai_native.slots.tasks_graph import TaskRun
    from crewai_native_tasks.options import Options

Agents = Literal["wait", "copy"]

DISTRIBUTION: Final = "crewai-native-tasks"
CONCURRENCY: Final = 16
"""Tasks of one crew that run at a time, unless configured."""

# How long an interrupted kickoff waits for tasks that cannot be stopped, in seconds.
_PATIENCE: Final = 1.0
_HUMAN: Final = "human"

_logger = logging.getLogger("crewai_native")


@dataclasses.dataclass(frozen=True, slots=True)
class GraphSettings:
    """How crews run their tasks.

    Attributes:
        on: Whether tasks run as a graph at all.
        concurrency: Tasks of one crew that run at a time.
        agents: What a task does whose agent is at work on another: ``wait``, or run on a ``copy``.
    """

    on: bool = False
    concurrency: int = CONCURRENCY
    agents: Agents = "wait"

    def __post_init__(self) -> None:
        """Refuse what means nothing.

        Raises:
            ValueError: A field does not; the message names it and what it accepts.
        """
        if self.concurrency < 1:
            raise ValueError(f"concurrency is {self.concurrency}; it accepts a number above 0")
        if self.agents not in {"wait", "copy"}:
            raise ValueError(f"agents is {self.agents!r}; it accepts 'wait' or 'copy'")


def configured(options: Options) -> GraphSettings:
    """Return what the options say."""
    return GraphSettings(options.graph, options.graph_concurrency, options.graph_agents)


_here: contextvars.ContextVar[dict[str, Any] | None] = contextvars.ContextVar(
    "crewai_native_tasks_graph", default=None
)


@contextlib.contextmanager
def parallel(*, concurrency: int | None = None, agents: Agents | None = None) -> Iterator[None]:
    """Run the tasks of crews side by side for the length of a block, as their contexts allow.

    It holds for kickoffs that this thread or coroutine begins in the block, and for crews that
    those begin in turn.

    Args:
        concurrency: Tasks of one crew that run at a time; by default as configured.
        agents: What a task does whose agent is at work on another, see :class:`GraphSettings`; by
            default as configured.

    Raises:
        RuntimeError: ``tasks.graph`` is not served by this accelerator, so nothing would change.
        ValueError: An argument means nothing.
    """
    import crewai_native

    given: dict[str, Any] = {"concurrency": concurrency, "agents": agents}
    chosen = {name: value for name, value in given.items() if value is not None}
    GraphSettings(**chosen)
    served = crewai_native.status()["tasks.graph"]
    if served.provider != DISTRIBUTION:
        raise RuntimeError(
            f"crews would not run in parallel: tasks.graph is served by {served.provider} "
            f"({served.reason})"
        )
    token = _here.set({**chosen, "on": True})
    try:
        yield
    finally:
        _here.reset(token)


class NativeScheduler:
    """Serves ``tasks.graph``; see :class:`crewai_native.slots.tasks_graph.TaskScheduler`.

    What the graph does not change goes to CrewAI's own loop: crews whose tasks can only run one
    after the other, those restored from a checkpoint, and everything while it is not switched on.

    Args:
        configured: What holds outside of :func:`parallel`.
    """

    def __init__(self, configured: GraphSettings) -> None:
        self._configured = configured

    def execute(self, run: TaskRun) -> Any:
        """Run the tasks and return the ``CrewOutput``."""
        passage = self._passage(run)
        return run.stock() if passage is None else _Threads(passage).run()

    async def aexecute(self, run: TaskRun) -> Any:
        """Do the same for ``akickoff``."""
        passage = self._passage(run)
        return await (run.stock() if passage is None else _on_loop(passage))

    def allows(self, crew: Any) -> bool:
        """Return whether a crew may end with several asynchronous tasks."""
        del crew
        return self._settings().on

    def _passage(self, run: TaskRun) -> _Passage | None:
        settings = self._settings()
        if not settings.on:
            return None
        order = _order(run)
        return None if order is None else _Passage(run, settings, order)

    def _settings(self) -> GraphSettings:
        return dataclasses.replace(self._configured, **_here.get() or {})


def _order(run: TaskRun) -> list[list[int]] | None:
    """Return what each task waits for, or None where CrewAI's own loop is as good, or better."""
    # What a checkpoint holds of a run is one agent's conversation per role, to go on with in the
    # order of declaration.
    if getattr(run.crew, "checkpoint_kickoff_event_id", None) is not None:
        return None
    number_of = {id(task): number for number, task in enumerate(run.tasks)}
    if len(number_of) != len(run.tasks):
        return None  # one task twice: it cannot run beside itself
    places = []
    for number, task in enumerate(run.tasks):
        context = _explicit_context(task)
        if context is None:
            places.append(Place(background=task.async_execution))
            continue
        numbers = [number_of[id(other)] for other in context if id(other) in number_of]
        if any(other > number for other in numbers):
            return (
                None  # CrewAI forbids it, so this was changed later; its loop knows what it means
            )
        earlier = [other for other in numbers if other < number]
        places.append(Place(earlier, background=task.async_execution))
    order = dependencies(places)
    return None if is_sequence(order) else order


def _explicit_context(task: Any) -> list[Any] | None:
    """Return the tasks that a task reads, or None where it keeps its place in the sequence."""
    from crewai.tasks.conditional_task import ConditionalTask
    from crewai.utilities.constants import NOT_SPECIFIED

    if task.context is NOT_SPECIFIED or isinstance(task, ConditionalTask):
        return None
    return list(task.context or ())


class _Job(NamedTuple):
    """A task that is ready to run, on the agent that it runs on."""

    number: int
    task: Any
    agent: Any
    context: str
    tools: list[Any]


class _Passage:
    """One run of a crew's tasks, as the coordinator sees it."""

    def __init__(self, run: TaskRun, settings: GraphSettings, order: list[list[int]]) -> None:
        self.crew, self.tasks = run.crew, run.tasks
        # Ended when a task fails: those beside it go no further than their next point.
        self.scope = Scope(control.scope_of_run.get())
        self._start = run.start_index or 0
        self._replayed = run.was_replayed
        self._settings = settings
        self._agents = [self.crew._get_agent_to_use(task) for task in self.tasks]  # noqa: SLF001
        self._copies = _Copies(self.crew) if self._may_copy() else None
        self._schedule = Schedule(order, concurrency=settings.concurrency, lanes=self._lanes())
        self._outputs: list[Any] = [None] * len(self.tasks)
        self._unlogged: dict[int, Any] = {}
        self._next_to_log = self._start
        self._last_synchronous: Any = None
        self._failures: dict[int, BaseException] = {}
        self._running: dict[int, _Job] = {}
        self._skip_replayed()

    @property
    def running(self) -> list[Any]:
        """The tasks that run."""
        return [job.task for job in self._running.values()]

    @property
    def failed(self) -> bool:
        """Whether a task failed, so that no further one begins."""
        return bool(self._failures)

    def next(self) -> _Job | None:
        """Prepare the next task that can run now, and return it; None if there is none."""
        while (number := self._schedule.take()) is not None:
            try:
                job = self._prepare(number)
            except Exception as error:  # noqa: BLE001 - raised by result()
                self.ended(number, error=error)
                continue
            if job is not None:
                self._running[number] = job
                return job
        return None

    def ended(self, number: int, output: Any = None, error: BaseException | None = None) -> None:
        """Take note of how a task ended."""
        job = self._running.pop(number, None)
        if job is not None and self._copies is not None:
            self._copies.give_back(self._agents[number], job)
        if error is None:
            try:
                self._keep(number, output)
            except Exception as failure:  # noqa: BLE001 - raised by result()
                error = failure
        self._schedule.finish(number, error is None)
        if error is not None:
            self._failures[number] = error
            self.cancel()

    def cancel(self) -> None:
        """Begin no further task, and have those that run stop where they can."""
        self._schedule.cancel()
        self.scope.end()

    def result(self) -> Any:
        """Return the ``CrewOutput``.

        Raises:
            BaseException: What the first task that failed raised: the first as they are declared,
                which is the one that would have failed in sequence.
        """
        if self._failures:
            # Tasks that were stopped because another failed are not what went wrong.
            wrong = [n for n, error in self._failures.items() if isinstance(error, Exception)]
            raise self._failures[min(wrong or self._failures)]
        return self.crew._create_crew_output(self._before(len(self.tasks)))  # noqa: SLF001

    def _may_copy(self) -> bool:
        # An agent that delegates calls its coworkers where it stands: they must be free.
        hierarchical = self.crew.process == "hierarchical"
        delegates = any(getattr(agent, "allow_delegation", False) for agent in self._agents)
        return self._settings.agents == "copy" and not hierarchical and not delegates

    def _lanes(self) -> list[list[int]]:
        """Return what each task has to itself: agents that are not re-entrant, and the human."""
        numbers: dict[int | str, int] = {}
        found = []
        for task, agent in zip(self.tasks, self._agents, strict=True):
            wanted: dict[int | str, None] = {}
            if agent is not None and not (self._copies and self._copies.can_copy(agent)):
                wanted[id(agent)] = None
            if getattr(agent, "allow_delegation", False) and self.crew.process != "hierarchical":
                wanted.update((id(coworker), None) for coworker in self.crew.agents)
            if task.human_input:
                wanted[_HUMAN] = None
            found.append([numbers.setdefault(key, len(numbers)) for key in wanted])
        return found

    def _skip_replayed(self) -> None:
        from crewai.crews.utils import prepare_task_execution

        for number, task in enumerate(self.tasks[: self._start]):
            _, kept, self._last_synchronous = prepare_task_execution(
                self.crew, task, number, self._start, [], self._last_synchronous
            )
            self._outputs[number] = kept[0] if kept else None
            # Those before it are done, and of what is ready the first is handed out.
            taken = self._schedule.take()
            assert taken == number
            self._schedule.finish(number, True)

    def _prepare(self, number: int) -> _Job | None:
        """Do what CrewAI's loop does before a task; None for a conditional one that is skipped."""
        from crewai.crews.utils import check_conditional_skip, prepare_task_execution
        from crewai.tasks.conditional_task import ConditionalTask

        crew, task = self.crew, self.tasks[number]
        data, _, _ = prepare_task_execution(crew, task, number, None, [], None)
        if isinstance(task, ConditionalTask):
            before = self._before(number)
            skipped = check_conditional_skip(crew, task, before, number, self._replayed)
            if skipped is not None:
                self._outputs[number] = skipped
                self._next_to_log = number + 1
                self._log()
                self._schedule.finish(number, True)
                return None
        if task.async_execution:
            read = [self._last_synchronous] if self._last_synchronous else []
        else:
            read = self._before(number)
        agent = data.agent if self._copies is None else self._copies.lend(data.agent)
        context = crew._get_context(task, read)  # noqa: SLF001
        return _Job(number, task, agent, context, data.tools)

    def _before(self, number: int) -> list[Any]:
        return [output for output in self._outputs[:number] if output is not None]

    def _keep(self, number: int, output: Any) -> None:
        self._outputs[number] = output
        self._unlogged[number] = output
        self.crew._process_task_result(self.tasks[number], output)  # noqa: SLF001
        self._log()

    def _log(self) -> None:
        # A replay begins after the outputs that it finds in the log, so the log has no gaps: what
        # ended before its time waits for those in front of it.
        while self._next_to_log in self._unlogged:
            at = self._next_to_log
            self._next_to_log += 1
            self.crew._store_execution_log(  # noqa: SLF001
                self.tasks[at], self._unlogged.pop(at), at, self._replayed
            )


class _Copies:
    """Copies of agents, for tasks whose own agent is at work."""

    def __init__(self, crew: Any) -> None:
        self._crew = crew
        self._at_work: set[int] = set()
        self._idle: dict[int, list[Any]] = {}

    @staticmethod
    def can_copy(agent: Any) -> bool:
        """Return whether an agent's tools are not tied to the agent itself, as MCP servers are."""
        return not getattr(agent, "mcps", None)

    def lend(self, agent: Any) -> Any:
        """Return the agent if it is idle, else an idle copy of it."""
        if id(agent) not in self._at_work:
            self._at_work.add(id(agent))
            return agent
        idle = self._idle.setdefault(id(agent), [])
        return idle.pop() if idle else self._copy(agent)

    def give_back(self, agent: Any, job: _Job) -> None:
        """Take back what a task ran on."""
        if job.agent is agent:
            self._at_work.discard(id(agent))
        else:
            self._idle[id(agent)].append(job.agent)
            job.task.agent = agent

    def _copy(self, agent: Any) -> Any:
        from crewai.crews.utils import setup_agents

        crew = self._crew
        # One memory, so that the kickoff waits for what the copy has yet to save. CrewAI's copy would
        # make another from a dump of it, without its model and its embedder, and open its store.
        copy = agent.model_copy(update={"memory": None}).copy()
        copy.memory = agent.memory
        if crew.cache:
            copy.set_cache_handler(crew._cache_handler)  # noqa: SLF001
        if crew.max_rpm:
            copy.set_rpm_controller(crew._rpm_controller)  # noqa: SLF001
        setup_agents(crew, [copy], crew.embedder, crew.function_calling_llm, crew.step_callback)
        return copy


class _Threads:
    """Runs a passage's tasks on threads of their own."""

    def __init__(self, passage: _Passage) -> None:
        self._passage = passage
        self._threads: dict[int, threading.Thread] = {}
        self._ended: queue.SimpleQueue[tuple[int, Any, BaseException | None]]
        self._ended = queue.SimpleQueue()

    def run(self) -> Any:
        """Run the tasks and return the ``CrewOutput``."""
        passage = self._passage
        try:
            while True:
                while (job := passage.next()) is not None:
                    self._start(job)
                if not self._threads:
                    return passage.result()
                self._take_note()
        finally:
            if self._threads:  # Ctrl-C, and foreign code that does not hear of it
                passage.cancel()
                self._wait_a_little()

    def _start(self, job: _Job) -> None:
        # No daemons: a thread that is in the middle of an extension module when the interpreter is
        # torn down can abort the process. So the end of a program waits for what runs, and a run
        # that was interrupted stops at its next point.
        thread = threading.Thread(
            target=contextvars.copy_context().run,
            args=(self._work, job),
            name=f"crewai-native task {job.number}",
            daemon=False,
        )
        try:
            thread.start()
        except RuntimeError as error:  # the system has no thread left
            self._passage.ended(job.number, error=error)
        else:
            self._threads[job.number] = thread

    def _work(self, job: _Job) -> None:
        try:
            with control.running(self._passage.scope):
                output = job.task.execute_sync(
                    agent=job.agent, context=job.context, tools=job.tools
                )
        except BaseException as error:  # noqa: BLE001 - raised on the kickoff's thread
            self._ended.put((job.number, None, error))
        else:
            self._ended.put((job.number, output, None))

    def _take_note(self, timeout: float | None = None) -> None:
        number, output, error = self._ended.get(timeout=timeout)
        self._threads.pop(number).join()
        self._passage.ended(number, output, error)

    def _wait_a_little(self) -> None:
        until = time.monotonic() + _PATIENCE
        with contextlib.suppress(queue.Empty):
            while self._threads and (left := until - time.monotonic()) > 0:
                self._take_note(left)
        if self._threads:
            names = ", ".join(repr(t.name or t.description) for t in self._passage.running)
            _logger.warning("interrupted; tasks that are still inside other code: %s", names)


async def _work(scope: Scope, job: _Job) -> Any:
    with control.running(scope):
        return await job.task.aexecute_sync(agent=job.agent, context=job.context, tools=job.tools)


async def _on_loop(passage: _Passage) -> Any:
    running: dict[asyncio.Task[Any], int] = {}
    interrupted: BaseException | None = None
    stopping = False
    while True:
        while (job := passage.next()) is not None:
            running[asyncio.create_task(_work(passage.scope, job))] = job.number
        if not running:
            break
        try:
            ended, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError as error:
            # However often: nothing is left behind on the loop.
            interrupted = error
            passage.cancel()
            ended = set()
        for work in sorted(ended, key=running.__getitem__):
            number = running.pop(work)
            failure = asyncio.CancelledError() if work.cancelled() else work.exception()
            passage.ended(number, None if failure else work.result(), failure)
        if (interrupted is not None or passage.failed) and not stopping:
            stopping = True  # once: what they do on their way out is not to be interrupted
            for work in running:
                work.cancel()
    if interrupted is not None:
        raise interrupted
    return passage.result()
