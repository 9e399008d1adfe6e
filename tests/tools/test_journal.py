"""Calls with side effects: none is made twice."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import signal
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from crewai_native_db import Database
from crewai_native_tools import journal
from crewai_native_tools.journal import Durable, Journal, Memory, Uncertain

PLACE = {"run": "r1", "task": "t1", "tool": "pay"}


@pytest.fixture(params=["memory", "durable"])
def store(request, tmp_path):
    return Memory() if request.param == "memory" else Durable(Database(tmp_path / "journal.db"))


class Effect:
    """Counts how often it took effect."""

    def __init__(self, *outcomes):
        self.outcomes = list(outcomes)
        self.calls = 0

    def __call__(self):
        self.calls += 1
        outcome = self.outcomes.pop(0) if self.outcomes else "paid"
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


def test_a_call_that_succeeded_is_not_made_again(store):
    effect = Effect({"receipt": 7})
    for arguments in ({"to": "a", "sum": 1}, {"sum": 1, "to": "a"}, '{ "sum" : 1, "to": "a" }'):
        # A journal of its own each time, as after a resume.
        found = Journal(store).once(effect, **PLACE, arguments=arguments)
        assert found == {"receipt": 7}
    assert effect.calls == 1


@pytest.mark.parametrize(
    "other",
    [
        {"run": "r2"},
        {"task": "t2"},
        {"tool": "repay"},
        {"arguments": {"sum": 1.0}},
        {"arguments": {"sum": "1"}},
        {"arguments": {"sum": True}},
    ],
)
def test_another_call_is_made(store, other):
    effect, calls = Effect(), Journal(store)
    calls.once(effect, **PLACE, arguments={"sum": 1})
    calls.once(effect, **{**PLACE, "arguments": {"sum": 1}, **other})
    assert effect.calls == 2


@pytest.mark.parametrize("way", ["raised", "returned"])
def test_a_call_that_failed_is_made_again(store, way):
    from crewai.tools.tool_failure import ToolFailure

    outcome = ValueError("no") if way == "raised" else ToolFailure(message="no")
    effect, calls = Effect(outcome), Journal(store)
    with contextlib.suppress(ValueError):
        assert calls.once(effect, **PLACE, arguments={}) is outcome
    assert calls.once(effect, **PLACE, arguments={}) == "paid"
    assert effect.calls == 2


@pytest.mark.parametrize("error", [TimeoutError(), KeyboardInterrupt(), SystemExit()])
def test_a_call_whose_outcome_is_unknown_is_not_made_again(store, error):
    effect, calls = Effect(error), Journal(store)
    with pytest.raises(type(error)):
        calls.once(effect, **PLACE, arguments={})
    for _ in range(2):
        with pytest.raises(Uncertain, match=r"'pay' was not run: .* may have taken effect"):
            calls.once(effect, **PLACE, arguments={})
    assert effect.calls == 1


def test_threads_make_one_call(store):
    begun, go = threading.Event(), threading.Event()
    effect, calls = Effect(), Journal(store)

    def slowly():
        begun.set()
        assert go.wait(60)
        return effect()

    with ThreadPoolExecutor(8) as threads:
        answers = [threads.submit(calls.once, slowly, **PLACE, arguments={}) for _ in range(8)]
        assert begun.wait(60)
        go.set()
        assert [answer.result(60) for answer in answers] == ["paid"] * 8
    assert effect.calls == 1


async def test_awaited_calls_too(store):
    effect, calls = Effect(ValueError("no")), Journal(store)
    go = asyncio.Event()

    async def awaited():
        await go.wait()
        return effect()

    go.set()
    with pytest.raises(ValueError, match="no"):
        await calls.aonce(awaited, **PLACE, arguments={})
    go.clear()
    tasks = [asyncio.create_task(calls.aonce(awaited, **PLACE, arguments={})) for _ in range(3)]
    go.set()
    assert await asyncio.gather(*tasks) == ["paid"] * 3
    assert effect.calls == 2


async def test_awaited_calls_that_wait_leave_the_threads_to_the_first(store):
    effect, calls = Effect(), Journal(store)

    async def on_a_thread():
        await asyncio.sleep(0.01)
        return await asyncio.to_thread(effect)

    # More than there are threads for what event loops do not do themselves.
    many = [calls.aonce(on_a_thread, **PLACE, arguments={}) for _ in range(64)]
    assert await asyncio.wait_for(asyncio.gather(*many), 60) == ["paid"] * 64
    assert effect.calls == 1


def test_a_call_inside_of_itself_does_not_wait_for_itself(store):
    calls = Journal(store)

    def again():
        return calls.once(again, **PLACE, arguments={})

    async def aagain():
        return await calls.aonce(aagain, **PLACE, arguments={"other": 1})

    with pytest.raises(Uncertain, match=r"'pay' was not run: .*inside of the same call"):
        calls.once(again, **PLACE, arguments={})
    with pytest.raises(Uncertain, match=r"'pay' was not run: .*inside of the same call"):
        asyncio.run(calls.aonce(aagain, **PLACE, arguments={"other": 1}))


def test_what_a_call_leaves_behind_may_make_it_again(store):
    calls, effect, later = Journal(store), Effect("paid"), []

    def leaves_its_context():
        later.append(contextvars.copy_context())
        return effect()

    assert calls.once(leaves_its_context, **PLACE, arguments={}) == "paid"
    assert later[0].run(calls.once, effect, **PLACE, arguments={}) == "paid"
    assert effect.calls == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_waits_for_no_call_of_its_parent():
    calls, begun, go = Journal(), threading.Event(), threading.Event()

    def slowly():
        begun.set()
        return go.wait(60)

    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(calls.once, slowly, **PLACE, arguments={})
        assert begun.wait(60)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            signal.alarm(30)
            try:
                calls.once(Effect(), **PLACE, arguments={})
            except Uncertain:
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        go.set()
        assert answer.result(60) is True


def test_a_call_that_was_not_made_can_be(store):
    effect, calls = Effect(TimeoutError("no worker was free"), "paid"), Journal(store)
    with pytest.raises(TimeoutError):
        calls.once(effect, **PLACE, arguments={}, not_made=(TimeoutError,))
    assert calls.once(effect, **PLACE, arguments={}) == "paid"


def test_arguments_without_json_are_refused(store):
    effect = Effect()
    with pytest.raises(TypeError, match=r"'pay' has side effects.*have no JSON"):
        Journal(store).once(effect, **PLACE, arguments={"what": object()})
    assert effect.calls == 0


@pytest.mark.parametrize(
    ("result", "found"),
    [
        ("text", "text"),
        (None, None),
        ([1, 2.5, {"a": None}], [1, 2.5, {"a": None}]),
        ((1, 2), "(1, 2)"),
        ({1: 2}, "{1: 2}"),
        (float("inf"), "inf"),
        (range(3), "range(0, 3)"),
    ],
)
def test_a_durable_result_is_json_or_text(tmp_path, result, found):
    store = Durable(Database(tmp_path / "journal.db"))
    Journal(store).once(lambda: result, **PLACE, arguments={})
    assert Journal(store).once(pytest.fail, **PLACE, arguments={}) == found


def test_a_process_that_ends_in_the_middle_leaves_an_uncertain_call(tmp_path):
    program = (
        "import os, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_journal import Database, Durable, Journal, PLACE\n"
        "Journal(Durable(Database(sys.argv[1]))).once(\n"
        "    lambda: os._exit(9), **PLACE, arguments={'sum': 1})\n"
    )
    file = tmp_path / "journal.db"
    ended = subprocess.run([sys.executable, "-c", program, file], check=False)
    assert ended.returncode == 9
    with pytest.raises(Uncertain):
        Journal(Durable(Database(file))).once(pytest.fail, **PLACE, arguments={"sum": 1})
    assert Journal(Durable(Database(file))).once(Effect(), **PLACE, arguments={"sum": 2}) == "paid"


def test_without_the_database_wheel_it_is_in_memory(monkeypatch):
    monkeypatch.setitem(sys.modules, "crewai_native_db", None)
    assert isinstance(journal.default_store(), Memory)


def test_with_the_database_wheel_it_is_durable(tmp_path):
    store = journal.default_store(tmp_path / "native" / "journal.db")
    assert isinstance(store, Durable)
    assert Journal(store).once(Effect(), **PLACE, arguments={}) == "paid"
    again = journal.default_store(tmp_path / "native" / "journal.db")
    assert Journal(again).once(pytest.fail, **PLACE, arguments={}) == "paid"
