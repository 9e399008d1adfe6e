"""Fixtures of the database tests."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import warnings
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


with warnings.catch_warnings():
    # CrewAI's imports warn; its behaviour is what is tested here, under the strict filters.
    warnings.simplefilter("ignore")
    import crewai
    import crewai.flow.flow
    from crewai.flow.persistence.sqlite import SQLiteFlowPersistence
from crewai_native_db import persistence

assert crewai


@pytest.fixture(autouse=True)
def crewai_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty storage directory for CrewAI, and for everything below it."""
    monkeypatch.setenv("CREWAI_STORAGE_DIR", str(tmp_path / "crewai"))
    return tmp_path / "crewai"


@pytest.fixture
def native(tmp_path: Path) -> Iterator[persistence.NativeFlowPersistence]:
    store = persistence.NativeFlowPersistence(str(tmp_path / "native.db"))
    yield store
    store.close()


@pytest.fixture
def stock(tmp_path: Path) -> SQLiteFlowPersistence:
    return SQLiteFlowPersistence(str(tmp_path / "stock.db"))


@pytest.fixture
def stock_rows() -> Callable[[SQLiteFlowPersistence], list[tuple[str, str, str]]]:
    """The states in a store of CrewAI's own, oldest first."""

    def rows(stock: SQLiteFlowPersistence) -> list[tuple[str, str, str]]:
        with closing(sqlite3.connect(stock.db_path)) as db:
            return db.execute(
                "SELECT flow_uuid, method_name, state_json FROM flow_states ORDER BY id"
            ).fetchall()

    return rows


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a child that runs a piece of code; its stdin and stdout are pipes of lines."""
    children = []

    def run(code: str, *args: object) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        children.append(child)
        return child

    yield run
    for child in children:
        child.kill()
        child.communicate()
