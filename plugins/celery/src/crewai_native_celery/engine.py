"""The engine ``celery`` of the slot ``tasks.batch``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from crewai_native.slots.tasks_batch import BatchOptions, ForEach
    from crewai_native_celery.batch import AsyncCeleryBatch, CeleryBatch
    from crewai_native_celery.options import Options
    from crewai_native_tasks.progress import Progress, Silent

    Inputs = Iterable[Mapping[str, Any]]


class CeleryEngine:
    """Sends batches to a cluster. Only those who name it: a crew that is an object stays here.

    Args:
        settings: How the cluster is reached.
    """

    name = "celery"
    takes_over = False

    def __init__(self, settings: Options) -> None:
        self._settings = settings

    def map(self, target: Any, inputs: Inputs, options: BatchOptions) -> CeleryBatch:
        """Run a batch and yield the items as they end."""
        from crewai_native_celery.batch import CeleryBatch, Run

        self._check(options)
        return CeleryBatch(Run(target, inputs, options, self._settings), _shown(inputs, options))

    def amap(self, target: Any, inputs: Inputs, options: BatchOptions) -> AsyncCeleryBatch:
        """Do the same for a caller on an event loop."""
        from crewai_native_celery.batch import AsyncCeleryBatch, Run

        self._check(options)
        run = Run(target, inputs, options, self._settings)
        return AsyncCeleryBatch(run, _shown(inputs, options))

    def for_each(self, call: ForEach) -> Any:
        """Leave it to CrewAI's own code."""
        return call.stock()

    async def afor_each(self, call: ForEach) -> Any:
        """Leave it to CrewAI's own code."""
        return await call.stock()

    def _check(self, options: BatchOptions) -> None:
        """Check options.

        Raises:
            ValueError: One means nothing, or cannot be honoured here.
            ConfigurationError: It is not said where the cluster is.
        """
        from crewai_native_tasks import batch_options

        if options.engine:
            names = ", ".join(sorted(options.engine))
            raise ValueError(
                f"engine celery has no option {names}; concurrency is the number of kickoffs that "
                "are with the cluster at a time"
            )
        if options.priority:
            raise ValueError(
                "engine celery has no priorities, which brokers see differently; give what is urgent "
                "a queue and workers of its own"
            )
        number = options.concurrency
        if number is not None and not batch_options.is_whole(number, 1):
            raise ValueError(f"concurrency is {number!r}; it accepts a number from 1")
        batch_options.check(options)
        longest = self._settings.celery_time_limit
        if options.timeout is not None and options.timeout > longest:
            raise ValueError(
                f"timeout is {options.timeout!r}; it accepts seconds above 0, up to "
                f"tasks.celery_time_limit, {longest:g}, which brokers redeliver by"
            )
        _ = self._settings.broker, self._settings.results


def _shown(inputs: Inputs, options: BatchOptions) -> Progress | Silent:
    from crewai_native_tasks.progress import Progress, Silent

    if not options.progress:
        return Silent()
    return Progress(len(inputs) if isinstance(inputs, Sequence) else None)
