"""``checkpoint.writer``: how checkpoints of running crews, flows and agents are written and read."""

from __future__ import annotations

import asyncio
import functools
import logging
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, Protocol

from crewai_native.slots._base import Slot, Target

if TYPE_CHECKING:
    from collections.abc import Callable

    from crewai_native._bind import Binding
    from crewai_native.slots._base import Provider

_logger = logging.getLogger("crewai_native")

PROTOCOL: Final = ("write", "save", "read", "restored", "prune", "drain")


class Checkpoint(NamedTuple):
    """A checkpoint that is due.

    Attributes:
        state: The run's ``RuntimeState``: ``root`` holds its entities, ``event_record`` its
            events, ``_parent_id`` and ``_branch`` its place in the lineage. The run goes on
            meanwhile and changes them.
        config: The ``CheckpointConfig``: ``location``, ``max_checkpoints``, and ``provider``,
            whose class (``JsonProvider`` or ``SqliteProvider``) says what CrewAI's commands expect
            to find at the location.
        event: The event that triggered it, or None.
        stock: Writes it as CrewAI does, and returns what CrewAI's function does.
    """

    state: Any
    config: Any
    event: Any
    stock: Callable[[], Any]


class CheckpointWriter(Protocol):
    """Writes checkpoints in the place of CrewAI's ``_do_checkpoint``.

    Locations and ids look as CrewAI's do. ``crewai checkpoint`` reads files and tables itself, in
    a process that need not load accelerators: what stands at a location is JSON of CrewAI's shape
    as far as those commands look.
    """

    def write(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, prune, move the lineage on and emit CrewAI's events of it.

        Called on threads of the event bus, several at a time even for one run. It may return
        before the checkpoint is durable; :meth:`drain` then waits for it. What it raises is
        logged, and counted as an error of the slot.
        """

    def save(self, checkpoint: Checkpoint) -> str:
        """Write a checkpoint that the program asks for, as ``RuntimeState.checkpoint`` does.

        Its ``config`` has the state's provider and the location. The state moves on in the lineage.

        Returns:
            What CrewAI calls the checkpoint, which is durable.
        """

    def read(self, location: str, stock: Callable[[], str]) -> str:
        """Return a checkpoint as the JSON text that CrewAI would have written.

        Args:
            location: As ``CheckpointConfig.restore_from`` has it: a file, or ``database#id``.
            stock: Reads what stands there as CrewAI does: for checkpoints not of its making.
        """

    def restored(self, state: Any, location: str) -> None:
        """Give a state back what JSON cannot hold, after CrewAI has made it of what was read."""

    def prune(self, location: str, keep: int, branch: str, stock: Callable[[], int]) -> int:
        """Remove a branch's oldest checkpoints but for ``keep`` and return how many went.

        What younger checkpoints build on has to stay readable.
        """

    def drain(self, state: Any) -> None:
        """Wait until a run's checkpoints are durable.

        Called when the outermost kickoff ends, however it ends, on its thread, which may be that
        of the caller's event loop.

        Raises:
            Exception: A checkpoint failed and the user wants to know; the kickoff raises it.
        """


class CheckpointWriterSlot(Slot):
    """Serves checkpoints, automatic or asked for, and every reader of them inside CrewAI.

    A ``CheckpointConfig`` with a provider class of the application's own is left to CrewAI, and so is
    one with a class of CrewAI's whose way to write the application has replaced.
    """

    name: ClassVar = "checkpoint.writer"
    summary: ClassVar = "checkpoints"
    how: ClassVar = (
        "_do_checkpoint, RuntimeState, JsonProvider, SqliteProvider, end of the runtime scope"
    )
    keeps_data: ClassVar = True
    targets: ClassVar = (
        Target("crewai.state.checkpoint_listener:_do_checkpoint", wrapped=True),
        Target("crewai.events.event_bus:CrewAIEventsBus._exit_runtime_scope", wrapped=True),
        *(
            Target(f"crewai.state.runtime:RuntimeState.{name}", wrapped=True)
            for name in ("checkpoint", "acheckpoint", "from_checkpoint", "afrom_checkpoint")
        ),
        *(
            Target(
                f"crewai.state.provider.{kind.lower()}_provider:{kind}Provider.{name}", wrapped=True
            )
            for kind in ("Json", "Sqlite")
            for name in ("from_checkpoint", "afrom_checkpoint", "prune")
        ),
    )

    def bind(self, binding: Binding, provider: Provider) -> None:
        """Put the provider in the place of CrewAI's writer and before its readers."""
        from crewai.events.event_bus import CrewAIEventsBus
        from crewai.state import checkpoint_listener
        from crewai.state.checkpoint_config import CheckpointConfig
        from crewai.state.provider.json_provider import JsonProvider
        from crewai.state.provider.sqlite_provider import SqliteProvider
        from crewai.state.runtime import RuntimeState

        writer = provider.require(provider.call(), PROTOCOL, "a CheckpointWriter")
        meter = binding.watch.meter
        write, read = meter(writer.write), meter(writer.read)
        prune, drain = meter(writer.prune), meter(writer.drain)
        save, restored = meter(writer.save), meter(writer.restored)
        served = (JsonProvider, SqliteProvider)
        stock_ways = {cls: _ways(cls) for cls in served}

        def serves(provider: Any) -> bool:
            return type(provider) in served and _ways(type(provider)) == stock_ways[type(provider)]

        def make_write(stock: Any) -> Any:
            def do_checkpoint(state: Any, cfg: Any, event: Any = None) -> None:
                original = functools.partial(stock, state, cfg, event)
                if not serves(cfg.provider):
                    original()
                    return
                try:
                    write(Checkpoint(state, cfg, event, original))
                except Exception:
                    # CrewAI logs it as a warning. A run that cannot be resumed is an error.
                    _logger.exception("no checkpoint was written at %s", cfg.location)
                    raise

            return do_checkpoint

        def make_save(stock: Any) -> Any:
            def checkpoint(state: Any, location: str) -> Any:
                provider = state._provider  # noqa: SLF001 - as the stock code does
                if not serves(provider):
                    return stock(state, location)
                config = CheckpointConfig(location=location, provider=provider)
                original = functools.partial(stock, state, location)
                return save(Checkpoint(state, config, None, original))

            return checkpoint

        binding.stand_in(checkpoint_listener, "_do_checkpoint", make_write)
        binding.stand_in(RuntimeState, "checkpoint", make_save)
        binding.stand_in(RuntimeState, "acheckpoint", functools.partial(_make_asave, serves))
        _restore_with(binding, RuntimeState, restored)
        for cls in served:
            binding.stand_in(cls, "from_checkpoint", functools.partial(_make_read, read))
            binding.stand_in(cls, "afrom_checkpoint", _make_aread)
            binding.stand_in(cls, "prune", functools.partial(_make_prune, prune))
        binding.stand_in(
            CrewAIEventsBus, "_exit_runtime_scope", functools.partial(_make_exit, drain)
        )


def _ways(cls: type) -> tuple[Any, Any]:
    return vars(cls).get("checkpoint"), vars(cls).get("acheckpoint")


def _make_asave(serves: Callable[[Any], bool], stock: Any) -> Any:
    async def acheckpoint(state: Any, location: str) -> Any:
        if not serves(state._provider):  # noqa: SLF001 - as the stock code does
            return await stock(state, location)
        return await asyncio.to_thread(state.checkpoint, location)

    return acheckpoint


def _restore_with(binding: Binding, owner: Any, restored: Any) -> None:
    watch = binding.watch

    def from_checkpoint(stock: Any) -> Any:
        def switch(cls: Any, config: Any, **kwargs: Any) -> Any:
            state = stock.__func__(cls, config, **kwargs)
            if watch.serving:
                restored(state, str(config.restore_from))
            return state

        named: Any = functools.update_wrapper(switch, stock.__func__)
        return classmethod(named)

    def afrom_checkpoint(stock: Any) -> Any:
        async def switch(cls: Any, config: Any, **kwargs: Any) -> Any:
            state = await stock.__func__(cls, config, **kwargs)
            if watch.serving:
                restored(state, str(config.restore_from))
            return state

        named: Any = functools.update_wrapper(switch, stock.__func__)
        return classmethod(named)

    binding.wrap(owner, "from_checkpoint", from_checkpoint)
    binding.wrap(owner, "afrom_checkpoint", afrom_checkpoint)


def _make_read(read: Any, stock: Any) -> Any:
    def from_checkpoint(provider: Any, location: str) -> Any:
        return read(location, functools.partial(stock, provider, location))

    return from_checkpoint


def _make_aread(stock: Any) -> Any:  # noqa: ARG001 - the same file, by the other way
    async def afrom_checkpoint(provider: Any, location: str) -> Any:
        return await asyncio.to_thread(provider.from_checkpoint, location)

    return afrom_checkpoint


def _make_prune(prune: Any, stock: Any) -> Any:
    def prune_checkpoints(
        provider: Any, location: str, max_keep: int, *, branch: str = "main"
    ) -> Any:
        original = functools.partial(stock, provider, location, max_keep, branch=branch)
        return prune(location, max_keep, branch, original)

    return prune_checkpoints


def _has_checkpoints(entity: Any) -> bool:
    # The agents of a crew have their own settings, and are no entities of the run.
    owners = (entity, *(getattr(entity, "agents", None) or ()))
    return any(getattr(owner, "checkpoint", None) for owner in owners)


def _make_exit(drain: Any, stock: Any) -> Any:
    def exit_runtime_scope(bus: Any, outermost: bool) -> None:
        state = bus._runtime_state if outermost else None  # noqa: SLF001 - as the stock code does
        try:
            if state is not None and any(map(_has_checkpoints, state.root)):
                # The run's last events may still wait for a thread of the bus to handle them.
                bus.flush()
                drain(state)
        finally:
            stock(bus, outermost)

    return exit_runtime_scope


SLOT: Final = CheckpointWriterSlot()
