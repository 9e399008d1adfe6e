"""Fixtures of the memory tests."""

# ruff: noqa: A002, PLW1510 - a record has an id; what a child says is looked at
from __future__ import annotations

import os
import subprocess
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


AUDIT = """
import json, sqlite3, sys
db = sqlite3.connect(sys.argv[1])
def rows(sql): return sorted(db.execute(sql).fetchall())
assert rows("PRAGMA integrity_check") == [("ok",)], rows("PRAGMA integrity_check")
records = rows("SELECT r.record, s.path, c.names, r.created_at, r.vector FROM records r"
               " JOIN scopes s ON s.id = r.scope JOIN category_sets c ON c.id = r.categories")
assert len(records) == db.execute("SELECT count(*) FROM records").fetchone()[0]
scopes, categories, timeline, sets = {}, {}, [], {}
for record, path, names, created_at, vector in records:
    parts = [part for part in path.split("/") if part]
    above = ["/"] + ["/" + "/".join(parts[:n]) for n in range(1, len(parts) + 1)]
    sets[names] = sets.get(names, 0) + 1
    for scope in above:
        scopes[scope] = scopes.get(scope, 0) + 1
        timeline.append((scope, created_at, record))
        for name in set(json.loads(names)):
            categories[scope, name] = categories.get((scope, name), 0) + 1
assert rows("SELECT path, records FROM scopes") == sorted(scopes.items())
assert rows("SELECT names, records FROM category_sets") == sorted(sets.items())
assert rows("SELECT s.path, t.created_at, t.record FROM timeline t"
            " JOIN scopes s ON s.id = t.scope") == sorted(timeline)
assert rows("SELECT s.path, c.category, c.records FROM scope_categories c"
            " JOIN scopes s ON s.id = c.scope") == sorted((*k, n) for k, n in categories.items())
assert rows("SELECT id FROM vectors") == sorted((r[4],) for r in records if r[4] is not None)
print(len(records))
"""


@pytest.fixture
def audit() -> Callable[[object], int]:
    """Checks every invariant of a store's file, and counts its records.

    In another process: this one's SQLite must be the only one here that opens the file.
    """

    def check(path: object) -> int:
        done = subprocess.run(
            [sys.executable, "-I", "-c", AUDIT, str(path)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    return check
