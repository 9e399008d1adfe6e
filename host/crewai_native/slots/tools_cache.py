"""``tools.cache``: results of tool calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from crewai_native._errors import Declined
from crewai_native.slots._base import Slot

if TYPE_CHECKING:
    from crewai_native._bind import Binding
    from crewai_native.slots._base import Provider


class ToolsCache(Slot):
    """Serves results of tool calls."""

    name: ClassVar = "tools.cache"
    summary: ClassVar = "results of tool calls"
    how: ClassVar = "wraps CacheHandler.add/read"
    keeps_data: ClassVar = False

    def bind(self, binding: Binding, provider: Provider) -> None:
        """Leave the slot to CrewAI: its binding is not written yet."""
        raise Declined("this host does not bind tools.cache yet")


SLOT: Final = ToolsCache()
