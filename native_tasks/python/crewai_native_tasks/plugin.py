"""What this wheel offers to ``crewai-native``: batches, graphs, cancellation, a fast executor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crewai_native import hookimpl
from crewai_native_tasks import batch_floor, limits
from crewai_native_tasks import options as _options

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import typer

    from crewai_native.bench import Case
    from crewai_native_tasks.control import NativeControl
    from crewai_native_tasks.engine import LocalEngine
    from crewai_native_tasks.executor import FlowExecutor
    from crewai_native_tasks.graph import NativeScheduler

_in_force = _options.Options()


@hookimpl
def crewai_native_configure(options: Mapping[str, Any]) -> None:
    """Takes the options of ``tasks``: see :class:`~crewai_native_tasks.options.Options`."""
    global _in_force  # noqa: PLW0603 - hooks of a module have no other place
    _in_force = _options.read(options)
    limits.configure(_in_force)
    batch_floor.configure(_in_force.batch_slots)


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

    return LocalEngine(_in_force.for_each_concurrency)


@hookimpl
def crewai_native_tasks_control() -> NativeControl:
    """Time limits, and the points at which a run can be stopped."""
    from crewai_native_tasks.control import NativeControl

    return NativeControl()


@hookimpl
def crewai_native_tasks_graph() -> NativeScheduler:
    """The scheduler of crews' tasks."""
    from crewai_native_tasks import graph

    return graph.NativeScheduler(graph.configured(_in_force))


@hookimpl
def crewai_native_tasks_executor() -> FlowExecutor:
    """What drives flows."""
    from crewai_native_tasks.executor import FlowExecutor

    return FlowExecutor(flows=_in_force.flows)


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
