"""Crews whose agents run on the native executor, and the same on CrewAI's own runtime beside them."""

from __future__ import annotations

import asyncio
import contextvars
import json
import os
import re
import tempfile

import pytest
from crewai import Agent, Crew, Process, Task
from crewai.agent.planning_config import PlanningConfig
from crewai.tools import BaseTool
from pydantic import BaseModel

import crewai_native
from crewai_native.testing import ScriptedLLM, ToolCall
from crewai_native.testing.recording import recording

SLOT = "tasks.executor"


@pytest.fixture(autouse=True, scope="module")
def alone():
    """The executor is the only slot that is served."""
    slots = {status.slot: "stock" for status in crewai_native.status().slots}
    crewai_native.activate(enabled=True, slots={**slots, SLOT: "crewai-native-tasks"})
    yield
    crewai_native.deactivate()


class Adder(BaseTool):
    name: str = "adder"
    description: str = "Adds."

    def _run(self, a: int, b: int) -> str:
        return str(a + b)


class Breaker(BaseTool):
    name: str = "breaker"
    description: str = "Breaks."

    def _run(self, text: str) -> str:
        raise ValueError(f"broken by {text}")


class Answerer(BaseTool):
    name: str = "answerer"
    description: str = "Answers."
    result_as_answer: bool = True

    def _run(self, text: str) -> str:
        return f"the answer to {text}"


def add(a, b=1):
    return ToolCall("adder", {"a": a, "b": b})


def last(turn):
    return turn.results[-1]


def crew(script, *, native=True, tasks=1, agent=None, task=None, llm=None, **options):
    model = ScriptedLLM(script, native=native, **(llm or {}))
    worker = Agent(
        role="worker",
        goal="work",
        backstory="works",
        llm=model,
        tools=[Adder(), Breaker(), Answerer()],
        **(agent or {}),
    )
    made = [
        Task(description=f"task {number}", expected_output="words", agent=worker, **(task or {}))
        for number in range(tasks)
    ]
    return model, Crew(agents=[worker], tasks=made, **options)


def overflow(turn):
    if len(turn.messages) > 4 and "ummar" not in turn.prompt:
        return RuntimeError("maximum context length is 10 tokens")
    return "short"


def plan(*steps):
    return json.dumps({"plan": "a plan", "ready": True, "steps": list(steps)})


def step(number, *, tool=None, after=()):
    return {
        "step_number": number,
        "description": f"do step {number}",
        "tool_to_use": tool,
        "depends_on": list(after),
    }


def planned(*plans, observation=None, **config):
    """A planning agent: what it plans each time, and what it observes."""
    served = iter(plans)
    observation = observation or {
        "step_completed_successfully": True,
        "key_information_learned": "something",
        "remaining_plan_still_valid": True,
    }

    class Planner(ScriptedLLM):
        def call(self, messages, tools=None, **rest):
            names = [tool["function"]["name"] for tool in tools or ()]
            if "create_reasoning_plan" in names:
                return next(served, plans[-1])
            return super().call(messages, tools=tools, **rest)

    def make():
        nonlocal served
        served = iter(plans)
        model = Planner(lambda_by_step(), native=True, structured={"StepObservation": observation})
        worker = Agent(
            role="worker",
            goal="work",
            backstory="works",
            llm=model,
            tools=[Adder()],
            planning_config=PlanningConfig(**config),
        )
        made = Task(description="a large task", expected_output="words", agent=worker)
        return model, Crew(agents=[worker], tasks=[made])

    return make


def lambda_by_step():
    return [
        lambda turn: add(1) if "adder" in turn.prompt and not turn.results else "step is done",
        lambda turn: f"step gave {turn.results[-1]}" if turn.results else "step is done",
    ]


REJECTED = []


def guardrail(output):
    REJECTED.append(output.raw)
    return (len(REJECTED) % 2 == 0, "better please" if len(REJECTED) % 2 else output.raw)


async def async_callback(answer):
    await asyncio.sleep(0)


# What happens on several threads happens in any order.
SIDE_BY_SIDE = {"parallel-calls", "planning-side-by-side", "memory"}

CREWS = {
    "react": lambda: crew([add(1), add(2), last], native=False, tasks=2),
    "native": lambda: crew([add(1), add(2), last], tasks=2),
    "parallel-calls": lambda: crew([[add(1), add(2), add(3)], lambda turn: ",".join(turn.results)]),
    "answer-of-a-tool": lambda: crew([ToolCall("answerer", {"text": "it"}), "never"]),
    "react-answer-of-a-tool": lambda: crew(
        [ToolCall("answerer", {"text": "it"}), "never"], native=False
    ),
    "failing-tool": lambda: crew([ToolCall("breaker", {"text": "it"}), last]),
    "react-failing-tool": lambda: crew([ToolCall("breaker", {"text": "it"}), last], native=False),
    "unknown-tool": lambda: crew([ToolCall("nothing", {"text": "it"}), last]),
    "failing-model": lambda: crew([add(1), KeyError("model")]),
    "too-many-turns": lambda: crew([add(1), add(2), add(3), add(4), "end"], agent={"max_iter": 2}),
    "malformed": lambda: crew([lambda _: "Thought: hm\nAction: nowhere", "ok"], native=False),
    "context-overflow": lambda: crew([add(1), add(2), overflow, overflow, "end"]),
    "repeated-calls": lambda: crew([add(1)] * 8 + ["end"], agent={"max_iter": 9}),
    "guardrail": lambda: crew(["draft", "better"], task={"guardrail": guardrail}),
    "human": lambda: crew(["draft", "final"], task={"human_input": True}),
    "step-callback": lambda: crew([add(1), last], agent={"step_callback": async_callback}),
    "structured": lambda: crew(
        ['{"number": 3}'],
        task={"output_pydantic": Number},
        llm={"structured": {"Number": {"number": 3}}},
    ),
    "memory": lambda: crew(["a fact worth keeping", "another"], tasks=2, memory=memory()),
    "planning": planned(plan(step(1, tool="adder"), step(2, after=[1])), reasoning_effort="low"),
    "planning-observed": planned(plan(step(1, tool="adder"), step(2, after=[1]))),
    "planning-side-by-side": planned(plan(step(1), step(2)), reasoning_effort="low"),
    "replanning": planned(
        plan(step(1), step(2, after=[1])),
        plan(step(1)),
        reasoning_effort="high",
        max_replans=1,
        observation={
            "step_completed_successfully": False,
            "key_information_learned": "",
            "remaining_plan_still_valid": False,
            "needs_full_replan": True,
            "replan_reason": "wrong",
        },
    ),
    "hierarchical": lambda: crew(
        ["managed"], process=Process.hierarchical, manager_llm=ScriptedLLM(["managed"])
    ),
}


class Number(BaseModel):
    number: int


def memory():
    from crewai.memory.unified_memory import Memory

    from crewai_native.testing import HashEmbedder

    folder = tempfile.mkdtemp(dir=os.environ["CREWAI_STORAGE_DIR"])
    return Memory(llm=ScriptedLLM(["none"]), embedder=HashEmbedder(), storage=folder)


def told(model):
    return [
        (call.turn.messages, call.tools, call.response_model, call.answer) for call in model.calls
    ]


def did(make, *, stock, way):
    """What a crew did, on either side, in words that are the same for the same."""

    def run():
        REJECTED.clear()
        with recording() as recorded:
            model, made = make()
            try:
                if way == "kickoff":
                    outcome = made.kickoff().raw
                elif way == "akickoff":
                    outcome = asyncio.run(made.akickoff()).raw
                else:

                    async def inside():
                        return made.kickoff().raw

                    outcome = asyncio.run(inside())
            except Exception as error:  # noqa: BLE001 - compared
                outcome = (type(error), str(error))
        return {
            "outcome": outcome,
            "told": told(model),
            "lines": recorded.lines,
            "usage": made.usage_metrics and made.usage_metrics.model_dump(),
        }

    if not stock:
        return contextvars.Context().run(run)
    with crewai_native.using({SLOT: "stock"}):
        return contextvars.Context().run(run)


def served():
    return sum(
        metrics.calls - metrics.fallbacks
        for metrics in crewai_native.metrics()
        if metrics.slot == SLOT
    )


def unordered(lines):
    return sorted(
        re.sub(r"'\w*(event_id|emission_sequence)': \w+,? ?", "", str(line)) for line in lines
    )


@pytest.mark.parametrize(
    ("name", "way"),
    # An awaited crew asks a human through a pipe of the process's own.
    [(name, "kickoff") for name in CREWS]
    + [(name, "akickoff") for name in CREWS if name != "human"],
)
def test_a_crew_does_what_it_does_on_stock(name, way, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: "")
    native = did(CREWS[name], stock=False, way=way)
    assert served() > 0
    stock = did(CREWS[name], stock=True, way=way)
    if name in SIDE_BY_SIDE:
        for side in (stock, native):
            side["told"] = sorted(map(str, side["told"]))
            side["lines"] = unordered(side["lines"])
    for part in stock:
        assert native[part] == stock[part], part


# Made anew for each run: CrewAI notes on an error that it was logged.
SCRIPTS = {
    "whole": lambda: [add(1), add(2), last],
    "failing": lambda: [add(1), KeyError("model")],
}


# --- streaming --------------------------------------------------------------------------------


class Streaming(ScriptedLLM):
    """Gives its answers out by the word."""

    def _end(self, messages, tools, from_task, from_agent, response_model):
        answer = super()._end(messages, tools, from_task, from_agent, response_model)
        for word in str(answer).split():
            self._emit_stream_chunk_event(chunk=word, from_task=from_task, from_agent=from_agent)
        return answer


def streaming(script, *, tasks=2, **options):
    model = Streaming(script, native=True)
    worker = Agent(role="worker", goal="work", backstory="works", llm=model, tools=[Adder()])
    made = [
        Task(description=f"task {number}", expected_output="words", agent=worker)
        for number in range(tasks)
    ]
    return model, Crew(agents=[worker], tasks=made, stream=True, **options)


def chunk(given):
    return (given.chunk_type.value, given.content, given.agent_role, given.task_index)


def streamed(script, *, way):
    """What came of a streaming crew, in order."""
    with recording() as recorded:
        model, made = streaming(script)

        async def all_of_it():
            stream = await (made.akickoff() if way == "akickoff" else made.kickoff_async())
            chunks = [chunk(given) async for given in stream]
            return chunks, stream.result.raw

        try:
            if way == "kickoff":
                stream = made.kickoff()
                outcome = [chunk(given) for given in stream], stream.result.raw
            else:
                outcome = asyncio.run(all_of_it())
        except Exception as error:  # noqa: BLE001 - compared
            outcome = (type(error), str(error))
    return {"outcome": outcome, "told": told(model), "lines": recorded.lines}


@pytest.mark.parametrize("way", ["kickoff", "kickoff_async", "akickoff"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_streaming_crew_does_what_it_does_on_stock(name, way):
    before = served()
    native = contextvars.Context().run(streamed, SCRIPTS[name](), way=way)
    assert served() > before
    with crewai_native.using({SLOT: "stock"}):
        stock = contextvars.Context().run(streamed, SCRIPTS[name](), way=way)
    assert native["outcome"] == stock["outcome"]
    if name == "whole":
        assert len(native["outcome"][0]) > 2 * 3  # words of three answers for each of two tasks
    assert native["told"] == stock["told"]
    assert native["lines"] == stock["lines"]


# --- agents by themselves ---------------------------------------------------------------------


def alone_did(script, *, native, way):
    """What an agent did without a crew."""
    with recording() as recorded:
        model = ScriptedLLM(script, native=native)
        worker = Agent(role="worker", goal="work", backstory="works", llm=model, tools=[Adder()])

        async def awaited():
            return await worker.kickoff_async("do it")

        async def inside():
            return await worker.kickoff("do it")

        try:
            if way == "kickoff":
                output = worker.kickoff("do it")
            else:
                output = asyncio.run(awaited() if way == "kickoff_async" else inside())
            outcome = output.raw, output.usage_metrics, output.agent_role
        except Exception as error:  # noqa: BLE001 - compared
            outcome = (type(error), str(error))
    return {"outcome": outcome, "told": told(model), "lines": recorded.lines}


@pytest.mark.parametrize("way", ["kickoff", "kickoff_async", "kickoff inside of a loop"])
@pytest.mark.parametrize("native", [True, False], ids=["native", "react"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_an_agent_by_itself_does_what_it_does_on_stock(name, native, way):
    before = served()
    mine = contextvars.Context().run(alone_did, SCRIPTS[name](), native=native, way=way)
    assert served() > before
    with crewai_native.using({SLOT: "stock"}):
        stock = contextvars.Context().run(alone_did, SCRIPTS[name](), native=native, way=way)
    for part in stock:
        assert mine[part] == stock[part], part
