"""``serialization.messages``: messages between agents."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from crewai_native._errors import Declined
from crewai_native.slots._base import Slot

if TYPE_CHECKING:
    from crewai_native._bind import Binding
    from crewai_native.slots._base import Provider


class SerializationMessages(Slot):
    """Serves messages between agents."""

    name: ClassVar = "serialization.messages"
    summary: ClassVar = "messages between agents"
    how: ClassVar = "crewai_native.slots.serialization_messages.codec()"
    keeps_data: ClassVar = False

    def bind(self, binding: Binding, provider: Provider) -> None:
        """Leave the slot to CrewAI: its binding is not written yet."""
        raise Declined("this host does not bind serialization.messages yet")


SLOT: Final = SerializationMessages()
