"""Every way on which CrewAI comes to run a tool: one execution for a call, and one use."""

from __future__ import annotations

import asyncio
import json
import warnings

import pytest
from crewai import Agent, Crew, Task
from crewai.tools import BaseTool
from pydantic import Field

import crewai_native
from crewai_native.testing import ScriptedLLM, ToolCall

DISTRIBUTION = "crewai-native-tools"

pytest.importorskip("crewai.agents.step_executor")


class Breaker(BaseTool):
    name: str = "breaker"
    description: str = "Breaks."
    calls: list = Field(default_factory=list)

    def _run(self, text: str) -> str:
        self.calls.append(text)
        raise ValueError("broken")


class Counter(BaseTool):
    name: str = "counter"
    description: str = "Counts."
    calls: list = Field(default_factory=list)

    def _run(self, text: str) -> str:
        self.calls.append(text)
        return f"counted {text}"


def call(tool, text):
    return ToolCall(tool, {"text": text})


# Both tools in turns; three calls of the counter, which may be used twice.
SCRIPT = [
    call("breaker", "a"),
    call("counter", "b"),
    call("breaker", "c"),
    call("counter", "d"),
    call("counter", "e"),
    "Done.",
]


def crew(tools, *, native):
    llm = ScriptedLLM(SCRIPT, native=native)
    agent = Agent(role="worker", goal="work", backstory="works", llm=llm, tools=tools)
    task = Task(description="do it", expected_output="words", agent=agent)
    return Crew(agents=[agent], tasks=[task])


def lite_agent(tools):
    with warnings.catch_warnings():
        # It is to be replaced by Agent.kickoff(), and says so.
        warnings.simplefilter("ignore")
        from crewai.lite_agent import LiteAgent

        agent = LiteAgent(
            role="worker",
            goal="work",
            backstory="works",
            llm=ScriptedLLM(SCRIPT, native=False),
            tools=tools,
        )
        agent.kickoff("do it")


def plan_of_steps(tools):
    """An agent that plans one step, in which it makes the calls."""
    from crewai.agent.planning_config import PlanningConfig

    steps = [{"step_number": 1, "description": "do it", "tool_to_use": None, "depends_on": []}]
    plan = json.dumps({"plan": "a plan", "ready": True, "steps": steps})

    class Planner(ScriptedLLM):
        def call(self, messages, tools=None, **rest):
            names = [tool["function"]["name"] for tool in tools or ()]
            if "create_reasoning_plan" in names:
                return plan
            return super().call(messages, tools=tools, **rest)

    observation = {
        "step_completed_successfully": True,
        "key_information_learned": "something",
        "remaining_plan_still_valid": True,
    }
    agent = Agent(
        role="worker",
        goal="work",
        backstory="works",
        llm=Planner(SCRIPT, native=True, structured={"StepObservation": observation}),
        tools=tools,
        planning_config=PlanningConfig(reasoning_effort="low"),
    )
    task = Task(description="a large task", expected_output="words", agent=agent)
    Crew(agents=[agent], tasks=[task]).kickoff()


def agent_alone(tools):
    llm = ScriptedLLM(SCRIPT, native=True)
    Agent(role="worker", goal="work", backstory="works", llm=llm, tools=tools).kickoff("do it")


PATHS = {
    "react": lambda tools: crew(tools, native=False).kickoff(),
    "native": lambda tools: crew(tools, native=True).kickoff(),
    "react-awaited": lambda tools: asyncio.run(crew(tools, native=False).akickoff()),
    "native-awaited": lambda tools: asyncio.run(crew(tools, native=True).akickoff()),
    "agent-alone": agent_alone,
    "lite-agent": lite_agent,
    "step-executor": plan_of_steps,
}


@pytest.fixture
def bound(unbound):
    crewai_native.activate(
        enabled=True,
        plugins=[DISTRIBUTION],
        slots={"tools.guard": DISTRIBUTION, "tools.cache": "stock", "tools.schemas": "stock"},
    )
    yield
    crewai_native.deactivate()


@pytest.mark.parametrize("path", PATHS)
def test_one_execution_for_a_call_and_one_use(bound, path):
    breaker, counter = Breaker(), Counter(max_usage_count=2)
    PATHS[path]([breaker, counter])
    assert breaker.calls == ["a", "c"]
    assert counter.calls == ["b", "d"]
    assert counter.current_usage_count == 2
    (guard,) = [found for found in crewai_native.metrics() if found.slot == "tools.guard"]
    assert guard.calls >= 4


def test_stock_runs_what_raises_six_times_and_counts_uses_twice(unbound):
    breaker, counter = Breaker(), Counter(max_usage_count=2)
    PATHS["react"]([breaker, counter])
    assert breaker.calls == ["a"] * 6 + ["c"] * 6
    assert counter.calls == ["b"]
