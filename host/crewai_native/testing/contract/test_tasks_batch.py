"""The contract of ``tasks.batch``: with default settings, crews run as they do without it."""

from __future__ import annotations

from typing import Any, ClassVar

from crewai_native.testing.contract.crew_rules import CrewContract
from crewai_native.testing.contract.crews import crew


class TestTasksBatch(CrewContract):
    """The contract of ``tasks.batch``."""

    slot: ClassVar = "tasks.batch"

    @staticmethod
    def exercise() -> Any:
        """Run a crew over two inputs."""
        results = crew("only").kickoff_for_each([{"topic": "x"}, {"topic": "y"}])
        return [result.raw for result in results]
