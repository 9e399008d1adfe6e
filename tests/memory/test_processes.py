"""Many processes and threads on one store, some of them killed."""

# ruff: noqa: A001, PT018, PERF401, PERF403, BLE001 - short names and whole truths read best here
from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

from crewai_native_memory import NativeStorage, _native

# The compiled core alone: child processes start fast without CrewAI.
PRELUDE = """
import sys
from crewai_native_memory._native import Batch, Store

store = Store(sys.argv[1], "l2")

def save(*ids, scope="/", vector=(1.0, 0.0)):
    batch = Batch()
    for id in ids:
        batch.add(id, "text", scope, ["c"], "{}", 0.5, 1, 1, None, False, list(vector))
    store.save(batch)
"""


def add(store, *ids, scope="/", vector=(1.0, 0.0)):
    batch = _native.Batch()
    for id in ids:
        batch.add(id, "text", scope, ["c"], "{}", 0.5, 1, 1, None, False, list(vector))
    store.save(batch)


def found(store, vector=(1.0, 0.0), limit=10_000):
    rows = store.search(list(vector), limit=limit, min_score=0.0)
    return {rows.take(at)[0] for at in range(len(rows))}


@pytest.fixture
def place(tmp_path):
    return tmp_path / "memory.db"


@pytest.fixture
def store(place):
    store = _native.Store(place, "l2")
    yield store
    store.close()


@pytest.fixture
def run(script, place):
    """Starts a child on the store; its stdin and stdout are pipes of lines."""
    children = []

    def start(code):
        child = subprocess.Popen(
            script(PRELUDE + code, place),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        children.append(child)
        return child

    yield start
    for child in children:
        child.kill()
        child.communicate()


COMMANDS = """
for line in sys.stdin:
    print(eval(line), flush=True)
"""


def ask(child, expression):
    child.stdin.write(expression + "\n")
    return child.stdout.readline().strip()


def test_the_next_call_sees_what_another_process_committed(run, store):
    other = run(COMMANDS)
    assert ask(other, "store.count('/')") == "0"
    assert store.count("/") == 0 and found(store) == set()

    add(store, "a", scope="/x")
    assert ask(other, "(store.count('/x'), len(store.search([1, 0], limit=9, min_score=0)))") == (
        "(1, 1)"
    )
    ask(other, "save('b', 'c', scope='/y')")
    assert found(store) == {"a", "b", "c"} and store.children("/") == ["/x", "/y"]
    ask(other, "save('b', scope='/x', vector=(0.0, 5.0))")
    assert store.count("/x") == 2
    assert found(store, (0.0, 5.0), limit=1) == {"b"}
    assert ask(other, "store.delete(record_ids=['a'])") == "1"
    assert found(store) == {"b", "c"}
    ask(other, "store.touch(['b'], 77)")
    assert store.get("b").take(0)[7] == 77 and found(store) == {"b", "c"}
    ask(other, "store.reset()")
    assert found(store) == set()
    ask(other, "save('d', vector=(1.0, 2.0, 3.0))")
    assert found(store, (1.0, 2.0, 3.0)) == {"d"}


def test_a_store_that_is_replaced_is_not_taken_for_the_old_one(run, store, place):
    add(store, "old")
    assert found(store) == {"old"}
    for file in place.parent.iterdir():
        file.unlink()
    assert store.count("/") == 0 and found(store) == set()
    other = run(COMMANDS)
    ask(other, "save('new')")
    assert found(store) == {"new"} and store.get("old").__len__() == 0
    add(store, "mine")
    assert ask(other, "store.count('/')") == "2"


KILLED = """
import itertools
print("ready", flush=True)
sys.stdin.readline()
for turn in itertools.count(int(sys.argv[2])):
    save(*[f"{turn}-{n}" for n in range(5)], scope=f"/s/{turn % 3}")
    print("saved", turn, flush=True)
    save(f"{turn}-0", scope="/moved", vector=(0.0, 1.0))
    print("moved", turn, flush=True)
    if turn % 4 == 3:
        store.delete(record_ids=[f"{turn}-{n}" for n in range(5)])
        print("deleted", turn, flush=True)
"""


def test_kill_9_loses_nothing_acknowledged_and_leaves_nothing_half(script, place, store, audit):
    add(store, "survivor")
    chance = random.Random(7)
    acknowledged = []
    cut = set()  # turns of which a later step may have been committed and not acknowledged
    for attempt in range(8):
        with subprocess.Popen(
            script(PRELUDE + KILLED, place, attempt * 1_000_000),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as child:
            child.stdout.readline()
            child.stdin.write("go\n")
            child.stdin.flush()
            # Until so many lines have come; what is under way then is cut at any point.
            for _ in range(chance.randrange(1, 60)):
                acknowledged.append(child.stdout.readline().split())
            child.send_signal(signal.SIGKILL)
            # Not communicate(): it knows nothing of the lines that readline() has buffered.
            lines = child.stdout.read().splitlines(keepends=True)
        acknowledged += [line.split() for line in lines if line.endswith("\n")]
        cut.add(acknowledged[-1][1])

        # No repair, no other process: the next call of a handle that was open all along.
        present = found(store)
        assert "survivor" in present
        last = {}
        for event, turn in acknowledged:
            last[turn] = event
        for turn, event in last.items():
            group = {f"{turn}-{n}" for n in range(5)}
            if event == "deleted":
                assert not group & present
            elif turn not in cut or int(turn) % 4 != 3:
                assert group <= present
                where = store.get(f"{turn}-0").take(0)[2]
                assert where == "/moved" or (event == "saved" and turn in cut)
        turns = {id.rsplit("-", 1)[0] for id in present - {"survivor"}}
        assert all({f"{turn}-{n}" for n in range(5)} <= present for turn in turns)
    assert audit(place) == len(found(store))


def test_writers_of_several_processes_take_turns(run, place, audit):
    each = 1500  # long enough for all of them to be at it at once on a busy machine
    # Once before all begin: a first save opens the store, and takes as long as many others.
    writer = """
save(f"{sys.stdin.fileno()}{__import__('os').getpid()}-first")
print("ready", flush=True)
sys.stdin.readline()
for n in range(1500):
    save(f"{sys.stdin.fileno()}{__import__('os').getpid()}-{n}")
print("done", flush=True)
"""
    children = [run(writer) for _ in range(3)]
    for child in children:
        assert child.stdout.readline() == "ready\n"
    for child in children:
        child.stdin.write("go\n")
    for child in children:
        assert child.stdout.readline() == "done\n"
    assert audit(place) == (each + 1) * len(children)
    rows = _native.Store(place, "l2").list("/", 10_000, 0)
    order = [rows.take(at)[0].split("-")[0] for at in range(len(rows))]
    # While all of them write, nobody writes many times in a row.
    last = min(order.index(writer) for writer in set(order))
    both = order[max(order.index(writer) for writer in set(order)) :]
    runs = [len(list(group)) for _, group in itertools.groupby(both)]
    busy = [n for n in runs[: len(runs) // 2] if n]
    assert last == 0 and max(busy) < each // 2


def test_threads_write_read_and_search_at_once(store, place, audit):
    failures = []

    def work(number):
        try:
            for turn in range(30):
                add(store, *(f"{number}-{turn}-{n}" for n in range(3)), scope=f"/t{number}")
                assert store.count(f"/t{number}") == 3 * (turn + 1) - (turn + 2) // 3
                found(store)
                if turn % 3 == 0:
                    assert store.delete(record_ids=[f"{number}-{turn}-0"]) == 1
                    rows = store.list(f"/t{number}", 1000, 0)
                    assert len(rows) == store.count(f"/t{number}")
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert audit(place) == len(found(store)) == 6 * (90 - 10)


def in_child(work):
    """Runs `work` in a forked child and returns its exit status."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_whoever_opens_a_store_has_it_closed_before_a_fork(place, script):
    code = """
import os, sys
from crewai_native_memory import _native
store = _native.Store(sys.argv[1], "l2")
batch = _native.Batch()
batch.add("r", "t", "/", [], "{}", 0.5, 0, 0, None, False, [1.0])
store.save(batch)
child = os.fork()
if child == 0:
    links = [f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd")]
    os._exit(sum(os.path.realpath(link).startswith(os.path.realpath(sys.argv[1])) for link in links))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), *sys.modules, sep="\\n")
"""
    done = subprocess.run(script(code, place), check=True, capture_output=True, text=True)
    open_files, *modules = done.stdout.split()
    assert open_files == "0"
    assert "crewai_native_memory.storage" not in modules


def test_a_fork_in_the_middle_of_everything(store, place, audit):
    add(store, "before")
    stop = threading.Event()
    saved = [itertools.count() for _ in range(2)]

    def write(number):
        while not stop.is_set():
            add(store, f"w{number}-{next(saved[number]) % 2000}")

    def search():
        while not stop.is_set():
            found(store, limit=3)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(2)]
    threads += [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for turn in range(10):

            def child(turn=turn):
                assert "before" in found(store)
                add(store, f"child-{turn}")
                assert f"child-{turn}" in found(store)
                assert in_child(lambda: add(store, f"grandchild-{turn}")) == 0
                assert f"grandchild-{turn}" in found(store)

            assert in_child(child) == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    written = {f"w{n}-{k % 2000}" for n in range(2) for k in range(next(saved[n]))}
    children = {f"{kind}-{turn}" for kind in ("child", "grandchild") for turn in range(10)}
    assert found(store) == {"before"} | written | children
    assert audit(place) == len(found(store))


def test_a_child_outlives_the_handles_of_its_parent(store, place, audit):
    # The hazard: a child that believes it holds its parent's file locks goes on writing into a
    # log that the parent's last connection has removed.
    add(store, "parent")
    ready, go = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            add(store, "child-1")
            os.write(ready[1], b"x")
            os.read(go[0], 1)
            add(store, "child-2")
            os._exit(0)
        finally:
            os._exit(1)
    os.read(ready[0], 1)
    store.close()
    assert audit(place) == 2
    os.write(go[1], b"x")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    for end in (*ready, *go):
        os.close(end)
    assert found(store) == {"parent", "child-1", "child-2"}
    assert audit(place) == 3


def pool_job(args):
    storage, number = args
    add(storage._store, f"job-{number}")
    return storage.count() > 0


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_preloaded_store_serves_a_pool_of_workers(place, store, method):
    """Workers get the handle itself, open as it is: inherited, or pickled with the job."""
    add(store, "preloaded")
    assert found(store) == {"preloaded"}
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["crewai_native_memory.storage"])
    handle = NativeStorage(place)
    assert handle.count() == 1
    with context.Pool(3) as pool:
        assert all(pool.map(pool_job, [(handle, n) for n in range(12)]))
    assert found(store) == {"preloaded", *(f"job-{n}" for n in range(12))}


def test_a_dead_writer_holds_nobody_up(run, store):
    child = run(
        """
import threading
def forever():
    n = 0
    while True:
        n += 1
        save(f"x{n}")
for _ in range(4):
    threading.Thread(target=forever).start()
print("writing", flush=True)
"""
    )
    child.stdout.readline()
    child.kill()
    child.wait()
    done = threading.Event()

    def write():
        add(store, "after")
        done.set()

    threading.Thread(target=write, daemon=True).start()
    assert done.wait(timeout=30)


def test_waiting_writers_do_not_burn_the_processor(run, store):
    add(store, "first")
    turn = threading.Event()
    # A handle in another process holds the lock as any writer does, until it is told to stop.
    holder = run(
        """
import fcntl
lock = open(sys.argv[1] + "-lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.readline()
"""
    )
    holder.stdout.readline()
    thread = threading.Thread(target=lambda: (add(store, "second"), turn.set()))
    before = time.process_time()
    thread.start()
    assert not turn.wait(timeout=0.5)
    assert time.process_time() - before < 0.25
    holder.stdin.write("stop\n")
    thread.join(timeout=30)
    assert turn.is_set()


def until(condition):
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def large_batch(start):
    batch = _native.Batch()
    for n in range(start, start + 1000):
        batch.add(f"r{n}", "t", "/", [], "{}", 0.5, n, n, None, False, [float(n)] * 1536)
    return batch


def test_a_long_log_is_written_back_aside(store, place, audit):
    for start in range(0, 4000, 1000):
        store.save(large_batch(start))
    # More than 16 MiB are in the log by now, of which a part is in the file.
    until(lambda: place.stat().st_size > 8 << 20)
    store.save(large_batch(4000))
    assert store.count("/") == 5000
    assert audit(place) == 5000


def test_the_last_handle_closes_the_file_aside(store, place, script):
    store.close()
    handle = _native.Store(place, "l2")
    handle.save(large_batch(0))
    log = place.with_name(place.name + "-wal")
    before = log.stat()
    assert before.st_size > 0
    del handle
    until(lambda: log.stat().st_size == 0)
    # SQLite would remove it, by its name: that of a store, too, that was begun there meanwhile.
    assert log.stat().st_ino == before.st_ino
    assert store.count("/") == 1000


def test_a_process_ends_with_its_logs_written_back(place, script, audit):
    code = (
        "import sys\nfrom crewai_native_memory import _native\n"
        "store = _native.Store(sys.argv[1], 'l2')\nbatch = _native.Batch()\n"
        "for n in range(1000):\n"
        "    batch.add(f'r{n}', 't', '/', [], '{}', 0.5, n, n, None, False, [float(n)] * 1536)\n"
        "store.save(batch)\ndel store\n"
    )
    subprocess.run(script(code, place), check=True)
    assert place.with_name(place.name + "-wal").stat().st_size == 0
    assert audit(place) == 1000
