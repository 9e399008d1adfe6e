"""``tools.guard``: every tool execution."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from crewai_native._errors import Declined
from crewai_native.slots._base import Slot

if TYPE_CHECKING:
    from crewai_native._bind import Binding
    from crewai_native.slots._base import Provider


class ToolsGuard(Slot):
    """Serves every tool execution."""

    name: ClassVar = "tools.guard"
    summary: ClassVar = "every tool execution"
    how: ClassVar = "wraps CrewStructuredTool.invoke/ainvoke, BaseTool.run/arun, Tool.run/arun"
    keeps_data: ClassVar = False

    def bind(self, binding: Binding, provider: Provider) -> None:
        """Leave the slot to CrewAI: its binding is not written yet."""
        raise Declined("this host does not bind tools.guard yet")


SLOT: Final = ToolsGuard()
