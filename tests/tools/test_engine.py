"""The engine: no tool hangs, loops or runs away, whatever it does."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import math
import os
import subprocess
import sys
import threading
import time
import types
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from crewai.tools import BaseTool, tool
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crewai_native_tools import (
    Policy,
    ToolCancelled,
    ToolEngine,
    ToolExecutor,
    ToolRefused,
    ToolSkipped,
    ToolTimeout,
    cancelled,
    workers,
)

SOON = 0.05
"""A timeout that is reached."""
IN_TIME = 5.0
"""What no answer may take that is due after SOON: a very generous bound."""

_variable: contextvars.ContextVar[str] = contextvars.ContextVar("_variable", default="unset")


class Hung:
    """A tool that answers only when it is let go."""

    def __init__(self):
        self.release = threading.Event()
        self.entered = threading.Semaphore(0)
        self.saw = []

    def __call__(self, **_):
        self.entered.release()
        self.release.wait()
        self.saw.append(cancelled())
        return "late"


@pytest.fixture
def hung():
    tool = Hung()
    yield tool
    tool.release.set()
    settled(lambda: abandoned() == 0)


def abandoned():
    return ToolEngine().stats()["abandoned"]


def settled(condition):
    """Wait until something that is under way has happened."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


class TestRunning:
    def test_functions_and_crewais_tools(self):
        @tool("Double")
        def double(n: int) -> int:
            """Double."""
            return 2 * n

        class Add(BaseTool):
            name: str = "Add"
            description: str = "Adds."

            def _run(self, a: int, b: int) -> int:
                return a + b

        engine = ToolEngine()
        engine.register("f", lambda a: a + 1)
        engine.register("double", double)
        engine.register("add", Add())
        engine.register("structured", Add().to_structured_tool())
        assert engine.execute_tool("f", {"a": 1}) == 2
        assert engine.execute_tool("double", '{"n": 2}') == 4
        assert engine.execute_tool("add", {"a": "1", "b": 2}) == 3
        assert engine.execute_tool("structured", {"a": 1, "b": 2}) == 3
        assert ToolExecutor is ToolEngine

    @pytest.mark.parametrize("timeout", [None, 60])
    def test_coroutines_run_from_everywhere(self, timeout):
        @tool("Later")
        async def later(n: int) -> int:
            """Later."""
            await asyncio.sleep(0)
            return n

        async def plain(n):
            await asyncio.sleep(0)
            return n

        engine = ToolEngine(timeout_seconds=timeout)
        engine.register("later", later)
        engine.register("plain", plain)

        async def inside():
            found = [await engine.aexecute_tool(name, {"n": 1}) for name in ("later", "plain")]
            # Where a loop runs already, stock's own way of running a coroutine fails.
            return found + [engine.execute_tool(name, {"n": 2}) for name in ("later", "plain")]

        assert asyncio.run(inside()) == [1, 1, 2, 2]
        assert [engine.execute_tool(name, {"n": 3}) for name in ("later", "plain")] == [3, 3]

    @pytest.mark.parametrize("timeout", [None, 60])
    def test_a_tool_runs_in_the_callers_context(self, timeout):
        engine = ToolEngine(timeout_seconds=timeout)
        engine.register("look", _variable.get)

        async def alook():
            return await engine.aexecute_tool("look")

        token = _variable.set("caller's")
        try:
            assert engine.execute_tool("look") == "caller's"
            assert engine.execute_many([("look", None)]) == ["caller's"]
            assert asyncio.run(alook()) == "caller's"
        finally:
            _variable.reset(token)

    def test_names_that_mean_nothing(self):
        engine = ToolEngine()
        engine.register("a", len)
        with pytest.raises(KeyError, match=r"no tool 'b' is registered; there are: a"):
            engine.execute_tool("b")
        with pytest.raises(ValueError, match="'a' is registered already"):
            engine.register("a", len)
        with pytest.raises(TypeError, match=r"a int is no tool"):
            engine.register("c", 5)
        with pytest.raises(ValueError, match=r"arguments of 'a' are no JSON"):
            engine.execute_tool("a", "{")
        with pytest.raises(TypeError, match=r"arguments of 'a' are a list"):
            engine.execute_tool("a", "[1]")
        with pytest.raises(ValueError, match=r"timeout is -1; it accepts seconds"):
            ToolEngine(timeout_seconds=-1)
        with pytest.raises(TypeError, match="no_such_field"):
            ToolEngine(no_such_field=1)


class TestDeadlines:
    @pytest.mark.parametrize("kind", ["sleeps", "loops", "blocks on a lock", "coroutine"])
    def test_the_caller_has_its_answer(self, hung, kind):
        lock = threading.Lock()
        lock.acquire()

        def loops():
            while not hung.release.is_set():
                pass

        async def waits():
            await asyncio.sleep(3600)

        does = {"sleeps": hung, "loops": loops, "blocks on a lock": lock.acquire}
        begun, calls = threading.Event(), 0

        def begins():
            begun.set()
            return does.get(kind, waits)()

        engine = ToolEngine(timeout_seconds=SOON)
        engine.register("t", begins)
        # On a busy machine its time may be up before its thread has begun with it.
        while not begun.is_set():
            calls += 1
            started = time.monotonic()
            with pytest.raises(ToolTimeout, match=r"'t' did not answer within 0\.05 s") as caught:
                engine.execute_tool("t")
            assert time.monotonic() - started < IN_TIME
            assert isinstance(caught.value, TimeoutError)
        if kind == "coroutine":
            # Cancelled, not abandoned.
            settled(lambda: abandoned() == 0)
        else:
            assert abandoned() == 1
        hung.release.set()
        lock.release()
        settled(lambda: abandoned() == 0)
        assert engine.stats()["tools"]["t"]["timeout"] == calls

    def test_a_tool_can_see_that_its_caller_has_left(self, hung):
        assert not cancelled()
        engine = ToolEngine(timeout_seconds=SOON)
        engine.register("t", hung)
        engine.register("quick", cancelled)
        with pytest.raises(ToolTimeout):
            engine.execute_tool("t")
        hung.release.set()
        settled(lambda: hung.saw == [True])
        assert engine.execute_tool("quick") is False

    def test_an_awaited_tool_that_will_not_be_cancelled_holds_nobody_up(self):
        stubborn = asyncio.Event()

        async def refuses():
            while not stubborn.is_set():
                try:
                    await stubborn.wait()
                except asyncio.CancelledError:
                    continue

        engine = ToolEngine(timeout_seconds=SOON)
        engine.register("t", refuses)

        async def run():
            with pytest.raises(ToolTimeout):
                await engine.aexecute_tool("t")
            left = abandoned()
            stubborn.set()
            await asyncio.sleep(0)
            return left

        assert asyncio.run(run()) == 1
        settled(lambda: abandoned() == 0)

    def test_an_awaited_function_is_left_on_its_thread(self, hung):
        engine = ToolEngine(timeout_seconds=SOON)
        engine.register("t", hung)

        async def run():
            with pytest.raises(ToolTimeout):
                await engine.aexecute_tool("t")
            waiting = asyncio.create_task(
                ToolEngine.aexecute_tool(engine, "t"), name="cancelled by its owner"
            )
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting

        asyncio.run(run())

    def test_no_more_threads_are_taken_than_there_are(self, hung):
        engine = ToolEngine(timeout_seconds=SOON, max_threads=2)
        engine.register("t", hung)
        before = threading.active_count()
        for _ in range(2):
            with pytest.raises(ToolTimeout):
                engine.execute_tool("t")
        with pytest.raises(ToolRefused, match="all 2 threads are taken") as caught:
            engine.execute_tool("t")
        assert caught.value.retryable
        assert threading.active_count() <= before + 2
        hung.release.set()
        settled(lambda: abandoned() == 0)
        assert engine.execute_tool("t") == "late"

    @pytest.mark.parametrize("limits", [{}, {"timeout_seconds": 20}])
    def test_calls_inside_calls_need_no_thread_that_is_taken(self, limits):
        engine = ToolEngine(max_threads=2, **limits)
        both = threading.Barrier(2)

        def go_down(left):
            if left == 3:
                both.wait(20)
            return 1 + engine.execute_tool("t", {"left": left - 1}, run="r") if left else 0

        engine.register("t", go_down)
        with ThreadPoolExecutor(2) as pool:
            calls = [pool.submit(engine.execute_tool, "t", {"left": 3}, run="r") for _ in range(2)]
            assert [call.result(20) for call in calls] == [3, 3]

    def test_a_coroutine_of_the_next_call_is_not_cancelled(self):
        async def sleep():
            began.set()
            await asyncio.sleep(0.2)
            return "slept"

        began, results, next_one = threading.Event(), [], object()

        def run():
            try:
                results.append(asyncio.run(sleep()))
            except asyncio.CancelledError:
                results.append("cancelled")

        for late, expected in ((object(), "slept"), (next_one, "cancelled")):
            began.clear()
            thread = threading.Thread(target=run)
            thread.start()
            assert began.wait(IN_TIME)
            at = types.SimpleNamespace(ident=thread.ident, job=next_one)
            workers.cancel_coroutines(at, late)
            thread.join()
            assert results.pop() == expected

    def test_where_no_thread_can_be_started_nothing_goes_on_waiting(self, monkeypatch):
        def refuse():
            raise RuntimeError("can't start new thread")

        engine = ToolEngine()
        engine.register("t", lambda: "done")
        loops = []

        async def run():
            loops.append(weakref.ref(asyncio.get_running_loop()))
            await engine.aexecute_tool("t")

        with monkeypatch.context() as patched:
            patched.setattr(workers, "take", refuse)
            with pytest.raises(RuntimeError, match="can't start"):
                asyncio.run(run())
        assert asyncio.run(engine.aexecute_tool("t")) == "done"

        def is_gone():
            gc.collect()
            return loops[0]() is None

        settled(is_gone)

    def test_time_in_a_queue_counts(self, hung):
        engine = ToolEngine(timeout_seconds=SOON, max_concurrency=1)
        engine.register("t", hung)
        with pytest.raises(ToolTimeout, match="did not answer"):
            engine.execute_tool("t")
        # The abandoned call still runs.
        with pytest.raises(ToolTimeout, match=r"was not run: its turn did not come within 0\.05 s"):
            engine.execute_tool("t")

        async def run():
            await engine.aexecute_tool("t")

        with pytest.raises(ToolTimeout, match="was not run"):
            asyncio.run(run())
        assert hung.entered.acquire(timeout=30)
        assert not hung.entered.acquire(blocking=False)


class TestLimits:
    @pytest.mark.parametrize("way", ["threads", "many", "async"])
    @pytest.mark.parametrize("timeout", [None, 60])
    def test_uses_are_exact(self, way, timeout):
        engine = ToolEngine(timeout_seconds=timeout, tool_usage_limits={"t": 7})
        ran = []
        engine.register("t", ran.append)
        calls = [("t", {})] * 20

        def step(*_):
            ran.append(1)

        engine = ToolEngine(timeout_seconds=timeout, tool_usage_limits={"t": 7})
        engine.register("t", step)

        async def all_at_once():
            return await asyncio.gather(
                *(engine.aexecute_tool("t") for _ in calls), return_exceptions=True
            )

        if way == "many":
            found = engine.execute_many(calls, return_exceptions=True)
        elif way == "async":
            found = asyncio.run(all_at_once())
        else:
            found = []
            start = threading.Barrier(20)

            def call():
                start.wait()
                try:
                    found.append(engine.execute_tool("t"))
                except ToolRefused as error:
                    found.append(error)

            threads = [threading.Thread(target=call) for _ in calls]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert len(ran) == 7
        assert sum(isinstance(answer, ToolRefused) for answer in found) == 13
        assert engine.stats()["tools"]["t"]["refused"] == 13

    def test_uses_belong_to_a_run_and_limits_can_change(self):
        engine = ToolEngine()
        engine.register("t", lambda: 1)
        engine.set_tool_limit("t", 1)
        for run in ("a", "b"):
            assert engine.execute_tool("t", run=run) == 1
            with pytest.raises(ToolRefused, match=r"may be called 1 time in a run"):
                engine.execute_tool("t", run=run)
        engine.set_tool_limit("t", 2)
        assert engine.execute_tool("t", run="a") == 1
        with pytest.raises(ToolRefused, match=r"2 times"):
            engine.execute_tool("t", run="a")
        engine.end_run("a")
        assert engine.execute_tool("t", run="a") == 1
        engine.set_tool_limit("t", math.inf)
        assert [engine.execute_tool("t", run="b") for _ in range(5)] == [1] * 5

    def test_a_limit_that_is_set_later_counts_what_was_before(self):
        engine = ToolEngine(timeout_seconds=60)
        engine.register("t", lambda: 1)
        assert [engine.execute_tool("t") for _ in range(2)] == [1, 1]
        engine.set_tool_limit("t", 2)
        with pytest.raises(ToolRefused):
            engine.execute_tool("t")

    def test_a_refused_call_uses_nothing_up(self, hung):
        engine = ToolEngine(tool_usage_limits={"t": 1}, rate="1/h", rate_excess="refuse")
        engine.register("t", lambda: 1)
        engine.register("u", lambda: 2)
        assert engine.execute_tool("t", run="a") == 1
        with pytest.raises(ToolRefused, match=r"may be called 1/h; the next .* in 3\d{3}\.\d s"):
            engine.execute_tool("t", run="b")
        assert engine.execute_tool("u") == 2

    def test_never_more_run_at_once_than_allowed(self):
        engine = ToolEngine(max_concurrency=3)
        inside, most, lock = 0, 0, threading.Lock()

        def step():
            nonlocal inside, most
            with lock:
                inside += 1
                most = max(most, inside)
            time.sleep(0.002)
            with lock:
                inside -= 1

        engine.register("t", step)

        async def all_at_once():
            await asyncio.gather(*(engine.aexecute_tool("t") for _ in range(20)))

        engine.execute_many([("t", None)] * 20)
        asyncio.run(all_at_once())
        assert most == 3

    def test_a_rate_makes_calls_wait(self):
        engine = ToolEngine(rate="2/0.2 s")
        starts = []
        engine.register("t", lambda: starts.append(time.monotonic()))

        async def awaited():
            await engine.aexecute_tool("t")

        for _ in range(4):
            engine.execute_tool("t")
        asyncio.run(awaited())
        # Starts are granted exactly; how soon after that a call runs is the machine's business.
        assert all(starts[at + 2] - starts[at] >= 0.1 for at in range(3))

    @pytest.mark.parametrize("timeout", [None, 60])
    def test_tools_inside_each_other(self, timeout):
        engine = ToolEngine(max_recursion_depth=4, timeout_seconds=timeout)
        engine.register("ping", lambda: engine.execute_tool("pong"))
        engine.register("pong", lambda: engine.execute_tool("ping"))
        with pytest.raises(ToolRefused, match=r"ping -> pong -> ping -> pong -> ping") as caught:
            engine.execute_tool("ping")
        assert caught.value.code == "max_recursion_depth"
        engine.register("fine", lambda n: n and engine.execute_tool("fine", {"n": n - 1}))
        assert engine.execute_tool("fine", {"n": 3}) == 0

    def test_a_tool_inside_itself_does_not_wait_for_itself(self):
        engine = ToolEngine(max_concurrency=1)
        engine.register("t", lambda n: n and engine.execute_tool("t", {"n": n - 1}))
        assert engine.execute_tool("t", {"n": 3}) == 0

    def test_recursion_without_a_limit_is_pythons_error(self):
        engine = ToolEngine()
        engine.register("t", lambda: engine.execute_tool("t"))
        with pytest.raises(RecursionError):
            engine.execute_tool("t")


class TestCancelling:
    def test_callers_are_let_go_and_nothing_more_starts(self, hung):
        engine = ToolEngine(max_concurrency=1)
        engine.register("t", hung)
        found = []

        def call():
            try:
                found.append(engine.execute_tool("t", run="r"))
            except ToolCancelled as error:
                found.append(error)

        threads = [threading.Thread(target=call) for _ in range(3)]
        for thread in threads:
            thread.start()
        assert hung.entered.acquire(timeout=30)
        settled(lambda: engine.stats()["tools"]["t"]["running"] == 3)
        assert engine.cancel("r") == 3
        assert engine.cancel("r") == 0
        for thread in threads:
            thread.join(30)
        assert [type(answer) for answer in found] == [ToolCancelled] * 3
        with pytest.raises(ToolCancelled):
            engine.execute_tool("t", run="r")
        assert engine.execute_many([("t", None)], run="r", return_exceptions=True)
        hung.release.set()
        settled(lambda: hung.saw == [True])
        settled(lambda: abandoned() == 0)
        assert engine.execute_tool("t", run="another") == "late"

    def test_coroutines_are_cancelled(self):
        engine = ToolEngine()
        entered, saw, both = [], [], asyncio.Event()

        async def waits():
            entered.append(1)
            if len(entered) == 2:
                both.set()
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                saw.append("cancelled")
                raise

        engine.register("t", waits)

        async def run():
            calls = [asyncio.create_task(engine.aexecute_tool("t", run="r")) for _ in range(2)]
            await both.wait()
            await asyncio.to_thread(engine.cancel, "r")
            return await asyncio.gather(*calls, return_exceptions=True)

        assert [type(answer) for answer in asyncio.run(run())] == [ToolCancelled] * 2
        assert saw == ["cancelled"] * 2


class TestErrors:
    @pytest.mark.parametrize("timeout", [None, 60])
    @pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt()])
    def test_what_the_tool_raises_is_raised(self, timeout, error):
        def fails():
            raise error

        engine = ToolEngine(timeout_seconds=timeout)
        engine.register("t", fails)
        with pytest.raises(type(error)) as caught:
            engine.execute_tool("t")
        assert caught.value is error
        # The thread that it ran on is none the worse for it.
        engine.register("u", lambda: 1)
        assert engine.execute_tool("u") == 1

    def test_an_error_says_of_which_call(self):
        engine = ToolEngine(max_calls=5, redact=["pin"])
        engine.register("outer", lambda **a: engine.execute_tool("inner", a))
        engine.register("inner", lambda **_: 1 / 0)
        with pytest.raises(ZeroDivisionError) as caught:
            engine.execute_tool("outer", {"q": "x" * 1000, "card": {"PIN_code": 1234}})
        inner, outer = caught.value.__notes__
        assert "tool 'inner'" in inner
        assert "chain outer -> inner" in inner
        assert "policy: max_calls 5" in inner
        assert "tool 'outer'" in outer
        assert "1234" not in inner + outer
        assert "'PIN_code': '<redacted>'" in inner
        assert "(1000 characters)" in inner

    def test_an_error_says_of_long_arguments_that_they_are(self):
        engine = ToolEngine(max_calls=5)
        engine.register("t", lambda **_: 1 / 0)
        arguments = {"rows": [{"n": n} for n in range(10**5)], "last": "far", "more": 1}
        with pytest.raises(ZeroDivisionError) as caught:
            engine.execute_tool("t", arguments)
        (note,) = caught.value.__notes__
        assert "{'n': 99}, '… 99900 more']" in note
        assert "'…': '2 more'" in note
        assert len(note) < 2500

    def test_arguments_and_results_whose_repr_fails(self):
        class Rude:
            def __repr__(self):
                raise RuntimeError("no")

        engine = ToolEngine(timeout_seconds=60)
        engine.register("gives", lambda x: x)
        engine.register("fails", lambda x: 1 / 0)
        rude = Rude()
        assert engine.execute_tool("gives", {"x": rude}) is rude
        with pytest.raises(ZeroDivisionError) as caught:
            engine.execute_tool("fails", {"x": rude})
        assert "<Rude, whose repr raises RuntimeError>" in caught.value.__notes__[0]

    def test_one_error_object_collects_no_endless_notes(self):
        error = ValueError("always the same")

        def fails():
            raise error

        engine = ToolEngine(max_calls=1000)
        engine.register("t", fails)
        for _ in range(100):
            with pytest.raises(ValueError, match="always"):
                engine.execute_tool("t")
        assert len(error.__notes__) < 20


class TestMany:
    def test_results_come_in_the_order_of_the_calls(self):
        engine = ToolEngine()
        engine.register("t", lambda n: n)
        assert engine.execute_many([("t", {"n": n}) for n in range(50)]) == list(range(50))
        assert engine.execute_many([]) == []

    @given(st.integers(1, 12), st.data())
    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def test_every_call_starts_after_those_that_it_needs(self, count, data):
        needs = {
            n: data.draw(st.lists(st.integers(0, n - 1), max_size=3, unique=True))
            for n in range(1, count)
        }
        fails = data.draw(st.sets(st.integers(0, count - 1), max_size=3))
        limit = data.draw(st.integers(1, 4))
        ended, lock, running, most = [], threading.Lock(), [0], [0]

        def step(n, after):
            with lock:
                running[0] += 1
                most[0] = max(most[0], running[0])
                assert set(needs.get(n, ())) <= set(ended)
                assert after == {place: place * 10 for place in needs.get(n, ())}
            try:
                if n in fails:
                    raise ValueError(n)
                return n * 10
            finally:
                with lock:
                    running[0] -= 1
                    ended.append(n)

        engine = ToolEngine()
        engine.register("t", step)
        calls = [("t", lambda results, n=n: {"n": n, "after": dict(results)}) for n in range(count)]
        found = engine.execute_many(calls, needs, max_parallel=limit, return_exceptions=True)
        lost: set[int] = set()
        for n, answer in enumerate(found):
            if lost & set(needs.get(n, ())):
                assert isinstance(answer, ToolSkipped)
                lost.add(n)
            elif n in fails:
                assert isinstance(answer, ValueError)
                lost.add(n)
            else:
                assert answer == n * 10
        assert most[0] <= limit

    def test_failures_are_raised_together(self):
        engine = ToolEngine()
        engine.register("fails", lambda: 1 / 0)
        engine.register("t", lambda: 1)
        with pytest.raises(ExceptionGroup, match="2 of 3 calls failed") as caught:
            engine.execute_many([("fails", None), ("t", None), ("t", None)], {2: [0]})
        skipped = caught.value.exceptions[1]
        assert str(skipped) == (
            "call 2 ('t') was not made: call 0 ('fails'), which it depends on, failed"
        )

    def test_graphs_that_are_none(self):
        engine = ToolEngine()
        engine.register("t", lambda: 1)
        calls = [("t", None)] * 2
        with pytest.raises(ValueError, match=r"in a circle: 0 -> 1 -> 0|in a circle: 1 -> 0 -> 1"):
            engine.execute_many(calls, {0: [1], 1: [0]})
        with pytest.raises(ValueError, match=r"depends_on names call 5; there are calls 0 to 1"):
            engine.execute_many(calls, {0: [5]})
        with pytest.raises(KeyError, match="no tool 'x'"):
            engine.execute_many([("t", None), ("x", None)])
        with pytest.raises(ValueError, match="max_parallel is -1"):
            engine.execute_many(calls, max_parallel=-1)


class TestPolicies:
    def test_a_tools_own_goes_before_the_engines(self):
        engine = ToolEngine(max_calls=1, tool_usage_limits={"b": 2})
        engine.register("a", lambda: 1, Policy(max_calls=3))
        engine.register("b", lambda: 1)
        engine.register("c", lambda: 1, Policy(max_calls=math.inf))
        for name, limit in (("a", 3), ("b", 2)):
            for _ in range(limit):
                engine.execute_tool(name)
            with pytest.raises(ToolRefused):
                engine.execute_tool(name)
        for _ in range(9):
            engine.execute_tool("c")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
class TestProcesses:
    def run(self, code):
        return subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def test_exit_with_abandoned_threads(self):
        done = self.run(
            "import time, threading\n"
            "from crewai_native_tools import ToolEngine, ToolTimeout\n"
            "engine = ToolEngine(timeout_seconds=0.05)\n"
            "def spin():\n"
            "    while True: pass\n"
            "engine.register('sleep', lambda: time.sleep(3600))\n"
            "engine.register('spin', spin)\n"
            "slow = ToolEngine(timeout_seconds=3600)\n"
            "slow.register('sleep', lambda: time.sleep(3600))\n"
            "threading.Thread(target=slow.execute_tool, args=('sleep',), daemon=True).start()\n"
            "for name in ('sleep', 'spin', 'sleep'):\n"
            "    try: engine.execute_tool(name)\n"
            "    except ToolTimeout: print('late')\n"
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "late\n" * 3, "")

    def test_a_child_starts_anew(self):
        done = self.run(
            "import os, threading\n"
            "from crewai_native_tools import ToolEngine, ToolTimeout\n"
            "engine = ToolEngine(timeout_seconds=60, max_concurrency=1)\n"
            "entered, release = threading.Event(), threading.Event()\n"
            "def work(wait):\n"
            "    if wait: entered.set(); release.wait()\n"
            "    return os.getpid()\n"
            "engine.register('t', work)\n"
            "engine.execute_tool('t', {'wait': False})\n"
            "threading.Thread(target=engine.execute_tool, args=('t', {'wait': True})).start()\n"
            "entered.wait()\n"
            "pid = os.fork()\n"
            "if pid == 0:\n"
            "    ok = engine.execute_tool('t', {'wait': False}) == os.getpid()\n"
            "    os._exit(0 if ok and engine.stats()['abandoned'] == 0 else 1)\n"
            "status = os.waitpid(pid, 0)[1]\n"
            "release.set()\n"
            "print(status, engine.execute_tool('t', {'wait': False}) == os.getpid())\n"
        )
        assert (done.returncode, done.stdout) == (0, "0 True\n"), done.stderr

    def test_a_tool_that_forks_leaves_no_child_behind(self):
        done = self.run(
            "import os\n"
            "from crewai_native_tools import ToolEngine\n"
            "engine = ToolEngine(timeout_seconds=60)\n"
            "engine.register('fork', os.fork)\n"
            "pid = engine.execute_tool('fork')\n"
            "assert pid > 0\n"
            "print(os.waitpid(pid, 0)[1])\n"
        )
        assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


@pytest.mark.parametrize(
    ("refused", "error"),
    [
        (Policy(run_budget={"tokens": 1}), ValueError),
        (Policy(isolation="process"), TypeError),
        ({"timeout": 5}, TypeError),
    ],
)
def test_a_tool_that_is_refused_leaves_nothing_behind(refused, error):
    engine = ToolEngine()
    with pytest.raises(error, match="'a'"):
        engine.register("a", lambda: 1, refused)
    engine.register("a", lambda: 2, Policy(timeout=5))
    engine.set_tool_limit("a", 3)
    assert engine.execute_tool("a") == 2
