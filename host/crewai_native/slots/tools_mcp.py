"""A defect around ``tools.guard``: every call of an MCP tool connects to its server anew."""

from __future__ import annotations

import copy
import functools
from typing import TYPE_CHECKING, Any, Final

from crewai_native.slots._base import Repair, Target

if TYPE_CHECKING:
    from crewai_native._bind import Binding
    from crewai_native.slots._base import Provider

MCP_CONNECTIONS: Final = "mcp-connections"
"""The feature of a guard that keeps connections to MCP servers, with two methods more:

``mcp_client(make)`` returns, for one call of a tool, what CrewAI uses like the ``MCPClient`` that
``make()`` returns: ``connect``, ``call_tool_result`` and ``disconnect``.

``mcp_run_ended(run)`` says that the crew with this id has ended. It must not wait.
"""


def _bind(binding: Binding, provider: Provider) -> None:
    from crewai.events.event_bus import crewai_event_bus
    from crewai.events.types.crew_events import CrewKickoffCompletedEvent, CrewKickoffFailedEvent
    from crewai.tools.mcp_native_tool import MCPNativeTool

    guard = provider.require(binding.served, ("mcp_client", "mcp_run_ended"), "a ToolGuard")

    def make(stock: Any) -> Any:
        async def run(tool: Any, **kwargs: Any) -> Any:
            # CrewAI's code runs on a copy, so that the tool itself stays as it is.
            lent = copy.copy(tool)
            lent._client_factory = functools.partial(guard.mcp_client, tool._client_factory)  # noqa: SLF001 - what is mended
            return await stock(lent, **kwargs)

        return run

    def ended(source: Any, _event: Any) -> None:
        guard.mcp_run_ended(str(source.id))

    binding.stand_in(MCPNativeTool, "_run_async", make)
    for event in (CrewKickoffCompletedEvent, CrewKickoffFailedEvent):
        crewai_event_bus.register_handler(event, ended)
        binding.on_undo(functools.partial(crewai_event_bus.off, event, ended))


REPAIR: Final = Repair(
    MCP_CONNECTIONS,
    "every call of an MCP tool starts its server, or a session with it, anew",
    (Target("crewai.tools.mcp_native_tool:MCPNativeTool._run_async", wrapped=True),),
    MCP_CONNECTIONS,
    _bind,
)
