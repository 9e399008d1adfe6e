"""Checkpoints and the replay log: writers killed, full disks, read-only directories, newer files."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys

import pytest

from crewai_native_db import NewerFormatError, _native

ROUNDS = int(os.environ.get("CREWAI_NATIVE_TEST_KILLS", "32")) // 8

PRELUDE = """
import os, random, sys
from crewai_native_db._native import CheckpointStore, ReplayStore

random.Random("")  # imports what it needs, before a test gives up the right to read it

class Checkpoints:
    def __init__(self, path):
        self.store, self.position, self.segments = CheckpointStore(path), None, []
    def add(self, who, n):
        text = random.Random(f"{who} {n}").randbytes(600).hex().encode()
        parts = [(-1, -1, b"%d" % n), (n % 3, 0, text)]
        self.position, _ = self.store.add(
            self.position, len(self.segments), b"".join(self.segments)[-65536:],
            [([text], parts, [(f"{who}-{n}", f"note {n}", n)])], [],
        )
        self.segments.append(text)
    def has(self, who, n):
        found = self.store.load(f"{who}-{n}")
        text = random.Random(f"{who} {n}").randbytes(600).hex().encode()
        return found is not None and (
            found[0][-1] == text and found[1][-1] == b"%d" % n and found[1][n % 3] == text
        )

class Replay:
    def __init__(self, path):
        self.store, self.run = ReplayStore(path, True), None
    def row(self, who, n):
        noise = random.Random(f"{who} {n}").randbytes(600).hex()
        return (f"{who}-{n}", "key", "words", '"%s"' % noise, n, "{}", False, n)
    def add(self, who, n):
        self.run = self.store.add(self.run, who, 100, [self.row(who, n)])
    def has(self, who, n):
        run = self.store.newest(who)
        return run is not None and self.row(who, n) in self.store.load(run)

store = {"checkpoints": Checkpoints, "replay": Replay}[sys.argv[1]](sys.argv[2])
"""
WRITER = """
who, n = sys.argv[3], 0
print("ready", flush=True)
sys.stdin.readline()
while True:
    store.add(who, n)
    print(n, flush=True)
    n += 1
"""
READING = """
if os.geteuid() == 0:
    os.setgid(65534), os.setuid(65534)
assert store.has("w", 0) and not store.has("w", 1)
assert store.store.check() == []
print(sorted(os.listdir(os.path.dirname(sys.argv[2]))))
"""
FULL = """
import resource
store.add("w", 0)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
n = 0
try:
    while True:
        store.add("w", n + 1)
        n += 1
except OSError as error:
    assert error.filename == sys.argv[2], error
assert n > 1
assert all(store.has("w", one) for one in range(n + 1)) and not store.has("w", n + 1)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
store.add("w", n + 1)
assert all(store.has("w", one) for one in range(n + 2))
assert store.store.check() == []
"""
UNPRIVILEGED = """
if os.geteuid() == 0:
    os.setgid(65534), os.setuid(65534)
try:
    store.add("w", 1)
except PermissionError as error:
    print(error.filename)
"""
VERIFY = """
import json
for who, newest in json.loads(sys.stdin.read()).items():
    assert all(store.has(who, n) for n in range(newest + 1)), (who, newest)
assert store.store.check() == []
"""
STORES = pytest.mark.parametrize("kind", ["checkpoints", "replay"])


def run(code, *args, **options):
    return subprocess.run(
        [sys.executable, "-c", PRELUDE + code, *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


@STORES
def test_kill_9_of_eight_writers_loses_nothing_that_was_acknowledged(tmp_path, start, kind):
    place = tmp_path / "store.db"
    chance = random.Random(4)
    acknowledged = {}
    for turn in range(ROUNDS):
        children = {
            f"w{turn}-{n}": start(PRELUDE + WRITER, kind, place, f"w{turn}-{n}") for n in range(8)
        }
        for child in children.values():
            assert child.stdout.readline() == "ready\n"
        for child in children.values():
            child.stdin.write("go\n")
        for who, child in children.items():
            for _ in range(chance.randrange(1, 8)):
                acknowledged[who] = int(child.stdout.readline())
            child.send_signal(signal.SIGKILL)
        for who, child in children.items():
            lines = child.stdout.read().splitlines(keepends=True)
            whole = [int(line) for line in lines if line.endswith("\n")]
            acknowledged[who] = max([acknowledged[who], *whole])
        done = run(VERIFY, kind, place, input=json.dumps(acknowledged))
        assert done.returncode == 0, done.stderr
    with sqlite3.connect(place) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    db.close()


@STORES
@pytest.mark.parametrize("limit", [150_000, 700_000])
def test_a_full_disk_costs_the_write_that_met_it_and_no_other(tmp_path, kind, limit):
    done = run(FULL, kind, tmp_path / "store.db", limit)
    assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def read_only(directory):
    """Let a user without privileges read a directory and what is in it, and nothing else."""
    for file in directory.iterdir():
        file.chmod(0o444)
    directory.chmod(0o555)
    for above in directory.parents[:2]:
        above.chmod(0o755)
    try:
        yield
    finally:
        directory.chmod(0o755)


@STORES
def test_a_directory_that_turns_read_only_is_an_error_that_names_it(tmp_path, kind):
    place = tmp_path / "store.db"
    assert run("store.add('w', 0); store.store.close()", kind, place).returncode == 0
    with read_only(tmp_path):
        done = run(UNPRIVILEGED, kind, place, env={**os.environ, "HOME": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(place))


@STORES
@pytest.mark.parametrize("copied", [False, True])
def test_what_is_in_a_read_only_directory_can_be_read(tmp_path, kind, copied):
    place = tmp_path / "store.db"
    assert run("store.add('w', 0); store.store.close()", kind, place).returncode == 0
    if copied:
        # As a copy has it: all of it is in one file.
        for file in tmp_path.iterdir():
            if file != place:
                file.unlink()
    names = sorted(file.name for file in tmp_path.iterdir())
    with read_only(tmp_path):
        done = run(READING, kind, place, env={**os.environ, "HOME": str(tmp_path)})
    assert (done.returncode, done.stdout) == (0, f"{names}\n"), done.stderr


@STORES
def test_a_file_of_a_newer_release_is_refused_and_left_as_it_is(tmp_path, kind):
    place = tmp_path / "store.db"
    newer = "store.add('w', 0); store.store.close()\nimport sqlite3\n"
    newer += "sqlite3.connect(sys.argv[2]).execute('PRAGMA user_version = 999')"
    assert run(newer, kind, place).returncode == 0
    before = place.read_bytes()
    if kind == "checkpoints":
        store = _native.CheckpointStore(place)
        operations = [lambda: store.load("w-0"), store.ids, lambda: store.forget(["w-0"])]
    else:
        store = _native.ReplayStore(place, True)
        operations = [lambda: store.newest("w"), lambda: store.prune(1), store.totals]
    for operation in operations:
        with pytest.raises(NewerFormatError, match=r"store\.db: written in format 999"):
            operation()
    assert place.read_bytes() == before
