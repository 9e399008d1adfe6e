"""``tasks.batch``: kickoffs over many inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from crewai_native._errors import Declined
from crewai_native.slots._base import Slot

if TYPE_CHECKING:
    from crewai_native._bind import Binding
    from crewai_native.slots._base import Provider


class TasksBatch(Slot):
    """Serves kickoffs over many inputs."""

    name: ClassVar = "tasks.batch"
    summary: ClassVar = "kickoffs over many inputs"
    how: ClassVar = "wraps Crew.kickoff_for_each and its async twins"
    keeps_data: ClassVar = False

    def bind(self, binding: Binding, provider: Provider) -> None:
        """Leave the slot to CrewAI: its binding is not written yet."""
        raise Declined("this host does not bind tasks.batch yet")


SLOT: Final = TasksBatch()
