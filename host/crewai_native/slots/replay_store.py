"""``replay.store``: task outputs for replay."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from crewai_native._errors import Declined
from crewai_native.slots._base import Slot

if TYPE_CHECKING:
    from crewai_native._bind import Binding
    from crewai_native.slots._base import Provider


class ReplayStoreSlot(Slot):
    """Serves task outputs for replay."""

    name: ClassVar = "replay.store"
    summary: ClassVar = "task outputs for replay"
    how: ClassVar = "wraps KickoffTaskOutputsSQLiteStorage"
    keeps_data: ClassVar = True

    def bind(self, binding: Binding, provider: Provider) -> None:
        """Leave the slot to CrewAI: its binding is not written yet."""
        raise Declined("this host does not bind replay.store yet")


SLOT: Final = ReplayStoreSlot()
