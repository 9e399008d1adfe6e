"""Fixtures of the memory tests."""

from __future__ import annotations

import os
import sys
import warnings
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from crewai_native_memory import NativeStorage

os.environ.setdefault("CREWAI_DISABLE_TELEMETRY", "true")
os.environ.setdefault("CREWAI_DISABLE_VERSION_CHECK", "true")
os.environ.setdefault("CREWAI_TRACING_ENABLED", "false")
os.environ.setdefault("OTEL_SDK_DISABLED", "true")
# What these tests show must not depend on the host wiring stores into CrewAI by itself.
os.environ["CREWAI_NATIVE"] = "0"

with warnings.catch_warnings():
    # CrewAI's imports warn; its behaviour is what is tested here, under the strict filters.
    warnings.simplefilter("ignore")
    import crewai.memory.unified_memory  # noqa: F401
    from crewai.memory.types import MemoryRecord


@pytest.fixture(autouse=True)
def crewai_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty storage directory for CrewAI, and for everything below it."""
    monkeypatch.setenv("CREWAI_STORAGE_DIR", str(tmp_path / "crewai"))
    return tmp_path / "crewai"


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[NativeStorage]:
    from crewai_native_memory import NativeStorage

    storage = NativeStorage(tmp_path / "store" / "memory.db")
    yield storage
    storage.close()


@pytest.fixture
def record() -> Callable[..., object]:
    def make(id: str = "r", content: str = "text", **fields: object) -> MemoryRecord:
        return MemoryRecord(id=id, content=content, **fields)

    return make


@pytest.fixture
def script() -> Callable[..., list[str]]:
    """The command that runs a piece of code in a fresh interpreter."""

    def command(code: str, *args: object) -> list[str]:
        return [sys.executable, "-c", code, *map(str, args)]

    return command
