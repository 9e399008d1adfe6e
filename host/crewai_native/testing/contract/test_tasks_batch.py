"""The contract of ``tasks.batch``: with default settings, crews run as they do without it."""

from __future__ import annotations

from typing import ClassVar

from crewai_native.testing.contract.crew_rules import CrewContract


class TestTasksBatch(CrewContract):
    """The contract of ``tasks.batch``."""

    slot: ClassVar = "tasks.batch"
