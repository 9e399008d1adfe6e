"""What this wheel offers to ``crewai-native``: batches, graphs, cancellation, a fast executor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crewai_native import hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import typer

    from crewai_native.bench import Case
    from crewai_native.slots.tasks_control import LimitedRun, ModelCall, Point
    from crewai_native.slots.tasks_graph import TaskRun
    from crewai_native_tasks.control import NativeControl
    from crewai_native_tasks.engine import LocalEngine
    from crewai_native_tasks.executor import FlowExecutor
    from crewai_native_tasks.graph import NativeScheduler
    from crewai_native_tasks.options import Options

# None where nothing is configured, and nothing has been.
_in_force: Options | None = None


class _Control:
    """Serves ``tasks.control``; what it consists of is loaded by the first run."""

    _made: NativeControl | None = None

    def limit(self, run: LimitedRun) -> Any:
        return (self._made or self._make()).limit(run)

    async def alimit(self, run: LimitedRun) -> Any:
        return await (self._made or self._make()).alimit(run)

    def check(self, point: Point, subject: Any) -> None:
        (self._made or self._make()).check(point, subject)

    def done(self, point: Point, subject: Any) -> None:
        (self._made or self._make()).done(point, subject)

    def call(self, call: ModelCall) -> Any:
        return (self._made or self._make()).call(call)

    async def acall(self, call: ModelCall) -> Any:
        return await (self._made or self._make()).acall(call)

    def used(self, tokens: int) -> None:
        (self._made or self._make()).used(tokens)

    def _make(self) -> NativeControl:
        from crewai_native_tasks.control import NativeControl

        self._made = made = NativeControl()
        return made


class _Scheduler:
    """Serves ``tasks.graph``; what it consists of is loaded by the first crew."""

    def execute(self, run: TaskRun) -> Any:
        return self._made().execute(run)

    async def aexecute(self, run: TaskRun) -> Any:
        return await self._made().aexecute(run)

    def allows(self, crew: Any) -> bool:
        return self._made().allows(crew)

    @staticmethod
    def _made() -> NativeScheduler:
        from crewai_native_tasks import graph

        return graph.NativeScheduler(graph.configured(options()))


@hookimpl
def crewai_native_configure(options: Mapping[str, Any]) -> None:
    """Takes the options of ``tasks``: see :class:`~crewai_native_tasks.options.Options`."""
    global _in_force  # noqa: PLW0603 - hooks of a module have no other place
    if not options and _in_force is None:
        return
    from crewai_native_tasks import batch_floor, limits
    from crewai_native_tasks.options import read

    _in_force = read(options)
    limits.configure(_in_force)
    batch_floor.configure(_in_force.batch_slots)


def options() -> Options:
    """Return the options in force."""
    if _in_force is not None:
        return _in_force
    from crewai_native_tasks.options import Options

    return Options()


@hookimpl
def crewai_native_features() -> dict[str, set[str]]:
    """What can be required."""
    return {
        "tasks.batch": {"adaptive", "resumable"},
        "tasks.control": {"bounded", "cancellable", "rate-limited"},
        "tasks.executor": {"frugal"},
        "tasks.graph": {"exact", "trailing-async"},
    }


@hookimpl
def crewai_native_tasks_batch() -> LocalEngine:
    """Batches on threads of this process."""
    from crewai_native_tasks.engine import LocalEngine

    return LocalEngine(None if _in_force is None else _in_force.for_each_concurrency)


@hookimpl
def crewai_native_tasks_control() -> _Control:
    """Time limits, and the points at which a run can be stopped."""
    return _Control()


@hookimpl
def crewai_native_tasks_graph() -> _Scheduler:
    """The scheduler of crews' tasks."""
    return _Scheduler()


@hookimpl
def crewai_native_tasks_executor() -> FlowExecutor:
    """What drives flows."""
    from crewai_native_tasks.executor import FlowExecutor

    return FlowExecutor(flows=_in_force is not None and _in_force.flows)


@hookimpl
def crewai_native_cli(app: typer.Typer) -> None:
    """Adds ``crewai-native plan``."""
    from crewai_native_tasks import plan_cli

    app.add_typer(plan_cli.app, name="plan")


@hookimpl
def crewai_native_benchmarks() -> Iterator[Case]:
    """``crewai-native bench tasks``."""
    from crewai_native_tasks import benchmarks

    return benchmarks.cases()
