"""``flow.persistence``: state of flows."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from crewai_native._errors import Declined
from crewai_native.slots._base import Slot

if TYPE_CHECKING:
    from crewai_native._bind import Binding
    from crewai_native.slots._base import Provider


class FlowPersistenceSlot(Slot):
    """Serves state of flows."""

    name: ClassVar = "flow.persistence"
    summary: ClassVar = "state of flows"
    how: ClassVar = "set_flow_persistence_factory"
    keeps_data: ClassVar = True

    def bind(self, binding: Binding, provider: Provider) -> None:
        """Leave the slot to CrewAI: its binding is not written yet."""
        raise Declined("this host does not bind flow.persistence yet")


SLOT: Final = FlowPersistenceSlot()
