"""The engine ``local`` of the slot ``tasks.batch``: what runs batches is loaded by the first of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Mapping

    from crewai_native.slots.tasks_batch import BatchItem, BatchOptions, ForEach

    Inputs = Iterable[Mapping[str, Any]]


class LocalEngine:
    """Runs batches on threads of this process.

    Args:
        concurrency: Kickoffs at a time for ``Crew.kickoff_for_each`` and its twins; None leaves them
            to CrewAI's own code.
    """

    name = "local"

    def __init__(self, concurrency: int | None = None) -> None:
        self._concurrency = concurrency
        self.takes_over = concurrency is not None

    def map(self, target: Any, inputs: Inputs, options: BatchOptions) -> Iterator[BatchItem]:
        """Run a batch; returns a :class:`~crewai_native_tasks.BatchRun`."""
        from crewai_native_tasks import batch

        return batch.begin(target, inputs, options)

    def amap(self, target: Any, inputs: Inputs, options: BatchOptions) -> AsyncIterator[BatchItem]:
        """Do the same for a caller on an event loop."""
        from crewai_native_tasks import batch

        return batch.abegin(target, inputs, options)

    def for_each(self, call: ForEach) -> Any:
        """Answer ``Crew.kickoff_for_each``."""
        if call.crew.stream:
            return call.stock()
        from crewai_native_tasks import batch

        return batch.for_each(call, self._concurrency)

    async def afor_each(self, call: ForEach) -> Any:
        """Answer ``Crew.kickoff_for_each_async`` and ``Crew.akickoff_for_each``."""
        if call.crew.stream:
            return await call.stock()
        from crewai_native_tasks import batch

        return await batch.afor_each(call, self._concurrency)
