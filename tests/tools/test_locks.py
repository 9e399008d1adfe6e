"""A child of a fork waits for no thread that it does not have."""

from __future__ import annotations

import os
import signal
import threading
import warnings

import pytest

from crewai_native_tools import ToolEngine, journal, locks

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def in_child(work):
    """Return the exit code of a child that does something; None where it never ends."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        try:
            os._exit(work())
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return None if code == -signal.SIGALRM else code


def test_what_another_thread_held_is_free():
    lock, held, go = locks.Lock(), threading.Event(), threading.Event()

    def hold():
        with lock:
            held.set()
            go.wait(60)

    def take():
        with lock:
            return 7

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(60)
    assert in_child(take) == 7
    go.set()
    thread.join()
    assert take() == 7


def test_a_journal_that_is_being_opened_holds_up_no_child(monkeypatch):
    opening, go = threading.Event(), threading.Event()

    def slowly():
        opening.set()
        go.wait(60)
        return journal.Memory()

    monkeypatch.setattr(journal, "_default", None)
    monkeypatch.setattr(journal, "default_store", slowly)
    thread = threading.Thread(target=journal.default)
    thread.start()
    assert opening.wait(60)

    def pay():
        monkeypatch.setattr(journal, "default_store", journal.Memory)
        engine = ToolEngine(side_effects=True)
        engine.register("pay", lambda: 7)
        return engine.execute_tool("pay")

    assert in_child(pay) == 7
    go.set()
    thread.join()
