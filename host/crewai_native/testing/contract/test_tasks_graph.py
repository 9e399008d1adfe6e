"""The contract of ``tasks.graph``: with default settings, crews run as they do without it."""

from __future__ import annotations

from typing import ClassVar

from crewai_native.testing.contract.crew_rules import CrewContract


class TestTasksGraph(CrewContract):
    """The contract of ``tasks.graph``."""

    slot: ClassVar = "tasks.graph"
