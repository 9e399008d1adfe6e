"""Runs that end: at their time limit, or because somebody asked."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any

import pytest

import crewai_native
from crewai_native.testing import HashEmbedder, ScriptedLLM, ToolCall

with warnings.catch_warnings():
    # What CrewAI's dependencies say while they are imported is not what is tested here.
    warnings.simplefilter("ignore")
    from crewai import Agent, Crew, Task
    from crewai.flow.flow import Flow, listen, start
    from crewai.memory.unified_memory import Memory
    from crewai.tools import tool

import crewai_native_tasks
from crewai_native_tasks import Cancelled, cancel_scope, limits
from crewai_native_tasks.options import Options

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FOREVER = 60.0


@pytest.fixture(autouse=True, scope="module")
def bound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CREWAI_STORAGE_DIR", str(tmp_path_factory.mktemp("crewai")))
        crewai_native.activate(enabled=True)
        yield
        crewai_native.deactivate()


class Foreign:
    """Code that can be waited for and let go, called by a model or as a tool."""

    def __init__(self) -> None:
        self.inside, self.go = threading.Event(), threading.Event()
        self.calls = 0

    def __call__(self, *_: Any) -> str:
        self.calls += 1
        self.inside.set()
        assert self.go.wait(FOREVER)
        return "back"


@pytest.fixture
def foreign() -> Iterator[Foreign]:
    made = Foreign()
    yield made
    made.go.set()


def crew_of(*scripts: Any, tools: Any = (), native: bool = True, **options: Any) -> Crew:
    agents = [
        Agent(
            role=f"worker {n}",
            goal="work",
            backstory="works",
            llm=ScriptedLLM(script, native=native),
            tools=list(tools),
        )
        for n, script in enumerate(scripts)
    ]
    tasks = [
        Task(description=f"task {n}", expected_output="words", agent=agent)
        for n, agent in enumerate(agents)
    ]
    return Crew(agents=agents, tasks=tasks, **options)


def tool_of(foreign: Foreign) -> Any:
    @tool("wait")
    def wait(text: str) -> str:
        """Wait."""
        return foreign(text)

    return wait


class TestCancelling:
    def test_nothing_comes_after_the_model_call_it_was_inside_of(self, foreign: Foreign) -> None:
        crew = crew_of([foreign], "second")
        done: list[Any] = []
        crew.tasks[0].callback = done.append
        handle = crewai_native_tasks.start(crew)
        assert foreign.inside.wait(FOREVER)
        (left,) = handle.cancel()
        assert left.what == "model call"
        with pytest.raises(CancelledError):
            handle.result(0)
        foreign.go.set()
        handle._thread.join(FOREVER)
        assert not handle._thread.is_alive()
        assert (done, crew.agents[1].llm.calls) == ([], [])

    @pytest.mark.parametrize("native", [True, False], ids=["native", "react"])
    def test_nor_after_the_tool(self, foreign: Foreign, native: bool) -> None:
        script = [ToolCall("wait", {"text": "a"}), "done"]
        crew = crew_of(script, tools=[tool_of(foreign)], native=native)
        handle = crewai_native_tasks.start(crew)
        assert foreign.inside.wait(FOREVER)
        (left,) = handle.cancel()
        assert left.what == "tool wait"
        foreign.go.set()
        handle._thread.join(FOREVER)
        assert len(crew.agents[0].llm.calls) == 1

    def test_nor_of_tools_that_run_side_by_side(self, foreign: Foreign) -> None:
        two = [ToolCall("wait", {"text": "a"}), ToolCall("wait", {"text": "b"})]
        crew = crew_of([two, "done"], tools=[tool_of(foreign)])
        handle = crewai_native_tasks.start(crew)
        assert foreign.inside.wait(FOREVER)
        left = handle.cancel()
        assert {place.what for place in left} == {"tool wait"}
        foreign.go.set()
        handle._thread.join(FOREVER)
        assert len(crew.agents[0].llm.calls) == 1

    def test_a_task_on_a_thread_of_its_own_ends_too(self, foreign: Foreign) -> None:
        crew = crew_of([foreign], "second")
        crew.tasks[0].async_execution = True
        handle = crewai_native_tasks.start(crew)
        assert foreign.inside.wait(FOREVER)
        handle.cancel()
        foreign.go.set()
        handle._thread.join(FOREVER)
        assert not handle._thread.is_alive()
        assert len(crew.agents[1].llm.calls) <= 1

    def test_a_flow_ends_before_its_next_method(self, foreign: Foreign) -> None:
        ran: list[str] = []

        class Steps(Flow):
            @start()
            def first(self) -> str:
                return foreign()

            @listen(first)
            def second(self) -> None:
                ran.append("second")

        handle = crewai_native_tasks.start(Steps())
        assert foreign.inside.wait(FOREVER)
        (left,) = handle.cancel()
        assert left.what == "a method of Steps"
        foreign.go.set()
        handle._thread.join(FOREVER)
        assert ran == []

    def test_a_callback_that_goes_on_is_reported(self, foreign: Foreign) -> None:
        crew = crew_of("first", "second")
        crew.tasks[0].callback = foreign
        handle = crewai_native_tasks.start(crew)
        assert foreign.inside.wait(FOREVER)
        assert [left.what for left in handle.cancel()] == ["code between two points"]
        foreign.go.set()
        handle._thread.join(FOREVER)
        assert crew.agents[1].llm.calls == []

    def test_a_run_that_is_over_stays_as_it_was(self) -> None:
        handle = crewai_native_tasks.start(crew_of("done"))
        assert handle.result(FOREVER).raw == "done"
        assert handle.done
        assert handle.cancel() == []
        assert handle.result().raw == "done"

    def test_an_error_of_the_run_is_the_results(self) -> None:
        handle = crewai_native_tasks.start(crew_of([KeyError("model")]))
        with pytest.raises(KeyError, match="model"):
            handle.result(FOREVER)

    def test_a_result_is_waited_for_no_longer_than_asked(self, foreign: Foreign) -> None:
        handle = crewai_native_tasks.start(crew_of([foreign]))
        with pytest.raises(TimeoutError, match="not over after 0"):
            handle.result(0)
        handle.cancel()

    def test_no_memory_is_written_after_it(self, tmp_path: Path) -> None:
        memory = Memory(llm=ScriptedLLM(), embedder=HashEmbedder(), storage=str(tmp_path / "m"))
        with cancel_scope() as scope:
            scope.cancel()
            with pytest.raises(Cancelled):
                memory.remember("the mill", scope="/a", categories=["b"], importance=0.5)
        assert memory.list_records() == []
        memory.close()


class TestScopes:
    def test_a_signal_handler_stops_the_main_thread(self) -> None:
        def interrupt(_: Any) -> str:
            signal.raise_signal(signal.SIGUSR1)
            return "first"

        crew = crew_of([interrupt], "second")
        scope = cancel_scope()
        before = signal.signal(signal.SIGUSR1, lambda *_: scope.cancel())
        try:
            with pytest.raises(Cancelled), scope:
                crew.kickoff()
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert scope.cancelled
        assert crew.agents[1].llm.calls == []

    def test_an_outer_scope_ends_the_inner_one_alone_and_not_the_other_way_round(self) -> None:
        with cancel_scope() as outer:
            inner, other = cancel_scope(), cancel_scope()
            inner.cancel()
            with pytest.raises(Cancelled), inner:
                crew_of("never").kickoff()
            assert crew_of("still").kickoff().raw == "still"
            outer.cancel()
            with pytest.raises(Cancelled), other:
                crew_of("never").kickoff()
            assert not other.cancelled

    def test_it_can_be_cancelled_before_it_is_entered_and_entered_once(self) -> None:
        scope = cancel_scope()
        assert scope.cancel() == []
        crew = crew_of("never")
        with pytest.raises(Cancelled), scope:
            crew.kickoff()
        assert crew.agents[0].llm.calls == []
        with pytest.raises(RuntimeError, match="once"), scope:
            pass

    def test_its_time_can_be_up(self) -> None:
        crew = crew_of([lambda _: time.sleep(0.2) or "first"], "second")
        with (
            pytest.raises(TimeoutError, match=r"longer than 0\.1 seconds"),
            cancel_scope(timeout=0.1),
        ):
            crew.kickoff()
        assert crew.agents[1].llm.calls == []

    def test_an_awaited_crew_is_interrupted_where_it_waits(self, foreign: Foreign) -> None:
        async def main() -> None:
            loop = asyncio.get_running_loop()
            crew = crew_of([foreign], "second")
            scope = cancel_scope()
            loop.run_in_executor(None, lambda: foreign.inside.wait(FOREVER) and scope.cancel())
            with pytest.raises(Cancelled), scope:
                await crew.akickoff()
            assert not foreign.go.is_set()
            other = crew_of([foreign], "second")
            with pytest.raises(TimeoutError), cancel_scope(timeout=0.5):
                await other.akickoff()
            # The task itself is as it was.
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling() == 0
            await asyncio.sleep(0)
            foreign.go.set()
            assert crew.agents[1].llm.calls == other.agents[1].llm.calls == []

        asyncio.run(main())

    def test_a_pause_before_another_attempt_ends_with_it(self) -> None:
        class RateLimitError(Exception):
            pass

        refusing = RateLimitError("rate limit")
        refusing.headers = {"retry-after": str(FOREVER)}  # type: ignore[attr-defined]
        crew = crew_of([refusing])
        handle = crewai_native_tasks.start(crew)
        deadline = time.monotonic() + FOREVER
        while not handle._scope._scope and time.monotonic() < deadline:
            time.sleep(0.01)
        handle.cancel()
        handle._thread.join(FOREVER / 2)
        assert not handle._thread.is_alive()


class TestTimeLimits:
    def test_a_kickoff_returns_in_time_and_the_agent_is_free(self, foreign: Foreign) -> None:
        crew = crew_of([foreign], "second")
        crew.agents[0].max_execution_time = 1
        began = time.monotonic()
        with pytest.raises(TimeoutError, match="timed out after 1 seconds") as late:
            crew.kickoff()
        assert isinstance(late.value.__cause__, TimeoutError)  # as CrewAI's own
        # Twenty times what the limit may be missed by: other processes run here.
        assert 1 <= time.monotonic() - began < 3
        crew.agents[0].llm._script = {"": ["again"]}
        assert [task.raw for task in crew.kickoff().tasks_output] == ["again", "second"]
        foreign.go.set()

    def test_so_does_an_awaited_one(self, foreign: Foreign) -> None:
        async def main() -> None:
            crew = crew_of([foreign], "second")
            crew.agents[0].max_execution_time = 1
            began = time.monotonic()
            with pytest.raises(TimeoutError, match="timed out after 1 seconds") as late:
                await crew.akickoff()
            assert isinstance(late.value.__cause__, TimeoutError)
            assert 1 <= time.monotonic() - began < 3
            crew.agents[0].llm._script = {"": ["again"]}
            again = await crew.akickoff()
            assert [task.raw for task in again.tasks_output] == ["again", "second"]
            foreign.go.set()

        asyncio.run(main())

    def test_what_is_in_time_is_as_it_was(self) -> None:
        crew = crew_of("first", [KeyError("model")])
        for agent in crew.agents:
            agent.max_execution_time = 30
            agent.max_retry_limit = 0
        with pytest.raises(RuntimeError, match="Task execution failed: 'model'"):
            crew.kickoff()
        assert crew.tasks[0].output.raw == "first"

    def test_cancelling_does_not_wait_for_the_limit(self, foreign: Foreign) -> None:
        crew = crew_of([foreign])
        crew.agents[0].max_execution_time = 3600
        handle = crewai_native_tasks.start(crew)
        assert foreign.inside.wait(FOREVER)
        handle.cancel()
        handle._thread.join(FOREVER)
        assert not handle._thread.is_alive()


class TestNeutral:
    def test_without_a_scope_a_crew_runs_as_ever(self) -> None:
        script = [ToolCall("shout", {"text": "a"}), lambda turn: turn.results[-1]]

        @tool("shout")
        def shout(text: str) -> str:
            """Shout."""
            return text.upper()

        assert crew_of(script, tools=[shout]).kickoff().raw == "A"
        assert asyncio.run(crew_of(script, tools=[shout]).akickoff()).raw == "A"


class TestTokens:
    @pytest.fixture(autouse=True)
    def limited(self, tmp_path: Path) -> Iterator[None]:
        limits.configure(Options(tokens_per_minute=200, limits_path=tmp_path / "limits"))
        yield
        limits.configure(Options())

    def test_what_one_crew_uses_holds_up_the_next_until_it_is_cancelled(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spent = crew_of(["word " * 200]).kickoff()
        assert spent.token_usage.total_tokens > 200
        (limit,) = limits.in_force()
        refused, wait = limit.admit()
        assert refused is None
        assert 0 < wait <= 61

        asked, held_up = threading.Event(), threading.Event()
        admit = limits.admit

        def seen(of: Any) -> Any:
            admission, wait = admit(of)
            if admission is None:
                held_up.set()
            return admission, wait

        monkeypatch.setattr(limits, "admit", seen)
        other = crew_of([lambda _: asked.set() or "never asked"])
        handle = crewai_native_tasks.start(other)
        assert held_up.wait(FOREVER)
        handle.cancel()
        with pytest.raises((Cancelled, CancelledError)):
            handle.result(FOREVER)
        assert not asked.is_set()

        # Another process that shares the file is held up as well.
        program = (
            "import sys\nfrom crewai_native_tasks.limits import Limit\n"
            "print(Limit(requests=None, tokens=200, path=sys.argv[1]).admit()[0])"
        )
        told = subprocess.run(
            [sys.executable, "-c", program, tmp_path / "limits"],
            capture_output=True,
            text=True,
            timeout=FOREVER,
            check=True,
        )
        assert told.stdout == "None\n"


def test_a_scope_that_can_stop_no_crew_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with crewai_native.using({"tasks.control": "stock"}):
        with cancel_scope(timeout=0.001):
            crew_of(["one"]).kickoff()
        (warning,) = caplog.messages
        assert "stopped no crew: tasks.control is served by stock (slot set to stock" in warning
        caplog.clear()
        with cancel_scope(timeout=FOREVER):
            crew_of(["one"]).kickoff()
    with cancel_scope() as scope:
        crew_of(["one"]).kickoff()
        scope.cancel()
    assert caplog.messages == []
