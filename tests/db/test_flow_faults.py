"""Damaged files, full disks, directories that cannot be written."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys

import pytest

from crewai_native_db import DamagedDatabaseError, DatabaseError, NewerFormatError
from crewai_native_db.persistence import NativeFlowPersistence

OPERATIONS = {
    "load": lambda s: s.load_state("f"),
    "pending": lambda s: s.load_pending_feedback("f"),
    "clear": lambda s: s.clear_pending_feedback("f"),
    "save": lambda s: s.save_state("f", "m", {"n": 1}),
    "prune": lambda s: s._store.prune(keep=1),
    "flows": lambda s: s._store.flows(),
    "vacuum": lambda s: s._store.vacuum(),
}


@pytest.fixture
def place(tmp_path):
    return tmp_path / "flows.db"


@pytest.fixture
def saved(place):
    """A closed store of three flows; the states of each, oldest first."""
    store = NativeFlowPersistence(str(place))
    states = {}
    for flow in ("a", "b", "c"):
        words = random.Random(flow)
        states[flow] = [
            {"n": n, "text": [words.random() for _ in range(40 + n)], "flow": flow}
            for n in range(25)
        ]
        for state in states[flow]:
            store.save_state(flow, "m", state)
    store.close()
    return states


def damage(place, kind):
    whole = place.read_bytes()
    if kind == "empty":
        place.write_bytes(b"")
    elif kind == "cut":
        place.write_bytes(whole[: len(whole) // 2])
    elif kind == "text":
        place.write_text("Dear diary, " * 1000)
    else:
        pragma = "user_version = 999" if kind == "newer" else "application_id = 1"
        code = f"import sqlite3; sqlite3.connect({str(place)!r}).execute('PRAGMA {pragma}')"
        subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("kind", ["empty", "cut", "text", "foreign", "newer"])
def test_what_is_no_store_is_never_used_as_one(place, saved, kind, operation):
    damage(place, kind)
    before = place.read_bytes()
    store = NativeFlowPersistence(str(place))
    for _ in range(2):
        error = NewerFormatError if kind == "newer" else DamagedDatabaseError
        with pytest.raises(error) as raised:
            OPERATIONS[operation](store)
        assert str(place) in str(raised.value)
    assert place.read_bytes() == before


def test_a_flipped_bit_never_changes_a_state(place, saved):
    whole = place.read_bytes()
    chance = random.Random(5)
    errors = 0
    for _ in range(150):
        flipped = bytearray(whole)
        flipped[chance.randrange(100, len(whole))] ^= 1 << chance.randrange(8)
        place.write_bytes(bytes(flipped))
        store = NativeFlowPersistence(str(place))
        try:
            for flow, states in saved.items():
                for number, *_ in store._store.history(flow, 1000):
                    assert json.loads(store._store.load_at(number)) in states
                # SQLite has no checksum over its index pages: a flip there can hide a state.
                assert store.load_state(flow) in [*states, None]
        except DatabaseError as error:
            assert str(place) in str(error)  # noqa: PT017 - where, not whether
            errors += 1
        store.close()
    assert errors > 30


def test_check_finds_a_state_that_cannot_be_read(place, saved):
    code = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
(state,) = db.execute("SELECT max(state) FROM states").fetchone()
db.execute("UPDATE states SET checksum = checksum + 1 WHERE state = ?", (state,))
db.commit()
print(state)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, place], check=True, capture_output=True, text=True
    )
    store = NativeFlowPersistence(str(place))
    (problem,) = store._store.check()
    assert f"state {done.stdout.strip()}:" in problem
    assert "checksum" in problem
    with pytest.raises(DamagedDatabaseError, match="checksum"):
        store.load_state("c")
    assert store.load_state("a") == saved["a"][-1]


FULL = """
import resource, sys
from crewai_native_db._native import FlowStore

store = FlowStore(sys.argv[1], True)
state = lambda n: '{"n": %d, "noise": "%s"}' % (n, __import__("random").Random(n).randbytes(3000).hex())
store.save("f", "m", 1, state(0))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
saved = 0
try:
    while True:
        store.save("f", "m", 1, state(saved + 1))
        saved += 1
except OSError as error:
    assert error.filename == sys.argv[1], error
    assert store.load("f") == state(saved)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
assert store.load("f") == state(saved)
store.save("f", "m", 1, state(-1))
assert store.load("f") == state(-1)
assert store.check() == [] and len(store.history("f", 10**6)) == saved + 2
print(saved)
"""


@pytest.mark.parametrize("limit", [150_000, 700_000])
def test_a_full_disk_costs_the_save_that_met_it_and_no_other(place, limit):
    done = subprocess.run(
        [sys.executable, "-c", FULL, place, str(limit)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 1


UNPRIVILEGED = """
import os, sys
from crewai_native_db import _native
if os.geteuid() == 0:
    os.setgid(65534), os.setuid(65534)
store = _native.FlowStore(sys.argv[1], True)
for operation in (lambda: store.save("f", "m", 1, "{}"), lambda: store.prune(keep=1)):
    try:
        operation()
    except PermissionError as error:
        print(error.filename)
"""


def test_a_directory_that_turns_read_only_is_an_error_that_names_it(tmp_path, saved, place):
    tmp_path.chmod(0o555)
    for file in tmp_path.iterdir():
        file.chmod(0o444 if file.is_file() else 0o555)
    for above in tmp_path.parents[:2]:
        above.chmod(0o755)
    try:
        environment = {**os.environ, "HOME": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", UNPRIVILEGED, place],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert [line.startswith(str(place)) for line in done.stdout.splitlines()] == [True, True]
    finally:
        tmp_path.chmod(0o755)
