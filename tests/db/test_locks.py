"""Locks between threads, processes, forks and unpatched CrewAI."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path

import crewai_core.lock_store
import portalocker
import pytest
from portalocker.exceptions import LockException

from crewai_native_db.locks import NamedLock

HOLDER = """
import sys
from crewai_native_db.locks import NamedLock
with NamedLock(sys.argv[1], 30):
    print("held", flush=True)
    sys.stdin.readline()
print("released", flush=True)
sys.stdin.readline()
"""
STOCK_HOLDER = HOLDER.replace(
    "crewai_native_db.locks import NamedLock", "crewai_core.lock_store import lock"
).replace("NamedLock(sys.argv[1], 30)", "lock(sys.argv[1], timeout=30)")


@pytest.fixture
def name():
    name = f"test:{uuid.uuid4()}"
    yield name
    for file in (path(name), Path(f"{path(name)}-queue")):
        file.unlink(missing_ok=True)


def path(name):
    digest = hashlib.md5(name.encode()).hexdigest()
    return Path(tempfile.gettempdir()) / f"crewai:{digest}.lock"


def is_free(name):
    """Whether a process without this backend could take it."""
    try:
        with portalocker.Lock(path(name), timeout=0, fail_when_locked=True):
            return True
    except LockException:
        return False


def held_by(start, name, code=HOLDER):
    child = start(code, name)
    assert child.stdout.readline() == "held\n"
    return child


def in_queue(name, count):
    """Threads that wait for the lock, in the order in which they came; and what they do then."""
    order, threads = [], []

    def work(number):
        with NamedLock(name, 30):
            order.append(number)

    for number in range(count):
        thread = threading.Thread(target=work, args=(number,))
        thread.start()
        threads.append(thread)
        wait_until_blocked(thread)
    return order, threads


def wait_until_blocked(thread):
    """Until the kernel says that the thread sleeps, several looks in a row."""
    calm = 0
    while calm < 5:
        stat = Path(f"/proc/self/task/{thread.native_id}/stat").read_text()
        calm = calm + 1 if stat.rpartition(") ")[2].startswith("S") else 0
        time.sleep(0.005)


@pytest.mark.parametrize("code", [HOLDER, STOCK_HOLDER])
def test_it_excludes_a_process_and_names_it(start, name, code):
    child = held_by(start, name, code)
    with pytest.raises(LockException) as raised, NamedLock(name, 0.2):
        pytest.fail("two hold it")
    message = str(raised.value)
    assert f"process {child.pid} holds it" in message
    assert repr(name) in message
    assert str(path(name)) in message
    child.stdin.write("release\n")
    with NamedLock(name, 30):
        assert child.stdout.readline() == "released\n"


def test_what_it_holds_unpatched_code_cannot_take(name):
    theirs = crewai_core.lock_store.lock(name, timeout=0.1)
    with NamedLock(name, 1), pytest.raises(LockException), theirs:
        pytest.fail("two hold it")
    with crewai_core.lock_store.lock(name, timeout=1):
        pass


@pytest.mark.parametrize("timeout", [0, 0.1])
def test_a_thread_that_waits_in_vain_learns_that_its_own_process_holds_it(name, timeout):
    with NamedLock(name, 1), pytest.raises(LockException, match=rf"this process \({os.getpid()}\)"):
        NamedLock(name, timeout).__enter__()
    assert is_free(name)


def test_it_may_be_released_on_another_thread(name):
    lock = NamedLock(name, 1)
    lock.__enter__()
    thread = threading.Thread(target=lock.__exit__, args=(None, None, None))
    thread.start()
    thread.join()
    assert is_free(name)


def test_threads_get_it_in_the_order_in_which_they_came(name):
    with NamedLock(name, 1):
        order, threads = in_queue(name, 6)
        assert order == []
    for thread in threads:
        thread.join()
    assert order == list(range(6))
    assert is_free(name)


def test_a_wait_that_was_given_up_leaves_nothing_held(start, name):
    child = held_by(start, name)
    for _ in range(3):
        with pytest.raises(LockException):
            NamedLock(name, 0.02).__enter__()
    child.stdin.write("release\n")
    assert child.stdout.readline() == "released\n"
    # The thread that waited for the other process gets it now, finds nobody, and lets it go.
    with NamedLock(name, 30):
        pass
    deadline = time.monotonic() + 30
    while not is_free(name):
        assert time.monotonic() < deadline


def test_one_gives_up_and_the_others_in_the_queue_get_it(start, name):
    child = held_by(start, name)
    order, threads = in_queue(name, 2)
    with pytest.raises(LockException):
        NamedLock(name, 0.05).__enter__()
    more, others = in_queue(name, 1)
    child.stdin.write("release\n")
    for thread in [*threads, *others]:
        thread.join()
    assert order == [0, 1]
    assert more == [0]


def test_the_death_of_the_holder_lets_it_go(start, name):
    child = held_by(start, name)
    order, threads = in_queue(name, 1)
    child.send_signal(signal.SIGKILL)
    threads[0].join(timeout=30)
    assert order == [0]


BUSY = """
import sys, time
from crewai_native_db.locks import NamedLock
print("ready", flush=True)
sys.stdin.readline()
turns = 0
end = time.monotonic() + 1.0
while time.monotonic() < end:
    with NamedLock(sys.argv[1], 30):
        turns += 1
print(turns, flush=True)
"""


def test_processes_in_a_loop_do_not_starve_one_another(start, name):
    children = [start(BUSY, name) for _ in range(3)]
    for child in children:
        child.stdout.readline()
    for child in children:
        child.stdin.write("go\n")
    turns = [int(child.stdout.readline()) for child in children]
    assert min(turns) > max(turns) / 10


def test_threads_that_keep_it_busy_let_another_process_have_it(start, name):
    stop = threading.Event()

    def forever():
        while not stop.is_set():
            with NamedLock(name, 30):
                pass

    threads = [threading.Thread(target=forever) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        held_by(start, name).stdin.write("release\n")
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_threads_exclude_one_another_while_processes_compete(start, name):
    others = [start(BUSY, name) for _ in range(2)]
    for other in others:
        other.stdout.readline()
        other.stdin.write("go\n")
    inside = [0, 0]

    def work():
        for _ in range(200):
            with NamedLock(name, 30):
                inside[0] += 1
                inside[1] = max(inside)
                assert not is_free(name)
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert inside == [0, 1]


def fork(work):
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:  # noqa: BLE001 - the exit status says it
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    return pid


def status(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_holds_nothing_of_its_parents(name):
    lock = NamedLock(name, 1)
    lock.__enter__()

    def child():
        # Leaving the block that the parent entered must not take the lock away from it.
        lock.__exit__(None, None, None)
        with pytest.raises(LockException, match=f"process {os.getppid()} holds it"):
            NamedLock(name, 0.05).__enter__()

    assert status(fork(child)) == 0
    assert not is_free(name)
    lock.__exit__(None, None, None)
    assert is_free(name)


def test_a_child_that_lives_on_does_not_keep_its_parents_lock(name):
    # The parent is a process of its own, so that it can die.
    code = """
import os, signal, sys
from crewai_native_db.locks import NamedLock
NamedLock(sys.argv[1], 1).__enter__()
lock = NamedLock(sys.argv[1] + "b", 1)
lock.__enter__()
if os.fork() == 0:
    sys.stdin.readline()
    os._exit(0)
print("forked", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout.readline() == "forked\n"
        parent.wait()
        with NamedLock(name, 5), NamedLock(name + "b", 5):
            pass
        parent.stdin.close()
    path(name + "b").unlink()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_forks_while_threads_take_locks(name):
    stop = threading.Event()

    def forever(number):
        while not stop.is_set():
            with NamedLock(f"{name}{number % 2}", 30):
                pass

    threads = [threading.Thread(target=forever, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(15):

            def child():
                for number in range(2):
                    with NamedLock(f"{name}{number}", 30):
                        pass

            assert status(fork(child)) == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    for number in range(2):
        assert is_free(f"{name}{number}")
        path(f"{name}{number}").unlink()
        Path(f"{path(f'{name}{number}')}-queue").unlink(missing_ok=True)


def test_a_signal_interrupts_the_wait(start, name):
    held_by(start, name)

    class InterruptedHereError(Exception):
        pass

    def interrupt(number, frame):
        raise InterruptedHereError

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(InterruptedHereError):
            NamedLock(name, 30).__enter__()
    finally:
        signal.signal(signal.SIGALRM, before)


def test_waiting_does_not_burn_the_processor(start, name):
    child = held_by(start, name)
    before = time.process_time()
    with pytest.raises(LockException):
        NamedLock(name, 1).__enter__()
    assert time.process_time() - before < 0.2
    child.stdin.write("release\n")


def test_a_lock_is_not_entered_twice(name):
    lock = NamedLock(name, 0.05)
    with lock, pytest.raises(LockException):
        lock.__enter__()
    with lock:
        assert not is_free(name)
    assert is_free(name)


def test_a_directory_that_cannot_be_used_is_named(monkeypatch, name, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(FileNotFoundError) as raised:
        NamedLock(name, 1).__enter__()
    assert raised.value.filename == str(path(name))
