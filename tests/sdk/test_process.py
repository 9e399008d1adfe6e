"""Forks, exits and signals, each in a real process."""

from __future__ import annotations

import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks")


def lines(done):
    """The lines that a process printed, once it has ended well."""
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout.split()


def test_nothing_starts_at_import(run):
    script = """
    import os
    print(len(os.listdir("/proc/self/task")))
    """
    assert lines(run(script)) == ["1"]


def test_state_is_built_once_per_process(run):
    script = """
    import os
    assert sdk.per_process() == sdk.per_process() == (1, os.getpid())
    for generation in (2, 3):  # a child, and its child
        if pid := os.fork():
            assert os.waitpid(pid, 0)[1] == 0
            break
        assert sdk.per_process() == sdk.per_process() == (generation, os.getpid())
    assert sdk.per_process()[1] == os.getpid()
    print("ok", flush=True)
    """
    assert lines(run(script)) == ["ok"] * 3


def test_a_forked_child_has_a_pool_and_a_runtime_of_its_own(run):
    # Python threads use both while others fork: their locks are caught in every state. The children
    # leave by sys.exit, so that the exit hook that came through the fork runs in them.
    script = """
    import os, sys, threading, warnings

    # From 3.12 on, Python itself warns of a fork beside threads.
    warnings.simplefilter("ignore", DeprecationWarning)

    def use():
        assert sdk.pool_sum(5000) == sum(range(5000))
        assert sdk.runtime_answer() == 42

    def keep_using():
        while not over:
            use()

    use()
    over = []
    users = [threading.Thread(target=keep_using) for _ in range(3)]
    for user in users:
        user.start()
    children = []
    for _ in range(20):
        pid = os.fork()
        if pid == 0:
            use()
            sys.exit(7)
        children.append(pid)
    for pid in children:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    over.append(True)
    for user in users:
        user.join()
    use()
    print("ok")
    """
    assert lines(run(script)) == ["ok"]


def test_exit_hooks_run_last_in_first_out_after_the_programs_own(run):
    script = """
    import atexit

    def own():
        # Registered after the import, so run before the SDK stops anything.
        assert not sdk.exiting()
        assert sdk.pool_sum(1000) == 499500
        assert sdk.runtime_answer() == 42
        print("own", flush=True)

    atexit.register(own)
    sdk.write_at_exit(1, "first\\n")
    sdk.write_at_exit(1, "second\\n")
    """
    assert lines(run(script)) == ["own", "second", "first"]


def test_a_child_does_not_run_the_hooks_of_its_parent(run):
    script = """
    import os, sys
    sdk.write_at_exit(1, "parent\\n")
    if pid := os.fork():
        os.waitpid(pid, 0)
    else:
        sdk.write_at_exit(1, "child\\n")
        sys.exit()
    """
    assert lines(run(script)) == ["child", "parent"]


def test_a_hook_that_panics_is_reported_and_the_others_run(run):
    script = """
    sdk.write_at_exit(1, "first\\n")
    sdk.panic_at_exit()
    """
    done = run(script)
    assert done.returncode == 0
    assert done.stdout == "first\n"
    assert "RuntimeError: panic at" in done.stderr
    assert "in a hook" in done.stderr


def test_after_the_exit_hook_the_pool_works_alone_and_the_runtime_refuses(run):
    # Registered before the module is imported, so run after the SDK's hook.
    before = "import atexit; atexit.register(lambda: late())"
    script = """
    def late():
        assert sdk.exiting()
        assert sdk.pool_sum(1000) == 499500
        assert sdk.pool_threads() == 1
        try:
            sdk.runtime_answer()
        except RuntimeError as error:
            print(error)

    assert sdk.runtime_answer() == 42
    """
    expected = "cannot start sdk-test-io: the process is exiting"
    assert lines(run(script, before=before)) == expected.split()


def test_exit_with_the_pool_busy(run):
    # A daemon thread never comes back from the pool; the process must end all the same.
    script = """
    import threading
    started = sdk.Door()
    threading.Thread(target=sdk.pool_spin, args=(started,), daemon=True).start()
    started.wait()
    print("ok")
    """
    assert lines(run(script)) == ["ok"]


def test_exit_with_the_runtime_busy(run):
    script = """
    sdk.runtime_leave_work()
    assert sdk.runtime_answer() == 42
    print("ok")
    """
    assert lines(run(script)) == ["ok"]


def test_native_threads_are_kept_out_of_a_dying_interpreter(run):
    # Run after the SDK's hook, so while the interpreter is going down.
    before = "import atexit; atexit.register(lambda: late())"
    script = """
    refused = [sdk.Door(), sdk.Door()]
    entered = sdk.Door()

    def late():
        for door in refused:
            door.wait()
        print("refused", flush=True)

    # These ask for the GIL all the time: the exit catches them while they wait for it.
    for door in refused:
        sdk.call_for_ever(entered.open, door)
    entered.wait()
    """
    for _ in range(10):
        assert lines(run(script, before=before)) == ["refused"]


def test_exit_waits_for_a_native_thread_that_is_in_python(run):
    script = """
    import time
    entered, calls = sdk.Door(), []

    def call():
        if calls:
            raise SystemExit  # ends the native thread
        calls.append(True)
        entered.open()
        while not sdk.exiting():
            time.sleep(0)
        # Many more chances to lose the GIL to the exit.
        for _ in range(1000):
            time.sleep(0)
        print("came out", flush=True)

    sdk.call_for_ever(call, sdk.Door())
    entered.wait()
    """
    assert lines(run(script)) == ["came", "out"]


def test_ctrl_c_ends_a_wait_on_the_runtime(run):
    script = """
    import os, signal, threading
    started = sdk.Door()

    def interrupt():
        started.wait()
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    try:
        sdk.runtime_wait(started)
    except KeyboardInterrupt:
        # The runtime goes on working.
        print(sdk.runtime_answer())
    """
    assert lines(run(script)) == ["42"]
