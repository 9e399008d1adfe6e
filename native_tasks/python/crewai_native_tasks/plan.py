"""Graphs of tasks without CrewAI: checked as a whole, run in any of three ways.

>>> from crewai_native_tasks import Plan, PlanTask
>>> plan = Plan([
...     PlanTask("load", lambda _: 20),
...     PlanTask("double", lambda done: done["load"] * 2, after=("load",)),
... ])
>>> plan.run().results["double"]
40
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from crewai_native_tasks._native import cycle
from crewai_native_tasks.graph_order import Place, dependencies
from crewai_native_tasks.plan_yaml import Entry, Problem, read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from os import PathLike

    from crewai_native_tasks.plan_run import PlanRun

    Work = Callable[["PlanTask", Mapping[str, Any]], Any]

Process = Literal["sequential", "hierarchical"]
Mode = Literal["sequential", "parallel", "async"]
PROCESSES: Final = get_args(Process)
CONCURRENCY: Final = 16
"""Tasks that run at a time, unless told otherwise."""

OF_AGENTS: Final = ("role", "goal", "backstory")
OF_TASKS: Final = ("description", "expected_output")


@dataclasses.dataclass(frozen=True, slots=True)
class PlanTask:
    """A task of a plan.

    Attributes:
        name: Its name, which others depend on.
        do: Called with the results of the tasks in ``after``, by name; may be a coroutine function.
            None leaves it to the ``do`` of :meth:`Plan.run`.
        after: The tasks that must be done before.
        agent: Who does it: of tasks of one agent one runs at a time.
        priority: Of tasks that could run, the one with the higher goes first.
        fields: What else is known about it, such as its description.
        file: Where it is written, if it is.
        line: On which line.
    """

    name: str
    do: Callable[[Mapping[str, Any]], Any] | None = None
    after: tuple[str, ...] = ()
    agent: str | None = None
    priority: int = 0
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    file: str = ""
    line: int = 0

    def __post_init__(self) -> None:
        """Refuse one name as ``after``, which would be read letter by letter.

        Raises:
            TypeError: It is a text.
        """
        if isinstance(self.after, str):
            raise TypeError(
                f"after of task {self.name!r} is the text {self.after!r}; it accepts a tuple of "
                f"names, such as ({self.after!r},)"
            )


class PlanError(ValueError):
    """A plan cannot be: everything that is wrong with it.

    Attributes:
        problems: What, in the order of files and lines.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = sorted(problems)
        super().__init__("\n".join(map(str, self.problems)))


class Plan:
    """Tasks and what they wait for.

    Args:
        tasks: The tasks. Of those that could run at the same moment the earlier goes first.
        process: As CrewAI has it; ``hierarchical`` has one manager do all tasks.

    Attributes:
        tasks: The tasks.
        process: The process.
        order: For each task the numbers of those that it waits for.

    Raises:
        PlanError: It cannot be run; the error names every reason.
    """

    def __init__(self, tasks: Iterable[PlanTask], *, process: str = "sequential") -> None:
        self.tasks = list(tasks)
        self.process = process
        problems = list(_unknown_process(process))
        problems += _twice(self.tasks)
        self.order = [list(own) for own in _order(self.tasks, problems)]
        if problems:
            raise PlanError(problems)

    @classmethod
    def from_yaml(
        cls,
        agents: str | PathLike[str],
        tasks: str | PathLike[str],
        *,
        process: str = "sequential",
    ) -> Plan:
        """Read CrewAI's ``agents.yaml`` and ``tasks.yaml``.

        A task with a ``context`` waits for those tasks, which a crew must have before it; one
        without keeps its place, after all that are written before it, as in a crew.

        Raises:
            PlanError: Something is wrong with them; the error names everything, with its line.
        """
        problems = list(_unknown_process(process))
        team = {entry.name: entry for entry in read(agents, OF_AGENTS, problems)}
        needs = (*OF_TASKS, "agent") if process == "sequential" else OF_TASKS
        written = read(tasks, needs, problems)
        for entry in team.values():
            problems += _empty(entry, "agent", OF_AGENTS)
        for entry in written:
            problems += _empty(entry, "task", OF_TASKS)
            problems += _agent_of(entry, team, process)
        found = _tasks_of(written, problems)
        problems += _ahead(found, _order(found, problems))
        if problems:
            raise PlanError(problems)
        return cls(found, process=process)

    def run(
        self,
        mode: Mode = "parallel",
        *,
        do: Work | None = None,
        concurrency: int = CONCURRENCY,
        on_error: Literal["continue", "stop"] = "continue",
    ) -> PlanRun:
        """Run the tasks and return what became of each.

        A task that fails leaves its error behind, and those that wait for it are skipped; the
        others run. In a :func:`~crewai_native_tasks.cancel_scope` that is cancelled nothing further
        begins, and this returns when what runs has ended. So it is when its time is up, but that
        ends the block with ``TimeoutError``.

        Args:
            mode: ``sequential`` on this thread, in an order that the dependencies allow;
                ``parallel`` on threads, each task in a copy of this context; ``async`` on an event
                loop of its own (:meth:`arun` uses the caller's).
            do: Does the tasks that have no ``do``: called with the task and its results.
            concurrency: Tasks that run at a time, but for ``sequential``.
            on_error: ``stop`` begins nothing further after a failure.

        Raises:
            ValueError: An argument means nothing, or nothing does one of the tasks.
        """
        from crewai_native_tasks import plan_run

        if mode not in get_args(Mode):
            accepted = ", ".join(get_args(Mode))
            raise ValueError(f"mode is {mode!r}; it accepts {accepted}")
        limit = 1 if mode == "sequential" else concurrency
        found = plan_run.PlanRun(self, do=do, concurrency=limit, on_error=on_error)
        runners = {
            "sequential": plan_run.in_sequence,
            "parallel": plan_run.in_parallel,
            "async": plan_run.on_own_loop,
        }
        runners[mode](found)
        return found

    async def arun(
        self,
        *,
        do: Work | None = None,
        concurrency: int = CONCURRENCY,
        on_error: Literal["continue", "stop"] = "continue",
    ) -> PlanRun:
        """Run the tasks on the caller's event loop; see :meth:`run`.

        Functions that are no coroutines run on threads. Cancelling cancels the tasks that run.
        """
        from crewai_native_tasks import plan_run

        found = plan_run.PlanRun(self, do=do, concurrency=concurrency, on_error=on_error)
        await plan_run.on_loop(found)
        return found

    def lanes(self) -> list[list[int]]:
        """Return for each task the numbers of what it has to itself: its agent, or the manager."""
        if self.process == "hierarchical":
            return [[0] for _ in self.tasks]
        numbers: dict[str, int] = {}
        return [
            [numbers.setdefault(task.agent, len(numbers))] if task.agent else []
            for task in self.tasks
        ]


def _unknown_process(process: str) -> Iterator[Problem]:
    if process not in PROCESSES:
        accepted = ", ".join(PROCESSES)
        yield Problem("", 0, f"there is no process {process!r}; it accepts {accepted}")


def _twice(tasks: Sequence[PlanTask]) -> Iterator[Problem]:
    seen: set[str] = set()
    for task in tasks:
        if task.name in seen:
            yield Problem(task.file, task.line, f"task {task.name!r} is there twice")
        seen.add(task.name)


def _empty(entry: Entry, kind: str, fields: Iterable[str]) -> Iterator[Problem]:
    for field in fields:
        if not entry.text(field):
            how = "is empty" if field in entry.fields else "is missing"
            message = f"{field} of {kind} {entry.name!r} {how}; it accepts a text"
            yield Problem(entry.file, entry.line_of(field), message)


def _agent_of(entry: Entry, team: Mapping[str, Entry], process: str) -> Iterator[Problem]:
    agent, line = entry.text("agent"), entry.line_of("agent")
    if not agent:
        if process == "sequential":
            message = f"agent of task {entry.name!r} is missing; it accepts the name of an agent"
            yield Problem(entry.file, line, message)
    elif agent not in team:
        there_are = ", ".join(team) or "none"
        message = f"agent of task {entry.name!r} is {agent!r}; there are {there_are}"
        yield Problem(entry.file, line, message)


def _tasks_of(entries: Sequence[Entry], problems: list[Problem]) -> list[PlanTask]:
    """Turn entries into tasks, with the dependencies of those that keep their place."""
    number_of = {entry.name: number for number, entry in enumerate(entries)}
    contexts = [_context(entry, problems) for entry in entries]
    places = [
        Place(
            None if context is None else [number_of[name] for name in context if name in number_of],
            background=bool((field := entry.fields.get("async_execution")) and field.value is True),
        )
        for entry, context in zip(entries, contexts, strict=True)
    ]
    found = []
    for entry, context, own in zip(entries, contexts, dependencies(places), strict=True):
        # Names that do not exist are kept, to be complained about with the others.
        after = tuple(entries[n].name for n in own) if context is None else tuple(context)
        fields = {name: field.value for name, field in entry.fields.items()}
        line = entry.line_of("context") if context is not None else entry.line
        agent = entry.text("agent") or None
        found.append(
            PlanTask(entry.name, None, after, agent, fields=fields, file=entry.file, line=line)
        )
    return found


def _context(entry: Entry, problems: list[Problem]) -> list[str] | None:
    field = entry.fields.get("context")
    if field is None or field.value is None:
        return None
    if isinstance(field.value, list) and all(isinstance(name, str) for name in field.value):
        return field.value
    message = f"context of task {entry.name!r} is {field.value!r}; it accepts a list of tasks"
    problems.append(Problem(entry.file, field.line, message))
    return []


def _ahead(tasks: Sequence[PlanTask], order: Sequence[Sequence[int]]) -> Iterator[Problem]:
    """Yield what CrewAI refuses when it makes the crew."""
    for number, own in enumerate(order):
        task = tasks[number]
        for other in own:
            if other > number:
                message = (
                    f"context of task {task.name!r} has {tasks[other].name!r}, which is written "
                    "after it; it accepts tasks that are written before"
                )
                yield Problem(task.file, task.line, message)


def _order(tasks: Sequence[PlanTask], problems: list[Problem]) -> list[list[int]]:
    """Return the numbers of what each task waits for, without what cannot be."""
    number_of = {task.name: number for number, task in enumerate(tasks)}
    order = []
    for task in tasks:
        own = []
        for name in task.after:
            if name in number_of:
                own.append(number_of[name])
            else:
                message = f"task {task.name!r} waits for {name!r}, which is no task"
                problems.append(Problem(task.file, task.line, message))
        order.append(own)
    while (found := cycle(order)) is not None:
        names = " -> ".join(tasks[number].name for number in [*found, found[0]])
        first = tasks[found[0]]
        problems.append(Problem(first.file, first.line, f"tasks wait for each other: {names}"))
        # Another may remain without this one.
        order[found[0]] = [n for n in order[found[0]] if n != found[1 % len(found)]]
    return order
