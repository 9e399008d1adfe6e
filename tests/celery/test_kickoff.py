"""One kickoff in a worker's process, and who may end that process when."""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import pytest

from crewai_native_celery import kickoff, targets
from crewai_native_celery.ledger import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

SOON = 0.01
FOREVER = 60.0


class Ledger:
    """Writes down what is told to it."""

    def __init__(self, *, wanted: bool = True) -> None:
        self.wanted = wanted
        self.outcomes: list[dict[str, Any]] = []
        self.asked = threading.Event()
        self.may_finish = threading.Event()

    def begin(self, *_: str) -> Verdict:
        return Verdict.GO

    def renew(self, *_: str) -> bool:
        self.asked.set()
        return self.wanted

    def finish(self, _key: str, _token: str, outcome: dict[str, Any]) -> None:
        self.outcomes.append(outcome)
        if threading.current_thread().name == "crewai-native-watch":
            # As long as a busy disk makes it.
            self.asked.set()
            assert self.may_finish.wait(FOREVER)


class Target:
    def __init__(self, do: Callable[[], Any]) -> None:
        self.do = do

    def kickoff(self, _inputs: Any) -> tuple[Any, None]:
        return self.do(), None


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when the process would have been killed."""
    event = threading.Event()

    def kill(process: int, number: int) -> None:
        assert (process, number) == (os.getpid(), signal.SIGKILL)
        event.set()

    monkeypatch.setattr(kickoff.os, "kill", kill)
    return event


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def ran(ledger: Ledger, do: Callable[[], Any], limit: float) -> None:
        monkeypatch.setattr(targets, "target_of", lambda _: Target(do))
        ids = {"session": "s", "key": "k", "token": "t", "target": {}, "inputs": {}}
        kickoff.run(ledger, beat=SOON, limit=limit, **ids)  # type: ignore[arg-type]

    return ran


@pytest.mark.parametrize("wanted", [True, False], ids=["out-of-time", "unwanted"])
def test_a_process_ends_itself_while_its_kickoff_runs(
    killed: threading.Event,
    run: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    *,
    wanted: bool,
) -> None:
    monkeypatch.setattr(kickoff, "GRACE", SOON)
    ledger = Ledger(wanted=wanted)
    ledger.may_finish.set()
    run(ledger, lambda: killed.wait(FOREVER), limit=SOON if wanted else FOREVER)
    assert killed.is_set()
    assert ledger.outcomes[0]["state"] == ("timed-out" if wanted else "cancelled")


def test_a_process_is_not_killed_any_more_once_its_kickoff_has_ended(
    killed: threading.Event, run: Callable[..., None]
) -> None:
    """It may hold the lock of the queue that it shares with others by then."""
    ledger = Ledger()
    run(ledger, lambda: ledger.asked.wait(FOREVER) and "done", limit=SOON)
    ledger.may_finish.set()
    for thread in threading.enumerate():
        if thread.name == "crewai-native-watch":
            thread.join()
    assert [outcome["state"] for outcome in ledger.outcomes] == ["timed-out", "done"]
    assert not killed.is_set()


def test_signs_of_life_go_on_after_one_that_failed(
    killed: threading.Event, run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger()
    again = threading.Event()
    answers = iter([OSError("no space left on device")])

    def renew(*_: str) -> bool:
        for error in answers:
            raise error
        again.set()
        return True

    monkeypatch.setattr(ledger, "renew", renew)
    run(ledger, lambda: again.wait(FOREVER), limit=FOREVER)
    assert again.is_set()
    assert not killed.is_set()


def test_an_error_without_a_text_is_a_failure_like_others(run: Callable[..., None]) -> None:
    class MuteError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    def fail() -> None:
        raise MuteError

    ledger = Ledger()
    run(ledger, fail, limit=FOREVER)
    (outcome,) = ledger.outcomes
    assert (outcome["state"], outcome["message"]) == ("failed", "<exception str() failed>")
    assert outcome["kind"].endswith("MuteError")
    assert "raise MuteError" in outcome["traceback"]
