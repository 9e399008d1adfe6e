"""``tasks.control``: time limits and cancellation."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from crewai_native._errors import Declined
from crewai_native.slots._base import Slot

if TYPE_CHECKING:
    from crewai_native._bind import Binding
    from crewai_native.slots._base import Provider


class TasksControl(Slot):
    """Serves time limits and cancellation."""

    name: ClassVar = "tasks.control"
    summary: ClassVar = "time limits and cancellation"
    how: ClassVar = "wraps Agent._execute_with_timeout/_aexecute_with_timeout"
    keeps_data: ClassVar = False

    def bind(self, binding: Binding, provider: Provider) -> None:
        """Leave the slot to CrewAI: its binding is not written yet."""
        raise Declined("this host does not bind tasks.control yet")


SLOT: Final = TasksControl()
