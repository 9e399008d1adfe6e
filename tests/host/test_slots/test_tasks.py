"""tasks.batch, tasks.graph, tasks.control and tasks.executor: around real crews and flows."""

from __future__ import annotations

import asyncio

import pytest
from crewai import Agent, Crew, Task
from crewai.flow.flow import Flow, listen, start
from crewai.memory.unified_memory import Memory

from crewai_native._errors import ProviderError
from crewai_native.slots import tasks_batch
from crewai_native.slots.tasks_control import Point
from crewai_native.testing import HashEmbedder, ScriptedLLM, ToolCall


def crew_of(*scripts, native=True, tools=(), **options):
    """Return a crew with an agent and a task for each script."""
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
        Task(description=f"task {n} {{topic}}", expected_output="words", agent=agent)
        for n, agent in enumerate(agents)
    ]
    return Crew(agents=agents, tasks=tasks, **options)


def words(turn):
    return turn.prompt.partition("task 0 ")[2].split()[0]


class Engine:
    """Does what stock does, and writes down what it was asked."""

    def __init__(self, name="local", takes_over=True):
        self.name, self.takes_over = name, takes_over
        self.calls = []

    def map(self, target, inputs, options):
        for index, item in enumerate(inputs):
            output = target.copy().kickoff(inputs=dict(item))
            yield tasks_batch.BatchItem(index, tasks_batch.ItemState.DONE, output)

    async def amap(self, target, inputs, options):
        for item in self.map(target, inputs, options):
            yield item

    def for_each(self, call):
        self.calls.append(call)
        return call.stock()

    async def afor_each(self, call):
        self.calls.append(call)
        return await call.stock()


INPUTS = [{"topic": "apples"}, {"topic": "pears"}]


class TestBatch:
    def test_an_engine_that_takes_over_has_crewais_methods(self, serve):
        engine = Engine()
        binding = serve("tasks.batch", lambda: engine)
        crew = crew_of([words])
        outputs = [
            crew.kickoff_for_each(inputs=INPUTS),
            asyncio.run(crew.kickoff_for_each_async(INPUTS)),
            asyncio.run(crew.akickoff_for_each(inputs=INPUTS)),
        ]
        assert [[o.raw for o in output] for output in outputs] == [["apples", "pears"]] * 3
        assert [c.kickoff for c in engine.calls] == ["kickoff", "kickoff_async", "akickoff"]
        assert all(c.crew is crew and c.inputs == INPUTS for c in engine.calls)
        assert binding.watch.metrics().calls == 3

    def test_an_engine_that_does_not_is_there_by_name_alone(self, serve):
        engine = Engine("cluster", takes_over=False)
        binding = serve("tasks.batch", lambda: engine)
        assert [o.raw for o in crew_of([words]).kickoff_for_each(INPUTS)] == ["apples", "pears"]
        assert engine.calls == []
        items = tasks_batch.engines()["cluster"].map(
            crew_of([words]), INPUTS, tasks_batch.BatchOptions()
        )
        assert [item.output.raw for item in items] == ["apples", "pears"]
        binding.undo()
        assert tasks_batch.engines() == {}

    def test_engines_stand_side_by_side_and_the_first_to_take_over_has_them(self, serve):
        from crewai_native import slots
        from crewai_native.slots._base import Provider

        first, second = Engine("cluster", takes_over=False), Engine("local")
        binding = serve("tasks.batch", lambda: first)
        slot = slots.load("tasks.batch")
        slot.join(binding, Provider(slot.name, "other", "1", frozenset(), lambda: second))
        assert list(tasks_batch.engines()) == ["cluster", "local"]
        crew_of([words]).kickoff_for_each(INPUTS)
        assert (len(first.calls), len(second.calls)) == (0, 1)
        twin = Provider(slot.name, "third", "1", frozenset(), Engine)
        with pytest.raises(ProviderError, match="third 1 names its engine 'local'"):
            slot.join(binding, twin)
        assert tasks_batch.engines()["local"] is second

    def test_an_engine_says_whether_it_takes_over(self, serve):
        engine = Engine()
        del engine.takes_over
        with pytest.raises(ProviderError, match=r"fake-dist 1\.2.*takes_over, True or False"):
            serve("tasks.batch", lambda: engine)
        assert tasks_batch.engines() == {}

    @pytest.mark.parametrize("wrong", [object(), Engine("")])
    def test_a_wrong_type_names_the_distribution(self, serve, wrong):
        with pytest.raises(ProviderError, match=r"fake-dist 1\.2.*a BatchEngine"):
            serve("tasks.batch", lambda: wrong)


class Scheduler:
    def __init__(self):
        self.runs = []

    def execute(self, run):
        self.runs.append(run)
        return run.stock()

    async def aexecute(self, run):
        self.runs.append(run)
        return await run.stock()


class TestGraph:
    def test_the_loop_over_tasks_is_the_providers(self, serve):
        scheduler = Scheduler()
        serve("tasks.graph", lambda: scheduler)
        crew = crew_of("first", "second")
        inputs = {"topic": "x"}
        outputs = [crew.kickoff(inputs), asyncio.run(crew.akickoff(inputs))]
        assert [[t.raw for t in o.tasks_output] for o in outputs] == [["first", "second"]] * 2
        assert all(run.crew is crew and run.tasks == crew.tasks for run in scheduler.runs)
        assert [(r.start_index, r.was_replayed) for r in scheduler.runs] == [(0, False)] * 2

    def test_a_replay_says_so(self, serve):
        scheduler = Scheduler()
        serve("tasks.graph", lambda: scheduler)
        crew = crew_of("first", "second")
        crew.kickoff({"topic": "x"})
        assert crew.replay(str(crew.tasks[1].id)).raw == "second"
        assert (scheduler.runs[-1].start_index, scheduler.runs[-1].was_replayed) == (1, True)

    def test_its_error_is_the_kickoffs(self, serve):
        class Broken(Scheduler):
            def execute(self, run):
                raise ValueError("cycle")

        binding = serve("tasks.graph", Broken)
        with pytest.raises(ValueError, match="cycle"):
            crew_of("first").kickoff({"topic": "x"})
        assert binding.watch.metrics().errors == 1

    def test_a_wrong_type_names_the_distribution(self, serve):
        with pytest.raises(ProviderError, match=r"fake-dist 1\.2.*a TaskScheduler"):
            serve("tasks.graph", object)


LLM = "llm"


class Cancelled(BaseException):
    pass


class Control:
    """Lets runs go on until a point is forbidden."""

    def __init__(self, forbidden=None):
        self.points = []
        self.ended = []
        self.tokens = 0
        self.runs = []
        self.forbidden = forbidden

    def limit(self, run):
        self.runs.append(run)
        return run.proceed()

    async def alimit(self, run):
        self.runs.append(run)
        return await run.proceed()

    def check(self, point, subject):
        self.points.append((point, subject))
        if point == self.forbidden:
            raise Cancelled(point)

    def done(self, point, subject):
        self.ended.append(point)

    def call(self, call):
        self.check(LLM, None)
        return call.proceed(call.attempt)

    async def acall(self, call):
        self.check(LLM, None)
        return await call.proceed(call.attempt)

    def used(self, tokens):
        self.tokens += tokens


def note_tool(ran):
    from crewai.tools import tool

    @tool("note")
    def note(text: str) -> str:
        """Note."""
        ran.append(text)
        return text

    return note


class TestControl:
    @pytest.mark.parametrize("native", [True, False], ids=["native", "react"])
    def test_a_run_passes_the_points(self, serve, native):
        control, ran = Control(), []
        serve("tasks.control", lambda: control)
        script = [ToolCall("note", {"text": "a"}), "done"]
        crew = crew_of(script, native=native, tools=[note_tool(ran)])
        assert crew.kickoff({"topic": "x"}).raw == "done"
        points = [point for point, _ in control.points if point != Point.STEP]
        assert points == [Point.TASK, LLM, Point.TOOL, LLM]
        assert any(
            isinstance(subject, Flow) for point, subject in control.points if point == Point.STEP
        )
        assert control.ended.count(Point.TOOL) == 1
        steps = [point for point, _ in control.points if point == Point.STEP]
        assert control.ended.count(Point.STEP) == len(steps)
        assert control.tokens == crew.usage_metrics.total_tokens > 0

    def test_an_awaited_run_passes_them_too(self, serve):
        control = Control()
        serve("tasks.control", lambda: control)
        assert asyncio.run(crew_of("done").akickoff({"topic": "x"})).raw == "done"
        assert {Point.TASK, LLM, Point.STEP} <= {point for point, _ in control.points}

    @pytest.mark.parametrize("point", [Point.TASK, Point.STEP, LLM, Point.TOOL])
    def test_a_run_ends_before_a_forbidden_point(self, serve, point):
        ran = []
        script = [ToolCall("note", {"text": "a"}), "done"]
        crew = crew_of(script, tools=[note_tool(ran)])
        serve("tasks.control", lambda: Control(forbidden=point))
        with pytest.raises(Cancelled):
            crew.kickoff({"topic": "x"})
        assert ran == []
        spoken = len(crew.agents[0].llm.calls)
        assert spoken == (1 if point == Point.TOOL else 0)

    def test_the_end_of_an_async_task_ends_the_crew(self, serve):
        crew = crew_of("first", "second")
        crew.tasks[0].async_execution = True
        serve("tasks.control", lambda: Control(forbidden=LLM))
        with pytest.raises(Cancelled):
            crew.kickoff({"topic": "x"})

    def test_a_memory_write_is_a_point(self, serve, storage):
        control = Control(forbidden=Point.MEMORY)
        memory = Memory(llm=ScriptedLLM(), embedder=HashEmbedder(), storage=str(storage / "memory"))
        binding = serve("tasks.control", lambda: control)
        with pytest.raises(Cancelled):
            memory.remember("the mill", scope="/a", categories=["b"], importance=0.5)
        assert (Point.MEMORY, memory) in control.points
        binding.undo()
        assert memory.list_records() == []
        memory.close()

    def test_a_time_limit_is_the_providers(self, serve):
        control = Control()
        serve("tasks.control", lambda: control)
        crew = crew_of("done")
        agent = crew.agents[0]
        agent.max_execution_time = 30
        inputs = {"topic": "x"}
        assert crew.kickoff(inputs).raw == asyncio.run(crew.akickoff(inputs)).raw == "done"
        assert [(r.agent, r.task, r.timeout) for r in control.runs] == [
            (agent, crew.tasks[0], 30)
        ] * 2

    def test_passing_the_limit_fails_the_task(self, serve):
        class Strict(Control):
            def limit(self, run):
                raise TimeoutError("too long")

        serve("tasks.control", Strict)
        crew = crew_of("done")
        crew.agents[0].max_execution_time = 1
        with pytest.raises(TimeoutError, match="too long"):
            crew.kickoff({"topic": "x"})
        assert crew.agents[0].llm.calls == []

    def test_a_wrong_type_names_the_distribution(self, serve):
        with pytest.raises(ProviderError, match=r"fake-dist 1\.2.*a RunControl.*missing: limit"):
            serve("tasks.control", Scheduler)


class Counting(Flow):
    @start()
    def one(self):
        self.state["steps"] = [*self.state.get("steps", []), "one"]
        return 1

    @listen(one)
    def two(self, number):
        self.state["steps"] = [*self.state["steps"], "two"]
        return number + 1


STOCK_KICKOFF, STOCK_KICKOFF_ASYNC = Flow.kickoff, Flow.kickoff_async


class Driver:
    """Drives as stock does."""

    def __init__(self, drives=lambda flow: True):
        self.drives = drives
        self.runs = []

    def kickoff(self, run):
        run.begin()
        self.runs.append(run)
        return STOCK_KICKOFF(run.flow, run.inputs, run.input_files, None, run.restore_from_state_id)

    async def akickoff(self, run):
        run.begin()
        self.runs.append(run)
        return await STOCK_KICKOFF_ASYNC(
            run.flow, run.inputs, run.input_files, None, run.restore_from_state_id
        )


class TestExecutor:
    def test_agents_run_on_the_driver(self, serve):
        driver = Driver(drives=lambda flow: type(flow).is_crewai_internal)
        binding = serve("tasks.executor", lambda: driver)
        assert crew_of("done").kickoff({"topic": "x"}).raw == "done"
        assert {type(run.flow).__name__ for run in driver.runs} == {"AgentExecutor"}
        driver.runs.clear()
        assert asyncio.run(crew_of("done").akickoff({"topic": "x"})).raw == "done"
        assert len(driver.runs) == 1
        assert binding.watch.metrics().errors == 0

    def test_a_users_flow_runs_on_it_if_it_drives_it(self, serve):
        driver = Driver()
        serve("tasks.executor", lambda: driver)
        flow = Counting()
        assert flow.kickoff(inputs={"x": 1}) == 2
        assert flow.state["steps"] == ["one", "two"]
        assert [(r.flow, r.inputs) for r in driver.runs] == [(flow, {"x": 1})] * 2
        driver.runs.clear()
        assert asyncio.run(Counting().akickoff()) == 2
        assert len(driver.runs) == 1

    def test_a_flow_that_it_does_not_drive_is_crewais(self, serve):
        driver = Driver(drives=lambda flow: False)
        binding = serve("tasks.executor", lambda: driver)
        assert Counting().kickoff() == 2
        assert binding.watch.metrics().calls == 0

    @pytest.mark.parametrize("awaited", [False, True])
    def test_crewai_takes_over_before_a_run_has_begun(self, serve, awaited):
        class Refuses(Driver):
            def kickoff(self, run):
                self.runs.append(run)
                raise NotImplementedError("this graph")

            async def akickoff(self, run):
                return self.kickoff(run)

        driver = Refuses()
        binding = serve("tasks.executor", lambda: driver)
        flow = Counting()
        assert (asyncio.run(flow.kickoff_async()) if awaited else flow.kickoff()) == 2
        assert flow.state["steps"] == ["one", "two"]
        # CrewAI's kickoff calls kickoff_async: the same run is not offered again.
        assert len(driver.runs) == 1
        assert binding.watch.metrics().fallbacks == 1
        for _ in range(4):
            Counting().kickoff()
        assert binding.watch.reverted is not None
        assert Counting().kickoff() == 2
        assert len(driver.runs) == 5

    def test_a_run_that_has_begun_is_not_repeated(self, serve):
        class Breaks(Driver):
            def kickoff(self, run):
                run.begin()
                run.flow.state["steps"] = ["half"]
                raise RuntimeError("in the middle")

        serve("tasks.executor", Breaks)
        flow = Counting()
        with pytest.raises(RuntimeError, match="in the middle"):
            flow.kickoff()
        assert flow.state["steps"] == ["half"]

    def test_a_streamed_kickoff_arrives_as_a_plain_one(self, serve):
        driver = Driver()
        serve("tasks.executor", lambda: driver)
        flow = Counting()
        flow.stream = True
        session = flow.kickoff()
        for _ in session:
            pass
        assert session.result == 2
        assert driver.runs[0].flow is flow

    def test_a_driver_that_cannot_say_leaves_the_flow_to_crewai(self, serve):
        def drives(flow):
            raise KeyError("graph")

        binding = serve("tasks.executor", lambda: Driver(drives))
        assert Counting().kickoff() == 2
        assert binding.watch.metrics().fallbacks >= 1

    def test_a_wrong_type_names_the_distribution(self, serve):
        with pytest.raises(ProviderError, match=r"fake-dist 1\.2.*a FlowDriver"):
            serve("tasks.executor", object)
