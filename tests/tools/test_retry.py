"""Calls that are tried again."""

from __future__ import annotations

import contextlib

import pytest

from crewai_native_tools import retry
from crewai_native_tools.policy import Retry


class Script:
    """Raises what it is told to, then returns."""

    def __init__(self, *errors):
        self.errors = list(errors)
        self.calls = 0
        self.waits = []

    def __call__(self):
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"

    async def awaited(self):
        return self()


def test_a_call_is_tried_until_it_succeeds():
    script = Script(ConnectionError("a"), TimeoutError("b"))
    assert retry.run(script, Retry(3, 1.0), wait=script.waits.append) == "done"
    first, second = script.waits
    assert 0.5 <= first <= 1 <= second <= 2


def test_the_last_error_tells_of_those_before():
    script = Script(ConnectionError("first"), OSError("second"), ValueError("third"))
    with pytest.raises(ValueError, match="third") as raised:
        retry.run(script, Retry(3, 0.0), wait=script.waits.append)
    assert raised.value.__notes__ == [
        "This was attempt 3; before it: ConnectionError: first; OSError: second"
    ]
    assert script.calls == 3


@pytest.mark.parametrize(
    ("on", "error", "calls"),
    [
        (("ConnectionError",), ConnectionResetError(), 2),
        (("OSError",), ConnectionResetError(), 2),
        (("builtins.OSError",), ConnectionResetError(), 2),
        (("ConnectionError",), ValueError(), 1),
        (("json.decoder.JSONDecodeError",), ValueError(), 1),
        (("Exception",), KeyboardInterrupt(), 1),
        (("BaseException",), SystemExit(), 1),
    ],
)
def test_only_after_what_is_named(on, error, calls):
    script = Script(error)
    with contextlib.suppress(type(error)):
        retry.run(script, Retry(2, 0.0, on), wait=script.waits.append)
    assert script.calls == calls


def test_what_is_final_is_not_tried_again():
    script = Script(PermissionError())
    with pytest.raises(PermissionError):
        retry.run(script, Retry(5, 0.0), final=lambda e: isinstance(e, PermissionError))
    assert script.calls == 1


def test_no_attempt_begins_after_the_deadline():
    script = Script(ValueError("a"), ValueError("b"))
    with pytest.raises(ValueError, match="a"):
        retry.run(script, Retry(5, 10.0), left=lambda: 3.0, wait=script.waits.append)
    assert (script.calls, script.waits) == (1, [])


def test_waits_double_up_to_a_minute_and_are_spread():
    policy = Retry(2000, 1.0)
    assert [retry.delay(policy, n, lambda: 1.0) for n in (1, 2, 3, 7, 1999)] == [1, 2, 4, 60, 60]
    assert retry.delay(policy, 1, lambda: 0.0) == 0.5


async def test_awaited_calls_too():
    script = Script(ValueError("a"))
    assert await retry.arun(script.awaited, Retry(2, 0.0)) == "done"
    script = Script(ValueError("a"), ValueError("b"))
    with pytest.raises(ValueError, match="b"):
        await retry.arun(script.awaited, Retry(2, 0.0))
    script = Script(ValueError("a"))
    with pytest.raises(ValueError, match="a"):
        await retry.arun(script.awaited, Retry(2, 1.0), left=lambda: 0.1)
