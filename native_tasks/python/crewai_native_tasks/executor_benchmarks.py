"""Cases for ``crewai-native bench tasks``: what a step of an agent costs beside its model."""

from __future__ import annotations

import contextlib
import functools
import time
from typing import TYPE_CHECKING, Any, Final

from crewai_native.bench import Case, Measured

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Run = Callable[[], Any]

_TASKS: Final = 3
_CALLS: Final = 5


def cases() -> Iterator[Case]:
    """Return the cases."""
    for name, native, tools in (
        ("step/native", True, 10),
        ("step/react", False, 10),
        ("step/native-one-tool", True, 1),
    ):
        yield Case(
            name=name,
            group="tasks",
            slot="tasks.executor",
            description="processor time per call of the model, all of a kickoff, every wheel bound",
            parameters={"tools": tools, "tasks": _TASKS, "calls": _CALLS},
            setup=functools.partial(_steps, native=native, tools=tools),
            # Binding slots is for the whole process.
            isolated=frozenset({"native"}),
            target=6.0 if tools > 1 else None,
        )


@contextlib.contextmanager
def _steps(side: str, *, native: bool, tools: int) -> Iterator[Run]:
    import crewai
    from crewai.tools import BaseTool
    from pydantic import BaseModel, Field

    import crewai_native
    from crewai_native.testing import ScriptedLLM, ToolCall

    class Arguments(BaseModel):
        number: int = Field(description="a number")
        text: str = Field(description="some text")

    class Computer(BaseTool):
        name: str = "computer"
        description: str = "Computes something useful for the task at hand."
        args_schema: type[BaseModel] = Arguments

        def _run(self, number: int, text: str) -> str:
            return f"{text} {number * number}"

    computers = [Computer(name=f"computer_{number}") for number in range(tools)]
    script: list[Any] = [
        *(
            ToolCall(f"computer_{number % tools}", {"number": number, "text": "hello"})
            for number in range(_CALLS)
        ),
        lambda turn: " and ".join(turn.results),
    ]

    def run() -> Measured:
        start = time.process_time()
        llm = ScriptedLLM(script, native=native)
        agent = crewai.Agent(
            role="worker", goal="work", backstory="works", llm=llm, tools=computers
        )
        tasks = [
            crewai.Task(description=f"step {number}", expected_output="text", agent=agent)
            for number in range(_TASKS)
        ]
        result = crewai.Crew(agents=[agent], tasks=tasks).kickoff()
        steps = _TASKS * (_CALLS + 1)
        seconds = (time.process_time() - start) / steps
        said = [[call.turn.messages, call.tools, call.answer] for call in llm.calls]
        return Measured(seconds, [[output.raw for output in result.tasks_output], said])

    if side == "native":
        crewai_native.activate(enabled=True)
    try:
        yield run
    finally:
        if side == "native":
            crewai_native.deactivate()
