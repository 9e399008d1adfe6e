"""A defect around ``tools.guard``: every call of an MCP tool connects to its server anew.

CrewAI has two kinds of such tools: for servers that are described by an object, with a client of its own
class, and for servers that are given by their address alone, for which it uses the MCP library itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import types
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
        async def run(tool: Any, /, **kwargs: Any) -> Any:
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


class _ByAddress:
    """A client of a server that is known by its address, with what is used of an ``MCPClient``.

    Attributes:
        transport: What tells the server from others.
        session: The session, once it is connected.
    """

    def __init__(self, url: str) -> None:
        self.transport = types.SimpleNamespace(url=url)
        self.session: Any = None
        self._open = contextlib.AsyncExitStack()

    async def connect(self) -> None:
        """Connect as CrewAI does for each call."""
        from mcp import ClientSession
        from mcp.client.streamable_http import streamablehttp_client

        try:
            read, write, _ = await self._open.enter_async_context(
                streamablehttp_client(self.transport.url, terminate_on_close=True)
            )
            self.session = await self._open.enter_async_context(ClientSession(read, write))
            await self.session.initialize()
        except BaseException:
            await self._open.aclose()
            raise

    async def disconnect(self) -> None:
        """End the session."""
        await self._open.aclose()

    async def call_tool(self, name: str, arguments: dict[str, Any]) -> Any:
        """Return what the server answers."""
        return await self.session.call_tool(name, arguments)


def _bind_by_address(binding: Binding, provider: Provider) -> None:
    from crewai.mcp.content import content_blocks_to_text
    from crewai.tools.mcp_tool_wrapper import MCPToolWrapper

    guard = provider.require(binding.served, ("mcp_client",), "a ToolGuard")

    def make(stock: Any) -> Any:  # noqa: ARG001 - it does nothing but connect, call and disconnect
        async def execute_tool(tool: Any, /, **kwargs: Any) -> str:
            client = guard.mcp_client(functools.partial(_ByAddress, tool.mcp_server_params["url"]))
            try:
                await client.connect()
                try:
                    result = await client.call_tool(tool.original_tool_name, kwargs)
                finally:
                    await client.disconnect()
            except asyncio.CancelledError as error:
                # CrewAI's word for it, which its callers know.
                raise TimeoutError("MCP operation was cancelled") from error
            except Exception as error:
                # As there: after these it tries again.
                if error.__cause__ is not None:
                    raise TimeoutError(
                        f"MCP connection error: {error.__cause__}"
                    ) from error.__cause__
                if "TaskGroup" in str(error) or "unhandled errors" in str(error):
                    raise TimeoutError(f"MCP connection error: {error}") from error
                raise
            return content_blocks_to_text(result.content) if result.content else str(result)

        return execute_tool

    binding.stand_in(MCPToolWrapper, "_execute_tool", make)


REPAIR_BY_ADDRESS: Final = Repair(
    "mcp-connections-by-address",
    "every call of a tool of an MCP server that is given by its address opens a session anew",
    (Target("crewai.tools.mcp_tool_wrapper:MCPToolWrapper._execute_tool", wrapped=True),),
    MCP_CONNECTIONS,
    _bind_by_address,
)

REPAIR: Final = Repair(
    MCP_CONNECTIONS,
    "every call of an MCP tool starts its server, or a session with it, anew",
    (Target("crewai.tools.mcp_native_tool:MCPNativeTool._run_async", wrapped=True),),
    MCP_CONNECTIONS,
    _bind,
)
