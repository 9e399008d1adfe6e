"""The contract of ``tasks.batch``: with default settings, crews run as they do without it."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from crewai_native import ConfigurationError
from crewai_native.slots.tasks_batch import BatchOptions, engines
from crewai_native.testing.contract.crew_rules import CrewContract
from crewai_native.testing.contract.crews import crew, halves
from crewai_native.testing.contract.engine_rules import EngineContract


class TestTasksBatch(CrewContract, EngineContract):
    """The contract of ``tasks.batch``."""

    slot: ClassVar = "tasks.batch"

    @staticmethod
    def exercise() -> Any:
        """Run a crew over two inputs."""
        results = crew("only").kickoff_for_each([{"topic": "x"}, {"topic": "y"}])
        return [result.raw for result in results]

    @pytest.fixture
    def engine(self, provider: str) -> Any:
        """The provider's engine."""
        if provider == "stock":
            pytest.skip("CrewAI has no engines")
        found: Any = next(iter(engines().values()))
        try:
            found.map(halves, [], BatchOptions()).close()
        except ConfigurationError as error:
            pytest.skip(f"engine {found.name} is not set up: {error}")
        return found
