"""The contract of ``tasks.executor``: with default settings, crews run as they do without it."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from crewai_native.testing.contract.crew_rules import CrewContract


class TestTasksExecutor(CrewContract):
    """The contract of ``tasks.executor``."""

    slot: ClassVar = "tasks.executor"

    def test_a_flow_runs_from_a_program_and_from_a_loop(self, provider: str) -> None:
        """Agents are flows inside."""
        from crewai.flow.flow import Flow, listen, start

        class Adding(Flow[dict[str, int]]):
            @start()
            def one(self) -> int:
                return 1

            @listen(one)
            async def two(self, number: int) -> int:
                await asyncio.sleep(0)
                return number + 1

        assert Adding().kickoff() == 2
        assert asyncio.run(Adding().kickoff_async()) == 2
