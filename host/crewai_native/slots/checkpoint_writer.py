"""``checkpoint.writer``: how checkpoints of running crews, flows and agents are written and read."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

from crewai_native.slots._base import Slot, Target

if TYPE_CHECKING:
    from collections.abc import Callable

    from crewai_native._bind import Binding
    from crewai_native.slots._base import Provider

_logger = logging.getLogger("crewai_native")

PROTOCOL: Final = ("write", "read", "prune", "drain")


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A checkpoint that is due.

    Attributes:
        state: The run's ``RuntimeState``: ``root`` holds its entities, ``event_record`` its
            events, ``_parent_id`` and ``_branch`` its place in the lineage. The run goes on
            meanwhile and changes them.
        config: The ``CheckpointConfig``: ``location``, ``max_checkpoints``, and ``provider``,
            whose class (``JsonProvider`` or ``SqliteProvider``) says what CrewAI's commands expect
            to find at the location.
        event: The event that triggered it, or None.
        stock: Writes it as CrewAI does.
    """

    state: Any
    config: Any
    event: Any
    stock: Callable[[], None]


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

    def read(self, location: str, stock: Callable[[], str]) -> str:
        """Return a checkpoint as the JSON text that CrewAI would have written.

        Args:
            location: As ``CheckpointConfig.restore_from`` has it: a file, or ``database#id``.
            stock: Reads what stands there as CrewAI does: for checkpoints not of its making.
        """

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
    """Serves automatic checkpoints, and every reader of them inside CrewAI.

    A ``CheckpointConfig`` with a provider class of the application's own is left to CrewAI.
    """

    name: ClassVar = "checkpoint.writer"
    summary: ClassVar = "checkpoints"
    how: ClassVar = "_do_checkpoint, JsonProvider, SqliteProvider, end of the runtime scope"
    keeps_data: ClassVar = True
    targets: ClassVar = (
        Target("crewai.state.checkpoint_listener:_do_checkpoint", wrapped=True),
        Target("crewai.events.event_bus:CrewAIEventsBus._exit_runtime_scope", wrapped=True),
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
        from crewai.state.provider.json_provider import JsonProvider
        from crewai.state.provider.sqlite_provider import SqliteProvider

        writer = provider.require(provider.call(), PROTOCOL, "a CheckpointWriter")
        meter = binding.watch.meter
        write, read = meter(writer.write), meter(writer.read)
        prune, drain = meter(writer.prune), meter(writer.drain)
        served = (JsonProvider, SqliteProvider)

        def make_write(stock: Any) -> Any:
            def do_checkpoint(state: Any, cfg: Any, event: Any = None) -> None:
                original = functools.partial(stock, state, cfg, event)
                if type(cfg.provider) not in served:
                    original()
                    return
                try:
                    write(Checkpoint(state, cfg, event, original))
                except Exception:
                    # CrewAI logs it as a warning. A run that cannot be resumed is an error.
                    _logger.exception("no checkpoint was written at %s", cfg.location)
                    raise

            return do_checkpoint

        binding.stand_in(checkpoint_listener, "_do_checkpoint", make_write)
        for cls in served:
            binding.stand_in(cls, "from_checkpoint", functools.partial(_make_read, read))
            binding.stand_in(cls, "afrom_checkpoint", _make_aread)
            binding.stand_in(cls, "prune", functools.partial(_make_prune, prune))
        binding.stand_in(
            CrewAIEventsBus, "_exit_runtime_scope", functools.partial(_make_exit, drain)
        )


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
