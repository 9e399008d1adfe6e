"""The guard around real agents that call real tools, and around hand-made calls."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import math
import threading
import types
import weakref
from concurrent import futures

import pytest
from crewai import Agent, Crew, Task
from crewai.tools import BaseTool, tool
from pydantic import BaseModel, ConfigDict, Field, model_validator

import crewai_native
import crewai_native_tools.plugin
from crewai_native.slots.tools_guard import STOP_RUN
from crewai_native.slots.tools_guard import ToolCall as GuardedCall
from crewai_native.testing import ScriptedLLM, ToolCall
from crewai_native_tools import (
    Budget,
    Policy,
    RunStopped,
    ToolRefused,
    ToolTimeout,
    cancel,
    configure,
)
from crewai_native_tools.budget import Purse
from crewai_native_tools.guard import NativeGuard
from crewai_native_tools.options import Options, read

DISTRIBUTION = "crewai-native-tools"
BOTH = pytest.mark.parametrize("native", [True, False], ids=["native", "react"])
SOON = 0.05

failures = pytest.importorskip("crewai.tools.tool_failure")


@pytest.fixture(scope="module", autouse=True)
def bound(unbound):
    """The guard alone, in its place in CrewAI."""
    crewai_native.activate(
        enabled=True,
        plugins=[DISTRIBUTION],
        slots={"tools.guard": DISTRIBUTION, "tools.cache": "stock", "tools.schemas": "stock"},
    )
    assert crewai_native.status()["tools.guard"].provider == DISTRIBUTION
    yield
    crewai_native.deactivate()


@pytest.fixture(autouse=True)
def nothing_said():
    configure()
    yield
    configure()


def kickoff(script, tools, *, native, role="worker", **crew):
    llm = ScriptedLLM(script, native=native)
    agent = Agent(role=role, goal="work", backstory="works", llm=llm, tools=tools)
    task = Task(description="do it", expected_output="something", agent=agent)
    return Crew(agents=[agent], tasks=[task], **crew).kickoff()


def talkers(tasks):
    """Return a crew whose tasks need a model alone, and that model."""
    llm = ScriptedLLM("Done.")
    agent = Agent(role="worker", goal="talk", backstory="talks", llm=llm)
    todo = [
        Task(description=f"say {n}", expected_output="something", agent=agent) for n in range(tasks)
    ]
    return Crew(agents=[agent], tasks=todo), llm


def last(turn):
    return str(turn.results[-1])


def every(turn):
    return " | ".join(turn.results)


class Counter(BaseTool):
    name: str = "Count"
    description: str = "Counts."
    calls: list = Field(default_factory=list)

    def _run(self, q: str = "") -> str:
        self.calls.append(q)
        return "nothing new"


class Hung(BaseTool):
    name: str = "Hung"
    description: str = "Hangs."
    release: object = None
    started: object = Field(default_factory=threading.Event)

    def _run(self) -> str:
        self.started.set()
        self.release.wait()
        return "late"


@pytest.fixture
def hung():
    tool = Hung(release=threading.Event())
    yield tool
    tool.release.set()


class TestAgents:
    @BOTH
    def test_a_hung_tool_holds_up_no_crew(self, hung, native):
        configure(default=Policy(timeout=SOON))
        # The crew ends long before its tool does.
        out = kickoff([ToolCall("hung"), last], [hung], native=native, cache=True)
        assert "'hung' did not answer within 0.05 s. (code: timeout)" in out.raw
        (record,) = out.tasks_output[0].tool_failures
        assert record.failure.retryable
        assert record.failure.details["policy"] == "timeout 0.05"
        assert record.failure.details["chain"] == ["hung"]

    @BOTH
    def test_what_is_refused_is_tried_once_and_cached_never(self, native):
        configure(tools={"COUNT": Policy(max_calls=2)})
        counter = Counter(calls=[])
        script = [ToolCall("count", {"q": q}) for q in ("a", "b", "c", "c")]
        out = kickoff([*script, every], [counter], native=native, cache=True)
        assert counter.calls == ["a", "b"]
        failed = out.tasks_output[0].tool_failures
        assert {record.failure.reason.value for record in failed} == {"usage_limit"}
        assert all("may be called 2 times in a run" in record.message for record in failed)

    def test_uses_begin_anew_with_each_kickoff_and_are_shared_within_one(self):
        configure(default=Policy(max_calls=3))
        counter = Counter(calls=[])
        llm = ScriptedLLM([*(ToolCall("count", {"q": q}) for q in "ab"), last])
        agents = [
            Agent(role=role, goal="g", backstory="b", llm=llm, tools=[counter]) for role in "xy"
        ]
        tasks = [Task(description="d", expected_output="e", agent=agent) for agent in agents]
        crew = Crew(agents=agents, tasks=tasks)
        for _ in range(2):
            counter.calls.clear()
            crew.kickoff()
            assert counter.calls == ["a", "b", "a"]

    def test_layers_reach_agents_and_crews(self):
        configure(
            default=Policy(max_calls=1),
            agents={"boss": Policy(max_calls=2)},
            crews={"night": Policy(max_calls=3)},
        )
        script = [*(ToolCall("count", {"q": q}) for q in "abcd"), last]
        for role, name, expected in (
            ("worker", "day", 1),
            ("boss", "night", 2),
            ("worker", "night", 3),
        ):
            counter = Counter(calls=[])
            kickoff(script, [counter], native=True, role=role, name=name)
            assert len(counter.calls) == expected

    @BOTH
    def test_a_loop_is_told_of_and_then_ends_the_run(self, native):
        counter = Counter(calls=[])
        other = Counter(name="Other", calls=[])
        script = [ToolCall("count", {"q": "a"}), ToolCall("other", {"q": "b"})] * 20
        with pytest.raises(failures.ToolExecutionFailedError) as caught:
            kickoff([*script, last], [counter, other], native=native)
        assert "5 rounds of the same 2 calls" in str(caught.value)
        assert caught.value.record.failure.reason.value == "repeated_call"
        assert len(counter.calls) == 5
        heard = []

        def choose(turn):
            heard.append(last(turn))
            return "other way"

        out = kickoff([*script[:8], choose], [counter, other], native=native)
        assert out.raw == "other way"
        assert "nothing new" in heard[0]
        assert "The last 8 tool calls were 4 rounds of the same 2 calls" in heard[0]
        assert "give your final answer" in heard[0]

    @BOTH
    def test_what_goes_on_is_stopped_whatever_the_failure_policy(self, native):
        counter = Counter(calls=[], tool_failure_policy="ignore")
        other = Counter(name="Other", calls=[], tool_failure_policy="ignore")
        script = [ToolCall("count", {"q": "a"}), ToolCall("other", {"q": "b"})] * 20
        with pytest.raises(failures.ToolExecutionFailedError, match="goes round in circles"):
            kickoff([*script, last], [counter, other], native=native)

    @BOTH
    def test_a_tool_that_raises_is_run_once_for_one_call(self, native):
        calls, told = [], []

        @tool("flaky")
        def flaky(q: str) -> str:
            """Fail every other time."""
            calls.append(q)
            if len(calls) % 2:
                raise ValueError(f"not at {len(calls)}")
            return f"result {len(calls)}"

        script = [ToolCall("flaky", {"q": q}) for q in "abcd"]
        kickoff(
            [*script, lambda turn: told.extend(turn.results) or "Done."], [flaky], native=native
        )
        assert calls == list("abcd")
        expected = ["not at 1", "result 2", "not at 3", "result 4"]
        assert all(text in result for text, result in zip(expected, told, strict=True))

    def test_arguments_that_are_refused_get_crewais_second_chance(self):
        calls = []

        class Loose(BaseTool):
            name: str = "Loose"
            description: str = "Takes what its schema does not name."

            def _run(self, **kwargs) -> str:
                calls.append(kwargs)
                return "done"

        class Needs(BaseModel):
            model_config = ConfigDict(extra="allow")
            known: int = 0

            @model_validator(mode="after")
            def needs_more(self):
                if "more" not in (self.model_extra or {}):
                    raise ValueError("more is needed")
                return self

        loose = Loose(args_schema=Needs)
        out = kickoff([ToolCall("loose", {"known": 1, "more": 2}), last], [loose], native=False)
        assert calls == [{"known": 1, "more": 2}]
        assert out.raw == "done"

    def test_what_a_tool_calls_of_its_own_may_be_called_again(self):
        inner_calls = []

        @tool("inner")
        def inner(n: int) -> str:
            """Fail at first."""
            inner_calls.append(n)
            if n < 3:
                raise ValueError("not yet")
            return "inner done"

        structured = inner.to_structured_tool()

        @tool("outer")
        def outer() -> str:
            """Try until it succeeds."""
            for n in range(3):
                with contextlib.suppress(ValueError):
                    structured.invoke({"n": n})
            return structured.invoke({"n": 3})

        out = kickoff([ToolCall("outer", {}), last], [outer], native=False)
        assert out.raw == "inner done"
        assert inner_calls == [0, 1, 2, 3]

    def test_kickoffs_of_one_crew_are_no_loop(self):
        counter = Counter(calls=[])
        llm = ScriptedLLM([ToolCall("count", {"q": "a"}), last])
        agent = Agent(role="r", goal="g", backstory="b", llm=llm, tools=[counter])
        crew = Crew(
            agents=[agent],
            tasks=[Task(description="d", expected_output="e", agent=agent)],
        )
        for _ in range(10):
            assert crew.kickoff().raw == "nothing new"
        agent = Agent(role="r", goal="g", backstory="b", llm=llm, tools=[counter])
        for _ in range(10):
            assert agent.kickoff("go").raw == "nothing new"

    @pytest.mark.parametrize("inner_loops", ["off", 4])
    @pytest.mark.parametrize("outer_loops", ["off", 4])
    def test_tools_of_one_batch_that_poll_are_no_loop(self, inner_loops, outer_loops):
        loops = {"loop": outer_loops, "loop_abort": "off"}
        configure(tools={"wait": Policy(**loops), "status": Policy(loop=inner_loops)})
        turn = threading.Barrier(2)

        @tool("status")
        def status(job: str) -> str:
            """Take turns with the other's."""
            turn.wait(30)
            return "pending"

        @tool("wait")
        def wait(job: str) -> str:
            """Ask ten times."""
            return f"{job} { ({status.run(job=job) for _ in range(10)}) }"

        batch = [ToolCall("wait", {"job": job}) for job in "xy"]
        out = kickoff([batch, every], [wait], native=True)
        assert out.raw == "x {'pending'} | y {'pending'}"

    @BOTH
    def test_executions_that_a_program_asks_an_agent_for_are_no_loop(self, native):
        counter = Counter(calls=[])
        llm = ScriptedLLM([ToolCall("count", {"q": "a"}), last], native=native)
        agent = Agent(role="r", goal="g", backstory="b", llm=llm, tools=[counter])
        task = Task(description="d", expected_output="e", agent=agent)
        for _ in range(10):
            agent.execute_task(task)
        assert len(counter.calls) == 10

        @tool("ask")
        def ask() -> str:
            """Ask another agent ten times."""
            for _ in range(10):
                agent.execute_task(task)
            return "asked"

        assert kickoff([ToolCall("ask", {}), last], [ask], native=native).raw == "asked"
        assert len(counter.calls) == 20

    @BOTH
    def test_an_execution_that_a_program_asks_for_is_watched(self, native):
        counter = Counter(calls=[])
        other = Counter(name="Other", calls=[])
        script = [ToolCall("count", {"q": "a"}), ToolCall("other", {"q": "b"})] * 20
        llm = ScriptedLLM([*script, last], native=native)
        agent = Agent(role="r", goal="g", backstory="b", llm=llm, tools=[counter, other])
        with pytest.raises(failures.ToolExecutionFailedError, match="5 rounds"):
            agent.execute_task(Task(description="d", expected_output="e", agent=agent))

    def test_eight_calls_of_one_batch_run_side_by_side(self):
        together = threading.Barrier(8)

        @tool("limited", max_usage_count=1)
        def limited(n: int) -> str:
            """Meet the others."""
            together.wait(30)
            return f"met {n}"

        @tool("free")
        def free(n: int) -> str:
            """Meet the others."""
            together.wait(30)
            return f"met {n}"

        batch = [ToolCall("free", {"n": n}) for n in range(7)] + [ToolCall("limited", {"n": 7})]
        out = kickoff([batch, every], [limited, free], native=True)
        assert out.raw == " | ".join(f"met {n}" for n in range(8))
        assert limited.current_usage_count == 1

    def test_a_batch_beyond_a_limit_runs_in_order(self):
        ran = []

        @tool("limited", max_usage_count=2)
        def limited(n: int) -> str:
            """Note."""
            ran.append(n)
            return str(n)

        batch = [ToolCall("limited", {"n": n}) for n in range(4)]
        kickoff([batch, every], [limited], native=True)
        assert ran == [0, 1]

    @BOTH
    def test_hooks_and_events_come_as_in_stock(self, hung, native):
        from crewai.events import crewai_event_bus
        from crewai.events.types import tool_usage_events as events
        from crewai.hooks import tool_hooks

        seen = []

        @tool("look")
        def look(q: str) -> str:
            """Look."""
            seen.append("tool")
            return "found"

        def before(context):
            seen.append(f"before {context.tool_name}")

        def after(context):
            seen.append(f"after {context.tool_result}")

        def both():
            seen.clear()
            with crewai_event_bus.scoped_handlers():
                done = threading.Event()

                @crewai_event_bus.on(events.ToolUsageFinishedEvent)
                def finished(_, event):
                    reported = getattr(event, "failure", None)
                    if reported is not None:
                        assert reported.code == "timeout"
                    done.set()

                script = [ToolCall("look", {"q": "x"}), last]
                kickoff(script, [look], native=native)
                assert done.wait(30)
            return list(seen)

        tool_hooks.register_before_tool_call_hook(before)
        tool_hooks.register_after_tool_call_hook(after)
        try:
            configure(default=Policy(timeout=60, max_calls=5))
            guarded = both()
            crewai_native.deactivate()
            stock = both()
            assert guarded == stock == ["before look", "tool", "after found"]
            crewai_native.activate(
                enabled=True, plugins=[DISTRIBUTION], slots={"tools.guard": DISTRIBUTION}
            )
            configure(default=Policy(timeout=SOON))
            seen.clear()
            kickoff([ToolCall("hung"), last], [hung], native=native)
            assert seen[0] == "before hung"
            assert "did not answer within" in seen[1]
        finally:
            tool_hooks.unregister_before_tool_call_hook(before)
            tool_hooks.unregister_after_tool_call_hook(after)


class TestBudgets:
    @BOTH
    def test_a_spent_budget_ends_the_run_with_a_report(self, native):
        configure(default=Policy(run_budget={"tool_calls": 3}))
        counter = Counter(calls=[])
        script = [ToolCall("count", {"q": str(n)}) for n in range(9)]
        with pytest.raises(
            failures.ToolExecutionFailedError,
            match=r"the run's tool_calls of 3 are spent \(so far: tool_calls 3, llm_calls",
        ):
            kickoff([*script, last], [counter], native=native)
        assert counter.calls == ["0", "1", "2"]

    @pytest.mark.parametrize("budget", [{"tokens": 50}, {"llm_calls": 2}, {"seconds": 1e-6}])
    def test_budgets_of_one_agent(self, budget):
        configure(agents={"worker": Policy(agent_budget=budget)})
        script = [*(ToolCall("count", {"q": str(n)}) for n in range(9)), last]
        counter = Counter(calls=[])
        with pytest.raises(failures.ToolExecutionFailedError, match="the agent's"):
            kickoff(script, [counter], native=True)
        assert len(counter.calls) <= 2
        free = Counter(calls=[])
        kickoff(script, [free], native=True, role="another")
        assert len(free.calls) == 9

    @pytest.mark.parametrize(
        ("budget", "asked"),
        [({"llm_calls": 2}, 2), ({"tokens": 1}, 1), ({"seconds": 1e-9}, 0), ({"money": 1e-9}, 1)],
    )
    @pytest.mark.parametrize("whose", ["run", "agent"])
    def test_a_run_that_calls_no_tool_ends_by_its_budget(self, budget, asked, whose, monkeypatch):
        configure(default=Policy(**{f"{whose}_budget": budget}))
        crew, llm = talkers(5)
        guard = crewai_native_tools.plugin.guard()
        monkeypatch.setattr(guard, "_prices", {"scripted": (1.0, 1.0)})
        with pytest.raises(
            failures.ToolExecutionFailedError,
            match=rf"^The language model was not asked, and the run ends: the {whose}'s "
            rf"{next(iter(budget))} of .* are spent \(so far: tool_calls 0, llm_calls {asked}, ",
        ) as caught:
            crew.kickoff()
        assert len(llm.calls) == asked
        assert caught.value.record.failure.details["spent"]["llm_calls"] == asked
        # What a run has spent is no other run's.
        configure()
        crew.kickoff()
        assert len(llm.calls) == asked + 5

    def test_an_awaited_run_ends_by_its_budget(self):
        configure(default=Policy(run_budget={"llm_calls": 3}))
        crew, llm = talkers(5)
        with pytest.raises(failures.ToolExecutionFailedError, match="llm_calls of 3 are spent"):
            asyncio.run(crew.akickoff())
        assert len(llm.calls) == 3

    def test_an_agent_without_a_crew_ends_by_its_budget(self):
        configure(default=Policy(run_budget={"llm_calls": 2}))
        llm = ScriptedLLM([ToolCall("count", {"q": str(n)}) for n in range(9)])
        counter = Counter(calls=[])
        agent = Agent(role="worker", goal="work", backstory="works", llm=llm, tools=[counter])
        with pytest.raises(failures.ToolExecutionFailedError, match="llm_calls of 2 are spent"):
            agent.kickoff("do it")
        assert len(llm.calls) == 2

    @BOTH
    def test_what_a_tool_calls_is_refused_by_exceptions(self, native):
        configure(tools={"count": Policy(max_calls=1)})
        counter = Counter(calls=[])

        @tool("outer")
        def outer() -> str:
            """Call another tool twice."""
            first = counter.run(q="a")
            try:
                return str(counter.run(q="b"))
            except ToolRefused as refused:
                return f"{first}, then {refused.code}"

        out = kickoff([ToolCall("outer", {}), last], [outer], native=native)
        assert "then max_calls" in out.raw
        assert counter.calls == ["a"]

    @BOTH
    def test_a_budget_ends_a_tool_that_calls_others_without_end(self, native):
        configure(default=Policy(run_budget={"tool_calls": 5}))
        counter = Counter(calls=[])

        @tool("outer")
        def outer() -> str:
            """Call another tool until it is tired."""
            for n in range(1000):
                counter.run(q=str(n))
            return "tired"

        with pytest.raises(failures.ToolExecutionFailedError, match="tool_calls of 5 are spent"):
            kickoff([ToolCall("outer", {}), last], [outer], native=native)
        assert len(counter.calls) == 4

    def test_an_agent_inherits_nothing_from_one_that_is_gone(self):
        configure(default=Policy(agent_budget={"tool_calls": 1}))
        for _ in range(20):
            # Many of them get the place in memory, and so the id, of the one before.
            counter = Counter(calls=[])
            llm = ScriptedLLM([ToolCall("count", {"q": "a"}), last])
            agent = Agent(role="r", goal="g", backstory="b", llm=llm, tools=[counter])
            agent.execute_task(Task(description="d", expected_output="e", agent=agent))
            assert len(counter.calls) == 1
            del agent
            gc.collect()

    def test_code_that_asks_a_model_gets_an_exception(self):
        llm = ScriptedLLM(["yes"] * 3)
        assert llm.call("?") == "yes"
        configure(default=Policy(run_budget={"llm_calls": 1}))
        assert llm.call("?") == "yes"
        with pytest.raises(RunStopped, match="llm_calls of 1 are spent"):
            llm.call("?")

    def test_money_is_counted_by_the_prices_of_models(self):
        model = types.SimpleNamespace(
            model="m", _token_usage={"prompt_tokens": 10, "completion_tokens": 10}
        )
        purse = Purse([model], {"m": (2.0, 10.0)}, lambda: model)
        assert purse.spend(Budget(money=5)) is None
        model._token_usage = {"prompt_tokens": 1_000_010, "completion_tokens": 300_010}
        assert purse.spent()["money"] == 5.0
        assert "money of 5 are spent" in purse.spend(Budget(money=5))
        assert purse.spent()["tool_calls"] == 1


class TestCancelling:
    @BOTH
    def test_a_crew_s_runs_end_from_outside(self, native, hung):
        configure(default=Policy(timeout=60))
        llm = ScriptedLLM([ToolCall("hung"), "on and on"], native=native)
        agent = Agent(role="worker", goal="work", backstory="works", llm=llm, tools=[hung])
        task = Task(description="do it", expected_output="something", agent=agent)
        crew = Crew(agents=[agent], tasks=[task])
        assert cancel(crew) == 0
        with futures.ThreadPoolExecutor(1) as pool:
            kickoff = pool.submit(crew.kickoff)
            assert hung.started.wait(60)
            assert cancel(crew) == 1
            assert cancel(crew) == 0
            with pytest.raises(failures.ToolExecutionFailedError, match="it was cancelled"):
                kickoff.result()
        assert len(llm.calls) == 1
        # A later run is another one.
        hung.release.set()
        assert crew.kickoff().raw == "on and on"

    def test_without_a_guard_nothing_is_known_of_runs(self, monkeypatch):
        monkeypatch.setattr(crewai_native_tools.plugin, "_guard", None)
        with pytest.raises(RuntimeError, match=r"tools\.guard is not bound"):
            cancel(talkers(1)[0])


def test_first_calls_at_the_same_time_share_one_guard(monkeypatch):
    together = threading.Barrier(2)

    class Slow:
        def __init__(self, options):
            together.wait(60)

    monkeypatch.setattr("crewai_native_tools.guard.NativeGuard", Slow)
    late = crewai_native_tools.plugin._Guard()
    with futures.ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: late.make(), range(2))
    assert first is second is late.made


class TestCode:
    def test_code_is_told_of_a_budget_by_an_exception(self):
        configure(default=Policy(run_budget={"tool_calls": 10_000}))
        counter = Counter(name="budgeted", calls=[])
        assert counter.run() == "nothing new"
        configure(default=Policy(run_budget={"tool_calls": 1}))
        with pytest.raises(RunStopped, match="tool_calls of 1 are spent"):
            counter.run()

    def test_code_gets_exceptions(self, hung):
        configure(default=Policy(timeout=SOON, max_calls=3), tools={"hung": Policy(max_calls=1)})
        with pytest.raises(ToolTimeout, match="'hung' did not answer") as caught:
            hung.run()
        assert "chain hung, policy: timeout 0.05, max_calls 1" in caught.value.__notes__[0]

    def test_code_has_one_run_the_program(self):
        name = "used by the program alone"
        configure(tools={name: Policy(max_calls=2)})
        counter = Counter(name=name, calls=[])
        for _ in range(2):
            assert counter.run(q="x") == "nothing new"
        with pytest.raises(ToolRefused):
            counter.run(q="x")
        with pytest.raises(ToolRefused):
            counter.to_structured_tool().invoke({"q": "x"})

    def test_a_tool_of_an_engine_is_under_the_engines_policy_alone(self):
        from crewai_native_tools import ToolEngine

        counter = Counter(name="of an engine", calls=[])
        engine = ToolEngine(max_calls=math.inf)
        engine.register("t", counter)
        configure(tools={"of an engine": Policy(max_calls=1)})
        for _ in range(3):
            assert engine.execute_tool("t") == "nothing new"
        assert counter.run() == "nothing new"
        with pytest.raises(ToolRefused):
            counter.run()


class Worker:
    role = "worker"

    def __init__(self):
        self._tool_failures = []


class Agents:
    """Hand-made calls of one agent at one task."""

    def __init__(self, **options):
        self.guard = NativeGuard(read(options) if options else Options())
        self.agent = Worker()
        self.task = Task(description="d", expected_output="e")
        self.tool = Counter()

    def call(self, name, arguments, result, *, occasion=None, step=None):
        if isinstance(result, BaseException):

            def proceed():
                raise result

        else:

            def proceed():
                return result

        occasion = occasion or types.SimpleNamespace()
        return self.guard.run(self.of(name, arguments, occasion, step=step), proceed)

    async def acall(self, name, arguments, proceed, occasion):
        return await self.guard.arun(self.of(name, arguments, occasion, awaited=True), proceed)

    def of(self, name, arguments, occasion, *, step=None, awaited=False):
        return GuardedCall(
            tool=self.tool,
            author_tool=self.tool,
            name=name,
            args=(),
            arguments=arguments,
            path="native",
            asynchronous=awaited,
            agent=self.agent,
            task=self.task,
            crew=None,
            occasion=occasion,
            step=step,
        )


def polling():
    for n in range(60):
        yield "status", {"job": 7}, f"{n} % done"


def paging():
    for n in range(60):
        yield "rows", {"table": "orders", "page": n}, [n * 100, n * 100 + 99]


def retrying():
    for n in range(60):
        failed = ValueError(f"timeout after {n} s")
        yield "fetch", {"url": f"https://example.org/{n // 4}"}, failed if n % 4 < 3 else "page"


def retrying_what_fails_the_same():
    for n in range(60):
        failed = ValueError("503 Service Unavailable")
        yield "fetch", {"url": f"https://example.org/{n // 4}"}, failed if n % 4 < 3 else "page"


def editing():
    for n in range(60):
        yield "read", {"path": "a.py"}, f"version {n}"
        yield "edit", {"path": "a.py", "line": n}, "done"
        yield "test", {}, f"{60 - n} failures"


def bulk():
    for n in range(200):
        yield "pay", {"order": f"2024-{n:04}"}, "done"


def typing():
    for key in "f( a );: [], {} '\"' \\ .?!":
        yield "press key", {"key": key}, "ok"
    for marks in ("(", "()", "(())", "...", "…", "?", "", " ", "\n", "_"):
        yield "insert", {"at": "here", "text": marks}, "ok"


def searching():
    for n in range(40):
        yield "search", {"q": f"weather in the city of Ulm, attempt {n}"}, "no results"


def waiting_in_between():
    for n in range(40):
        yield "wait", {"seconds": 10}, f"waited until {n}"
        yield "status", {"job": 7}, "pending" if n < 39 else "done"


def objects_without_text():
    for _ in range(40):
        yield "make", {"kind": "handle"}, types.SimpleNamespace(secret=object())


TRACES = [
    polling,
    paging,
    retrying,
    retrying_what_fails_the_same,
    editing,
    bulk,
    typing,
    searching,
    waiting_in_between,
    objects_without_text,
]


class TestLoops:
    @pytest.mark.parametrize("trace", TRACES, ids=lambda trace: trace.__name__)
    def test_valid_traces_are_never_stopped(self, trace):
        agents = Agents()
        for name, arguments, result in trace():
            if isinstance(result, BaseException):
                with pytest.raises(type(result)):
                    agents.call(name, arguments, result)
            else:
                assert agents.call(name, arguments, result) is result

    @pytest.mark.parametrize("period", range(1, 9))
    def test_cycles_of_every_period(self, period):
        agents = Agents()
        answers = [
            agents.call(f"tool {n % period}", {"n": n % period}, {"found": n % period})
            for n in range(5 * period)
        ]
        told = [isinstance(answer, failures.ToolFailure) for answer in answers]
        first = 4 * period - 1
        assert told == [False] * first + [True] * (len(told) - first)
        stops = [answer.details[STOP_RUN] for answer in answers[first:]]
        assert stops == [False] * (len(stops) - 1) + [True]

    def test_failures_that_repeat_are_a_loop(self):
        agents = Agents()
        for _ in range(3):
            with pytest.raises(ValueError, match="no"):
                agents.call("t", {}, ValueError("no"))
        answer = agents.call("t", {}, ValueError("no"))
        assert answer.message.startswith("ValueError: no\n\n't' was called 4 times in a row")

    def test_attempts_at_one_call_are_one_step_whatever_they_give(self):
        agents = Agents()
        for n in range(20):
            occasion = types.SimpleNamespace()
            with pytest.raises(ValueError, match="no"):
                agents.call("t", {}, ValueError("no"), occasion=occasion)
            assert agents.call("t", {}, f"{n} %", occasion=occasion) == f"{n} %"

    async def test_awaited_calls_of_a_tool_are_no_steps_of_the_agent(self):
        agents = Agents()

        async def poll(occasion):
            async def status():
                await asyncio.sleep(0)
                return "pending"

            async def wait():
                return [await agents.acall("status", {}, status, occasion) for _ in range(10)]

            return await agents.acall("wait", {}, wait, occasion)

        occasions = types.SimpleNamespace(), types.SimpleNamespace()
        assert await asyncio.gather(*map(poll, occasions)) == [["pending"] * 10] * 2

    def test_the_same_words_typed_otherwise_are_the_same_call(self):
        agents = Agents()
        queries = [
            "weather in Ulm",
            "Weather in Ulm?",
            "weather  in ulm.",
            "WEATHER in (Ulm)",
            '"weather in Ulm"',
        ]
        calls = [agents.call("search", {"q": query}, "nothing") for query in queries]
        assert calls[:3] == ["nothing"] * 3
        # How they are typed may be the difference that counts: the run goes on.
        assert [call.details[STOP_RUN] for call in calls[3:]] == [False, False]
        for n in range(4):
            call = agents.call("search", {"q": '"weather in Ulm"'}, "nothing")
            assert call.details[STOP_RUN] is (n == 3)

    def test_near_calls_where_they_are_asked_for(self):
        agents = Agents(loop_near=5, loop="off")
        calls = [
            agents.call("search", {"q": f"weather in the city of Ulm, attempt {n}"}, "nothing")
            for n in range(10)
        ]
        assert calls[:4] == ["nothing"] * 4
        assert "almost the same arguments" in calls[4].message
        assert [call.details[STOP_RUN] for call in calls[4:]] == [False] * 5 + [True]

    def test_thresholds_are_settings_and_can_be_off(self):
        agents = Agents(loop=2, loop_abort=3)
        answers = [agents.call("t", {}, "same") for _ in range(3)]
        assert answers[0] == "same"
        assert [answer.details[STOP_RUN] for answer in answers[1:]] == [False, True]
        agents = Agents(loop="off", loop_abort="off")
        assert [agents.call("t", {}, "same") for _ in range(50)] == ["same"] * 50

    def test_two_agents_and_two_tasks_are_on_their_own(self):
        agents = Agents()
        ways = [(Worker(), agents.task)] + [
            (agents.agent, Task(description=d, expected_output="e")) for d in "xy"
        ]
        for _ in range(3):
            for agents.agent, agents.task in ways:
                assert agents.call("t", {}, "same") == "same"

    def test_steps_of_a_plan_side_by_side_are_on_their_own(self):
        agents = Agents()
        steps = types.SimpleNamespace(), types.SimpleNamespace()
        for _ in range(3):
            for step in steps:
                assert agents.call("t", {}, "same", step=step) == "same"

    def test_hostile_arguments_and_results(self):
        class Rude:
            def __repr__(self):
                raise RuntimeError("no")

        agents = Agents()
        rude = Rude()
        assert [agents.call("t", {}, rude) for _ in range(20)] == [rude] * 20
        assert [agents.call("t", {"x": rude}, "r") for _ in range(20)] == ["r"] * 20
        deep = []
        for _ in range(5000):
            deep = [deep]
        assert agents.call("t", {"x": deep}, deep) is deep
        assert agents.call("t", "not json {", "\ud800") == "\ud800"

    def test_results_are_not_read(self):
        read = []

        class Stream:
            def __str__(self):
                read.append(self)
                return "text"

            __iter__ = __repr__ = __str__

        class Rows(dict):
            def items(self):
                read.append(self)
                return super().items()

        agents = Agents()
        for result in (Stream(), [Stream()], {"a": Stream()}, Rows(a=1), iter("abc")):
            assert [agents.call("t", {}, result) for _ in range(10)] == [result] * 10
        assert read == []
        stream = iter("abc")
        agents.call("t", {}, stream)
        assert list(stream) == ["a", "b", "c"]

    @pytest.mark.parametrize("native", [True, False], ids=["native", "react"])
    def test_what_can_be_read_once_reaches_the_agent(self, native):
        class Once:
            def __init__(self):
                self._parts = iter("abc")

            def __str__(self):
                return "".join(self._parts)

        @tool("read")
        def read() -> Once:
            """Read."""
            return Once()

        assert kickoff([ToolCall("read", {}), last], [read], native=native).raw == "abc"

    @pytest.mark.parametrize(
        "result",
        [
            None,
            b"same",
            -1,
            2**80,
            {"rows": [(1, 2.5, True, None)], 3: "x"},
            failures.ToolFailure(message="no such page", code="404"),
        ],
        ids=repr,
    )
    def test_plain_results_are_compared(self, result):
        agents = Agents()
        answers = [agents.call("t", {}, copy.deepcopy(result)) for _ in range(5)]
        assert answers[:3] == [result] * 3
        assert [answer.details[STOP_RUN] for answer in answers[3:]] == [False, True]

    def test_results_that_python_takes_for_equal_are_not(self):
        agents = Agents()
        for result in [-1, -2, 1, 1.0, True, [], (), {}, [[]], "1", b"1", None, "", 2**64, 2**65]:
            for _ in range(3):
                assert agents.call("t", {}, [result]) == [result]

    def test_what_runs_are_remembered_by_is_not_kept_alive(self):
        agents = Agents()
        agents.call("t", {}, "same")
        gone = [weakref.ref(agents.task), weakref.ref(agents.agent)]
        agents.task = agents.agent = None
        gc.collect()
        assert [ref() for ref in gone] == [None, None]
