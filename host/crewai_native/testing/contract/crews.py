"""Small crews that run offline, for contracts of slots in the middle of CrewAI."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def crew(*answers: Any, latency: float = 0.0, **options: Any) -> Any:
    """Return a crew of one agent and task for each answer, which is that task's script."""
    from crewai import Agent, Crew, Task

    from crewai_native.testing import ScriptedLLM

    agents = [
        Agent(
            role=f"worker {number}",
            goal="work",
            backstory="works",
            llm=ScriptedLLM(answer, latency=latency),
        )
        for number, answer in enumerate(answers)
    ]
    tasks = [
        Task(description=f"task {number} on {{topic}}", expected_output="words", agent=agent)
        for number, agent in enumerate(agents)
    ]
    return Crew(agents=agents, tasks=tasks, **options)


class _Halving:
    usage_metrics = None

    def kickoff(self, inputs: dict[str, int]) -> int:
        if inputs["n"] % 2:
            raise ValueError(f"{inputs['n']} has no half")
        return inputs["n"] // 2


def halves() -> Any:
    """Return what kicks off without a crew: a number's half, or an error where it has none."""
    return _Halving()


def fresh() -> Any:
    """Return a crew of one task, for engines that make their own."""
    return crew("Done.")


def tool(function: Callable[..., Any], **fields: Any) -> Any:
    """Return a function as a tool of its own name."""
    from crewai.tools import tool as as_tool

    made = as_tool(function)
    for name, value in fields.items():
        setattr(made, name, value)
    return made
