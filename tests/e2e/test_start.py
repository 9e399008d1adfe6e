"""What a program's start does when every slot is bound: it loads what binds, not what serves."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

# What only a served call needs.
LATER = {
    "crewai_native._record",
    "crewai_native._status",
    "crewai_native._trust",
    "crewai_native_celery.batch",
    "crewai_native_db.checkpoints.writer",
    "crewai_native_db.persistence",
    "crewai_native_memory.storage",
    "crewai_native_tasks.batch",
    "crewai_native_tasks.control",
    "crewai_native_tasks.executor.kickoff",
    "crewai_native_tasks.graph",
    "crewai_native_tasks.options",
    "crewai_native_tools.guard",
    "crewai_native_tools.options",
    "crewai_native_tools.policy",
    "packaging.specifiers",
    "platformdirs",
}


def start(code, *arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-c", f"import crewai, json, sys\n{code}", *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_a_start_loads_nothing_that_only_a_call_needs():
    code = """
before = set(sys.modules)
import crewai_native
status = crewai_native.status()
slots = {slot.slot: [slot.state, slot.reason] for slot in status.slots}
print(json.dumps([sorted(before), slots]))
"""
    outside = start("print(json.dumps(sorted(sys.modules)))", CREWAI_NATIVE="0")
    loaded, slots = start(code, CREWAI_NATIVE="1")
    assert {slot: found for slot, found in slots.items() if found[0] != "bound"} == {}
    assert {slot: found for slot, found in slots.items() if "Error" in found[1]} == {}
    assert "crewai_native_tools.plugin" in loaded
    assert LATER & set(loaded) - set(outside) == set()


@pytest.mark.slow
def test_what_earlier_starts_remember_hides_nothing_that_a_program_has_replaced(tmp_path):
    code = """
from crewai.agents.cache.cache_handler import CacheHandler
if sys.argv[1:]:
    CacheHandler.add = json.dumps
import crewai_native
slots = crewai_native.activate(enabled=True).slots
print(json.dumps({slot.slot: slot.reason for slot in slots if slot.state != "bound"}))
"""
    here = {"CREWAI_NATIVE": "0", "CREWAI_NATIVE_CACHE_DIR": str(tmp_path)}
    assert start(code, **here) == {}
    remembered = (tmp_path / "fingerprints.json").read_bytes()
    unbound = start(code, "replaced", **here)
    assert list(unbound) == ["tools.cache"]
    assert "CacheHandler.add is not code that was tested" in unbound["tools.cache"]
    assert b"cache_handler.py" in remembered
