"""Checkpoints where the place is hostile: a disk that fills up, an exit in the middle, stock beside it."""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from crewai.state.provider.json_provider import JsonProvider
from crewai.state.provider.sqlite_provider import SqliteProvider

from crewai_native_db import _native
from crewai_native_db.checkpoints import places

CREW = """
import crewai_native, os, sys, warnings
warnings.simplefilter("ignore")
from crewai.state.checkpoint_config import CheckpointConfig
from crewai.state.provider.json_provider import JsonProvider
from crewai.state.provider.sqlite_provider import SqliteProvider
from crewai_native.testing.contract.crews import crew

def config(location, kind="JsonProvider"):
    return CheckpointConfig(location=str(location), provider=globals()[kind]())
"""
RESTORE = """
import json
from crewai.state.runtime import RuntimeState
from crewai_native_db import _native
from crewai_native_db.checkpoints import places

def restored(location, kind):
    place, count = places.of(location), 0
    for checkpoint_id, parent_id, branch, _ in place.texts():
        where = place.name(str(location), checkpoint_id, parent_id, branch)
        text = globals()[kind]().from_checkpoint(where)
        RuntimeState.model_validate(json.loads(text), context={"from_checkpoint": True})
        count += 1
    assert _native.CheckpointStore(place.store).check() == []
    return count
"""
BOUND = """
status = crewai_native.activate(enabled=True)
assert status["checkpoint.writer"].provider == "crewai-native-db", status["checkpoint.writer"]
"""
# A file system of its own, which nobody else sees and which goes with the process.
SMALL = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)

def called(function, *args):
    if function(*args) != 0:
        print("unavailable:", os.strerror(ctypes.get_errno()))
        sys.exit()

CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 1 << 18
called(libc.unshare, CLONE_NEWNS)
called(libc.mount, b"none", b"/", None, MS_REC | MS_PRIVATE, None)
called(libc.mount, b"none", sys.argv[1].encode(), b"tmpfs", 0, b"size=8m")
"""
FULL = """
import logging
import sqlite3
from pathlib import Path
from crewai_native_db.checkpoints import writer

class Errors(logging.Handler):
    seen = []
    def emit(self, record):
        self.seen.append(record)

logging.getLogger("crewai_native").addHandler(errors := Errors(logging.ERROR))
place = Path(sys.argv[1]) / ("saved.db" if sys.argv[2] == "SqliteProvider" else "saved")

def worked():
    # CrewAI goes on in the state of the crew before otherwise.
    from crewai.events.event_bus import crewai_event_bus
    crewai_event_bus.reset_runtime_state()
    made = crew("one", "two", checkpoint=config(place, sys.argv[2]))
    assert made.kickoff(inputs={"topic": "x"}).raw == "two"
    (one,) = writer._live
    return one.statistics()

before = worked()
assert before["written"] > 0 and before["failed"] == 0, before

filler = Path(sys.argv[1]) / "filler"
with filler.open("wb", buffering=0) as file:
    try:
        while True:
            file.write(bytes(4096))
    except OSError as error:
        assert error.errno == 28, error
full = worked()
assert full["failed"] > 0, full
# A table of CrewAI's may meet the full disk as what SQLite calls an I/O error.
kinds = {type(record.exc_info[1]) for record in errors.seen}
assert kinds and kinds <= {OSError, sqlite3.OperationalError}, errors.seen

filler.unlink()
after = worked()
assert after["failed"] == full["failed"], after
assert after["written"] - full["written"] == before["written"], (before, full, after)

assert restored(place, sys.argv[2]) == after["written"]
print("sound")
"""
LEFT = """
import threading
from crewai.events.event_bus import _runtime_scope_depth
from crewai.state import checkpoint_listener
from crewai.state.runtime import RuntimeState
from crewai_native_db.checkpoints import writer

storing, original = threading.Event(), writer.CheckpointWriter._store_some

def slowly(self, *args):
    # Nothing is stored before the program has come to its end.
    threading.main_thread().join()
    storing.set()
    original(self, *args)

writer.CheckpointWriter._store_some = slowly
state = RuntimeState(root=[crew("one")])
# As within a kickoff, whose end would wait for what is on its way.
_runtime_scope_depth.set(1)
for _ in range(5):
    checkpoint_listener._do_checkpoint(state, config(sys.argv[1], sys.argv[2]))
assert not storing.is_set()
if sys.argv[3] == "error":
    raise SystemExit(3)
"""
RUNS = """
print("ready", flush=True)
sys.stdin.readline()
for _ in range(4):
    from crewai.events.event_bus import crewai_event_bus
    crewai_event_bus.reset_runtime_state()
    crew("one", "two", checkpoint=config(sys.argv[1], sys.argv[2])).kickoff(inputs={"topic": "x"})
print("done", flush=True)
"""
RESTORED = "print(restored(sys.argv[1], sys.argv[2]))"
KINDS = pytest.mark.parametrize("provider", [JsonProvider, SqliteProvider])
NAMES = {JsonProvider: "saved", SqliteProvider: "saved.db"}


def ran(code, *args):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, check=False
    )


def test_runs_of_one_place_prune_it_one_after_another(tmp_path):
    from crewai_native_db.checkpoints import writer

    served, inside, gate = writer.CheckpointWriter(), threading.Lock(), threading.Barrier(6)

    def stock():
        assert inside.acquire(blocking=False)
        time.sleep(0.001)
        inside.release()
        return 1

    def prune(_):
        gate.wait()
        return sum(served.prune(str(tmp_path), 1, "main", stock) for _ in range(5))

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(prune, range(6))) == [5] * 6
    assert served.statistics()["pruned"] == 30


@pytest.mark.parametrize("kind", [places.Files, places.Table])
def test_what_cannot_be_read_is_not_taken_for_removed(tmp_path, monkeypatch, kind):
    location = tmp_path / "saved"
    place = kind(location)
    store = _native.CheckpointStore(place.store)
    store.add(None, 0, b"", [([b"{}"], [], [("20260101T000000_aaaaaaaa", "{}", 0)])], [])
    place.publish("20260101T000000_aaaaaaaa", None, "main", "{}")

    def refuse(path, *_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        patch.setattr(places, "open", refuse, raising=False)
        for look in (
            lambda: places.reclaim(place, store),
            lambda: place.ids("main"),
            lambda: list(place.texts()),
        ):
            with pytest.raises(OSError, match="Permission denied"):
                look()
    assert places.reclaim(place, store) == 0
    assert place.ids("main") == place.ids() == {"20260101T000000_aaaaaaaa"}
    assert [name for name, _ in store.ids()] == ["20260101T000000_aaaaaaaa"]
    assert place.ids("other") == set()
    assert kind(tmp_path / "saved" / "not" / "there").ids() == set()
    assert kind(tmp_path / "not" / "there").ids("main") == set()


def test_pruning_begins_again_where_another_process_was_faster(tmp_path):
    from crewai_native_db.checkpoints import writer

    served, fails = writer.CheckpointWriter(), 1

    def stock():
        nonlocal fails
        fails -= 1
        if fails >= 0:
            raise FileNotFoundError("x.json")
        return 3

    assert served.prune(str(tmp_path), 1, "main", stock) == 3
    fails = 2
    with pytest.raises(FileNotFoundError, match=r"x\.json"):
        served.prune(str(tmp_path), 1, "main", stock)


@KINDS
@pytest.mark.slow
def test_a_full_disk_costs_checkpoints_and_neither_answers_nor_what_was_saved(tmp_path, provider):
    disk = tmp_path / "disk"
    disk.mkdir()
    done = ran(CREW + SMALL + BOUND + RESTORE + FULL, disk, provider.__name__)
    if done.stdout.startswith("unavailable"):
        pytest.skip("mounting a small file system needs privileges")
    assert (done.returncode, done.stdout) == (0, "sound\n"), done.stderr


@KINDS
@pytest.mark.parametrize("end", ["normal", "error"])
@pytest.mark.slow
def test_what_is_on_its_way_at_exit_is_stored(tmp_path, provider, end):
    place = tmp_path / NAMES[provider]
    done = ran(CREW + BOUND + LEFT, place, provider.__name__, end)
    assert (done.returncode, done.stderr) == (3 if end == "error" else 0, "")
    assert len(list(places.of(place).texts())) == 5
    assert _native.CheckpointStore(places.of(place).store).check() == []


@KINDS
@pytest.mark.slow
def test_stock_crewai_in_another_process_shares_the_place(tmp_path, start, provider):
    place = tmp_path / NAMES[provider]
    alone = tmp_path / "alone" / NAMES[provider]
    # What stock writes by itself, for comparison: into a table, none where SQLite is old.
    others = [
        start(CREW + code + RUNS, at, provider.__name__)
        for code, at in ((BOUND, place), ("", place), ("", alone))
    ]
    for child in others:
        assert child.stdout.readline() == "ready\n"
    for child in others:
        child.stdin.write("go\n")
    for child in others:
        assert child.stdout.readline() == "done\n"
        assert child.wait() == 0
    table = provider is SqliteProvider
    stocks = 0 if table and not alone.exists() else len(list(places.of(alone).texts()))
    assert stocks > 0 or (table and sqlite3.sqlite_version_info < (3, 45))
    store = _native.CheckpointStore(places.of(place).store)
    ours = len(store.ids())
    assert ours > 0
    assert store.check() == []
    found = ran(CREW + BOUND + RESTORE + RESTORED, place, provider.__name__)
    assert found.stdout == f"{stocks + ours}\n", found.stderr


def test_a_branch_that_leads_out_of_the_place_is_refused(tmp_path):
    place = places.Files(tmp_path / "saved")
    place.publish("a", None, "main", "{}")
    place.publish("b", "a", "fork/one", "{}")
    (tmp_path / "else").mkdir()
    (tmp_path / "saved" / "away").symlink_to(tmp_path / "else")
    for branch in ("../else", "away", str(tmp_path / "else")):
        with pytest.raises(ValueError, match="escapes"):
            place.publish("c", None, branch, "{}")
    assert list((tmp_path / "else").iterdir()) == []
    assert place.ids() == {"a", "b"}
