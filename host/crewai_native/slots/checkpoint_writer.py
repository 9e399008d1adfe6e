"""``checkpoint.writer``: checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from crewai_native._errors import Declined
from crewai_native.slots._base import Slot

if TYPE_CHECKING:
    from crewai_native._bind import Binding
    from crewai_native.slots._base import Provider


class CheckpointWriterSlot(Slot):
    """Serves checkpoints."""

    name: ClassVar = "checkpoint.writer"
    summary: ClassVar = "checkpoints"
    how: ClassVar = "wraps _do_checkpoint"
    keeps_data: ClassVar = True

    def bind(self, binding: Binding, provider: Provider) -> None:
        """Leave the slot to CrewAI: its binding is not written yet."""
        raise Declined("this host does not bind checkpoint.writer yet")


SLOT: Final = CheckpointWriterSlot()
