"""``tools.guard``: with default settings, tools do what they do without it."""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any, ClassVar

import pytest

from crewai_native.testing.contract.crews import tool
from crewai_native.testing.contract.rules import SlotContract

_context: contextvars.ContextVar[str] = contextvars.ContextVar("_context", default="unset")


class TestToolsGuard(SlotContract):
    """Runs on both ways in which CrewAI enters a tool."""

    slot: ClassVar = "tools.guard"

    @staticmethod
    def exercise() -> Any:
        """Run a tool in both ways."""

        def halve(a: int) -> float:
            """Halve a number."""
            return a / 2

        made = tool(halve)
        return [made.run(a=1), made.to_structured_tool().invoke({"a": 2})]

    @pytest.fixture
    def divide(self, provider: str) -> Any:
        """A tool that can fail."""

        def divide(a: int, b: int) -> float:
            """Divide two numbers."""
            return a / b

        return tool(divide)

    def test_results_come_back(self, divide: Any) -> None:
        """From both paths, with the type that the tool returned."""
        assert divide.run(a=1, b=2) == 0.5
        assert divide.to_structured_tool().invoke({"a": 1, "b": 2}) == 0.5

    def test_arguments_are_validated_before_the_tool_runs(self, divide: Any) -> None:
        """By CrewAI's code, with its errors."""
        with pytest.raises(ValueError, match="b"):
            divide.run(a=1)
        with pytest.raises(ValueError, match="b"):
            divide.to_structured_tool().invoke({"a": 1, "b": "no number"})

    def test_the_tools_own_error_passes_unchanged(self, divide: Any) -> None:
        """Type and message."""
        with pytest.raises(ZeroDivisionError, match="division by zero"):
            divide.run(a=1, b=0)
        with pytest.raises(ZeroDivisionError, match="division by zero"):
            divide.to_structured_tool().invoke({"a": 1, "b": 0})

    def test_a_tool_runs_in_the_callers_context(self, provider: str) -> None:
        """CrewAI keeps the state of a run in context variables."""

        def look() -> str:
            """Look at the context."""
            return _context.get()

        token = _context.set("caller's")
        try:
            assert tool(look).run() == "caller's"
        finally:
            _context.reset(token)

    def test_a_limit_of_uses_holds(self, provider: str) -> None:
        """Exactly that many calls reach the tool."""
        calls = []

        def once(number: int) -> int:
            """Count."""
            calls.append(number)
            return number

        limited = tool(once, max_usage_count=2)
        for number in range(4):
            limited.run(number=number)
        assert calls == [0, 1]

    def test_tools_that_call_tools_and_tools_that_are_awaited(self, divide: Any) -> None:
        """Both run."""

        def outer(a: int) -> float:
            """Call another tool."""
            result: float = divide.run(a=a, b=4)
            return result

        async def awaited(a: int) -> float:
            """Wait."""
            await asyncio.sleep(0)
            return a / 4

        assert tool(outer).run(a=1) == 0.25
        assert asyncio.run(tool(awaited).arun(a=1)) == 0.25
