"""``locks``: named locks between processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from crewai_native._errors import Declined
from crewai_native.slots._base import Slot

if TYPE_CHECKING:
    from crewai_native._bind import Binding
    from crewai_native.slots._base import Provider


class Locks(Slot):
    """Serves named locks between processes."""

    name: ClassVar = "locks"
    summary: ClassVar = "named locks between processes"
    how: ClassVar = "set_lock_backend"
    keeps_data: ClassVar = False

    def bind(self, binding: Binding, provider: Provider) -> None:
        """Leave the slot to CrewAI: its binding is not written yet."""
        raise Declined("this host does not bind locks yet")


SLOT: Final = Locks()
