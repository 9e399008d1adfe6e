"""Tools of MCP servers that are given by their address keep their session for the run."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import pathlib
import queue
import socket
import subprocess
import sys
import threading
import time

import pytest
from crewai.mcp.client import MCPClient
from crewai.mcp.transports.http import HTTPTransport
from crewai.tools import mcp_tool_wrapper
from crewai.tools.mcp_native_tool import MCPNativeTool
from crewai.tools.mcp_tool_wrapper import MCPToolWrapper
from crewai.utilities.crew.models import CrewContext
from opentelemetry import baggage
from opentelemetry.context import attach, detach

import crewai_native
from crewai_native.slots.tools_mcp import _ByAddress
from crewai_native_tools.mcp import CONNECTIONS, Connections

SERVER = pathlib.Path(__file__).parent / "mcp_http_server.py"
DISTRIBUTION = "crewai-native-tools"
LONG = 60

pytest.importorskip("uvicorn")
# CrewAI calls the MCP library by a name that it calls old.
pytestmark = pytest.mark.filterwarnings("ignore:Use `streamable_http_client`:DeprecationWarning")


class Server:
    """A server in a process of its own, and what it says of its sessions."""

    def __init__(self, port=0):
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(SERVER), str(port)],
            stdout=subprocess.PIPE,
            text=True,
        )
        self._lines = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.port = int(self._lines.get(timeout=LONG))

    def _read(self):
        for line in self.process.stdout:
            self._lines.put(line.strip())

    def tool(self, name):
        url = f"http://127.0.0.1:{self.port}/mcp"
        return MCPToolWrapper({"url": url}, name, {"description": name}, "tests")

    def says(self):
        return self._lines.get(timeout=LONG)

    @property
    def said(self):
        found = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._lines.get_nowait())
        return found

    def stop(self):
        self.process.kill()
        self.process.wait()
        self._reader.join()
        self.process.stdout.close()


@pytest.fixture
def server():
    server = Server()
    yield server
    CONNECTIONS.close()
    server.stop()


@pytest.fixture
def guarded(unbound):
    crewai_native.activate(
        enabled=True, plugins=[DISTRIBUTION], slots={"tools.guard": DISTRIBUTION}
    )
    yield
    crewai_native.deactivate()


@contextlib.contextmanager
def crew(name):
    token = attach(baggage.set_baggage("crew_context", CrewContext(id=name, key="k")))
    try:
        yield
    finally:
        detach(token)


def test_stock_opens_a_session_for_every_call(unbound, server):
    # What is repaired.
    which = server.tool("which")
    assert [which.run(text="a"), which.run(text="b")] == ["1 a", "2 b"]
    assert [server.says() for _ in range(4)] == ["opened", "ended"] * 2


def test_one_session_for_the_calls_of_a_run(guarded, server):
    which, fails = server.tool("which"), server.tool("fails")
    with crew("one"):
        assert [which.run(text=str(n)) for n in range(3)] == ["1 0", "2 1", "3 2"]
        # A tool's own error is an answer, as in CrewAI.
        assert "no such thing" in fails.run(text="no such thing")
        assert which.run() == "4"
    assert server.says() == "opened"
    with crew("two"):
        assert which.run() == "5"
    assert server.says() == "opened"
    CONNECTIONS.end_run("one")
    assert server.says() == "ended"
    with crew("two"):
        assert which.run() == "6"
    assert server.said == []


def test_a_server_that_comes_back_is_found_again(guarded, server):
    with crew("one"):
        assert server.tool("which").run() == "1"
        server.stop()
        again = Server(server.port)
        try:
            # Another process: its count begins anew, and so does the session.
            assert again.tool("which").run() == "1"
            assert again.tool("which").run() == "2"
            assert again.said.count("opened") == 1
        finally:
            CONNECTIONS.close()
            again.stop()


@pytest.mark.parametrize("native", [False, True], ids=["stock", "native"])
def test_a_server_that_is_not_there_is_tried_again(request, unbound, native, monkeypatch):
    if native:
        request.getfixturevalue("guarded")
    monkeypatch.setattr(mcp_tool_wrapper, "MCP_MAX_RETRIES", 2)
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{place.getsockname()[1]}/mcp"
        tool = MCPToolWrapper({"url": url}, "which", {"description": "which"}, "tests")
        with crew("one"):
            assert "failed after 2 attempts: Connection timed out" in tool.run()


def test_what_a_server_refuses_is_said(server):
    connections = Connections()
    url = f"http://127.0.0.1:{server.port}/mcp"
    make = functools.partial(MCPClient, HTTPTransport(url), max_retries=1)
    lent = functools.partial(connections.client, make)
    tool = MCPNativeTool(lent, "refused", {"description": "refused"}, "tests")
    with crew("one"), pytest.raises(RuntimeError, match="HTTP 403"):
        tool.run()
    connections.close()


def test_nothing_is_left_of_a_server_that_says_nothing():
    connections = Connections()
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        place.listen()
        url = f"http://127.0.0.1:{place.getsockname()[1]}/mcp"
        client = connections.client(functools.partial(_ByAddress, url))
        with pytest.raises(TimeoutError):
            asyncio.run(asyncio.wait_for(client.connect(), 0.2))
        limit = time.monotonic() + LONG
        while asyncio.all_tasks(connections._loop):
            assert time.monotonic() < limit
            time.sleep(0.01)
    connections.close()
