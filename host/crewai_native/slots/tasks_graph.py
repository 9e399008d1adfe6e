"""``tasks.graph``: the order in which a crew's tasks run."""

from __future__ import annotations

import functools
import weakref
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, Protocol

from crewai_native.slots._base import Repair, Slot, Target

if TYPE_CHECKING:
    from collections.abc import Callable

    from crewai_native._bind import Binding
    from crewai_native.slots._base import Provider

PROTOCOL: Final = ("execute", "aexecute")
TRAILING_ASYNC: Final = "trailing-async"


class TaskRun(NamedTuple):
    """A crew's tasks, about to be run.

    Attributes:
        crew: The crew. Its own methods are the parts to build a run of: ``_prepare_tools``,
            ``_get_context``, ``_process_task_result``, ``_store_execution_log``,
            ``_create_crew_output`` and ``crewai.crews.utils.prepare_task_execution``.
        tasks: The tasks in the order of declaration.
        start_index: The first to run; earlier ones have their output from a replay. A crew that
            was restored from a checkpoint starts at ``crew._get_execution_start_index(tasks)``.
        was_replayed: Whether this is a replay.
        stock: Runs the tasks as CrewAI does; awaitable in :meth:`TaskScheduler.aexecute`.
    """

    crew: Any
    tasks: list[Any]
    start_index: int | None
    was_replayed: bool
    stock: Callable[[], Any]


class TaskScheduler(Protocol):
    """Runs the tasks of crews, on the thread and in the context of the kickoff.

    Agents cannot run two tasks at a time, ``task_outputs`` keep the order of declaration, and each
    concurrent task needs a copy of the context. What it is not switched on for goes to ``stock``.
    """

    def execute(self, run: TaskRun) -> Any:
        """Run the tasks and return the ``CrewOutput``."""

    async def aexecute(self, run: TaskRun) -> Any:
        """Do the same for ``akickoff``."""

    def allows(self, crew: Any) -> bool:
        """Return whether a crew may end with several asynchronous tasks, which CrewAI forbids.

        Asked while the crew is made, of providers with the feature ``trailing-async``. A crew that
        was allowed stays so, since CrewAI validates it over again while it runs.
        """


def _bind_trailing_async(binding: Binding, _provider: Provider) -> None:
    from crewai.crew import Crew

    validate = Crew.validate_end_with_at_most_one_async_task
    _ending.stock = binding.replace_body(validate, _validate_ending)


def _validate_ending(self: Any) -> Any:
    # Runs in place of CrewAI's validator, with the globals of its module.
    from crewai_native.slots import tasks_graph  # noqa: PLW0406 - those are not this module's

    return tasks_graph.check_ending(self)


class _Ending:
    """Who decides how a crew may end, and which crews were allowed to."""

    def __init__(self) -> None:
        self.scheduler: Any = None
        self.stock: Any = None
        self.allowed: weakref.WeakSet[Any] = weakref.WeakSet()


_ending: Final = _Ending()


def check_ending(crew: Any) -> Any:
    """Return the crew if it may end as it does; else what CrewAI's validator says."""
    if crew not in _ending.allowed:
        if not _ending.scheduler.allows(crew):
            return _ending.stock(crew)
        _ending.allowed.add(crew)
    return crew


class TasksGraph(Slot):
    """Serves the loop over a crew's tasks, of sequential and hierarchical crews alike."""

    name: ClassVar = "tasks.graph"
    summary: ClassVar = "order of a crew's tasks"
    how: ClassVar = "Crew._execute_tasks, ._aexecute_tasks"
    targets: ClassVar = (
        Target("crewai.crew:Crew._execute_tasks", wrapped=True),
        Target("crewai.crew:Crew._aexecute_tasks", wrapped=True),
    )
    repairs: ClassVar = (
        Repair(
            TRAILING_ASYNC,
            "a crew may not end with several asynchronous tasks",
            (Target("crewai.crew:Crew.validate_end_with_at_most_one_async_task", wrapped=True),),
            TRAILING_ASYNC,
            _bind_trailing_async,
        ),
    )

    def bind(self, binding: Binding, provider: Provider) -> None:
        """Put the provider in the place of CrewAI's loops."""
        from crewai.crew import Crew

        scheduler = provider.require(provider.call(), PROTOCOL, "a TaskScheduler")
        _ending.scheduler = scheduler
        execute = binding.watch.meter(scheduler.execute)
        aexecute = binding.watch.meter(scheduler.aexecute)

        def make(stock: Any) -> Any:
            def execute_tasks(
                crew: Any, tasks: Any, start_index: int | None = 0, was_replayed: bool = False
            ) -> Any:
                original = functools.partial(stock, crew, tasks, start_index, was_replayed)
                return execute(TaskRun(crew, tasks, start_index, was_replayed, original))

            return execute_tasks

        def make_async(stock: Any) -> Any:
            async def aexecute_tasks(
                crew: Any, tasks: Any, start_index: int | None = 0, was_replayed: bool = False
            ) -> Any:
                original = functools.partial(stock, crew, tasks, start_index, was_replayed)
                return await aexecute(TaskRun(crew, tasks, start_index, was_replayed, original))

            return aexecute_tasks

        binding.stand_in(Crew, "_execute_tasks", make)
        binding.stand_in(Crew, "_aexecute_tasks", make_async)


SLOT: Final = TasksGraph()
