"""What this wheel offers to ``crewai-native``: the engine ``celery``, and its worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crewai_native import hookimpl
from crewai_native_celery import options as _options

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import typer

    from crewai_native.health import Check
    from crewai_native_celery.engine import CeleryEngine

_in_force = _options.Options()


@hookimpl
def crewai_native_configure(options: Mapping[str, Any]) -> None:
    """Takes the options of ``tasks`` that begin with ``celery_``."""
    global _in_force  # noqa: PLW0603 - hooks of a module have no other place
    _in_force = _options.read(options)


@hookimpl
def crewai_native_features() -> dict[str, set[str]]:
    """What can be required."""
    return {"tasks.batch": {"distributed", "resumable"}}


@hookimpl
def crewai_native_tasks_batch() -> CeleryEngine:
    """Batches on a cluster; nothing is connected to before there is one."""
    from crewai_native_celery.engine import CeleryEngine

    return CeleryEngine(_in_force)


@hookimpl
def crewai_native_cli(app: typer.Typer) -> None:
    """Adds ``crewai-native celery``."""
    from crewai_native_celery import cli

    app.add_typer(cli.made(lambda: _in_force), name="celery")


@hookimpl
def crewai_native_health() -> Iterator[Check]:
    """Whether the broker and the results can be reached, where they are configured."""
    from crewai_native_celery import health

    return health.checks(_in_force)
