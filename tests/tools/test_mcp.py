"""MCP tools keep their connection for the run."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
import pathlib
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from crewai import Agent, Task
from crewai.events.event_bus import crewai_event_bus
from crewai.lite_agent import LiteAgent
from crewai.mcp.client import MCPClient
from crewai.mcp.transports.stdio import StdioTransport
from crewai.tools.mcp_native_tool import MCPNativeTool
from crewai.tools.tool_failure import ToolFailure
from crewai.utilities.crew.models import CrewContext
from opentelemetry import baggage
from opentelemetry.context import attach, detach

from crewai_native.testing import ScriptedLLM, ToolCall
from crewai_native_tools import mcp
from crewai_native_tools.mcp import Connections

SERVER = pathlib.Path(__file__).parent / "mcp_server.py"
LONG = 60


class Server:
    """What an agent knows of a server, and which processes of it were started."""

    def __init__(self, folder, connections):
        self.log = folder / "started"
        self.log.touch()
        self.connections = connections

    def client(self, **environment):
        arguments = [str(SERVER), str(self.log)]
        return MCPClient(StdioTransport(sys.executable, arguments, env=environment), max_retries=1)

    def tool(self, name, **environment):
        make = functools.partial(self.client, **environment)
        lent = functools.partial(self.connections.client, make)
        return MCPNativeTool(lent, name, {"description": name}, "tests")

    @property
    def started(self):
        return self.log.read_text().split()


@pytest.fixture
def server(tmp_path):
    connections = Connections()
    yield Server(tmp_path, connections)
    connections.close()


def is_alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except OSError:
        return False


def until(condition):
    limit = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < limit, f"waited for {LONG} s"
        time.sleep(0.005)


class crew:  # noqa: N801 - reads as a block
    """The context of a crew's run."""

    def __init__(self, name):
        self.name = name

    def __enter__(self):
        self.token = attach(baggage.set_baggage("crew_context", CrewContext(id=self.name, key="k")))

    def __exit__(self, *_):
        detach(self.token)


@pytest.fixture
def in_crew():
    with crew("one"):
        yield


def submit(threads, work, **arguments):
    """Have a thread call something in this context, as CrewAI's do."""
    return threads.submit(contextvars.copy_context().run, work, **arguments)


def test_stock_starts_a_server_for_every_call(tmp_path):
    # What is repaired.
    server = Server(tmp_path, None)
    tool = MCPNativeTool(server.client, "which", {"description": "which"}, "tests")
    pids = [tool.run().split()[0] for _ in range(2)]
    assert pids == server.started
    assert pids[0] != pids[1]


@pytest.mark.usefixtures("in_crew")
def test_one_connection_for_the_calls_of_a_run(server):
    which, fails = server.tool("which"), server.tool("fails")
    first, second = (which.run().split() for _ in range(2))
    assert first[0] == second[0]
    assert second[1] == "2"
    # A tool's own error is an answer.
    failed = fails.run(text="no such thing")
    assert isinstance(failed, ToolFailure)
    assert "no such thing" in failed.message
    assert which.run().split() == [first[0], "3"]
    assert server.started == [first[0]]
    # From another thread, whose event loop is another.
    with ThreadPoolExecutor(1) as threads:
        assert submit(threads, which.run).result(LONG).split() == [first[0], "4"]


def test_runs_and_credentials_have_connections_of_their_own(server):
    which, other = server.tool("which"), server.tool("which", TOKEN="x")
    with crew("one"):
        one = which.run().split()[0]
        assert which.run().split()[0] == one
        assert other.run().split()[0] != one
    with crew("two"):
        two = which.run().split()[0]
    assert two != one
    server.connections.end_run("one")
    until(lambda: not is_alive(one))
    assert is_alive(two)
    until(lambda: server.connections.stats() == {"open": 1, "opened": 3})


@pytest.mark.filterwarnings("ignore:LiteAgent is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("cls", "native"),
    [(Agent, True), (Agent, False), (LiteAgent, False)],
    ids=["native", "react", "lite"],
)
def test_kickoffs_of_agents_are_runs(server, cls, native):
    which = server.tool("which")

    def kickoff():
        # CrewAI refuses a text-based agent the same call again.
        calls = [ToolCall(which.name, {"n": n}) for n in range(2)]
        llm = ScriptedLLM([*calls, lambda turn: " ".join(turn.results)], native=native)
        agent = cls(role="r", goal="g", backstory="b", tools=[which], llm=llm)
        pid, *others = agent.kickoff("go").raw.split()
        assert others == ["1", pid, "2"]
        return pid

    pids = [kickoff() for _ in range(2)]
    assert pids[0] != pids[1]
    until(lambda: not any(map(is_alive, pids)))
    assert server.connections.stats() == {"open": 0, "opened": 2}


def test_a_kickoff_that_fails_ends_its_run(server):
    which = server.tool("which")

    def fail(turn):
        raise ValueError(turn.results[0])

    llm = ScriptedLLM([ToolCall(which.name, {}), fail])
    agent = Agent(role="r", goal="g", backstory="b", tools=[which], llm=llm)
    with contextlib.suppress(Exception):
        agent.kickoff("go")
    (pid, *_) = server.started
    until(lambda: not is_alive(pid))


def test_calls_outside_of_a_run_have_a_connection_each(server):
    which = server.tool("which")
    pids = [which.run().split()[0] for _ in range(2)]
    llm = ScriptedLLM([ToolCall(which.name, {})] * 2 + [lambda turn: " ".join(turn.results)])
    agent = Agent(role="r", goal="g", backstory="b", tools=[which], llm=llm)
    task = Task(description="d", expected_output="e", agent=agent)
    pids += agent.execute_task(task).split()[::2]
    pids += task.execute_sync().raw.split()[::2]
    assert len(set(pids)) == 6
    assert not any(map(is_alive, pids))
    assert server.connections.stats() == {"open": 0, "opened": 6}


def test_no_handler_is_left_behind(server):
    agent = Agent(
        role="r",
        goal="g",
        backstory="b",
        tools=[server.tool("which")],
        llm=ScriptedLLM([ToolCall(server.tool("which").name, {}), "done"]),
    )
    agent.kickoff("go")
    server.connections.close()
    handlers = [each for known in crewai_event_bus._sync_handlers.values() for each in known]
    assert server.connections.agent_ended not in handlers


@pytest.mark.usefixtures("in_crew")
def test_a_broken_connection_is_replaced(server):
    which, dies = server.tool("which"), server.tool("dies")
    first = which.run().split()[0]
    with pytest.raises(RuntimeError, match="dies"):
        dies.run()
    second = which.run().split()[0]
    assert second != first
    # It can also die while nobody uses it.
    os.kill(int(second), 9)
    until(lambda: not is_alive(second))
    assert which.run().split()[0] not in {first, second}
    # No call was made twice.
    assert len(server.started) == 3


@pytest.mark.usefixtures("in_crew")
def test_a_server_that_leaves_questions_open_is_asked_once(server, monkeypatch):
    asked = []
    ask = mcp._Connection.is_alive

    async def is_alive(connection, within):
        asked.append(within)
        return await ask(connection, within)

    monkeypatch.setattr(mcp._Connection, "is_alive", is_alive)
    silent = server.tool("which", SILENT="1")
    pids = [silent.run().split()[0] for _ in range(4)]
    assert pids == server.started
    assert len(set(pids)) == 4
    assert asked == [mcp._FIRST_ALIVE]
    assert server.connections.stats() == {"open": 0, "opened": 4}
    # Others are not taken for it.
    assert len({server.tool("which").run().split()[0] for _ in range(3)}) == 1
    assert asked[1:] == [mcp._FIRST_ALIVE, mcp._ALIVE]


@pytest.mark.usefixtures("in_crew")
def test_calls_at_the_same_time_do_not_wait_for_each_other(server, tmp_path):
    waits, flag = server.tool("waits"), tmp_path / "flag"
    with ThreadPoolExecutor(2) as threads:
        answers = [submit(threads, waits.run, file=str(flag)) for _ in range(2)]
        until(lambda: len(list(tmp_path.glob("flag.*"))) == 2)
        flag.touch()
        pids = {answer.result(LONG) for answer in answers}
    assert pids == set(server.started)
    assert len(pids) == 2
    # Both are kept.
    assert server.tool("which").run().split()[0] in pids


@pytest.mark.usefixtures("in_crew")
def test_a_run_that_ends_during_a_call_closes_its_connection_after_it(server, tmp_path):
    waits, flag = server.tool("waits"), tmp_path / "flag"
    with ThreadPoolExecutor(1) as threads:
        answer = submit(threads, waits.run, file=str(flag))
        until(lambda: list(tmp_path.glob("flag.*")))
        server.connections.end_run("one")
        flag.touch()
        pid = answer.result(LONG)
    until(lambda: not is_alive(pid))


@pytest.mark.usefixtures("in_crew")
def test_idle_connections_are_closed(tmp_path):
    server = Server(tmp_path, Connections(idle=0.05))
    pid = server.tool("which").run().split()[0]
    until(lambda: not is_alive(pid))
    assert server.tool("which").run().split()[0] != pid
    server.connections.close()


def test_a_server_that_does_not_start(tmp_path):
    connections = Connections()
    make = functools.partial(MCPClient, StdioTransport(str(tmp_path / "absent"), []))
    tool = MCPNativeTool(functools.partial(connections.client, make), "x", {}, "tests")
    with pytest.raises(RuntimeError, match="absent"):
        tool.run()
    assert connections.stats()["open"] == 0
    connections.close()


@pytest.mark.slow
def test_servers_end_with_the_program(tmp_path):
    program = (
        "import functools, sys\n"
        "from crewai.mcp.client import MCPClient\n"
        "from crewai.mcp.transports.stdio import StdioTransport\n"
        "from crewai.tools.mcp_native_tool import MCPNativeTool\n"
        "from crewai_native_tools.mcp import CONNECTIONS\n"
        "make = lambda: MCPClient(StdioTransport(sys.executable, sys.argv[1:]))\n"
        "tool = MCPNativeTool(functools.partial(CONNECTIONS.client, make), 'which', {}, 'tests')\n"
        "print(tool.run())\n"
    )
    out = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, SERVER, tmp_path / "started"],
        capture_output=True,
        text=True,
        check=True,
        timeout=LONG,
    )
    pid, calls = out.stdout.split()[-2:]
    assert calls == "1"
    until(lambda: not is_alive(pid))


def test_no_thread_without_a_connection():
    before = threading.active_count()
    connections = Connections()
    connections.end_run("x")
    connections.close()
    assert threading.active_count() == before
