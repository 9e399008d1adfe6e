"""The contract of ``tasks.control``: with default settings, crews run as they do without it."""

from __future__ import annotations

from typing import ClassVar

import pytest

from crewai_native.testing.contract.crew_rules import CrewContract
from crewai_native.testing.contract.crews import crew


class TestTasksControl(CrewContract):
    """The contract of ``tasks.control``."""

    slot: ClassVar = "tasks.control"

    def test_an_agents_time_limit_is_told_as_a_timeout(self, provider: str) -> None:
        """The error that CrewAI documents."""
        slow = crew("late", latency=1.5)
        slow.agents[0].max_execution_time = 1
        slow.agents[0].max_retry_limit = 0
        with pytest.raises(TimeoutError):
            slow.kickoff(inputs={"topic": "x"})
