"""``tasks.graph``: order of a crew's tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from crewai_native._errors import Declined
from crewai_native.slots._base import Slot

if TYPE_CHECKING:
    from crewai_native._bind import Binding
    from crewai_native.slots._base import Provider


class TasksGraph(Slot):
    """Serves order of a crew's tasks."""

    name: ClassVar = "tasks.graph"
    summary: ClassVar = "order of a crew's tasks"
    how: ClassVar = "wraps Crew._execute_tasks/_aexecute_tasks"
    keeps_data: ClassVar = False

    def bind(self, binding: Binding, provider: Provider) -> None:
        """Leave the slot to CrewAI: its binding is not written yet."""
        raise Declined("this host does not bind tasks.graph yet")


SLOT: Final = TasksGraph()
