"""Rules that every slot of the area ``tasks`` keeps: crews run as they do without it."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import pytest

from crewai_native.testing.contract.crews import crew
from crewai_native.testing.contract.rules import SlotContract


class CrewContract(SlotContract):
    """What a crew's user sees."""

    runs_crews: ClassVar = True

    @staticmethod
    def exercise() -> Any:
        """Run a crew of two tasks."""
        result = crew("first", "second").kickoff(inputs={"topic": "x"})
        return [output.raw for output in result.tasks_output]

    def test_a_crew_runs_its_tasks_in_order(self, provider: str) -> None:
        """Each sees what those before it said."""
        made = crew("first", "second", lambda_of_context())
        result = made.kickoff(inputs={"topic": "x"})
        assert [output.raw for output in result.tasks_output[:2]] == ["first", "second"]
        assert result.raw == "first and second were there"
        assert result.token_usage.successful_requests == 3

    def test_so_does_an_awaited_one(self, provider: str) -> None:
        """On the caller's event loop."""
        result = asyncio.run(crew("first", "second").akickoff(inputs={"topic": "x"}))
        assert [output.raw for output in result.tasks_output] == ["first", "second"]

    def test_an_error_of_the_model_is_the_kickoffs(self, provider: str) -> None:
        """With its type, and nothing after it runs."""
        broken = crew([KeyError("model")], "second")
        with pytest.raises(KeyError, match="model"):
            broken.kickoff(inputs={"topic": "x"})
        assert broken.tasks[1].output is None

    def test_one_crew_over_many_inputs_keeps_their_order(self, provider: str) -> None:
        """In all three of CrewAI's ways."""
        inputs = [{"topic": str(n)} for n in range(3)]
        made = crew([lambda turn: turn.prompt.partition("task 0 on ")[2][:1]])
        assert [result.raw for result in made.kickoff_for_each(inputs)] == ["0", "1", "2"]
        for method in (made.kickoff_for_each_async, made.akickoff_for_each):
            assert [result.raw for result in asyncio.run(method(inputs))] == ["0", "1", "2"]


def lambda_of_context() -> list[Any]:
    """Return a script that says what the task's context holds."""
    return [
        lambda turn: (
            " and ".join(word for word in ("first", "second") if word in turn.prompt)
            + " were there"
        )
    ]
