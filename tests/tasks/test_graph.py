"""Crews whose tasks run as a graph give what they give in sequence, task by task."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
import time

import crewai
import pytest
from crewai.events import event_bus
from crewai.events.stream_context import add_stream_sink, reset_stream_sinks
from crewai.tasks.conditional_task import ConditionalTask
from hypothesis import HealthCheck, Phase, assume, example, given, settings
from hypothesis import strategies as st

import crewai_native
import crewai_native_tasks
from crewai_native.testing import ScriptedLLM
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


def run(crew, how="kickoff", **graph):
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
        expected = run(build(shapes), how)
    except ValueError:
        assume(False)  # not a crew that CrewAI would have
    assert run(build(shapes), how, concurrency=concurrency) == expected


@settings(CREWS, max_examples=4)
@given(some_crews())
def test_so_it_does_on_copies_of_its_agents(shapes):
    try:
        expected = run(build(shapes))
    except ValueError:
        assume(False)
    assert run(build(shapes), agents="copy") == expected
