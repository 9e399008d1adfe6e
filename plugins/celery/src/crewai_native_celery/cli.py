"""``crewai-native celery``: workers."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crewai_native import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from crewai_native_celery.options import Options


def made(options: Callable[[], Options]) -> typer.Typer:
    """Return the commands, for the settings in force."""
    app = typer.Typer(help="Work on batches of a Celery cluster.")

    @app.callback()
    def group() -> None:
        """Work on batches of a Celery cluster."""

    @app.command()
    def worker(
        *,
        concurrency: Annotated[
            int, typer.Option("--concurrency", "-c", min=1, help="Kickoffs at a time.")
        ] = os.cpu_count() or 1,
        name: Annotated[
            str, typer.Option("--name", "-n", help="Name of the worker; %h is the host's.")
        ] = "crewai@%h",
        folder: Annotated[
            Path,
            typer.Option("--folder", "-C", help="Where the modules of crews are imported from."),
        ] = Path(),
        broker: Annotated[str | None, typer.Option(help="Instead of tasks.celery_broker.")] = None,
        results: Annotated[
            str | None, typer.Option(help="Instead of tasks.celery_results.")
        ] = None,
        queue: Annotated[str | None, typer.Option(help="Instead of tasks.celery_queue.")] = None,
        recycle: Annotated[
            int, typer.Option(min=1, help="Kickoffs after which a process is replaced.")
        ] = 50,
        log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
    ) -> None:
        """Take kickoffs from the queue until stopped; SIGTERM lets those end that run."""
        given = {"celery_broker": broker, "celery_results": results, "celery_queue": queue}
        changed: dict[str, Any] = {
            option: value for option, value in given.items() if value is not None
        }
        chosen = options()._replace(**changed)
        try:
            _ = chosen.broker, chosen.results
        except ConfigurationError as error:
            raise typer.BadParameter(str(error)) from error
        sys.path.insert(0, str(folder.resolve()))
        _work(
            chosen,
            concurrency=concurrency,
            hostname=name,
            loglevel=log_level,
            max_tasks_per_child=recycle,
        )

    return app


def _work(options: Options, **settings: Any) -> None:
    from celery.utils import nodenames

    from crewai_native_celery import app

    # Once, for all children: they are forked, and CrewAI takes seconds to import.
    __import__("crewai")
    settings["hostname"] = nodenames.host_format(settings["hostname"])
    worker = app.made(options).Worker(pool="prefork", **settings)
    worker.start()
    raise typer.Exit(worker.exitcode or 0)
