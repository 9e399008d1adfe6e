"""What a program's start does when every slot is bound: it loads what binds, not what serves."""

from __future__ import annotations

import json
import os
import subprocess
import sys

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


def start(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", f"import crewai, json, sys\n{code}"],
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
