"""Tools in processes of their own: whatever they do costs one call."""

from __future__ import annotations

import functools
import os
import pathlib
import re
import signal
import socket  # noqa: TC003 - the annotation is what is tested
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from crewai_native_tools import isolation
from crewai_native_tools.isolation import Limits, Pool, check_transferable

MODULES = pathlib.Path(__file__).parent / "isolated"
sys.path.insert(0, str(MODULES))

import misbehaving  # noqa: E402

# What a slow, busy machine may take for something that takes milliseconds.
LONG = 60


@pytest.fixture(scope="module")
def pool():
    with Pool(max_workers=2) as pool:
        yield pool


def is_alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except OSError:
        return False


def until(condition):
    limit = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < limit, f"waited for {LONG} s"
        time.sleep(0.002)


# --- calls ------------------------------------------------------------------------------------


def test_a_call_runs_in_a_process_and_a_group_of_its_own(pool):
    assert pool.run(misbehaving.add, (1,), {"second": 2}) == 3
    pid, group, parent = pool.run(misbehaving.whoami)
    assert pid != os.getpid()
    assert group == pid
    assert parent == os.getpid()
    # The worker is kept.
    assert pool.run(misbehaving.whoami)[0] == pid


def test_a_coroutine_is_awaited(pool):
    assert pool.run(misbehaving.add_later, (1, 2)) == 3


def test_partials_and_methods_go(pool):
    assert pool.run(functools.partial(misbehaving.add, second=5), (1,)) == 6
    assert pool.run("a-b".split, ("-",)) == ["a", "b"]


def test_plain_values_of_the_context_go_and_others_stay(pool):
    misbehaving.TENANT.set("acme")
    misbehaving.CONNECTION.set(threading.Lock())
    assert pool.run(misbehaving.context) == ("acme", None)
    misbehaving.TENANT.set("other")
    assert pool.run(misbehaving.context)[0] == "other"


def test_what_a_tool_prints_goes_where_it_would_have_gone(tmp_path):
    program = (
        "import sys\nsys.path.insert(0, sys.argv[1])\nimport misbehaving\n"
        "from crewai_native_tools.isolation import Pool\n"
        "print(repr(Pool().run(misbehaving.prints, ('hello',))))\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", program, str(MODULES)],
        input="not for the tool",
        capture_output=True,
        text=True,
        check=True,
        timeout=LONG,
    )
    assert sorted(out.stdout.split("\n")) == ["", "''", "and more", "hello"]
    assert out.stderr == ""


def test_the_gil_is_free_while_a_call_runs(pool, tmp_path):
    flag = tmp_path / "flag"
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(pool.run, misbehaving.waits_for, (str(flag),))
        flag.touch()
        assert answer.result(LONG) == "seen"


def test_more_callers_than_workers():
    with Pool(max_workers=2) as pool, ThreadPoolExecutor(16) as threads:
        target = check_transferable(misbehaving.whoami)
        answers = list(threads.map(lambda _: pool.run(target)[0], range(200)))
        stats = pool.stats()
    assert len(answers) == 200
    assert len(set(answers)) <= 2
    assert stats["calls"] == 200
    assert stats["started"] <= 2
    assert stats["killed"] == 0


def test_a_worker_is_replaced_after_its_calls():
    with Pool(max_workers=1, recycle_after=2) as pool:
        pids = [pool.run(misbehaving.whoami)[0] for _ in range(4)]
    assert pids[0] == pids[1] != pids[2] == pids[3]


def test_a_worker_that_grew_is_replaced():
    with Pool(max_workers=1) as pool:
        limits = Limits(memory_mb=100)
        small = [pool.run(misbehaving.leaks, (1 << 20,), limits=limits) for _ in range(2)]
        grown = pool.run(misbehaving.leaks, (80 << 20,), limits=limits)
        after = pool.run(misbehaving.leaks, (1 << 20,), limits=limits)
    assert small[0] == small[1] == grown != after


# --- misbehaviour -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "args", "limits", "error", "message"),
    [
        ("loops_in_c", (), {}, isolation.DeadlineExceeded, r"longer than its 1\.5 s"),
        ("ignores_sigterm", (), {}, isolation.DeadlineExceeded, "timeout"),
        ("blocks_on_a_lock", (), {}, isolation.DeadlineExceeded, "timeout"),
        ("exits", (), {}, isolation.Exited, r"sys\.exit\('enough'\)"),
        ("exits_at_once", (), {}, isolation.Exited, "exit code 3"),
        ("aborts", (), {}, isolation.Crashed, "SIGABRT"),
        ("segfaults", (), {}, isolation.Crashed, "SIGSEGV"),
        ("is_killed", (), {}, isolation.Crashed, "SIGKILL; somebody killed it"),
        ("large", (100_000_000,), {}, isolation.ResultTooLarge, "33554432 bytes"),
        ("large", (2000,), {"result_bytes": 1000}, isolation.ResultTooLarge, "1000 bytes"),
        ("unpicklable", (), {}, isolation.NotTransferable, r"\(lock\) cannot leave"),
        ("vanishes", (), {}, isolation.NotTransferable, "not here"),
        ("recurses", (), {}, RecursionError, "recursion"),
        ("closes_everything", (), {}, isolation.Exited, "broke its process's connection"),
        ("opens", (20,), {"open_files": 10}, OSError, "Too many open files"),
        ("raises", ("value",), {}, ValueError, "'wrong', 7"),
        ("raises", ("odd",), {}, isolation.RemoteError, "OddError"),
        ("raises", ("fatal",), {}, isolation.RemoteError, "FatalError: over"),
        ("raises", ("interrupt",), {}, isolation.RemoteError, "KeyboardInterrupt"),
        ("raises", ("local",), {}, isolation.RemoteError, "Local: lost"),
        ("raises", ("huge",), {}, isolation.RemoteError, "ValueError: xxx"),
    ],
)
def test_misbehaviour_costs_one_call(  # noqa: PLR0917 - a table
    pool, function, args, limits, error, message
):
    pool.warm(misbehaving.add)
    pool.warm(getattr(misbehaving, function))
    timeout = 1.5 if error is isolation.DeadlineExceeded else LONG
    with pytest.raises(error, match=message) as raised:
        pool.run(getattr(misbehaving, function), args, limits=Limits(**limits), timeout=timeout)
    if issubclass(error, isolation.IsolationError):
        assert function in str(raised.value)
    assert pool.run(misbehaving.add, (1,)) == 11


def test_the_error_tells_what_happened_there(pool):
    with pytest.raises(ValueError, match="wrong") as raised:
        pool.run(misbehaving.raises, ("value",))
    assert raised.value.args == ("wrong", 7)
    assert "misbehaving.py" in raised.value.__notes__[0]
    with pytest.raises(isolation.RemoteError) as remote:
        pool.run(misbehaving.raises, ("odd",))
    assert remote.value.type_name == "misbehaving.OddError"
    with pytest.raises(misbehaving.NamelessError) as nameless:
        pool.run(misbehaving.raises, ("nameless",))
    assert "misbehaving.py" in nameless.value.__notes__[0]


def test_a_crash_says_where(pool):
    with pytest.raises(isolation.Crashed) as raised:
        pool.run(misbehaving.segfaults)
    assert raised.value.signal == signal.SIGSEGV
    assert re.search(r"misbehaving\.py.* in segfaults", raised.value.__notes__[0])


def test_a_deadline_is_kept(pool):
    target = check_transferable(misbehaving.loops_in_c)
    pool.warm(target)
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        pool.run(target, timeout=0.5)
    # The bound is the feature; the machine may be very busy.
    assert time.monotonic() - started < 10


def test_processor_time_is_limited(pool):
    # A handler that an earlier call set does not keep the limit from holding.
    assert pool.run(misbehaving.takes_processor_time, limits=Limits(cpu_seconds=1)) == 11
    with pytest.raises(isolation.CpuLimitExceeded, match="cpu_seconds") as raised:
        pool.run(misbehaving.loops, limits=Limits(cpu_seconds=1), timeout=LONG)
    assert raised.value.signal == signal.SIGXCPU


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits memory")
def test_memory_is_limited(pool):
    with pytest.raises(isolation.MemoryLimitExceeded, match="200 MiB"):
        pool.run(misbehaving.allocates, limits=Limits(memory_mb=200), timeout=LONG)
    assert len(pool.run(misbehaving.large, (1000,), limits=Limits(memory_mb=200))) == 1000


def test_the_size_of_files_is_limited(pool, tmp_path):
    file = str(tmp_path / "file")
    with pytest.raises(OSError, match="too large") as raised:
        pool.run(misbehaving.writes, (file, 2000), limits=Limits(file_size=1000))
    assert any("file_size=1000" in note for note in raised.value.__notes__)
    # The worker is the same, and the limit was that call's.
    assert pool.run(misbehaving.writes, (file, 2000)) == 2000


def test_words_out_of_turn_are_no_answer(pool):
    with pytest.raises(isolation.Exited, match="broke its process's connection"):
        pool.run(misbehaving.speaks_out_of_turn)
    assert pool.run(misbehaving.add, (1,)) == 11


# --- processes that tools start -----------------------------------------------------------------


def test_a_tool_that_forks_is_answered_once(pool):
    assert pool.run(misbehaving.forks_and_both_return) is False
    assert pool.run(misbehaving.add, (1,)) == 11


@pytest.mark.skipif(sys.platform != "linux", reason="lost children are found on Linux")
@pytest.mark.parametrize("function", ["forks_and_leaves", "forks_and_hangs"])
def test_what_a_tool_starts_ends_with_its_call(pool, tmp_path, function):
    file = tmp_path / "pids"
    pool.warm(getattr(misbehaving, function))
    if function == "forks_and_leaves":
        assert pool.run(getattr(misbehaving, function), (str(file),)) == "left"
    else:
        with pytest.raises(TimeoutError):
            pool.run(getattr(misbehaving, function), (str(file),), timeout=3)
    pids = file.read_text().split()
    assert len(pids) == 2
    until(lambda: not any(is_alive(pid) for pid in pids))


def _program(tmp_path, text):
    file = tmp_path / "program.py"
    file.write_text(
        f"import sys\nsys.path.insert(0, {str(MODULES)!r})\n"
        "import os, pathlib, threading, misbehaving\n"
        "from crewai_native_tools import isolation\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n" + text
    )
    return [sys.executable, "-W", "ignore", str(file)]


@pytest.mark.skipif(sys.platform != "linux", reason="lost children are found on Linux")
def test_workers_end_with_their_parent_however_it_ends(tmp_path):
    program = _program(
        tmp_path,
        "pool = isolation.Pool()\n"
        "pool.run(misbehaving.add, (1,))\n"
        "print(pool.run(misbehaving.whoami)[0], flush=True)\n"
        "pool.run(misbehaving.forks_and_hangs, (str(folder / 'pids'),))\n",
    )
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as parent:
        worker = int(parent.stdout.readline())
        file = tmp_path / "pids"
        until(lambda: file.exists() and len(file.read_text().split()) == 2)
        pids = [worker, *file.read_text().split()]
        assert all(is_alive(pid) for pid in pids)
        parent.kill()
    until(lambda: not any(is_alive(pid) for pid in pids))


def test_a_program_ends_although_a_call_is_under_way(tmp_path):
    program = _program(
        tmp_path,
        "pool = isolation.Pool()\n"
        "begun = str(folder / 'begun')\n"
        "threading.Thread(target=pool.run, args=(misbehaving.loops, (begun,)), daemon=True).start()\n"
        "pool.run(misbehaving.waits_for, (begun,))\n"
        "print((folder / 'begun').read_text())\n",
    )
    out = subprocess.run(program, capture_output=True, text=True, timeout=LONG, check=True)
    until(lambda: not is_alive(out.stdout.strip()))


def test_a_forked_child_has_workers_of_its_own(tmp_path):
    program = _program(
        tmp_path,
        "pool = isolation.Pool()\n"
        "mine = pool.run(misbehaving.whoami)[0]\n"
        "child = os.fork()\n"
        "theirs, _, parent = pool.run(misbehaving.whoami)\n"
        "print(theirs == mine, parent == os.getpid(), flush=True)\n"
        "if child == 0:\n"
        "    sys.exit()\n"
        "print(os.waitpid(child, 0)[1], flush=True)\n"
        "print(pool.run(misbehaving.whoami)[0] == mine)\n",
    )
    out = subprocess.run(program, capture_output=True, text=True, timeout=LONG, check=True)
    lines = out.stdout.split("\n")
    assert sorted(lines[:2]) == ["False True", "True True"], out
    assert lines[2:] == ["0", "True", ""], out


# --- ending calls -------------------------------------------------------------------------------


def test_a_call_can_be_cancelled(pool, tmp_path):
    cancels = []
    begun = tmp_path / "begun"
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(pool.run, misbehaving.loops, (str(begun),), on_start=cancels.append)
        until(begun.exists)
        cancels[0]()
        with pytest.raises(isolation.Cancelled, match="loops"):
            answer.result(LONG)
    # Late, and twice: nothing happens.
    cancels[0]()
    assert pool.run(misbehaving.add, (1,)) == 11


def test_a_late_cancel_spares_the_worker_s_next_call(tmp_path):
    flag, begun = tmp_path / "flag", threading.Event()
    cancels = []
    with Pool(max_workers=1) as pool, ThreadPoolExecutor(1) as threads:
        assert pool.run(misbehaving.add, (1,), on_start=cancels.append) == 11
        answer = threads.submit(
            pool.run, misbehaving.waits_for, (str(flag),), on_start=lambda _: begun.set()
        )
        assert begun.wait(LONG)
        cancels[0]()
        flag.touch()
        assert answer.result(LONG) == "seen"
        assert pool.stats()["started"] == 1


@pytest.mark.skipif(sys.platform != "linux", reason="lost children are found on Linux")
@pytest.mark.parametrize("end", ["cancel", "close"])
def test_what_a_cancelled_tool_has_started_ends_with_it(tmp_path, end):
    file, cancels = tmp_path / "pids", []
    with Pool(max_workers=1) as pool, ThreadPoolExecutor(1) as threads:
        answer = threads.submit(
            pool.run, misbehaving.forks_and_hangs, (str(file),), on_start=cancels.append
        )
        until(lambda: file.exists() and len(file.read_text().split()) == 2)
        pids = file.read_text().split()
        if end == "cancel":
            cancels[0]()
        else:
            pool.close()
        with pytest.raises(isolation.Cancelled):
            answer.result(LONG)
        until(lambda: not any(is_alive(pid) for pid in pids))


def test_where_no_thread_can_be_started_the_next_call_finds_a_worker(monkeypatch):
    def refuse(_):
        raise RuntimeError("can't start new thread")

    with Pool(max_workers=1) as pool:
        for _ in range(2):
            with monkeypatch.context() as patched:
                patched.setattr(threading.Thread, "start", refuse)
                with pytest.raises(RuntimeError, match="can't start"):
                    pool.run(misbehaving.add, (1,), timeout=LONG)
            assert pool.run(misbehaving.whoami, timeout=LONG)
        assert pool.stats() | {"calls": 0} == {
            "started": 1,
            "calls": 0,
            "killed": 0,
            "recycled": 0,
            "idle": 1,
            "busy": 0,
            "starting": 0,
        }


def test_closing_cancels():
    pool = Pool(max_workers=1)
    started = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(
            pool.run, misbehaving.ignores_sigterm, on_start=lambda _: started.set()
        )
        assert started.wait(LONG)
        pool.close()
        with pytest.raises(isolation.Cancelled):
            answer.result(LONG)
    with pytest.raises(isolation.IsolationError, match="closed"):
        pool.run(misbehaving.add, (1,))


def test_a_program_that_is_its_own_interpreter_is_not_started_again(tmp_path, monkeypatch):
    server = tmp_path / "server"
    server.write_text(f"#!/bin/sh\necho started >> {tmp_path / 'starts'}\n")
    server.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(server))
    with Pool(max_workers=1) as pool:
        assert pool.run(misbehaving.add, (1, 2)) == 3
    monkeypatch.setattr(sys, "exec_prefix", str(tmp_path))
    with (
        Pool(max_workers=1) as pool,
        pytest.raises(isolation.IsolationError, match="server, which is not named like a Python"),
    ):
        pool.run(misbehaving.add, (1, 2))
    assert not (tmp_path / "starts").exists()


def test_ctrl_c_ends_the_call_and_its_worker(tmp_path):
    begun = tmp_path / "begun"
    main = threading.main_thread().ident

    def interrupt():
        until(lambda: begun.exists() and begun.read_text())
        signal.pthread_kill(main, signal.SIGINT)

    with Pool(max_workers=1) as pool:
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            pool.run(misbehaving.loops, (str(begun),))
        thread.join()
        until(lambda: not is_alive(begun.read_text()))
        assert pool.run(misbehaving.add, (1,)) == 11


def test_waiting_for_a_worker_has_a_deadline_too(tmp_path):
    flag = tmp_path / "flag"
    begun = threading.Event()
    with Pool(max_workers=1) as pool, ThreadPoolExecutor(1) as threads:
        answer = threads.submit(
            pool.run, misbehaving.waits_for, (str(flag),), on_start=lambda _: begun.set()
        )
        assert begun.wait(LONG)
        with pytest.raises(isolation.NotStarted, match="all workers were busy") as raised:
            pool.run(misbehaving.add, (1,), timeout=0.05)
        assert isinstance(raised.value, TimeoutError)
        flag.touch()
        assert answer.result(LONG) == "seen"
        assert pool.run(misbehaving.add, (1,)) == 11


def test_a_slow_import_fails_the_call_and_serves_the_next(tmp_path, monkeypatch):
    flag = tmp_path / "flag"
    monkeypatch.setenv("LOADS_WHEN_TOLD", os.devnull)
    import loads_when_told

    monkeypatch.setenv("LOADS_WHEN_TOLD", str(flag))
    with Pool(max_workers=1) as pool:
        with pytest.raises(isolation.NotStarted, match="a worker was starting"):
            pool.run(loads_when_told.answer, timeout=0.05)
        flag.touch()
        assert pool.run(loads_when_told.answer) == 42
        assert pool.stats()["started"] == 1


def test_an_import_that_hangs_is_ended(tmp_path, monkeypatch):
    monkeypatch.setenv("LOADS_WHEN_TOLD", os.devnull)
    import loads_when_told

    monkeypatch.setenv("LOADS_WHEN_TOLD", str(tmp_path / "never"))
    with (
        Pool(max_workers=1, start_timeout=0.2) as pool,
        pytest.raises(isolation.NotStarted, match="import its module"),
    ):
        pool.run(loads_when_told.answer)


def test_a_module_that_a_worker_cannot_import(monkeypatch):
    import does_not_load

    monkeypatch.setenv("DOES_NOT_LOAD", str(os.getpid()))
    with (
        Pool(max_workers=1) as pool,
        pytest.raises(isolation.NotTransferable, match="no licence found"),
    ):
        pool.run(does_not_load.answer)


# --- what can go --------------------------------------------------------------------------------


class Local:
    def method(self):
        return 1


def takes_a_socket(connection: socket.socket) -> int:
    return connection.fileno()


def yields():
    yield 1


def _inside():
    def inner():
        return 1

    return inner


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda: 1, "has no name"),
        (_inside(), "defined inside a function"),
        (functools.partial(lambda: 1), "has no name"),
        (functools.partial(misbehaving.add, threading.Thread()), "cannot be pickled"),
        (yields, "generator"),
        (takes_a_socket, "argument connection is annotated"),
        (7, "cannot be called"),
    ],
)
def test_what_cannot_go_is_refused_at_registration(function, reason):
    with pytest.raises(isolation.NotTransferable, match=reason) as raised:
        check_transferable(function, name="mine")
    assert "'mine'" in str(raised.value)
    assert "accepted are" in str(raised.value)


def test_the_program_itself_is_no_module(tmp_path):
    program = _program(
        tmp_path,
        "def mine():\n    return 1\n"
        "try:\n    isolation.check_transferable(mine)\n"
        "except isolation.NotTransferable as error:\n    print(error)\n",
    )
    out = subprocess.run(program, capture_output=True, text=True, timeout=LONG, check=True)
    assert "move it into a module" in out.stdout


def test_an_argument_that_cannot_go_is_named(pool):
    with pytest.raises(isolation.NotTransferable, match=r"argument second \(lock\)"):
        pool.run(misbehaving.add, (1,), {"second": threading.Lock()})


@pytest.mark.parametrize(
    "limits",
    [{"memory_mb": 0}, {"cpu_seconds": float("nan")}, {"open_files": 1.5}, {"file_size": True}],
)
def test_limits_that_mean_nothing(limits):
    with pytest.raises(ValueError, match=f"{next(iter(limits))} is .* it accepts"):
        Limits(**limits)


@pytest.mark.slow
def test_tools_of_crewai():
    import agent_tools

    search = agent_tools.Search(prefix="seen")
    with Pool(max_workers=1) as pool:
        # By the object, and by the method that executors hold.
        assert pool.run(search, (), {"text": "x"}) == "seen x 1 Query"
        assert pool.run(search._run, (), {"text": "y"}) == "seen y 2 Query"
        assert pool.run(agent_tools.Plain(), (), {"text": ""}) != os.getpid()
        assert pool.run(agent_tools.double, (), {"number": 4}) == 8
        assert pool.run(agent_tools.double.func, (), {"number": 4}) == 8
        assert pool.stats()["started"] == 1
    assert search._calls == 0
    with pytest.raises(isolation.NotTransferable, match=r"'streams'.*its result is annotated"):
        check_transferable(agent_tools.Streams())
    with pytest.raises(isolation.NotTransferable, match=r"'holds'.*cannot be pickled"):
        check_transferable(agent_tools.Holds(thread=threading.Thread()))


def test_this_process_is_no_worker(pool):
    assert not isolation.in_worker()
    assert pool.run(isolation.in_worker)
