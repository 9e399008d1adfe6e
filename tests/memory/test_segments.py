"""Stores large enough to be sealed: what lies in files answers as what lies in memory."""

from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

from crewai_native_memory import _native

ROWS, DIMENSION = 3000, 8  # a little more than what is worth sealing
RANDOM = np.random.default_rng(3)
VECTORS = RANDOM.standard_normal((3 * ROWS, DIMENSION)).astype(np.float32)


def fill(store, start, stop):
    batch = _native.Batch()
    for n in range(start, stop):
        batch.add(
            f"r{n}", "text", f"/s/{n % 5}", [f"c{n % 3}"], "{}", 0.5, n, n,
            f"u{n % 4}", n % 2 == 0, VECTORS[n],
        )  # fmt: skip
    store.save(batch)


def search(store, query, **conditions):
    rows = store.search(query, limit=10, min_score=0.0, **conditions)
    return [rows.take(at)[0] for at in range(len(rows))]


def expected(query, live, inside=lambda n: True):
    live = [n for n in sorted(live) if inside(n)]
    far = np.sum((VECTORS[live].astype(np.float64) - query) ** 2, axis=1)
    return [f"r{live[at]}" for at in np.argsort(far, kind="stable")[:10]]


def agree(store, live):
    for _ in range(3):
        query = RANDOM.standard_normal(DIMENSION).astype(np.float32)
        assert search(store, query) == expected(query, live)
        assert search(store, query, scope="/s/2") == expected(query, live, lambda n: n % 5 == 2)
        assert search(store, query, categories=["c1"], sources=["u1"]) == expected(
            query, live, lambda n: n % 3 == 1 and n % 4 == 1
        )
        assert search(store, query, include_private=False, viewer="u2") == expected(
            query, live, lambda n: n % 2 == 1 or n % 4 == 2
        )


@pytest.fixture
def place(tmp_path):
    return tmp_path / "memory.db"


@pytest.fixture
def store(place):
    store = _native.Store(place, "l2")
    yield store
    store.close()


@pytest.fixture(params=["few components", "heads"])
def rows(request, monkeypatch):
    """How many rows a store begins with: without heads, and with them, which gives an own order."""
    if request.param == "heads":
        centres = 3 * RANDOM.standard_normal((50, 256))
        vectors = centres[np.arange(9000) % 50] + RANDOM.standard_normal((9000, 256))
        monkeypatch.setattr(sys.modules[__name__], "VECTORS", vectors.astype(np.float32))
        monkeypatch.setattr(sys.modules[__name__], "DIMENSION", 256)
        return 5000
    return ROWS


def files(place):
    return sorted(path.name for path in Path(f"{place}-codes").glob("*"))


def segments(place):
    return [name for name in files(place) if name.endswith(".codes")]


def test_a_sealed_store_answers_as_before_and_after_every_change(store, place, rows):
    chance = random.Random(1)
    fill(store, 0, rows)
    live = set(range(rows))
    agree(store, live)
    store.optimize()
    assert store.holdings() == (rows, 0, None)
    agree(store, live)
    for turn in range(4):
        doomed = set(chance.sample(sorted(live), 200))
        assert store.delete(record_ids=[f"r{n}" for n in doomed]) == 200
        live -= doomed
        fresh = range(rows + turn * 900, rows + (turn + 1) * 900)
        fill(store, fresh.start, fresh.stop)
        live |= set(fresh)
        agree(store, live)
        # Records that are saved again as they are, or with another embedding, stay single.
        again = min(live)
        fill(store, again, again + 1)
        agree(store, live)
        store.optimize()
        store.close()
        agree(store, live)
    assert sum(store.holdings()[:2]) < len(live) + rows
    assert len(segments(place)) <= 4


def test_a_change_of_filters_reaches_sealed_rows(store, rows):
    fill(store, 0, rows)
    store.optimize()
    batch = _native.Batch()
    batch.add("r7", "text", "/elsewhere", ["new"], "{}", 0.5, 7, 7, "me", False, VECTORS[7])
    store.save(batch)
    for _ in range(2):
        assert search(store, VECTORS[7], scope="/elsewhere") == ["r7"]
        assert search(store, VECTORS[7], categories=["new"], sources=["me"]) == ["r7"]
        assert "r7" not in search(store, VECTORS[7], scope="/s/2")
        store.close()


def test_searching_seals_in_the_background(store, place):
    fill(store, 0, ROWS)
    agree(store, set(range(ROWS)))
    deadline = time.monotonic() + 60
    while store.holdings()[0] != ROWS and time.monotonic() < deadline:
        time.sleep(0.01)
    assert store.holdings() == (ROWS, 0, None)
    assert len(segments(place)) == 1
    agree(store, set(range(ROWS)))


def sealed(store, rows):
    deadline = time.monotonic() + 60
    while store.holdings()[0] != rows and time.monotonic() < deadline:
        search(store, VECTORS[0])
        time.sleep(0.01)
    return store.holdings() == (rows, 0, None)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("handles", [1, 2])
def test_a_closed_store_can_be_removed_for_good(tmp_path, handles):
    """Also at once after a search that has begun to seal: nothing of it comes back."""
    late = []
    for number in range(20):
        directory = tmp_path / str(number)
        stores = [_native.Store(str(directory / "memory.db"), "l2") for _ in range(handles)]
        fill(stores[0], 0, ROWS)
        for store in stores:
            search(store, VECTORS[0])
        time.sleep(number % 5 / 1000)
        begun = time.monotonic()
        for store in stores:
            store.close()
        if time.monotonic() - begun < 0.9:
            shutil.rmtree(directory)
        else:  # the disk is so slow that closing has waited for as long as it does
            late.append(directory)
    time.sleep(0.1)
    assert set(tmp_path.iterdir()) == set(late)
    assert len(late) < 20


def test_forks_interrupt_sealing_and_do_not_prevent_it(store):
    fill(store, 0, ROWS)
    for _ in range(6):
        search(store, VECTORS[0])  # has sealing begin
        child = os.fork()
        if child == 0:
            os._exit(search(store, VECTORS[1])[0] != "r1")
        assert os.waitpid(child, 0)[1] == 0
    assert sealed(store, ROWS)
    agree(store, set(range(ROWS)))


ENDING = """
import sys
from crewai_native_memory._native import Store
store = Store(sys.argv[1], "l2")
store.search([0.0] * 8, limit=1, min_score=0)
"""


def test_a_process_ends_while_it_seals(store, place, script):
    fill(store, 0, ROWS)
    for _ in range(5):
        done = subprocess.run(script(ENDING, place), capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    store.optimize()
    # One of them may have come to the end of it, and nothing be left to seal here.
    agree(store, set(range(ROWS)))
    assert store.holdings() == (ROWS, 0, None)
    # What was not finished is not left behind.
    assert not [name for name in files(place) if name.endswith(".tmp")]


OTHER = """
import sys
from crewai_native_memory._native import Store
store = Store(sys.argv[1], "l2")
for line in sys.stdin:
    print(eval(line), flush=True)
"""


def test_other_processes_take_over_what_one_sealed(store, place, script):
    fill(store, 0, ROWS)
    store.optimize()
    with subprocess.Popen(
        script(OTHER, place), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as other:

        def ask(expression):
            other.stdin.write(expression + "\n")
            return other.stdout.readline().strip()

        query = f"(len(store.search({[0.0] * DIMENSION}, limit=9, min_score=0)), store.holdings())"
        assert ask(query) == f"(9, ({ROWS}, 0, None))"
        fill(store, ROWS, ROWS + 100)
        assert ask(query) == f"(9, ({ROWS}, 100, None))"
        # Segments that the other one has mapped go on answering after they were replaced.
        for turn in range(2):
            fill(store, ROWS + 100, 2 * ROWS + 500)
            store.delete(record_ids=[f"r{n}" for n in range(turn * 50)])
            store.optimize()
        assert int(ask("store.count('/')")) == store.count("/")
        rows = ask(f"[r.take(n)[0] for r in [store.search({VECTORS[70].tolist()}, limit=1,"
                   " min_score=0)] for n in range(1)]")  # fmt: skip
        assert rows == "['r70']"
        other.stdin.close()


@pytest.mark.parametrize("harm", ["gone", "cut", "flipped header", "flipped snapshot"])
def test_files_that_are_lost_are_made_again(store, place, harm):
    fill(store, 0, ROWS)
    store.optimize()
    store.close()
    codes = Path(f"{place}-codes")
    for path in codes.iterdir():
        if harm == "gone":
            path.unlink()
        elif harm == "cut" and path.stat().st_size:
            os.truncate(path, path.stat().st_size // 2)
        elif path.suffix == (".snapshot" if "snapshot" in harm else ".codes"):
            data = bytearray(path.read_bytes())
            data[40] ^= 8
            path.write_bytes(bytes(data))
    agree(store, set(range(ROWS)))
    store.optimize()
    agree(store, set(range(ROWS)))
    store.close()
    agree(store, set(range(ROWS)))
    assert store.holdings()[0] == ROWS


@pytest.mark.parametrize("length", [0, 100, 4096, -1])
def test_a_file_that_loses_its_end_while_it_is_mapped_is_made_again(store, place, length):
    fill(store, 0, ROWS)
    store.optimize()
    agree(store, set(range(ROWS)))
    (segment,) = Path(f"{place}-codes").glob("*.codes")
    os.truncate(segment, length if length >= 0 else segment.stat().st_size - 1)
    # To read on would be the end of the process.
    agree(store, set(range(ROWS)))
    fill(store, ROWS, ROWS + 1)
    agree(store, set(range(ROWS + 1)))
    store.optimize()
    agree(store, set(range(ROWS + 1)))
    # The last row may have come before or after a seal in the background.
    sealed, in_memory, failure = store.holdings()
    assert (sealed + in_memory, failure) == (ROWS + 1, None)
    assert sealed >= ROWS


SEALING = """
import itertools, sys
from crewai_native_memory._native import Batch, Store
store = Store(sys.argv[1], "l2")
print("ready", flush=True)
for turn in itertools.count(int(sys.argv[2])):
    batch = Batch()
    for n in range(2100):
        batch.add(f"{turn}-{n}", "t", "/", [], "{}", 0.5, n, n, None, False, [float(turn), n])
    store.save(batch)
    store.optimize()
    store.delete(record_ids=[f"{turn}-{n}" for n in range(0, 2100, 2)])
    print(turn, flush=True)
"""


def test_kill_9_while_sealing_costs_nothing(store, place, script, audit):
    chance = random.Random(5)
    whole = 0
    for attempt in range(6):
        with subprocess.Popen(
            script(SEALING, place, attempt * 1000), stdout=subprocess.PIPE, text=True
        ) as child:
            child.stdout.readline()
            deadline = time.monotonic() + chance.uniform(0.05, 0.6)
            while time.monotonic() < deadline:
                time.sleep(0.005)
            child.kill()
            whole += len(child.stdout.read().split())
        count = store.count("/")
        rows = store.search([0.0, 0.0], limit=count + 1, min_score=0.0)
        assert len(rows) == count >= 1050 * whole
        assert count % 1050 == 0
    assert audit(place) == count
    store.optimize()
    store.close()
    assert len(store.search([0.0, 0.0], limit=count + 1, min_score=0.0)) == count


def test_a_flipped_bit_in_a_code_goes_out_of_use(store, place):
    fill(store, 0, ROWS)
    store.optimize()
    store.close()
    (segment,) = Path(f"{place}-codes").glob("*.codes")
    data = bytearray(segment.read_bytes())
    data[-100] ^= 64
    segment.write_bytes(data)
    search(store, VECTORS[0])
    deadline = time.monotonic() + 60
    while store.holdings()[2] is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert segment.name in store.holdings()[2]
    assert not segment.exists()
    agree(store, set(range(ROWS)))
    assert store.holdings()[:2] == (0, ROWS)
    store.optimize()
    assert store.holdings() == (ROWS, 0, None)
    agree(store, set(range(ROWS)))


def test_a_reset_leaves_nothing_searchable(store, place):
    fill(store, 0, ROWS)
    store.optimize()
    store.reset()
    assert search(store, VECTORS[0]) == []
    store.close()
    assert search(store, VECTORS[0]) == []
    batch = _native.Batch()
    batch.add("x", "text", "/", [], "{}", 0.5, 1, 1, None, False, [1.0, 2.0])
    store.save(batch)
    assert search(store, [1.0, 2.0]) == ["x"]


def test_what_nobody_needs_is_removed(store, place):
    for turn in range(3):
        fill(store, 0, ROWS)
        store.delete(record_ids=[f"r{n}" for n in range(0, ROWS, 2)])
        fill(store, turn * ROWS, (turn + 1) * ROWS)
        (Path(f"{place}-codes") / "left.tmp").write_bytes(b"x") if turn else None
        store.optimize()
    # The snapshot in force, the one before for whoever is reading it, their segments, the lock.
    assert len([name for name in files(place) if name.endswith(".snapshot")]) <= 2
    assert "left.tmp" not in files(place)


def test_a_directory_that_cannot_be_written_costs_no_answer(store, place):
    Path(f"{place}-codes").write_text("a file where the directory should be")
    fill(store, 0, ROWS)
    agree(store, set(range(ROWS)))
    deadline = time.monotonic() + 60
    while store.holdings()[2] is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert f"{place}-codes" in store.holdings()[2]
    agree(store, set(range(ROWS)))


def test_filters_on_metadata_follow_every_change(store):
    def put(n, metadata):
        batch = _native.Batch()
        batch.add(f"r{n}", "t", "/", [], metadata, 0.5, n, n, None, False, VECTORS[n])
        store.save(batch)

    def found(wanted):
        return set(search(store, VECTORS[0], metadata=wanted))

    fill(store, 0, ROWS)
    for n in range(6):
        put(n, f'{{"k": {n % 2}, "nested": {{"a": [{n}], "b": 1}}}}')
    for _ in range(2):
        for _ in range(2):  # once from the file, once from memory
            assert found('{"k": 1}') == found('{"k": 1.0}') == {"r1", "r3", "r5"}
            assert found('{"nested": {"b": true, "a": [2]}}') == {"r2"}
            assert found('{"k": 0, "nested": {"a": [4], "b": 1}}') == {"r4"}
            assert found('{"k": "1"}') == set()
            assert found('{"k": null}').isdisjoint(f"r{n}" for n in range(6))
            assert len(found('{"k": null}')) == 10
        store.optimize()
        store.close()
    put(1, '{"k": 2}')
    put(7, '{"k": 1}')
    store.delete(record_ids=["r3"])
    assert found('{"k": 1}') == {"r5", "r7"}
    assert found('{"k": 2}') == {"r1"}


def as_version(wanted, segment):
    """Rewrite a segment without heads as releases before sketches, heads, fine codes or hubs wrote it."""
    data = segment.read_bytes()
    dimension, rows = struct.unpack_from("<I", data, 12)[0], struct.unpack_from("<Q", data, 16)[0]
    # Version 1 had six checksums, the last of a column that is not there, and a shorter header; the
    # others had fifteen, and then eighteen.
    sums, end = {1: (6, 60), 4: (18, 124)}.get(wanted, (15, 124))
    old = bytearray(data[:8] + struct.pack("<I", wanted) + data[12 : 28 + 4 * sums])
    old += bytes(end - len(old))
    old += struct.pack("<I", zlib.crc32(old))
    at = 128
    widths = [8, 8, 4, 4, -(-dimension // 64) * 64]
    sizes = [rows * width for width in widths]
    if wanted > 1:
        sizes += [0, 4 * dimension, -(-dimension // 128) * 32 * rows, 4 * rows, 4 * rows]
    if wanted > 2:
        sizes += [0] * 5
    if wanted > 3:
        sizes += [-(-dimension // 64) * 64 * rows, 4 * rows, 4 * rows]
    for size in sizes:
        at = -(-at // 64) * 64
        old += bytes(-len(old) % 64) + data[at : at + size]
        at += size
    segment.write_bytes(old)


def version(segment):
    return struct.unpack_from("<I", segment.read_bytes(), 8)[0]


@pytest.mark.parametrize("older", [1, 2, 3, 4])
def test_a_segment_of_an_older_format_serves_and_is_replaced(store, place, older):
    fill(store, 0, ROWS)
    store.optimize()
    store.delete(record_ids=["r3"])
    store.close()
    codes = Path(f"{place}-codes")
    (segment,) = codes.glob("*.codes")
    assert version(segment) == 5
    as_version(older, segment)
    live = set(range(ROWS)) - {3}
    agree(store, live)
    # What the first search began is done when `optimize` returns.
    store.optimize()
    assert store.holdings() == (ROWS - 1, 0, None)
    agree(store, live)
    published = [path for path in codes.glob("*.codes") if path != segment]
    assert [version(path) for path in published] == [5]


@pytest.mark.parametrize("older", [1, 2, 3, 4])
def test_a_segment_of_an_older_format_that_is_damaged_goes_out_of_use(store, place, older):
    fill(store, 0, ROWS)
    store.optimize()
    store.close()
    (segment,) = Path(f"{place}-codes").glob("*.codes")
    as_version(older, segment)
    data = bytearray(segment.read_bytes())
    data[-100] ^= 64
    segment.write_bytes(data)
    search(store, VECTORS[0])
    deadline = time.monotonic() + 60
    while segment.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not segment.exists()
    store.optimize()
    agree(store, set(range(ROWS)))


LONG = 256  # components, and ROWS_LONG rows, from which on segments have heads
ROWS_LONG = 5000


def long_vectors(kind):
    spread = RANDOM.standard_normal((ROWS_LONG + 4, LONG))
    if kind == "clustered":
        spread = 2 * RANDOM.standard_normal((30, LONG))[np.arange(len(spread)) % 30] + spread
    elif kind == "topics":
        # Small clusters, each of them in one place.
        centres = 2 * RANDOM.standard_normal((200, LONG))
        spread = (centres[np.arange(len(spread)) // 50 % 200] + spread) / np.sqrt(
            1 + np.arange(LONG)
        )
    elif kind == "leaning":
        spread = (spread / np.sqrt(1 + np.arange(LONG))) @ RANDOM.standard_normal((LONG, LONG)) + 1
    elif kind == "alike":
        spread = spread[np.arange(len(spread)) % 7] + 1e-6 * spread
    return spread.astype(np.float32)


@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
@pytest.mark.parametrize("kind", ["clustered", "topics", "leaning", "alike", "even"])
def test_long_vectors_are_found_as_by_computing_every_score(place, metric, kind):
    vectors = long_vectors(kind)
    vectors[11] = 0
    vectors[4321] = vectors[1234]
    batch = _native.Batch()
    for n in range(ROWS_LONG):
        batch.add(f"{n:04}", "", f"/s/{n % 5}", [], "{}", 0.5, n, n, None, False, vectors[n])
    store = _native.Store(place, metric)
    try:
        store.save(batch)
        store.optimize()
        assert store.holdings() == (ROWS_LONG, 0, None)
        wide = vectors[:ROWS_LONG].astype(np.float64)
        for query in (*vectors[ROWS_LONG:], vectors[1234], 1e3 * vectors[77]):
            products = wide @ query.astype(np.float64)
            scores = products
            if metric == "l2":
                scores = 1 / (1 + np.sum((wide - query) ** 2, axis=1))
            elif metric == "cosine":
                norms = np.linalg.norm(wide, axis=1) * np.linalg.norm(query.astype(np.float64))
                scores = np.divide(products, norms, out=np.zeros(ROWS_LONG), where=norms > 0)
            for scope, rows in (("/", range(ROWS_LONG)), ("/s/2", range(2, ROWS_LONG, 5))):
                found = store.search(query, limit=10, min_score=-np.inf, scope=scope)
                taken = [found.take(at) for at in range(len(found))]
                best = sorted(scores[rows], reverse=True)[:10]
                assert [row[-1] for row in taken] == pytest.approx(best, rel=1e-9, abs=1e-12)
                # What numpy adds up in another order may be a tie there.
                own = [(-row[-1], row[0]) for row in taken]
                assert own == sorted(own)
                for row in taken:
                    expected = scores[int(row[0])]
                    assert row[-1] == pytest.approx(expected, rel=1e-9, abs=1e-12)
    finally:
        store.close()
