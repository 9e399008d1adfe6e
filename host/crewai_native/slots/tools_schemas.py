"""``tools.schemas``: names and schemas of tools."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from crewai_native._errors import Declined
from crewai_native.slots._base import Slot

if TYPE_CHECKING:
    from crewai_native._bind import Binding
    from crewai_native.slots._base import Provider


class ToolsSchemas(Slot):
    """Serves names and schemas of tools."""

    name: ClassVar = "tools.schemas"
    summary: ClassVar = "names and schemas of tools"
    how: ClassVar = "replaces generate_model_description and sanitize_tool_name"
    keeps_data: ClassVar = False

    def bind(self, binding: Binding, provider: Provider) -> None:
        """Leave the slot to CrewAI: its binding is not written yet."""
        raise Declined("this host does not bind tools.schemas yet")


SLOT: Final = ToolsSchemas()
