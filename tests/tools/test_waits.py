"""Calls that would wait for each other for ever: one of them is told, the others go on."""

from __future__ import annotations

import asyncio
import contextvars
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from crewai_native_tools import Policy, ToolEngine, ToolRefused, ToolTimeout

ONE = Policy(max_concurrency=1)


def crosswise(names, policy=ONE, **settings):
    """Return an engine whose tools each call the next, once all of them hold their place."""
    engine = ToolEngine(**settings)
    all_inside = threading.Barrier(len(names))
    for name, after in zip(names, names[1:] + names[:1], strict=True):

        def step(outer, name=name, after=after):
            if not outer:
                return name
            all_inside.wait(60)
            return engine.execute_tool(after, {"outer": False})

        engine.register(name, step, policy)
    return engine


def outcomes(futures):
    refused = [future.exception() for future in futures if future.exception() is not None]
    return [future.result() for future in futures if future.exception() is None], refused


@pytest.mark.parametrize("names", ["ab", "abc", "abcdef"])
@pytest.mark.parametrize("timeout", [None, 600])
def test_the_call_that_closes_a_ring_is_refused(names, timeout):
    engine = crosswise(names, timeout_seconds=timeout)
    with ThreadPoolExecutor(len(names)) as pool:
        futures = [pool.submit(engine.execute_tool, name, {"outer": True}) for name in names]
        _, [error] = outcomes(futures)
    assert isinstance(error, ToolRefused)
    assert error.code == "max_concurrency"
    ring = [
        f"'{one}' for '{other}'" for one, other in zip(names, names[1:] + names[:1], strict=True)
    ]
    assert all(step in str(error) for step in ring)
    assert engine.stats()["tools"][error.details["tool"]]["refused"] == 1
    # What was waiting has its turn, and nothing is left waiting.
    assert engine.execute_tool("a", {"outer": False}) == "a"


async def test_awaited_calls_too():
    engine = ToolEngine()
    inside = asyncio.Barrier(2)

    def make(name, other):
        async def step(outer):
            if not outer:
                return name
            await inside.wait()
            return await engine.aexecute_tool(other, {"outer": False})

        engine.register(name, step, ONE)

    make("a", "b")
    make("b", "a")
    both = [engine.aexecute_tool(name, {"outer": True}) for name in "ab"]
    error, result = await asyncio.gather(*both, return_exceptions=True)
    if isinstance(result, ToolRefused):
        error, result = result, error
    assert isinstance(error, ToolRefused)
    assert result in {"a", "b"}


async def test_a_blocking_call_waits_for_none_that_needs_its_event_loop():
    engine = ToolEngine()
    waits, entered, release = asyncio.Event(), asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    async def step():
        waits.set()
        await asyncio.sleep(0)

    def held():
        loop.call_soon_threadsafe(entered.set)
        return release.wait(60)

    engine.register("t", step, ONE)
    engine.register("held", held, ONE)

    async def blocks():
        await waits.wait()
        with pytest.raises(ToolRefused, match="'t' for 't', which blocks its event loop"):
            engine.execute_tool("t")

    await asyncio.gather(engine.aexecute_tool("t"), blocks())
    # For what another thread has, it may.
    first = asyncio.create_task(asyncio.to_thread(engine.execute_tool, "held"))
    await entered.wait()
    threading.Timer(0.01, release.set).start()
    assert engine.execute_tool("held") is True
    assert await first is True


def test_a_caller_that_has_left_is_not_waited_for():
    engine = ToolEngine()
    x_is_taken, left, called = (threading.Event() for _ in range(3))

    def outer(first):
        if not first:
            return "went on"
        x_is_taken.wait(60)
        with pytest.raises(ToolTimeout):
            engine.execute_tool("patient")
        left.set()
        called.wait(60)
        return "went on"

    def x(first):
        if not first:
            return None
        x_is_taken.set()
        left.wait(60)
        threading.Timer(0.05, called.set).start()
        return engine.execute_tool("outer", {"first": False})

    engine.register("outer", outer, ONE)
    engine.register("x", x, ONE)
    engine.register(
        "patient", lambda: engine.execute_tool("x", {"first": False}), Policy(timeout=0.05)
    )
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(engine.execute_tool, "outer", {"first": True})]
        while not engine.stats()["tools"].get("outer", {}).get("running"):
            time.sleep(0.001)
        both.append(pool.submit(engine.execute_tool, "x", {"first": True}))
        assert [future.result(60) for future in both] == ["went on", "went on"]


def test_a_place_that_was_given_back_is_nobody_s():
    engine = ToolEngine()
    lock, inside, most = threading.Lock(), 0, 0
    began, go = threading.Event(), threading.Event()
    late = []

    def step(kind):
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        if kind == "leaves something behind":
            context = contextvars.copy_context()
            late.append(lambda: context.run(engine.execute_tool, "t", {"kind": "late"}))
        elif kind == "waits":
            began.set()
            go.wait(60)
        with lock:
            inside -= 1

    engine.register("t", step, ONE)
    engine.execute_tool("t", {"kind": "leaves something behind"})
    with ThreadPoolExecutor(2) as pool:
        pool.submit(engine.execute_tool, "t", {"kind": "waits"})
        assert began.wait(60)
        left_behind = pool.submit(late[0])
        while engine.stats()["tools"]["t"]["running"] < 2 and not left_behind.done():
            time.sleep(0.001)
        go.set()
        left_behind.result(60)
    assert most == 1


def test_threads_give_way():
    """Where all threads wait for a tool that waits for a thread, it gets one more."""
    engine = ToolEngine(max_threads=1, timeout_seconds=600)

    def outer():
        while engine.stats()["tools"].get("inner", {}).get("running", 0) < 1:
            time.sleep(0.001)
        return engine.execute_tool("inner")

    engine.register("outer", outer)
    engine.register("inner", lambda: "done", ONE)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(engine.execute_tool, "outer")
        while not engine.stats()["tools"].get("outer", {}).get("running"):
            time.sleep(0.001)
        assert pool.submit(engine.execute_tool, "inner").result(60) == "done"
        assert first.result(60) == "done"


def tree(rng, tools, ordered, depth=3, above=-1):
    """Return calls inside calls: of ordered ones, each is of a tool after the one that it is in."""
    first = above + 1 if ordered else 0
    if depth == 0 or first >= tools:
        return []
    made = [rng.randrange(first, tools) for _ in range(rng.randint(0, 2))]
    return [(tool, tree(rng, tools, ordered, depth - 1, tool)) for tool in made]


class Program:
    """Tools that call each other as they are told to, at random blocking, awaited or side by side."""

    def __init__(self, rng, tools):
        self.rng = rng
        self.refused = []
        self.engine = ToolEngine(max_threads=rng.choice([1, 2, 50]))
        for at in range(tools):
            limits = Policy(
                max_concurrency=rng.choice([1, 1, 2, None]), timeout=rng.choice([None, 600])
            )
            self.engine.register(f"t{at}", rng.choice([self.blocking, self.awaited]), limits)

    def take(self, results):
        for result in results:
            if isinstance(result, ToolRefused):
                self.refused.append(result)
            elif isinstance(result, BaseException):
                raise result

    def blocking(self, calls):
        work = [(f"t{at}", {"calls": inner}) for at, inner in calls]
        for some in [work] if self.rng.random() < 0.5 else [[one] for one in work]:
            self.take(self.engine.execute_many(some, return_exceptions=True))

    async def awaited(self, calls):
        await asyncio.sleep(0.001)
        work = [self.engine.aexecute_tool(f"t{at}", {"calls": inner}) for at, inner in calls]
        self.take(await asyncio.gather(*work, return_exceptions=True))


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_programs_end_and_those_that_cannot_lock_up_lose_no_call(seed, ordered):
    rng = random.Random(seed)
    tools = rng.randint(2, 5)
    program = Program(rng, tools)
    calls = [tree(rng, tools, ordered) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(program.blocking, some) for some in calls]:
            future.result(120)
    assert not (ordered and program.refused)
