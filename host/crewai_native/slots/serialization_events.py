"""``serialization.events``: events and messages as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from crewai_native._errors import Declined
from crewai_native.slots._base import Slot

if TYPE_CHECKING:
    from crewai_native._bind import Binding
    from crewai_native.slots._base import Provider


class SerializationEvents(Slot):
    """Serves events and messages as JSON."""

    name: ClassVar = "serialization.events"
    summary: ClassVar = "events and messages as JSON"
    how: ClassVar = "replaces to_serializable"
    keeps_data: ClassVar = False

    def bind(self, binding: Binding, provider: Provider) -> None:
        """Leave the slot to CrewAI: its binding is not written yet."""
        raise Declined("this host does not bind serialization.events yet")


SLOT: Final = SerializationEvents()
