"""Celery's application: the task, and what is sound for kickoffs."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from celery import Celery
from celery.exceptions import WorkerLostError
from celery.worker.request import Request

from crewai_native_celery import kickoff, store
from crewai_native_celery.ledger import Ledger

if TYPE_CHECKING:
    from crewai_native_celery.options import Options

TASK: Final = "crewai_native_celery.kickoff"
MARGIN: Final = 120.0
"""Seconds by which a broker waits longer for an acknowledgement than two of the longest runs take."""
BACKSTOP: Final = 30.0
"""Seconds after its time limit at which Celery kills a process that has not ended itself."""
_FILESYSTEM: Final = "filesystem://"
_FOLDER: Final = "crewai_native_celery.folder:Transport"


@functools.cache
def ledger(options: Options, attempts: int = store.CLIENTS_PATIENCE) -> Ledger:
    """Return the ledger that the options name."""
    opened = store.opened(options.results, keep=options.celery_keep, attempts=attempts)
    return Ledger(opened, options.celery_lost_after)


class KickoffRequest(Request):
    """A kickoff as the worker's main process sees it: it writes down what its child cannot."""

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Note that the time limit has passed, which the child could not: it holds the GIL, say."""
        if not soft:
            book, key, token = self._entry()
            book.finish(key, token, {"state": "timed-out", "seconds": timeout})
        super().on_timeout(soft, timeout)

    def on_failure(self, exc_info: Any, *args: Any, **kwargs: Any) -> Any:
        """Let a kickoff whose child has died be begun again; Celery puts it back into the queue."""
        error = getattr(exc_info.exception, "exc", exc_info.exception)
        if isinstance(error, WorkerLostError | SystemExit):
            book, key, token = self._entry()
            book.give_back(key, token)
        return super().on_failure(exc_info, *args, **kwargs)

    def _entry(self) -> tuple[Ledger, str, str]:
        return ledger(self.app.kickoff_options), self.kwargs["key"], self.kwargs["token"]


def made(options: Options) -> Celery:
    """Return the application."""
    app = Celery("crewai-native", set_as_current=False)
    if options.celery_config is not None:
        app.config_from_object(options.celery_config)
    app.conf.update(
        accept_content=["json"],
        broker_connection_max_retries=None,
        broker_connection_retry_on_startup=True,
        broker_url=options.broker,
        task_acks_late=True,
        task_default_queue=options.celery_queue,
        task_ignore_result=True,
        task_reject_on_worker_lost=True,
        task_serializer="json",
        task_time_limit=options.celery_time_limit + BACKSTOP,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_lost_wait=2.0,
        worker_max_tasks_per_child=50,
        worker_prefetch_multiplier=1,
        worker_send_task_events=False,
    )
    transport = dict(app.conf.broker_transport_options or {})
    # What is acknowledged late is delivered anew after this time, which must not be while it runs.
    transport.setdefault("visibility_timeout", 2 * options.celery_time_limit + MARGIN)
    if options.broker.startswith(_FILESYSTEM):
        folder = Path(options.broker.removeprefix(_FILESYSTEM))
        app.conf.update(broker_url=_FILESYSTEM, broker_transport=_FOLDER)
        transport |= {
            "data_folder_in": str(folder / "queue"),
            "data_folder_out": str(folder / "queue"),
            "control_folder": str(folder / "control"),
            "processed_folder": str(folder / "taken"),
            "store_processed": True,
            "polling_interval": 0.1,
        }
        for name in ("queue", "control", "taken"):
            (folder / name).mkdir(parents=True, exist_ok=True)
    app.conf.broker_transport_options = transport
    app.kickoff_options = options

    @app.task(name=TASK, Request=KickoffRequest, ignore_result=True)
    def run(**message: Any) -> None:
        kickoff.run(ledger(options, store.FOREVER), beat=beat(options), **message)

    return app


def beat(options: Options) -> float:
    """Return how many seconds lie between a kickoff's signs of life."""
    return min(2.0, options.celery_lost_after / 6)
