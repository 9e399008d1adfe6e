"""The rules of every engine, on a cluster; the kit itself has none."""

from __future__ import annotations

from typing import Any

import pytest

from crewai_native.slots.tasks_batch import engines
from crewai_native.testing.contract.engine_rules import EngineContract


class TestCelery(EngineContract):
    @pytest.fixture
    def engine(self, cluster: Any) -> Any:
        return engines()["celery"]
