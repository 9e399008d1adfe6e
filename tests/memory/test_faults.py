"""Disks that are full, files that are damaged, directories that cannot be written."""

# ruff: noqa: A001, PT018, PT017, PLW1510, PLR0917, PTH208 - what a child says is looked at
from __future__ import annotations

import collections
import errno
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from crewai_native_memory import (
    DamagedStoreError,
    NativeStorage,
    NewerFormatError,
    StoreError,
    exports,
)


def state(place):
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in place.parent.iterdir()
        if file.stat().st_size and not file.name.endswith("-shm")
    }


@pytest.fixture
def place(tmp_path):
    return tmp_path / "memory.db"


@pytest.fixture
def filled(place, record):
    """A closed store of 60 records; what it holds, by id."""
    storage = NativeStorage(place)
    records = {
        f"r{n}": record(
            f"r{n}",
            f"text {n} " * 20,
            scope=f"/s/{n % 4}",
            categories=["x", f"c{n % 3}"],
            metadata={"n": n},
            embedding=[float(n), 1.0, *[0.25] * 40],
        )
        for n in range(60)
    }
    storage.save(list(records.values()))
    storage.close()
    return records


OPERATIONS = {
    "get_record": lambda s: s.get_record("r1"),
    "list_records": lambda s: s.list_records(),
    "search": lambda s: s.search([1.0, 1.0, *[0.25] * 40], limit=60),
    "count": lambda s: s.count(),
    "scope_info": lambda s: s.get_scope_info("/s"),
    "list_scopes": lambda s: s.list_scopes("/s"),
    "list_categories": lambda s: s.list_categories(),
    "touch": lambda s: s.touch_records(["r1"]),
    "delete": lambda s: s.delete(record_ids=["r1"]),
    "reset": lambda s: s.reset(),
    "save": lambda s: s.save(s.test_records),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    ("damage", "error"),
    [
        ("empty", DamagedStoreError),
        ("header", DamagedStoreError),
        ("text", DamagedStoreError),
        ("foreign", DamagedStoreError),
        ("newer", NewerFormatError),
    ],
)
def test_what_is_no_store_is_never_used_as_one(place, filled, record, damage, error, operation):
    whole = place.read_bytes()
    if damage == "empty":
        place.write_bytes(b"")
    elif damage == "header":
        place.write_bytes(whole[:60])
    elif damage == "text":
        place.write_text("Dear diary, " * 1000)
    else:
        pragma = "user_version = 999" if damage == "newer" else "application_id = 1"
        code = f"import sqlite3; sqlite3.connect({str(place)!r}).execute('PRAGMA {pragma}')"
        subprocess.run([sys.executable, "-c", code], check=True)
    before = state(place)
    storage = NativeStorage(place)
    storage.test_records = [record("new", embedding=[1.0] * 42)]
    for _ in range(2):
        with pytest.raises(error) as raised:
            OPERATIONS[operation](storage)
        assert str(place) in str(raised.value)
    assert state(place) == before


def read_everything(storage, filled):
    """How reading went: "right", "error" (which names the file), or "missing" records.

    A record that differs from the one saved is never an outcome.
    """
    reads = [
        lambda: [storage.get_record(id) for id in filled],
        lambda: storage.list_records(limit=100),
        lambda: [record for record, _ in storage.search([0.0] * 42, limit=100)],
    ]
    for read in reads:
        try:
            found = {record.id: record for record in read() if record is not None}
        except StoreError as error:
            assert str(storage.path) in str(error)
            yield "error"
        else:
            assert all(filled[id] == record for id, record in found.items())
            yield "right" if len(found) == len(filled) else "missing"


def test_a_flipped_bit_never_changes_a_record(place, filled):
    whole = place.read_bytes()
    chance = random.Random(11)
    seen = collections.Counter()
    for _ in range(200):
        at = chance.randrange(100, len(whole))
        flipped = bytearray(whole)
        flipped[at] ^= 1 << chance.randrange(8)
        place.write_bytes(bytes(flipped))
        storage = NativeStorage(place)
        seen.update(read_everything(storage, filled))
        storage.close()
        assert place.read_bytes() == bytes(flipped)
    # Most of the file is records. SQLite has no checksum over its index pages: a flip there can
    # hide a record from one way of reading, which `check` finds.
    assert seen["error"] > 50
    assert seen["missing"] < 10


def test_a_row_with_another_ones_number_never_lends_its_vector(place, filled):
    # Rows and vectors have checksums, each for itself; the number of a row is in neither.
    whole = place.read_bytes()
    seen = collections.Counter()
    for number in range(1, len(filled) + 1):
        # A row of `records`: the number, the length of the header, the column that is the number.
        at = whole.index(bytes([number, 0x0F, 0x00]))
        for bit in range(6):
            flipped = bytearray(whole)
            flipped[at] ^= 1 << bit
            place.write_bytes(bytes(flipped))
            storage = NativeStorage(place)
            seen.update(read_everything(storage, filled))
            storage.close()
    assert seen["error"] > 100


def test_a_truncated_file_is_an_error(place, filled):
    whole = place.read_bytes()
    for length in range(0, len(whole), len(whole) // 40):
        place.write_bytes(whole[:length])
        storage = NativeStorage(place)
        assert set(read_everything(storage, filled)) == {"error"}
        storage.close()
        assert place.read_bytes() == whole[:length]


def test_a_damaged_store_is_itself_again_once_it_is_restored(place, filled, tmp_path):
    storage = NativeStorage(place)
    backup = tmp_path / "backup.db"
    shutil.copy(place, backup)
    place.write_bytes(b"")
    with pytest.raises(DamagedStoreError):
        storage.count()
    shutil.copy(backup, place)
    assert storage.count() == len(filled)


def test_an_older_copy_put_back_in_place_is_what_is_searched(place, filled, record, tmp_path):
    backup = tmp_path / "backup.db"
    shutil.copy(place, backup)
    storage = NativeStorage(place)
    storage.save([record("later", embedding=[0.0] * 42)])
    assert storage.search([0.0] * 42, limit=1)[0][0].id == "later"
    storage.close()
    other = NativeStorage(place)
    assert other.search([0.0] * 42, limit=1)[0][0].id == "later"
    other.optimize()
    shutil.copy(backup, place)
    found = storage.search([0.0] * 42, limit=100)
    assert {r.id: r for r, _ in found} == filled


FULL = """
import resource, sys
from crewai_native_memory._native import Batch, Store

store = Store(sys.argv[1], "l2")

def save(*ids):
    batch = Batch()
    for id in ids:
        batch.add(id, "text" * 500, "/", [], "{}", 0.5, 1, 1, None, False, [1.0] * 64)
    store.save(batch)

save("first")
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
saved = 1
try:
    while True:
        save(f"a{saved}", f"b{saved}")
        saved += 2
except OSError as error:
    assert error.filename == sys.argv[1], error.filename
    assert store.count("/") == saved
    print(saved)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
assert store.count("/") == saved
save("last")
assert store.count("/") == saved + 1
"""


@pytest.mark.parametrize("limit", [150_000, 400_000, 1_000_000])
def test_a_full_disk_costs_the_save_that_met_it_and_no_other(place, script, audit, limit):
    done = subprocess.run(script(FULL, place, limit), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 1
    assert audit(place) == int(done.stdout) + 1


FULL_FOR_COPIES = """
import os, resource, sys
from pathlib import Path
from crewai_native_memory import NativeStorage, exports

place = Path(sys.argv[1])
storage = NativeStorage(place)
there = place.parent / "copies"
there.mkdir()
size = place.stat().st_size

def try_with(limit, copy, name):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        copy(there / name)
    except OSError as error:
        print(error.filename)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    assert os.listdir(there) == []

def lines(to):
    exports.export_json_lines(storage, to)

try_with(size // 2, storage.backup, "backup.db")
try_with(size // 2, lines, "lines.jsonl")
# Room for a copy of the store, and not for what is made of it.
try_with(size + 4096, lines, "lines.jsonl")
"""


def test_a_copy_that_finds_no_room_leaves_nothing_and_is_named(place, script, record):
    storage = NativeStorage(place)
    rng = random.Random(5)
    storage.save([record(f"r{n}", embedding=[rng.random() for _ in range(500)]) for n in range(99)])
    storage.optimize()
    storage.close()
    done = subprocess.run(script(FULL_FOR_COPIES, place), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    there = place.parent / "copies"
    backup, snapshot, lines = done.stdout.splitlines()
    assert backup.startswith(str(there / "backup.db-"))
    assert snapshot.startswith(str(there / ".crewai-native-"))
    assert lines == str(there / "lines.jsonl")


FULL_FOR_CODES = """
import resource, sys
from crewai_native_memory import NativeStorage

storage = NativeStorage(sys.argv[1])
storage.count()
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
try:
    storage.optimize()
except OSError as error:
    print(error.filename)
"""


def test_codes_that_find_no_room_are_told_as_such(place, script, record):
    storage = NativeStorage(place)
    storage.save([record(f"r{n}", embedding=[float(n), 1.0]) for n in range(3000)])
    storage.close()
    done = subprocess.run(script(FULL_FOR_CODES, place), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{place}-codes/")
    assert [file for file in Path(f"{place}-codes").iterdir() if file.stat().st_size] == []
    storage.optimize()
    assert storage.check() == []


KILLED = """
import os, signal, sys
from pathlib import Path
from crewai_native_memory import NativeStorage, exports
exports._line = lambda record: os.kill(os.getpid(), signal.SIGKILL)
exports.export_json_lines(NativeStorage(sys.argv[1]), Path(sys.argv[2]))
"""


def test_an_export_that_is_killed_does_not_look_like_one_of_nothing(place, filled, script):
    lines = place.parent / "records.jsonl"
    done = subprocess.run(script(KILLED, place, lines), capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not lines.exists()
    assert exports.export_json_lines(NativeStorage(place), lines) == len(filled)
    with pytest.raises(FileExistsError, match=r"records\.jsonl"):
        exports.export_json_lines(NativeStorage(place), lines)


UNPRIVILEGED = """
import os, sys
from crewai_native_memory import _native
if os.geteuid() == 0:
    os.setgid(65534), os.setuid(65534)
store = _native.Store(sys.argv[1], "l2")
batch = _native.Batch()
batch.add("new", "text", "/", [], "{}", 0.5, 1, 1, None, False, [1.0])
for name, work in [("save", lambda: store.save(batch)), ("count", lambda: store.count("/"))]:
    try:
        print(name, work())
    except OSError as error:
        print(name, type(error).__name__, error.errno, error.filename)
"""


@pytest.fixture
def public():
    """A directory that a user without privileges can reach."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    yield directory
    directory.chmod(0o755)
    shutil.rmtree(directory)


def test_a_directory_that_cannot_be_written_is_named(public, script):
    public.chmod(0o555)
    place = public / "sub" / "memory.db"
    done = subprocess.run(script(UNPRIVILEGED, place), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    save, count = done.stdout.splitlines()
    assert save == f"save PermissionError {errno.EACCES} {place.parent}"
    assert count == "count 0"
    assert list(public.iterdir()) == []


def test_a_store_that_cannot_be_written_says_so_and_stays_as_it_is(public, script, record):
    place = public / "memory.db"
    storage = NativeStorage(place)
    storage.save([record(embedding=[1.0])])
    storage.close()
    place.chmod(0o444)
    public.chmod(0o555)
    before = state(place)
    done = subprocess.run(script(UNPRIVILEGED, place), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    save, count = done.stdout.splitlines()
    assert save.startswith(f"save PermissionError {errno.EACCES} {place}")
    assert count == "count 1"
    assert state(place) == before


READ_ONLY = """
import json, os, sys
from crewai_native_memory import _native
if os.geteuid() == 0:
    os.setgid(65534), os.setuid(65534)
store = _native.Store(sys.argv[1], "l2")
def say():
    rows = store.search([1.0], limit=9, min_score=0.0)
    assert store.count("/") == len(rows) == len(store.list("/", 9, 0))
    assert _native.check(store) == []
    print(json.dumps([rows.take(at)[0] for at in range(len(rows))]), flush=True)
say()
for _ in sys.stdin:
    say()
"""


@pytest.mark.parametrize("kept", ["the store alone", "all of its files"])
def test_a_store_in_a_directory_that_cannot_be_written_is_read(public, script, record, kept):
    """As one that came with an image; and when somebody who may write it does, that is seen."""
    place = public / "a b%?#.db"
    storage = NativeStorage(place)
    storage.save([record("a", embedding=[1.0]), record("b", embedding=[3.0])])
    storage.close()
    if kept == "the store alone":
        for suffix in ("-wal", "-shm", "-queue", "-lock"):
            Path(f"{place}{suffix}").unlink()
    public.chmod(0o555)
    before = state(place)
    with subprocess.Popen(
        script(READ_ONLY, place), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as reader:
        assert json.loads(reader.stdout.readline()) == ["a", "b"]
        assert state(place) == before
        public.chmod(0o755)
        storage.save([record("c", embedding=[2.0])])
        storage.optimize()
        storage.close()
        public.chmod(0o555)
        reader.stdin.write("again\n")
        reader.stdin.flush()
        assert json.loads(reader.stdout.readline()) == ["a", "c", "b"]
        reader.stdin.close()
    assert reader.returncode == 0


LEFT_TO_CREWAI = """
import os, warnings
from pathlib import Path
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from crewai.memory.storage.lancedb_storage import LanceDBStorage
    from crewai_native_memory import plugin, records
if os.geteuid() == 0:
    os.setgid(65534), os.setuid(65534)
for _ in range(2):
    print(plugin.crewai_native_memory_storage(spec="lancedb"))
print([record.id for record in LanceDBStorage().list_records()])
try:
    plugin.crewai_native_memory_storage(spec="native").count()
except PermissionError as error:
    print(error.filename)
"""


def test_what_can_only_be_read_where_it_is_is_left_to_crewai(public, script, record):
    from crewai.memory.storage.lancedb_storage import LanceDBStorage

    LanceDBStorage(public / "memory", compact_every=0).save([record("a", embedding=[1.0])])
    environment = os.environ | {"CREWAI_STORAGE_DIR": str(public), "TMPDIR": str(public / "tmp")}
    (public / "tmp").mkdir()
    (public / "tmp").chmod(0o777)

    def run():
        (public / "memory").chmod(0o555)
        public.chmod(0o555)
        done = subprocess.run(
            script(LEFT_TO_CREWAI), capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr
        return done

    done = run()
    assert done.stdout.splitlines() == ["None", "None", "['a']", str(public / "native")]
    assert done.stderr.count("native/memory.db cannot be made: CrewAI itself reads") == 1
    # Once ours is there, it is the one.
    public.chmod(0o755)
    storage = NativeStorage(public)
    storage.save([record("b")])
    storage.close()
    for file in (public / "native").iterdir():
        file.chmod(0o444)
    (public / "native").chmod(0o555)
    assert run().stdout.startswith("NativeStorage")


def test_no_store_is_made_by_reading(tmp_path):
    storage = NativeStorage(tmp_path / "none" / "memory.db")
    assert storage.count() == 0
    assert storage.search([1.0]) == [] and storage.list_records() == []
    assert storage.get_record("x") is None and storage.list_scopes() == []
    assert storage.get_scope_info("a//b/").path == "/a/b"
    assert storage.delete() == 0
    storage.touch_records(["x"])
    storage.reset()
    storage.optimize()
    assert os.listdir(tmp_path) == []


def test_leftovers_of_a_creation_that_was_killed_do_no_harm(place, record):
    for suffix in ("-new", "-new-wal", "-new-shm"):
        Path(f"{place}{suffix}").write_bytes(b"half of something")
    storage = NativeStorage(place)
    storage.save([record()])
    assert storage.count() == 1
    assert not Path(f"{place}-new").exists()
