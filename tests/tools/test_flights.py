"""Identical calls at the same time, of agents whose results CrewAI keeps."""

from __future__ import annotations

import asyncio
import os
import threading
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
from crewai import Agent, Crew, Task
from crewai.tools import tool

import crewai_native
from crewai_native.slots.tools_guard import ToolCall as GuardedCall
from crewai_native.testing import ScriptedLLM, ToolCall
from crewai_native_tools import Policy, ToolCancelled, ToolTimeout
from crewai_native_tools.errors import ToolStopped
from crewai_native_tools.execution import Run, Shared
from crewai_native_tools.flights import Flights
from crewai_native_tools.plans import Plans
from crewai_native_tools.policy import Layers

DISTRIBUTION = "crewai-native-tools"
failures = pytest.importorskip("crewai.tools.tool_failure")


class Slow:
    """A tool that is in the middle of its work until it is told to end."""

    def __init__(self, result="found"):
        self.calls = 0
        self.result = result
        self.under_way = threading.Semaphore(0)
        self.end = threading.Event()

    def __call__(self, left=None):
        self.calls += 1
        self.under_way.release()
        assert self.end.wait(60)
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


class Agents:
    """Hand-made calls of an agent whose results are kept."""

    def __init__(self, **policy):
        self.flights = Flights()
        self.run = Run()
        plans = Plans(Layers(), Layers(default=Policy(**policy)), Shared(128), str)
        self.plan = plans.of("search", None, None)
        self.keeps = lambda _arguments, _result: True
        cache = types.SimpleNamespace()
        self.agent = types.SimpleNamespace(tools_handler=types.SimpleNamespace(cache=cache))

    def make(self, *, asynchronous=False, **arguments):
        return GuardedCall(
            tool=None,
            author_tool=types.SimpleNamespace(cache_function=self.keeps),
            name="search",
            args=(),
            arguments=arguments,
            path="native",
            asynchronous=asynchronous,
            agent=self.agent,
            task=None,
            crew=None,
            occasion=None,
            step=None,
        )

    def call(self, work, **arguments):
        call = self.make(**arguments)
        key = self.flights.key(call)
        if key is None:
            return work()
        return self.flights.once(key, call, self.plan, self.run, work)

    async def acall(self, work, **arguments):
        call = self.make(asynchronous=True, **arguments)
        return await self.flights.aonce(self.flights.key(call), call, self.plan, self.run, work)

    def waiting(self, count):
        """Wait until so many calls wait for another."""
        while len(self.run.active) < count:
            os.sched_yield()


@pytest.fixture
def pool():
    with ThreadPoolExecutor(16) as pool:
        yield pool


@pytest.mark.parametrize("arguments", [{"a": 1, "b": "x"}, {}])
def test_the_others_get_copies_of_the_first_ones_result(pool, arguments):
    agents, slow = Agents(), Slow({"rows": [1]})
    calls = [pool.submit(agents.call, slow, **arguments)]
    slow.under_way.acquire()
    spelled = dict(reversed(arguments.items()))
    calls += [pool.submit(agents.call, slow, **spelled) for _ in range(8)]
    agents.waiting(8)
    slow.end.set()
    results = [call.result() for call in calls]
    assert slow.calls == 1
    assert results == [{"rows": [1]}] * 9
    assert len({id(result["rows"]) for result in results}) == 9
    assert not agents.run.active
    slow.end.set()
    assert agents.call(slow, **arguments) == {"rows": [1]}
    assert slow.calls == 2


def test_other_calls_do_not_wait(pool):
    agents, slow = Agents(), Slow()
    first = pool.submit(agents.call, slow, q=1)
    slow.under_way.acquire()
    assert agents.call(lambda left: "other arguments", q=1.0) == "other arguments"
    agents.agent = types.SimpleNamespace(
        tools_handler=types.SimpleNamespace(cache=types.SimpleNamespace())
    )
    assert agents.call(lambda left: "another cache", q=1) == "another cache"
    agents.agent = types.SimpleNamespace(tools_handler=types.SimpleNamespace(cache=None))
    assert agents.call(lambda: "no cache", q=1) == "no cache"
    slow.end.set()
    assert first.result() == "found"


@pytest.mark.parametrize("result", ["failed", "raised", "turned down", "not to be copied", "None"])
def test_what_is_not_kept_is_made_by_each(pool, result):
    class Whole:
        pass

    deep = []
    for _ in range(5000):
        deep = [deep]
    value = {
        "failed": failures.ToolFailure(message="no"),
        "raised": ValueError("no"),
        "turned down": "of no use",
        "not to be copied": deep,
        "None": None,
    }[result]
    agents, slow = Agents(), Slow(value)
    agents.keeps = lambda _arguments, given: (
        given != "of no use" if isinstance(given, str) else True
    )
    calls = [pool.submit(agents.call, slow, q=1)]
    slow.under_way.acquire()
    calls += [pool.submit(agents.call, slow, q=1) for _ in range(3)]
    agents.waiting(3)
    slow.end.set()
    for call in calls:
        if isinstance(value, Exception):
            with pytest.raises(ValueError, match="no"):
                call.result()
        else:
            assert call.result() is value
    assert slow.calls == 4


def test_who_waits_has_a_deadline_and_starts_nothing_after_it(pool):
    agents, slow = Agents(timeout=0.05), Slow()
    first = pool.submit(agents.call, slow, q=1)
    slow.under_way.acquire()
    with pytest.raises(ToolTimeout, match="at an identical call") as late:
        agents.call(slow, q=1)
    assert late.value.details["elapsed"] >= 0.05
    assert "tool 'search'" in late.value.__notes__[0]
    slow.end.set()
    assert first.result() == "found"
    assert slow.calls == 1


def test_who_waits_can_be_cancelled(pool):
    agents, slow = Agents(), Slow()
    first = pool.submit(agents.call, slow, q=1)
    slow.under_way.acquire()
    second = pool.submit(agents.call, slow, q=1)
    agents.waiting(1)
    assert agents.run.cancel() == 1
    assert agents.run.cancel() == 0
    with pytest.raises(ToolCancelled):
        second.result()
    with pytest.raises(ToolStopped):
        agents.call(slow, q=1)
    slow.end.set()
    assert first.result() == "found"


def test_calls_inside_calls_never_wait_for_each_other(pool):
    agents = Agents()
    both = threading.Barrier(2)

    def tool_that_calls(own, other):
        def work(left=None):
            both.wait(60)
            return own + agents.call(lambda left=None: other, q=other)

        return work

    one = pool.submit(agents.call, tool_that_calls("a", "b"), q="a")
    two = pool.submit(agents.call, tool_that_calls("b", "a"), q="b")
    assert [one.result(60), two.result(60)] == ["ab", "ba"]


async def test_awaited_calls_do_the_same():
    agents = Agents()
    calls, end = 0, asyncio.Event()

    async def work(left=None):
        nonlocal calls
        calls += 1
        await end.wait()
        return ["found"]

    tasks = [asyncio.create_task(agents.acall(work, q=1)) for _ in range(5)]
    await asyncio.sleep(0)
    assert len(agents.run.active) == 4
    tasks[1].cancel()
    await asyncio.wait(tasks[1:2])
    assert tasks[1].cancelled()
    end.set()
    results = await asyncio.gather(tasks[0], *tasks[2:])
    assert results == [["found"]] * 4
    assert len(set(map(id, results))) == 4
    assert calls == 1


async def test_a_call_that_blocks_the_loop_waits_for_none_that_needs_it():
    agents, end = Agents(), asyncio.Event()

    async def work(left=None):
        await end.wait()
        return "awaited"

    first = asyncio.create_task(agents.acall(work, q=1))
    await asyncio.sleep(0)
    assert agents.call(lambda left: "by itself", q=1) == "by itself"
    end.set()
    assert await first == "awaited"


async def test_an_awaited_call_has_a_deadline_too():
    agents, end = Agents(timeout=0.05), asyncio.Event()

    async def work(left=None):
        await end.wait()
        return "found"

    first = asyncio.create_task(agents.acall(work, q=1))
    await asyncio.sleep(0)
    with pytest.raises(ToolTimeout):
        await agents.acall(work, q=1)
    end.set()
    assert await first == "found"


def test_a_child_waits_for_no_call_of_its_parent(pool):
    agents, slow = Agents(), Slow()
    first = pool.submit(agents.call, slow, q=1)
    slow.under_way.acquire()
    child = os.fork()
    if child == 0:
        os._exit(agents.call(lambda left: 7, q=1))
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 7
    slow.end.set()
    assert first.result() == "found"


@pytest.mark.parametrize("provider", ["stock", DISTRIBUTION])
@pytest.mark.parametrize("cache", [True, False])
def test_identical_calls_of_one_batch(unbound, provider, cache):
    """With CrewAI's cache they are one; stock makes each."""
    crewai_native.activate(
        enabled=True, plugins=[DISTRIBUTION], slots=dict.fromkeys(["tools.guard"], provider)
    )
    calls, all_in = [], threading.Barrier(3)

    @tool
    def search(query: str) -> str:
        """Search."""
        calls.append(query)
        if provider == "stock" or not cache:
            all_in.wait(60)
        return f"about {query}"

    batch = [ToolCall("search", {"query": "ants"}) for _ in range(3)]
    llm = ScriptedLLM([batch, lambda turn: " | ".join(turn.results)])
    agent = Agent(role="worker", goal="work", backstory="works", llm=llm, tools=[search])
    task = Task(description="do it", expected_output="something", agent=agent)
    try:
        answer = Crew(agents=[agent], tasks=[task], cache=cache).kickoff()
    finally:
        crewai_native.deactivate()
    assert str(answer) == " | ".join(["about ants"] * 3)
    assert len(calls) == (1 if provider != "stock" and cache else 3)
