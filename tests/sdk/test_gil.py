from __future__ import annotations

import threading


def in_thread(target, *args):
    thread = threading.Thread(target=target, args=args)
    thread.start()
    return thread


def test_other_threads_run_while_one_is_detached(sdk):
    door, passed = sdk.Door(), []

    def wait():
        door.wait()
        passed.append(True)

    # With the GIL held, `wait` would never let this thread open the door.
    thread = in_thread(wait)
    door.open()
    thread.join()
    assert passed == [True]


def test_a_waiting_lock_lets_python_go_on(sdk):
    number, held, release = sdk.Locked(), sdk.Door(), sdk.Door()
    holder = in_thread(number.hold, held, release)
    held.wait()
    # Each of these finds the lock taken and must wait without the GIL, else nobody opens the door.
    adders = [in_thread(number.add) for _ in range(4)]
    release.open()
    for thread in [holder, *adders]:
        thread.join()
    assert number.add() == 5
