"""Policies that say more than limits: processes, retries, side effects, long results."""

from __future__ import annotations

import asyncio
import copy
import os
import pathlib
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from crewai import Agent, Crew, Task
from crewai.mcp import MCPServerStdio
from crewai.tools import tool
from crewai.tools.structured_tool import CrewStructuredTool
from crewai.utilities.string_utils import sanitize_tool_name

import crewai_native
from crewai_native.testing import ScriptedLLM, ToolCall
from crewai_native_tools import (
    Policy,
    ToolCancelled,
    ToolEngine,
    ToolTimeout,
    configure,
    isolation,
    journal,
    outputs,
    processes,
)
from crewai_native_tools.mcp import CONNECTIONS

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE / "isolated"))

import misbehaving  # noqa: E402

DISTRIBUTION = "crewai-native-tools"
BOTH = pytest.mark.parametrize("native", [True, False], ids=["native", "react"])
LONG = 60

failures = pytest.importorskip("crewai.tools.tool_failure")


@pytest.fixture(scope="module", autouse=True)
def bound(unbound):
    crewai_native.activate(
        enabled=True,
        plugins=[DISTRIBUTION],
        slots={"tools.guard": DISTRIBUTION, "tools.cache": "stock", "tools.schemas": "stock"},
    )
    yield
    crewai_native.deactivate()


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(journal, "_default", journal.Journal())
    configure()
    yield
    configure()


def until(condition):
    limit = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < limit, f"waited for {LONG} s"
        time.sleep(0.005)


def kickoff(script, tools, *, native, **agent):
    llm = ScriptedLLM(script, native=native)
    agent = Agent(role="worker", goal="work", backstory="works", llm=llm, tools=tools, **agent)
    task = Task(description="do it", expected_output="something", agent=agent)
    return Crew(agents=[agent], tasks=[task]).kickoff()


def last(turn):
    return str(turn.results[-1])


class Flaky:
    """Fails so many times."""

    def __init__(self, *errors):
        self.errors = list(errors)
        self.calls = 0

    def __call__(self, text=""):
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return f"done {text}"


# --- engines ----------------------------------------------------------------------------------


def test_a_function_runs_in_a_process(tmp_path):
    engine = ToolEngine(isolation="process", open_files=50, memory_mb=500)
    engine.register("who", misbehaving.whoami)
    engine.register("crash", misbehaving.segfaults)
    engine.register("loop", misbehaving.loops, Policy(timeout=1))
    engine.register("greedy", misbehaving.allocates, Policy(memory_mb=100))
    pid = engine.execute_tool("who")[0]
    assert pid != os.getpid()
    with pytest.raises(isolation.Crashed, match="'crash'"):
        engine.execute_tool("crash")
    with pytest.raises(isolation.MemoryLimitExceeded, match="100 MiB"):
        engine.execute_tool("greedy")
    begun = tmp_path / "begun"
    engine.register("begin", misbehaving.loops, Policy(timeout=20))
    # Whoever is the first to say so: the caller, the worker that is killed, or the one that starts.
    with pytest.raises(TimeoutError):
        engine.execute_tool("loop")
    with pytest.raises(TypeError, match="cannot run in a process of its own"):
        engine.register("inner", lambda: 1)
    # A run that is cancelled ends its processes.
    thread_error = []

    def call():
        try:
            engine.execute_tool("begin", {"started": str(begun)}, run="r")
        except BaseException as error:  # noqa: BLE001 - looked at below
            thread_error.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    until(lambda: begun.exists() and begun.read_text())
    assert engine.cancel("r") == 1
    thread.join(LONG)
    assert isinstance(thread_error[0], ToolCancelled)
    worker = pathlib.Path(f"/proc/{begun.read_text()}/cmdline")
    until(lambda: not worker.exists() or not worker.read_bytes())
    until(lambda: engine.stats()["abandoned"] == 0)


async def test_an_awaited_function_runs_in_a_process():
    engine = ToolEngine(isolation="process")
    engine.register("add", misbehaving.add_later)
    engine.register("who", misbehaving.whoami)
    assert await engine.aexecute_tool("add", {"first": 1, "second": 2}) == 3
    assert (await engine.aexecute_tool("who"))[0] != os.getpid()


def test_a_failing_call_is_tried_again_within_its_time():
    engine = ToolEngine(retry={"attempts": 3, "backoff": 0, "on": "ConnectionError"})
    flaky = Flaky(ConnectionError("a"), ConnectionResetError("b"))
    engine.register("flaky", flaky)
    assert engine.execute_tool("flaky") == "done "
    stubborn = Flaky(*[ConnectionError(str(n)) for n in range(9)])
    engine.register("stubborn", stubborn)
    with pytest.raises(ConnectionError, match="2") as raised:
        engine.execute_tool("stubborn")
    assert any("attempt 3; before it: ConnectionError: 0" in n for n in raised.value.__notes__)
    other = Flaky(ValueError("no"))
    engine.register("other", other)
    with pytest.raises(ValueError, match="no"):
        engine.execute_tool("other")
    assert (flaky.calls, stubborn.calls, other.calls) == (3, 3, 1)
    # Attempts are executions, under the same limits.
    engine.register("limited", Flaky(ConnectionError()), Policy(max_calls=1))
    with pytest.raises(Exception, match="may be called 1 time"):
        engine.execute_tool("limited")


def test_all_attempts_share_one_timeout():
    release, calls = threading.Event(), []

    def hangs():
        calls.append(1)
        if len(calls) == 1:
            raise ConnectionError("first")
        release.wait()

    engine = ToolEngine(timeout_seconds=0.3, retry={"attempts": 9, "backoff": 0})
    engine.register("hangs", hangs)
    with pytest.raises(ToolTimeout):
        engine.execute_tool("hangs")
    assert len(calls) == 2
    release.set()


async def test_awaited_calls_have_the_same():
    engine = ToolEngine(retry={"attempts": 2, "backoff": 0}, max_output="300 B", side_effects=True)
    flaky = Flaky(ConnectionError())

    async def awaited(text):
        return flaky(text) * 100

    engine.register("awaited", awaited)
    found = await engine.aexecute_tool("awaited", {"text": "x"})
    assert len(found) <= 300
    assert outputs.READER in found
    assert await engine.aexecute_tool("awaited", {"text": "x"}) != ""
    assert flaky.calls == 2


def test_effects_happen_once_in_a_run():
    engine = ToolEngine(side_effects=True)
    pay = Flaky(ValueError("declined"))
    engine.register("pay", pay)
    with pytest.raises(ValueError, match="declined"):
        engine.execute_tool("pay", {"text": "a"}, run="one")
    for _ in range(3):
        assert engine.execute_tool("pay", '{"text": "a"}', run="one") == "done a"
    assert pay.calls == 2
    assert engine.execute_tool("pay", {"text": "a"}, run="two") == "done a"
    assert pay.calls == 3
    # Another engine, as after a resume, knows the run by its name.
    again = ToolEngine(side_effects=True)
    again.register("pay", pay)
    assert again.execute_tool("pay", {"text": "a"}, run="one") == "done a"
    assert pay.calls == 3


def test_an_effect_that_comes_after_the_deadline_is_known_then():
    release, calls = threading.Event(), []

    def pay():
        calls.append(1)
        release.wait()
        return "paid"

    engine = ToolEngine(side_effects=True)
    engine.register("pay", pay, Policy(timeout=0.05))
    with pytest.raises(ToolTimeout):
        engine.execute_tool("pay", run="r")
    release.set()
    until(lambda: engine.stats()["abandoned"] == 0)
    assert engine.execute_tool("pay", run="r") == "paid"
    assert len(calls) == 1


def test_an_effect_that_found_no_worker_was_not_made(monkeypatch):
    monkeypatch.setattr(processes, "_pool", None)
    engine = ToolEngine(isolation="process", side_effects=True, timeout_seconds=0.005)
    engine.register("who", misbehaving.whoami)
    # A worker takes longer than that to start.
    with pytest.raises(TimeoutError):
        engine.execute_tool("who", run="r")
    until(lambda: engine.stats()["abandoned"] == 0)
    patient = ToolEngine(isolation="process", side_effects=True, timeout_seconds=LONG)
    patient.register("who", misbehaving.whoami)
    assert patient.execute_tool("who", run="r") is not None
    processes.pool().close()


async def test_an_awaited_call_is_let_go_between_attempts():
    engine = ToolEngine(retry={"attempts": 2, "backoff": 3600})
    failed = asyncio.Event()

    async def fails():
        failed.set()
        raise ConnectionError

    engine.register("fails", fails)
    call = asyncio.create_task(engine.aexecute_tool("fails", run="r"))
    await failed.wait()
    engine.cancel("r")
    with pytest.raises(ToolCancelled):
        await asyncio.wait_for(call, 20)


# --- agents -----------------------------------------------------------------------------------


@BOTH
def test_long_results_are_cut_and_can_be_read(native):
    @tool("report")
    def report() -> str:
        """Report."""
        return "begin" + "x" * 10_000 + "end"

    configure(tools={"report": Policy(max_output=500)})
    seen = []

    def read(turn):
        seen.append(turn.results[-1])
        handle = turn.results[-1].split("handle='")[1].split("'")[0]
        return ToolCall(outputs.READER, {"handle": handle, "offset": 9990})

    script = [ToolCall("report"), read, last]
    out = kickoff(script, [report, outputs.read_tool_output()], native=native)
    assert len(seen[0]) < 700
    assert "xxxend\n[bytes 9990 to 10008 of 10008, the end]" in out.raw


@BOTH
def test_an_agents_effects_happen_once(native):
    sent = []

    @tool("send")
    def send(to: str) -> str:
        """Send."""
        sent.append(to)
        return f"sent to {to}"

    configure(tools={"send": Policy(side_effects=True)})
    script = [ToolCall("send", {"to": "a"}), ToolCall("send", {"to": "b"}), last]
    kickoff(script, [send], native=native)
    assert sent == ["a", "b"]
    # Another kickoff is another run, unless both have one name.
    kickoff(script, [send], native=native)
    assert sent == ["a", "b"] * 2
    for _ in range(2):
        with journal.named_run("order 4711"):
            assert "sent to b" in kickoff(script, [send], native=native).raw
    assert sent == ["a", "b"] * 3


@pytest.mark.slow
def test_agents_tools_in_processes():
    import agent_tools

    configure(default=Policy(isolation="process"), tools={"risky": Policy(timeout=LONG)})
    processes.pool().warm(agent_tools.Risky())
    tools = [agent_tools.Risky(), agent_tools.risky, agent_tools.risky_later]
    before = [dict(vars(each)) for each in tools]
    for native in (True, False):
        for name in ("risky", "risky_function", "risky_coroutine"):
            out = kickoff([ToolCall(name, {"what": "fine"}), last], tools, native=native)
            pid = int(out.raw.split("fine in ")[1].split()[0])
            assert pid != os.getpid(), (name, native)
        killed = processes.pool().stats()["killed"]
        out = kickoff([ToolCall("risky", {"what": "crash"}), last], tools, native=native)
        assert "its process was ended by SIGABRT (code: isolation)" in out.raw
        # Once, although a text-based agent's calls that raise are made six times.
        assert processes.pool().stats()["killed"] == killed + 1
        processes.pool().warm(agent_tools.Risky())
    # CrewAI's own validation comes first, and its own counts count.
    with pytest.raises(ValueError, match="what"):
        tools[0].run()
    uses = tools[0].current_usage_count
    assert tools[0].run(what="fine") != f"fine in {os.getpid()}"
    assert tools[0].current_usage_count == uses + 1
    # Code can call it at the same time without a process.
    for each, then in zip(tools, before, strict=True):
        now = dict(vars(each))
        then.pop("current_usage_count")
        now.pop("current_usage_count")
        assert now == then


@pytest.mark.parametrize("kind", ["class", "function", "structured"])
def test_a_tool_in_a_process_can_be_called_and_copied_meanwhile(tmp_path, kind):
    import agent_tools

    configure(default=Policy(isolation="process"))
    made = agent_tools.Risky() if kind == "class" else agent_tools.risky
    call = made.run
    if kind == "structured":
        structured = made.to_structured_tool()
        call = lambda what: structured.invoke({"what": what})  # noqa: E731
    place = tmp_path / "go"
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(call, what=f"wait for {place}")
        until(place.with_suffix(".here").exists)
        assert call(what="fine").startswith("fine in ")
        copies = [copy.copy(made), made.model_copy(), made.to_structured_tool()]
        place.touch()
        assert first.result().startswith("wait for")
    if kind == "class":
        copies[0].mark = " marked"
    for each in copies:
        use = getattr(each, "run", None) or (lambda what, tool=each: tool.invoke({"what": what}))
        mark = getattr(each, "mark", "")
        assert use(what="fine").startswith(f"fine{mark} in ")
        assert not use(what="fine").endswith(f" {os.getpid()}")
        configure()
        assert use(what="fine") == f"fine{mark} in {os.getpid()}"
        configure(default=Policy(isolation="process"))
    assert "_run" not in vars(made)
    assert agent_tools.Risky._run.__code__.co_name == "_run"


async def test_awaited_tools_in_processes():
    import agent_tools

    configure(default=Policy(isolation="process"))
    found = await agent_tools.risky_later.arun(what="fine")
    assert found.startswith("fine in ")
    assert not found.endswith(f" {os.getpid()}")
    structured = CrewStructuredTool.from_function(misbehaving.whoami, "who", "who")
    with pytest.raises(isolation.NotTransferable, match="but not awaited"):
        await structured.ainvoke({})


@pytest.mark.parametrize("way", ["tool", "engine"])
async def test_an_awaited_call_that_is_cancelled_ends_its_process(tmp_path, way):
    import agent_tools

    configure(default=Policy(isolation="process"))
    if way == "tool":
        awaited = agent_tools.risky_later.arun
    else:
        engine = ToolEngine(isolation="process")
        engine.register("risky", agent_tools.Risky())
        awaited = lambda what: engine.aexecute_tool("risky", {"what": what})  # noqa: E731
    place = tmp_path / "never"
    call = asyncio.create_task(awaited(what=f"wait for {place}"))
    await asyncio.to_thread(until, place.with_suffix(".here").exists)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.to_thread(until, lambda: not processes.pool().stats()["busy"])


def test_a_tool_that_cannot_go_is_told_to_the_agent_and_raised_to_code():
    @tool("inner")
    def inner() -> str:
        """Inner."""
        return "never"

    configure(tools={"inner": Policy(isolation="process")})
    out = kickoff([ToolCall("inner"), last], [inner], native=True)
    assert "'inner' cannot run in a process of its own" in out.raw
    with pytest.raises(isolation.NotTransferable):
        inner.run()


@BOTH
def test_an_agents_mcp_tools_keep_their_connection(tmp_path, native):
    log = tmp_path / "started"
    server = MCPServerStdio(command=sys.executable, args=[str(HERE / "mcp_server.py"), str(log)])
    agent = Agent(role="worker", goal="g", backstory="b", llm=ScriptedLLM([last]), mcps=[server])
    tools = agent.get_mcp_tools([server])
    name = next(each.name for each in tools if each.name.endswith("which"))
    which = ToolCall(sanitize_tool_name(name))

    def every(turn):
        return " | ".join(turn.results)

    agent.llm = ScriptedLLM([which, which, which, every], native=native)
    task = Task(description="do it", expected_output="something", agent=agent)
    out = Crew(agents=[agent], tasks=[task]).kickoff().raw
    pids = {part.split()[0] for part in out.split(" | ")}
    assert len(pids) == 1, out
    # One each time that its tools were asked for, one for all calls.
    assert len(log.read_text().split()) == 3
    until(lambda: CONNECTIONS.stats()["open"] == 0)
