"""One crew or flow over many inputs, many at a time.

Kickoffs run in CrewAI's ordinary, synchronous way, each on a thread of its own under a copy of the
caller's context: whatever an agent, a tool or a model does blocks that thread and nothing else. (On an
event loop CrewAI sends every step through the loop's thread pool, of a handful of threads.) Threads
that wait for a model cost next to nothing.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, overload

from crewai_native.slots.tasks_batch import BatchItem, BatchOptions, ItemState, engines
from crewai_native_tasks import limits
from crewai_native_tasks.batch_options import check, is_whole
from crewai_native_tasks.batch_run import AsyncBatchRun, BatchRun, Run
from crewai_native_tasks.batch_target import copy_of, crew_of, target_of
from crewai_native_tasks.engine import LocalEngine
from crewai_native_tasks.progress import Progress, Silent

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from crewai_native.slots.tasks_batch import BatchEngine, ForEach
    from crewai_native_tasks.journal import Journal

    OnError = Literal["raise", "collect", "stop"]
    Inputs = Iterable[Mapping[str, Any]]

BOUNDS: Final = (4, 64)
"""Between how many items at a time the concurrency adapts, unless told otherwise."""


@dataclasses.dataclass(frozen=True, slots=True)
class BatchResult(Sequence[BatchItem]):
    """What became of a batch: its items, in the order of the inputs.

    Attributes:
        items: One for each input.
        usage: The sum of their ``UsageMetrics``; None where none had any.
    """

    items: list[BatchItem]
    usage: Any

    @property
    def outputs(self) -> list[Any]:
        """What the kickoffs returned, None for those that did not end well."""
        return [item.output if item.state is ItemState.DONE else None for item in self.items]

    @property
    def failed(self) -> list[BatchItem]:
        """The items that are not done."""
        return [item for item in self.items if item.state is not ItemState.DONE]

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> BatchItem: ...

    @overload
    def __getitem__(self, index: slice) -> list[BatchItem]: ...

    def __getitem__(self, index: int | slice) -> BatchItem | list[BatchItem]:
        """Return an item by the place of its input."""
        return self.items[index]


def map_crew(
    target: Any,
    inputs: Inputs,
    *,
    concurrency: int | tuple[int, int] | None = None,
    on_error: OnError = "raise",
    timeout: float | None = None,
    priority: int = 0,
    retries: int = 0,
    resume: str | os.PathLike[str] | None = None,
    progress: bool = False,
    engine: str = "local",
) -> BatchResult:
    """Run a crew or flow over inputs and return the items in the order of the inputs.

    Args:
        target: A crew, or a class of one (CrewBase), of which each kickoff gets a copy; a flow or its
            class; or a function that returns a new crew or flow.
        inputs: The inputs of each kickoff. An iterator is consumed as there is room.
        concurrency: Kickoffs at a time, or bounds between which it adapts to how fast and how
            willingly models answer; 4 to 64 by default.
        on_error: ``raise`` cancels the rest and raises the first error, ``collect`` goes on, ``stop``
            begins no further items.
        timeout: Seconds that one attempt at an item may take.
        priority: The higher goes first where batches compete for ``tasks.batch_slots``.
        retries: Further attempts at an item that failed or took too long.
        resume: Journal: a file that finished items are written to, and which has those that need not
            be run again.
        progress: Whether to show the progress: a bar on a terminal, lines in the log elsewhere.
        engine: Who runs it; ``local`` is this process.

    Raises:
        ValueError: An option means nothing, or the engine is unknown or cannot honour one.
        TypeError: The target is none.
        JournalError: The journal is of another batch.
    """
    batch = imap_crew(
        target,
        inputs,
        concurrency=concurrency,
        on_error=on_error,
        timeout=timeout,
        priority=priority,
        retries=retries,
        resume=resume,
        progress=progress,
        engine=engine,
    )
    return _gathered(batch, inputs)


async def amap_crew(target: Any, inputs: Inputs, **options: Any) -> BatchResult:
    """Do the same for a caller on an event loop: see :func:`map_crew`."""
    return _gathered([item async for item in aimap_crew(target, inputs, **options)], inputs)


def imap_crew(target: Any, inputs: Inputs, **options: Any) -> BatchRun:
    """Run a crew or flow over inputs and give out its items as they end: see :func:`map_crew`.

    The next inputs are taken when an item is asked for, so whoever takes their time holds the batch up
    and memory stays flat.
    """
    chosen, settings = _chosen(options)
    batch: Any = chosen.map(target, inputs, settings)  # another engine's is its own iterator
    return batch


def aimap_crew(target: Any, inputs: Inputs, **options: Any) -> AsyncBatchRun:
    """Do the same for a caller on an event loop, who writes ``async for item in …``."""
    chosen, settings = _chosen(options)
    batch: Any = chosen.amap(target, inputs, settings)
    return batch


def _chosen(options: dict[str, Any]) -> tuple[BatchEngine, BatchOptions]:
    name = options.pop("engine", "local")
    found = engines()
    chosen: BatchEngine | None = found.get(name)
    if chosen is None:
        if name != LocalEngine.name:
            known = ", ".join(sorted({*found, LocalEngine.name}))
            raise ValueError(f"engine is {name!r}; it accepts {known}")
        chosen = LocalEngine()
    concurrency = options.pop("concurrency", None)
    extra: dict[str, Any] = {}
    if isinstance(concurrency, tuple):
        extra["bounds"], concurrency = concurrency, None
    resume = options.pop("resume", None)
    settings = BatchOptions(
        concurrency=concurrency,
        resume=None if resume is None else str(resume),
        engine=extra,
        **options,
    )
    return chosen, settings


def _gathered(batch: Iterable[BatchItem], inputs: Inputs) -> BatchResult:
    usage: Any = None
    items: dict[int, BatchItem] = {}
    for item in batch:
        items[item.index] = item
        if item.usage is not None:
            usage = usage or type(item.usage)()
            usage.add_usage_metrics(item.usage)
    # Inputs that were not come to any more have items too, where it is known that there are any.
    count = len(inputs) if isinstance(inputs, Sequence) else len(items)
    pending = (BatchItem(index, ItemState.PENDING, attempts=0) for index in range(count))
    return BatchResult([items.get(item.index, item) for item in pending], usage)


def begin(target: Any, inputs: Inputs, options: BatchOptions) -> BatchRun:
    """Begin a batch in this process."""
    return BatchRun(_run(target, inputs, options), _shown(inputs, options))


def abegin(target: Any, inputs: Inputs, options: BatchOptions) -> AsyncBatchRun:
    """Do the same for a caller on an event loop."""
    _checked(options)
    make = functools.partial(_run, target, inputs, options)
    return AsyncBatchRun(lambda notify: make(notify=notify), _shown(inputs, options))


def for_each(call: ForEach, concurrency: int | None) -> list[Any]:
    """Answer ``Crew.kickoff_for_each`` of a crew that does not stream."""
    return _finished(call, BatchRun(_each(call, concurrency, None), Silent()))


async def afor_each(call: ForEach, concurrency: int | None) -> list[Any]:
    """Answer ``Crew.kickoff_for_each_async`` and ``Crew.akickoff_for_each``."""
    if call.kickoff == "akickoff":
        # Its models and tools may be bound to the caller's event loop.
        return await _awaited(call, concurrency or 1)
    batch = AsyncBatchRun(functools.partial(_each, call, concurrency), Silent())
    return _finished(call, [item async for item in batch])


def _each(call: ForEach, concurrency: int | None, notify: Callable[[], None] | None) -> Run:
    options = BatchOptions(concurrency=concurrency)
    return _run(call.crew, call.inputs, options, notify=notify, input_files=call.input_files)


def _finished(call: ForEach, batch: Iterable[BatchItem]) -> list[Any]:
    from crewai.types.usage_metrics import UsageMetrics

    result = _gathered(batch, call.inputs)
    call.crew.usage_metrics = result.usage or UsageMetrics()
    call.crew._task_output_handler.reset()  # noqa: SLF001 - as CrewAI's own code does
    return result.outputs


async def _awaited(call: ForEach, concurrency: int) -> list[Any]:
    """Await kickoffs on the caller's event loop, so many at a time; an error ends them all."""
    from crewai.types.usage_metrics import UsageMetrics

    all_inputs = list(call.inputs)
    outputs: list[Any] = [None] * len(all_inputs)
    usage = UsageMetrics()
    left = iter(enumerate(all_inputs))

    async def work() -> None:
        # One after the other from what is left: a crew is copied when its turn has come.
        for index, inputs in left:
            crew = copy_of(call.crew)
            outputs[index] = await crew.akickoff(inputs=inputs, input_files=call.input_files)
            usage.add_usage_metrics(crew.usage_metrics)

    tasks = [asyncio.create_task(work()) for _ in range(min(concurrency, len(all_inputs)))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    call.crew.usage_metrics = usage
    call.crew._task_output_handler.reset()  # noqa: SLF001 - as CrewAI's own code does
    return outputs


def _run(
    target: Any,
    inputs: Inputs,
    options: BatchOptions,
    *,
    notify: Callable[[], None] | None = None,
    **kickoff: Any,
) -> Run:
    bounds = _checked(options)
    target = crew_of(target)
    runs = target_of(target, **kickoff)
    # CrewAI grants `max_rpm` to each copy of a crew; the user meant the crew.
    most = getattr(target, "max_rpm", None)
    extra = (limits.Limit(requests=most),) if isinstance(most, int) and most > 0 else ()
    journal: Journal | None = None
    if options.resume is not None:
        from crewai_native_tasks.journal import Journal as _Journal

        journal = _Journal(options.resume, runs.key(), _models_of(target))
    try:
        return Run(
            runs, inputs, options, bounds=bounds, extra=extra, journal=journal, notify=notify
        )
    except BaseException:
        if journal is not None:
            journal.close()
        raise


def _models_of(target: Any) -> Iterator[type]:
    for task in getattr(target, "tasks", ()):
        for field in ("output_pydantic", "response_model"):
            if isinstance(model := getattr(task, field, None), type):
                yield model


def _shown(inputs: Inputs, options: BatchOptions) -> Progress | Silent:
    if not options.progress:
        return Silent()
    return Progress(len(inputs) if isinstance(inputs, Sequence) else None)


def _checked(options: BatchOptions) -> tuple[int, int]:
    """Return the bounds of the concurrency.

    Raises:
        ValueError: An option means nothing.
    """
    unknown = set(options.engine) - {"bounds"}
    if unknown:
        raise ValueError(f"engine local has no option {', '.join(sorted(unknown))}; it has bounds")
    bounds: Any = options.engine.get("bounds")
    if bounds is None:
        bounds = BOUNDS if options.concurrency is None else (options.concurrency,) * 2
    check(options)
    match bounds:
        case (fewest, most) if is_whole(fewest, 1) and is_whole(most, fewest):
            return fewest, most
    raise ValueError(
        f"concurrency is {bounds if options.concurrency is None else options.concurrency!r}; it "
        "accepts a number from 1, or two such as (4, 64)"
    )
