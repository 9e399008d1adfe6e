"""``tasks.executor``: CrewAI's internal flows."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from crewai_native._errors import Declined
from crewai_native.slots._base import Slot

if TYPE_CHECKING:
    from crewai_native._bind import Binding
    from crewai_native.slots._base import Provider


class TasksExecutor(Slot):
    """Serves CrewAI's internal flows."""

    name: ClassVar = "tasks.executor"
    summary: ClassVar = "CrewAI's internal flows"
    how: ClassVar = "wraps the flow runtime's kickoff"
    keeps_data: ClassVar = False

    def bind(self, binding: Binding, provider: Provider) -> None:
        """Leave the slot to CrewAI: its binding is not written yet."""
        raise Declined("this host does not bind tasks.executor yet")


SLOT: Final = TasksExecutor()
