"""``tasks.batch``: one crew or flow run over many inputs, by engines chosen by name."""

from __future__ import annotations

import dataclasses
import enum
import functools
import types
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, NamedTuple, Protocol

from crewai_native._errors import ProviderError
from crewai_native.slots._base import Slot, Target

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping

    from crewai_native._bind import Binding
    from crewai_native.slots._base import Provider

PROTOCOL: Final = ("map", "amap", "for_each", "afor_each")


class ItemState(enum.StrEnum):
    """Where an item of a batch stands."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed-out"


@dataclasses.dataclass(frozen=True, slots=True)
class BatchItem:
    """What became of one input.

    Attributes:
        index: Its place among the inputs, from 0.
        state: How it ended.
        output: What the kickoff returned, if it is done.
        error: Why it is not, otherwise.
        attempts: How often it was started; 0 if a journal had the output already.
        seconds: Wall time of the last attempt.
        usage: The crew's ``UsageMetrics``, or None.
    """

    index: int
    state: ItemState
    output: Any = None
    error: BaseException | None = None
    attempts: int = 1
    seconds: float = 0.0
    usage: Any = None


class BatchOptions(NamedTuple):
    """How to run a batch. An engine names the option that it cannot honour, in a ``ValueError``.

    Attributes:
        concurrency: Kickoffs at a time; None for the engine's own choice.
        on_error: ``collect`` goes on; ``stop`` starts no further items; ``raise`` cancels those
            that run as well, and the iterator raises the first error.
        timeout: Seconds that one attempt may take.
        priority: The higher goes first where batches compete.
        retries: Further attempts at an item that failed.
        resume: Journal of finished items, which are not run again; written as items finish.
        progress: Whether to show the progress.
        engine: Options of the engine's own.
    """

    concurrency: int | None = None
    on_error: Literal["collect", "stop", "raise"] = "raise"
    timeout: float | None = None
    priority: int = 0
    retries: int = 0
    resume: str | None = None
    progress: bool = False
    engine: Mapping[str, Any] = types.MappingProxyType({})


class ForEach(NamedTuple):
    """A call of one of CrewAI's own batch methods.

    Attributes:
        crew: The crew; each input runs on a ``crew.copy()``.
        inputs: One dictionary for each kickoff.
        input_files: Files that all kickoffs share, or None.
        kickoff: The method that CrewAI would start each copy with: ``kickoff``,
            ``kickoff_async`` or ``akickoff``.
        stock: Runs CrewAI's own code for the call; awaitable where the caller awaits. A
            streaming crew (``crew.stream``) is best left to it.
    """

    crew: Any
    inputs: list[dict[str, Any]]
    input_files: Any
    kickoff: Literal["kickoff", "kickoff_async", "akickoff"]
    stock: Callable[[], Any]


class BatchEngine(Protocol):
    """Runs batches; known to ``map_crew(engine=…)`` by its name.

    Attributes:
        name: Short and unique among the engines installed: ``local``, ``celery``.
        takes_over: Whether ``Crew.kickoff_for_each`` and its twins go to this engine. Asked at each
            call. The first engine that says so, in the host's order, has them; an engine that is
            for those who name it says no.
    """

    name: str
    takes_over: bool

    def map(
        self, target: Any, inputs: Iterable[Mapping[str, Any]], options: BatchOptions
    ) -> Iterator[BatchItem]:
        """Run a crew or flow over inputs and yield the items as they end.

        Inputs are taken as they are needed. Closing the iterator cancels what has not ended.
        """

    def amap(
        self, target: Any, inputs: Iterable[Mapping[str, Any]], options: BatchOptions
    ) -> AsyncIterator[BatchItem]:
        """Do the same for a caller on an event loop."""

    def for_each(self, call: ForEach) -> Any:
        """Answer ``Crew.kickoff_for_each``: its results, errors and ``usage_metrics``."""

    async def afor_each(self, call: ForEach) -> Any:
        """Answer ``Crew.kickoff_for_each_async`` and ``Crew.akickoff_for_each``."""


_engines: dict[str, BatchEngine] = {}


def engines() -> Mapping[str, BatchEngine]:
    """Return the engines that are bound, by name, in the host's order."""
    return dict(_engines)


class TasksBatch(Slot):
    """Serves :func:`engines`, and CrewAI's own batch methods where an engine takes them over."""

    name: ClassVar = "tasks.batch"
    summary: ClassVar = "kickoffs over many inputs"
    how: ClassVar = "Crew.kickoff_for_each, .kickoff_for_each_async, .akickoff_for_each"
    shared: ClassVar = True
    targets: ClassVar = (
        Target("crewai.crew:Crew.kickoff_for_each", wrapped=True),
        Target("crewai.crew:Crew.kickoff_for_each_async", wrapped=True),
        Target("crewai.crew:Crew.akickoff_for_each", wrapped=True),
    )

    def bind(self, binding: Binding, provider: Provider) -> None:
        """Register the engine and put the engines before CrewAI's methods."""
        from crewai.crew import Crew

        self.join(binding, provider)
        for_each = binding.watch.meter(_for_each)
        afor_each = binding.watch.meter(_afor_each)

        def make(stock: Any) -> Any:
            def kickoff_for_each(crew: Any, inputs: Any, input_files: Any = None) -> Any:
                original = functools.partial(stock, crew, inputs, input_files)
                engine = _taking_over()
                if engine is None:
                    return original()
                return for_each(engine, ForEach(crew, inputs, input_files, "kickoff", original))

            return kickoff_for_each

        def make_async(kickoff: Literal["kickoff_async", "akickoff"], stock: Any) -> Any:
            async def kickoff_for_each(crew: Any, inputs: Any, input_files: Any = None) -> Any:
                original: Callable[[], Awaitable[Any]]
                original = functools.partial(stock, crew, inputs, input_files)
                engine = _taking_over()
                if engine is None:
                    return await original()
                call = ForEach(crew, inputs, input_files, kickoff, original)
                return await afor_each(engine, call)

            return kickoff_for_each

        binding.stand_in(Crew, "kickoff_for_each", make)
        binding.stand_in(
            Crew, "kickoff_for_each_async", functools.partial(make_async, "kickoff_async")
        )
        binding.stand_in(Crew, "akickoff_for_each", functools.partial(make_async, "akickoff"))

    def join(self, binding: Binding, provider: Provider) -> None:
        """Register a further engine.

        Raises:
            ProviderError: It has no name, or one that is taken, or says not whether it takes over.
        """
        engine = provider.require(provider.call(), PROTOCOL, "a BatchEngine")
        name = getattr(engine, "name", None)
        if not isinstance(name, str) or not name:
            raise provider.wrong_type(engine, "a BatchEngine with a name")
        if not hasattr(engine, "takes_over"):
            raise provider.wrong_type(engine, "a BatchEngine with takes_over, True or False")
        if name in _engines:
            raise ProviderError(
                f"{provider.distribution} {provider.version} names its engine {name!r}; "
                f"{self.name} has one of that name already"
            )
        _engines[name] = engine
        binding.on_undo(functools.partial(_engines.__delitem__, name))
        binding.notes.append(f"engine {name}")


def _taking_over() -> BatchEngine | None:
    return next((engine for engine in list(_engines.values()) if engine.takes_over), None)


def _for_each(engine: BatchEngine, call: ForEach) -> Any:
    return engine.for_each(call)


async def _afor_each(engine: BatchEngine, call: ForEach) -> Any:
    return await engine.afor_each(call)


SLOT: Final = TasksBatch()
