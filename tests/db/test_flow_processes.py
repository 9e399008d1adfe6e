"""Many processes and threads on one store, some of them killed."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading

import pytest

from crewai_native_db import _native

PRELUDE = """
import json, os, sys
import crewai_native_db
from crewai_native_db._native import FlowStore

store = FlowStore(sys.argv[1], True)

def save(flow, n):
    store.save(flow, f"m{n}", n, json.dumps({"flow": flow, "n": n, "list": list(range(n % 90))}))
"""
KILLED = """
flow, n = sys.argv[2], int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
while True:
    save(flow, n)
    print(n, flush=True)
    n += 1
"""
ROUNDS = int(os.environ.get("CREWAI_NATIVE_TEST_KILLS", "32")) // 8


@pytest.fixture
def place(tmp_path):
    return tmp_path / "flows.db"


@pytest.fixture
def store(place):
    store = _native.FlowStore(place, True)
    yield store
    store.close()


def save(store, flow, n):
    store.save(flow, f"m{n}", n, json.dumps({"flow": flow, "n": n, "list": list(range(n % 90))}))


def last(store, flow):
    text = store.load(flow)
    return None if text is None else json.loads(text)["n"]


def integrity(place):
    """In another process: this one's SQLite must be the only one here that opens the file."""
    code = "import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute('PRAGMA integrity_check').fetchall())"
    done = subprocess.run(
        [sys.executable, "-c", code, place], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or done.stderr


def test_kill_9_of_eight_writers_loses_no_acknowledged_state(place, start):
    chance = random.Random(3)
    acknowledged = dict.fromkeys((f"flow{n}" for n in range(8)), 0)
    for _ in range(ROUNDS):
        children = {
            flow: start(PRELUDE + KILLED, place, flow, n + 1) for flow, n in acknowledged.items()
        }
        for child in children.values():
            assert child.stdout.readline() == "ready\n"
        for child in children.values():
            child.stdin.write("go\n")
        for flow, child in children.items():
            # Until so many were acknowledged; what is under way then is cut at any point.
            for _ in range(chance.randrange(1, 8)):
                acknowledged[flow] = int(child.stdout.readline())
            child.send_signal(signal.SIGKILL)
        for flow, child in children.items():
            lines = child.stdout.read().splitlines(keepends=True)
            acknowledged[flow] = max(
                [acknowledged[flow], *(int(line) for line in lines if line.endswith("\n"))]
            )
        store = _native.FlowStore(place, True)
        for flow, n in acknowledged.items():
            # One more may have been committed and not acknowledged.
            assert last(store, flow) in (n, n + 1)
            numbers = [int(method[1:]) for _, method, *_ in store.history(flow, 10**6)]
            assert sorted(numbers, reverse=True) == numbers
            acknowledged[flow] = last(store, flow)
        assert store.check() == []
        store.close()
    assert integrity(place) == "[('ok',)]"


def test_threads_share_commits_and_lose_nothing(store, place):
    gate = threading.Barrier(16)
    failures = []

    def work(number):
        try:
            gate.wait()
            for n in range(25):
                save(store, f"flow{number % 8}-{number}", n)
                assert last(store, f"flow{number % 8}-{number}") == n
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    counts = store.statistics()
    assert counts["writes"] == 16 * 25
    assert counts["failures"] == 0
    assert counts["commits"] < counts["writes"] / 2
    assert store.totals()["states"] == 16 * 25
    assert store.check() == []


def test_one_failing_write_takes_no_other_with_it(store):
    gate = threading.Barrier(8)
    refused = []

    def work(number):
        gate.wait()
        for n in range(20):
            save(store, f"flow{number}", n)
            # Refused inside the transaction: the file is expected to be further on.
            refused.append(
                store.import_rows(f"s{number}", 99, 100, True, [("x", "m", 1, "{}", None)])
            )

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(refused) == {False}
    assert [last(store, f"flow{number}") for number in range(8)] == [19] * 8
    assert store.load("x") is None


def test_writers_of_several_processes_take_turns(place, start):
    children = [start(PRELUDE + KILLED, place, f"flow{n}", 0) for n in range(3)]
    for child in children:
        child.stdout.readline()
    for child in children:
        child.stdin.write("go\n")
    for child in children:
        for _ in range(60):
            child.stdout.readline()
    for child in children:
        child.kill()
        child.wait()
    store = _native.FlowStore(place, True)
    order = sorted(
        (number, flow) for flow in store.flows() for number, *_ in store.history(flow, 10**6)
    )
    flows = [flow for _, flow in order]
    # From when all had begun until the first had enough, nobody writes many times in a row.
    begin = max(flows.index(flow) for flow in set(flows))
    busy = flows[begin : begin + 60]
    longest = run = 1
    for before, after in itertools.pairwise(busy):
        run = run + 1 if before == after else 1
        longest = max(longest, run)
    assert longest < 20


def in_child(work):
    """Runs `work` in a forked child and returns its exit status."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:  # noqa: BLE001 - the exit status says it
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_in_the_middle_of_other_threads_transactions(store, place):
    save(store, "before", 1)
    stop = threading.Event()
    written = [0, 0, 0]

    def write(number):
        while not stop.is_set():
            written[number] += 1
            save(store, f"w{number}", written[number])

    threads = [threading.Thread(target=write, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    try:
        for turn in range(10):

            def child(turn=turn):
                assert last(store, "before") == 1
                save(store, f"child{turn}", turn)
                assert last(store, f"child{turn}") == turn
                assert in_child(lambda: save(store, f"grandchild{turn}", turn)) == 0
                assert last(store, f"grandchild{turn}") == turn

            assert in_child(child) == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert [last(store, f"w{n}") for n in range(3)] == written
    for turn in range(10):
        assert last(store, f"child{turn}") == last(store, f"grandchild{turn}") == turn
    assert store.check() == []


def pool_job(args):
    store, number = args
    save(store, f"job{number}", number)
    return last(store, f"job{number}")


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_store_goes_to_the_workers_of_a_pool(store, method):
    save(store, "preloaded", 1)
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(pool_job, [(store, n) for n in range(6)]) == list(range(6))
    assert last(store, "preloaded") == 1


EXIT = """
import threading
busy = threading.Event()
def forever():
    n = 0
    while True:
        n += 1
        save("daemon", n)
        os.write(1, b"%d\\n" % n)
        busy.set()
threading.Thread(target=forever, daemon=True).start()
busy.wait()
save("main", 7)
"""


def test_an_exit_with_writes_under_way_keeps_what_was_acknowledged(place, start):
    for _ in range(3):
        child = start(PRELUDE + EXIT, place)
        out, _ = child.communicate(timeout=60)
        assert child.returncode == 0
        numbers = [int(line) for line in out.splitlines(keepends=True) if line.endswith("\n")]
        store = _native.FlowStore(place, True)
        assert last(store, "main") == 7
        assert last(store, "daemon") >= numbers[-1]
        assert store.check() == []
        store.close()


def test_a_store_that_nobody_has_open_is_all_in_one_file(place, start, tmp_path):
    child = start(PRELUDE + "save('f', 1)", place)
    assert child.wait(timeout=60) == 0
    beside = {file.name: file.stat().st_size for file in place.parent.glob("flows.db-*")}
    assert beside.keys() == {f"flows.db-{end}" for end in ("lock", "queue", "shm", "wal")}
    # SQLite's index of the log, which is begun anew, is all that is not empty.
    assert {name for name, size in beside.items() if size} == {"flows.db-shm"}
    copied = shutil.copy(place, tmp_path / "copy.db")
    assert json.loads(_native.FlowStore(copied, True).load("f"))["n"] == 1


def test_a_second_process_runs_stock_crewai_at_the_same_location(crewai_home, start):
    from crewai.flow.persistence.sqlite import SQLiteFlowPersistence

    from crewai_native_db.persistence import NativeFlowPersistence

    SQLiteFlowPersistence().save_state("shared", "m", {"n": 0})
    ours = NativeFlowPersistence()
    other = start(
        """
import sys, warnings
warnings.simplefilter("ignore")
from crewai.flow.persistence.sqlite import SQLiteFlowPersistence
stock = SQLiteFlowPersistence()
print("ready", flush=True)
for line in sys.stdin:
    stock.save_state("theirs", "m", {"n": int(line)})
    print(stock.load_state("theirs")["n"], stock.load_state("shared")["n"], flush=True)
"""
    )
    assert other.stdout.readline() == "ready\n"
    for n in range(1, 6):
        ours.save_state("shared", "m", {"n": n})
        other.stdin.write(f"{n}\n")
        # Each has its own file, and neither changes the other's.
        assert other.stdout.readline() == f"{n} 0\n"
        assert ours.load_state("shared") == {"n": n}
    assert ours.load_state("theirs") is None
