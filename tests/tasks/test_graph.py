"""Crews whose tasks run as a graph give what they give in sequence, task by task."""

from __future__ import annotations

import asyncio
import contextlib
import re
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import crewai
import pytest
from crewai.events import event_bus
from crewai.events.stream_context import add_stream_sink, reset_stream_sinks
from crewai.events.types.crew_events import CrewKickoffCompletedEvent
from crewai.events.types.task_events import TaskCompletedEvent
from crewai.memory.unified_memory import Memory
from crewai.tasks.conditional_task import ConditionalTask
from hypothesis import HealthCheck, Phase, assume, example, given, settings
from hypothesis import strategies as st

import crewai_native
import crewai_native_tasks
from crewai_native.testing import HashEmbedder, ScriptedLLM, ToolCall
from crewai_native.testing.contract.rules import alone
from crewai_native_tasks.graph_order import Place, dependencies, is_sequence

TASK = re.compile(r"task (\d+)\b")


@pytest.fixture(autouse=True, scope="module")
def bound(unbound):
    crewai_native.activate(enabled=True, slots=alone("tasks.graph", "crewai-native-tasks"))
    yield
    crewai_native.deactivate()


# --- the order --------------------------------------------------------------------------------


def plainly(places):
    """The rules, each dependency written out."""
    found = []
    for number, place in enumerate(places):
        if place.context is not None:
            found.append(set(place.context))
        elif place.background:
            found.append({n for n in range(number) if not places[n].background})
        else:
            found.append(set(range(number)))
    return closure(found)


def closure(order):
    whole = []
    for own in order:
        whole.append(set(own).union(*(whole[other] for other in own)))
    return whole


@st.composite
def some_places(draw):
    return [
        Place(
            draw(st.none() | st.lists(st.integers(0, number - 1), unique=True, max_size=3))
            if number
            else draw(st.sampled_from([None, ()])),
            draw(st.booleans()),
        )
        for number in range(draw(st.integers(0, 9)))
    ]


@given(some_places())
def test_the_order_follows_the_rules_and_leaves_out_what_goes_without_saying(places):
    order = dependencies(places)
    assert closure(order) == plainly(places)
    assert is_sequence(order) == all(n - 1 in order[n] for n in range(1, len(places)))


# --- crews ------------------------------------------------------------------------------------


class Room:
    """A meeting point that tells whether tasks were at work at the same time."""

    def __init__(self):
        self.lock = threading.Lock()
        self.here = 0
        self.most = 0

    def visit(self, answer):
        def step(turn):
            with self.lock:
                self.here += 1
                self.most = max(self.most, self.here)
            time.sleep(0.02)  # time for others to come; none is waited for
            with self.lock:
                self.here -= 1
            return answer

        return step


def meet(parties, answer="met"):
    """A script that only goes on when so many tasks are at it at a time."""
    barrier = threading.Barrier(parties, timeout=60)

    def step(turn):
        barrier.wait()
        return answer

    return [step]


def an_agent(script, role="worker", **fields):
    return crewai.Agent(
        role=role, goal="works", backstory="is there", llm=ScriptedLLM(script), **fields
    )


def a_task(number, agent, kind=crewai.Task, **fields):
    return kind(description=f"task {number} of all", expected_output="words", agent=agent, **fields)


def numbered(turn):
    """Answer with the task's number and the numbers of the tasks in its context."""
    own, _, context = turn.prompt.partition("This is the context")
    number = TASK.search(own)[1]
    seen = re.findall(r"<(\d+):", context)
    return f"<{number}: after {','.join(seen)}>"


def outputs(result):
    return [
        (output.description, output.raw, output.agent, output.name, str(output.json_dict))
        for output in result.tasks_output
    ]


@contextlib.contextmanager
def recorded():
    """Collect what is emitted meanwhile, by task: (task's number, type of event)."""
    found = {}

    def sink(source, event):
        task = getattr(event, "task_id", None)
        found.setdefault(task, []).append(event.type)

    token = add_stream_sink(sink)
    try:
        yield found
    finally:
        reset_stream_sinks(token)


def seen_of(crew, how="kickoff", **graph):
    """Run a crew; return what its user can see of it."""
    scope = crewai_native_tasks.parallel(**graph) if graph else contextlib.nullcontext()
    with recorded() as events, scope:
        result = crew.kickoff() if how == "kickoff" else asyncio.run(crew.akickoff())
    event_bus.crewai_event_bus.flush()
    log = crew._task_output_handler.load()
    return {
        "raw": result.raw,
        "outputs": outputs(result),
        "contexts": [task.prompt_context for task in crew.tasks],
        "events": [sorted(events.get(str(task.id), [])) for task in crew.tasks],
        "log": [(row["task_index"], row["output"]["raw"], row["was_replayed"]) for row in log],
        "requests": result.token_usage.successful_requests,
        "agents": [crew.agents.index(task.agent) for task in crew.tasks],
    }


@st.composite
def some_crews(draw):
    """What a crew is made of: a kind, an agent, a context and whether it is asynchronous."""
    shapes = []
    for number in range(draw(st.integers(2, 6))):
        kind = draw(st.sampled_from(["task", "task", "task", "async", "conditional"]))
        earlier = st.lists(st.integers(0, max(number - 1, 0)), unique=True, max_size=number)
        context = draw(st.sampled_from(["none", "all"]) | earlier)
        shapes.append((kind, draw(st.integers(0, 2)), context, draw(st.booleans())))
    return shapes


def build(shapes):
    agents = [an_agent([numbered], role=f"worker {number}") for number in range(3)]
    tasks = []
    for number, (kind, agent, context, flag) in enumerate(shapes):
        fields, own = {}, agents[agent]
        if context != "all":
            fields["context"] = [] if context == "none" else [tasks[other] for other in context]
        if kind == "async":
            # CrewAI's own loop cannot run two of them on one agent.
            fields["async_execution"] = True
            own = an_agent([numbered], role=f"background {number}")
            agents.append(own)
        if kind == "conditional":
            fields["condition"] = lambda output, flag=flag: flag and bool(output.raw)
        elif flag:
            fields["guardrail"] = lambda output: (True, output.raw + "!")
        form = ConditionalTask if kind == "conditional" else crewai.Task
        tasks.append(a_task(number, own, form, **fields))
    return crewai.Crew(agents=agents, tasks=tasks)


# Not shrunk: a crew takes a while to run, and is small as it is.
CREWS = settings(
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)


# A conditional task is skipped when one behind it has ended: the log goes on.
SKIPPED = [
    ("task", 0, "none", False),
    ("task", 0, "none", False),
    ("conditional", 0, "none", False),
    ("task", 1, "none", False),
]


@settings(CREWS, max_examples=12)
@example(SKIPPED, "kickoff", 2)
@given(some_crews(), st.sampled_from(["kickoff", "akickoff"]), st.integers(1, 5))
def test_any_crew_gives_what_it_gives_in_sequence(shapes, how, concurrency):
    try:
        expected = seen_of(build(shapes), how)
    except ValueError:
        assume(False)  # not a crew that CrewAI would have
    assert seen_of(build(shapes), how, concurrency=concurrency) == expected


@settings(CREWS, max_examples=4)
@given(some_crews())
def test_so_it_does_on_copies_of_its_agents(shapes):
    try:
        expected = seen_of(build(shapes))
    except ValueError:
        assume(False)
    assert seen_of(build(shapes), agents="copy") == expected


# --- side by side -----------------------------------------------------------------------------


def independent(count, script, agents=None, **fields):
    agents = agents or [an_agent(script, role=f"worker {n}") for n in range(count)]
    tasks = [a_task(n, agents[n % len(agents)], context=[], **fields) for n in range(count)]
    return crewai.Crew(agents=agents, tasks=tasks)


@pytest.mark.parametrize("how", ["kickoff", "akickoff"])
def test_independent_tasks_run_at_the_same_time(how):
    # CrewAI has coroutines wait for models on a few threads; two of them must be enough.
    count = 5 if how == "kickoff" else 2
    crew = independent(count, meet(count))
    assert seen_of(crew, how, agents="wait")["raw"] == "met"


def test_no_more_run_than_the_limit_allows():
    room = Room()
    crew = independent(6, [room.visit("done")])
    assert seen_of(crew, concurrency=2)["raw"] == "done"
    assert room.most <= 2


def test_without_being_asked_tasks_run_one_after_the_other():
    room = Room()
    crew = independent(3, [room.visit("done")])
    crew.kickoff()
    assert room.most == 1


def test_an_agent_does_one_task_at_a_time():
    room = Room()
    crew = independent(4, None, agents=[an_agent([room.visit("done")])])
    seen_of(crew, agents="wait")
    assert room.most == 1


def test_or_several_on_copies_which_count_as_the_agent_itself():
    agent = an_agent(meet(3))
    crew = independent(3, None, agents=[agent])
    seen = seen_of(crew, agents="copy")
    assert seen["requests"] == 3
    assert all(task.agent is agent for task in crew.tasks)


class Held(ThreadPoolExecutor):
    """A memory's thread whose saves are only through after the crew's last task."""

    def __init__(self, gate):
        super().__init__(max_workers=1)
        self.gate = gate
        self.saves = 0

    def submit(self, save, /, *args, **kwargs):
        def held():
            assert self.gate.wait(60)
            time.sleep(0.05)  # what does not wait for saves is through before them
            done = save(*args, **kwargs)
            self.saves += 1
            return done

        return super().submit(held)


@pytest.mark.parametrize(
    ("how", "agents", "workers", "count"),
    [
        ("kickoff", "wait", 2, 2),
        ("kickoff", "copy", 2, 4),
        ("akickoff", "wait", 2, 2),
        ("akickoff", "copy", 1, 2),
    ],
)
def test_what_tasks_have_yet_to_save_is_saved_before_the_kickoff_is_over(
    tmp_path, how, agents, workers, count
):
    facts = ["Grass grows in spring.", "Ships sail by night.", "Bells ring at noon.", "Ice melts."]
    # Recalling waits for saves: all must have recalled before the first saves.
    together = threading.Barrier(count, timeout=60)
    over = threading.Event()
    savers = []

    def a_fact(turn):
        together.wait()
        return facts[int(TASK.search(turn.prompt)[1])] + " That is a fact."

    def a_memory(name):
        memory = Memory(storage=str(tmp_path / name), llm=ScriptedLLM(), embedder=HashEmbedder())
        memory._save_pool = Held(over)
        savers.append(memory._save_pool)
        return memory

    crew_memory = a_memory("crew")
    team = [an_agent([a_fact], role="with the crew's memory")]
    if workers == 2:
        team.append(an_agent([a_fact], role="with its own", memory=a_memory("agent")))
    crew = independent(count, None, agents=team)
    crew.memory = crew._memory = crew_memory
    finished, saved = [], []
    with event_bus.crewai_event_bus.scoped_handlers():

        @event_bus.crewai_event_bus.on(TaskCompletedEvent)
        def completed(source, event):
            finished.append(source)
            if len(finished) == count:
                over.set()

        @event_bus.crewai_event_bus.on(CrewKickoffCompletedEvent)
        def ended(source, event):
            saved.extend(saver.saves for saver in savers)

        seen_of(crew, how, agents=agents)
        event_bus.crewai_event_bus.flush()
    assert saved == [count // workers] * workers


def test_a_delegating_agent_finds_its_coworkers_free():
    def ask(turn):
        if turn.number == 0:
            return ToolCall(
                "delegate_work_to_coworker",
                {"task": "task 9", "context": "none", "coworker": "helper"},
            )
        return turn.results[-1]

    helper = an_agent([Room().visit("helped")], role="helper")
    boss = an_agent([ask], role="boss", allow_delegation=True)
    agents = [boss, helper]
    crew = crewai.Crew(
        agents=agents, tasks=[a_task(n, agents[n % 2], context=[]) for n in range(4)]
    )
    assert [raw for _, raw, *_ in seen_of(crew, agents="copy")["outputs"]] == ["helped"] * 4


def test_two_asynchronous_tasks_on_one_agent():
    agent = an_agent([numbered])
    tasks = [a_task(n, agent, async_execution=n < 2) for n in range(3)]
    seen = seen_of(crewai.Crew(agents=[agent], tasks=tasks), agents="wait")
    assert seen["raw"] == "<2: after 0,1>"


def test_a_manager_does_one_after_the_other():
    worker = an_agent("unused")
    tasks = [a_task(n, None, async_execution=n < 2) for n in range(3)]
    crew = crewai.Crew(
        agents=[worker],
        tasks=tasks,
        process=crewai.Process.hierarchical,
        manager_llm=ScriptedLLM([numbered]),
    )
    with crewai_native_tasks.parallel(agents="copy"):
        assert crew.kickoff().raw == "<2: after 0,1>"


# --- several trailing asynchronous tasks ------------------------------------------------------


def trailing():
    script = meet(2)
    agents = [an_agent(script, role=f"worker {n}") for n in range(2)]
    tasks = [a_task(n, agents[n], async_execution=True) for n in range(2)]
    return crewai.Crew(agents=agents, tasks=tasks)


def test_a_crew_may_end_with_several_asynchronous_tasks_where_it_runs_as_a_graph():
    with crewai_native_tasks.parallel():
        crew = trailing()
        crew.copy()
        assert [raw for _, raw, *_ in outputs(crew.kickoff())] == ["met", "met"]
    # It was allowed to; CrewAI's own loop runs it as well.
    assert outputs(crew.kickoff())


def test_elsewhere_crewai_says_that_it_may_not():
    with pytest.raises(ValueError, match="must end with at most one asynchronous task"):
        trailing()
    with (
        crewai_native_tasks.parallel(),
        crewai_native.using({"tasks.graph": "stock"}),
        pytest.raises(ValueError, match="must end with at most one asynchronous task"),
    ):
        trailing()


# --- what goes wrong --------------------------------------------------------------------------


def threads():
    return {t for t in threading.enumerate() if t.name.startswith("crewai-native task")}


@pytest.mark.parametrize("how", ["kickoff", "akickoff"])
def test_the_first_error_is_the_kickoffs_and_nothing_runs_on(how):
    fails = an_agent([KeyError("model")], role="fails")
    other = an_agent("well", role="other")
    tasks = [
        a_task(0, other, context=[]),
        a_task(1, fails, context=[]),
        a_task(2, an_agent("later", role="later")),
    ]
    crew = crewai.Crew(agents=[fails, other], tasks=tasks)
    with pytest.raises(KeyError, match="model"), crewai_native_tasks.parallel():
        crew.kickoff() if how == "kickoff" else asyncio.run(crew.akickoff())
    assert tasks[2].output is None
    assert threads() == set()


def test_of_several_errors_the_first_in_order_is_raised():
    barrier = threading.Barrier(3, timeout=60)

    def fail(error):
        def step(turn):
            barrier.wait()
            return error

        return [step]

    agents = [an_agent(fail(KeyError(f"model {n}")), role=f"worker {n}") for n in range(3)]
    crew = independent(3, None, agents=agents)
    with pytest.raises(KeyError, match="model 0"), crewai_native_tasks.parallel():
        crew.kickoff()


@pytest.mark.filterwarnings("ignore:function callbacks cannot be serialized")
def test_a_callback_that_raises_fails_its_task():
    called = []

    def complain(output):
        called.append(output.raw)
        raise OSError("no")

    agents = [an_agent("well", role=f"worker {n}") for n in range(2)]
    tasks = [
        a_task(0, agents[0], context=[], callback=complain),
        a_task(1, agents[1], context=[]),
    ]
    crew = crewai.Crew(agents=agents, tasks=tasks)
    with pytest.raises(OSError, match="no"), crewai_native_tasks.parallel():
        crew.kickoff()
    assert called == ["well"]
    assert threads() == set()


def test_a_condition_that_raises_fails_the_kickoff():
    agent = an_agent("well")
    tasks = [a_task(0, agent, context=[]), a_task(1, agent, context=[])]
    tasks.append(a_task(2, agent, ConditionalTask, condition=lambda output: 1 / 0))
    crew = crewai.Crew(agents=[agent], tasks=tasks)
    with pytest.raises(ZeroDivisionError), crewai_native_tasks.parallel():
        crew.kickoff()


def test_the_log_has_no_gaps_and_a_replay_goes_on_from_it():
    broken = [True]

    def fragile(turn):
        return RuntimeError("not yet") if broken[0] else "mended"

    agents = [an_agent([fragile if n == 1 else numbered], role=f"worker {n}") for n in range(3)]
    tasks = [a_task(n, agents[n], context=[]) for n in range(3)]
    tasks.append(a_task(3, agents[0]))
    crew = crewai.Crew(agents=agents, tasks=tasks)
    with crewai_native_tasks.parallel():
        with pytest.raises(RuntimeError, match="not yet"):
            crew.kickoff()
        log = crew._task_output_handler.load()
        assert [row["task_index"] for row in log] in ([], [0])
        broken[0] = False
        crew.kickoff()
        assert [row["task_index"] for row in crew._task_output_handler.load()] == [0, 1, 2, 3]
        again = crew.replay(str(tasks[2].id))
    assert [output.raw for output in again.tasks_output] == [
        "<0: after >",
        "mended",
        "<2: after >",
        "<3: after 0,2>",
    ]
    log = crew._task_output_handler.load()
    assert [row["was_replayed"] for row in log] == [0, 0, 1, 1]


@pytest.mark.filterwarnings("ignore:function callbacks cannot be serialized")
async def test_a_kickoff_that_is_cancelled_twice_leaves_nothing_behind():
    started = asyncio.Event()

    async def never(output):
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)  # what closes a connection takes a turn of the loop
            ended.append(output.raw)

    ended = []
    crew = independent(2, "well", callback=never)
    before = asyncio.all_tasks()
    with crewai_native_tasks.parallel():
        kickoff = asyncio.create_task(crew.akickoff())
        await started.wait()
        kickoff.cancel()
        await asyncio.sleep(0)
        kickoff.cancel()
        with pytest.raises(asyncio.CancelledError):
            await kickoff
    assert asyncio.all_tasks() == before
    assert ended


@pytest.mark.parametrize(
    ("chosen", "arguments", "says"),
    [
        ("stock", {}, r"tasks\.graph is served by stock"),
        ("crewai-native-tasks", {"concurrency": 0}, "concurrency is 0"),
        ("crewai-native-tasks", {"agents": "clone"}, "'wait' or 'copy'"),
    ],
)
def test_parallel_says_where_it_means_nothing(chosen, arguments, says):
    with (
        crewai_native.using({"tasks.graph": chosen}),
        pytest.raises((RuntimeError, ValueError), match=says),
        crewai_native_tasks.parallel(**arguments),
    ):
        pass


# --- processes --------------------------------------------------------------------------------

PRELUDE = """
import warnings
warnings.simplefilter("ignore")
import os, signal, sys, threading, time
import crewai, crewai_native
from crewai_native.testing import ScriptedLLM

over = threading.Event()
threading._register_atexit(over.set)  # goes before the end of thread pools, which waits for them

def crew_of(*scripts):
    agents = [
        crewai.Agent(role=f"worker {n}", goal="g", backstory="b", llm=ScriptedLLM(script))
        for n, script in enumerate(scripts)
    ]
    tasks = [
        crewai.Task(description=f"task {n}", expected_output="e", agent=agent, context=[])
        for n, agent in enumerate(agents)
    ]
    return crewai.Crew(agents=agents, tasks=tasks)
"""


def test_ctrl_c_ends_a_kickoff_and_the_program(run):
    script = """
        go = threading.Barrier(3)

        def hang(turn):
            if not over.is_set():
                go.wait()
            over.wait()  # until the program ends
            return "too late"

        def press():
            go.wait()
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

        threading.Thread(target=press, daemon=True).start()
        try:
            crew_of([hang], [hang]).kickoff()
        except KeyboardInterrupt:
            answer("interrupted")
    """
    assert run(PRELUDE + textwrap.dedent(script), CREWAI_NATIVE_TASKS_GRAPH="1") == "interrupted"


def test_a_program_may_end_while_a_graph_runs(run):
    script = """
        go = threading.Barrier(3)

        def hang(turn):
            if not over.is_set():
                go.wait()
            over.wait()  # until the program ends
            return "too late"

        threading.Thread(target=crew_of([hang], [hang]).kickoff).start()
        go.wait()
        answer("the end")
    """
    assert run(PRELUDE + textwrap.dedent(script), CREWAI_NATIVE_TASKS_GRAPH="1") == "the end"


def test_a_fork_before_and_after_the_first_use(run):
    script = """
        from crewai_native_tasks._native import Schedule

        def in_child(work):
            child = os.fork()
            if child == 0:
                os._exit(0 if work() else 1)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

        def meets():
            barrier = threading.Barrier(2, timeout=60)
            step = lambda turn: barrier.wait() is None or "met"
            return crew_of([step], [step]).kickoff().raw == "met"

        first = in_child(meets)
        here = meets()
        schedule = Schedule([[], [0]], concurrency=2)
        schedule.take()
        def goes_on():
            schedule.finish(0, True)
            return schedule.take() == 1
        answer([first, here, in_child(goes_on), schedule.running])
    """
    # CrewAI's own event bus keeps a child from running crews once its parent has run one.
    seen = run(PRELUDE + textwrap.dedent(script), CREWAI_NATIVE_TASKS_GRAPH="1")
    assert seen == [0, True, 0, 1]
