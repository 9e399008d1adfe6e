"""What makes a kickoff happen once, without a cluster: tokens, leases and outcomes."""

from __future__ import annotations

import multiprocessing
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from crewai_native_celery import store
from crewai_native_celery.ledger import MOST_LOST, Ledger, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

LEASE = 30.0
GO, KNOWN, WORN = Verdict.GO, Verdict.KNOWN, Verdict.WORN
DONE: dict[str, Any] = {"state": "done", "output": 1}
FAILED: dict[str, Any] = {"state": "failed"}


class Memory:
    """A store whose clock is the test's."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.now = 1000.0

    def read(self, keys: Sequence[str]) -> tuple[list[str | None], float]:
        return [self.texts.get(key) for key in keys], self.now

    def change(
        self,
        key: str,
        change: Callable[[str | None, float], str | None],
        *,
        lasting: bool = True,
    ) -> None:
        text = change(self.texts.get(key), self.now)
        if text is not None:
            self.texts[key] = text


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def ledger(memory: Memory) -> Ledger:
    return Ledger(memory, LEASE)


def test_what_is_delivered_twice_is_begun_once(ledger: Ledger, memory: Memory) -> None:
    assert ledger.begin("s", "k", "a") is GO
    assert ledger.begin("s", "k", "a") is KNOWN
    memory.now += 2 * LEASE
    # Its process may only have been cut off: whether it is dead the sender decides.
    assert ledger.begin("s", "k", "a") is KNOWN
    assert ledger.begin("s", "k", "b") is GO
    assert not ledger.renew("s", "k", "a")
    assert ledger.renew("s", "k", "b")


def test_an_item_at_work_is_not_begun_by_another(ledger: Ledger, memory: Memory) -> None:
    assert ledger.begin("s", "k", "a") is GO
    assert ledger.begin("other", "k", "b") is KNOWN
    memory.now += LEASE - 1
    assert ledger.renew("s", "k", "a")
    memory.now += LEASE - 1
    assert ledger.begin("other", "k", "b") is KNOWN


def test_what_is_finished_stays_as_it_is(ledger: Ledger, memory: Memory) -> None:
    ledger.begin("s", "k", "a")
    memory.now += 2 * LEASE
    ledger.begin("s", "k", "b")
    ledger.finish("k", "a", FAILED)  # too late to matter
    assert ledger.look(["k"])[0][0].outcome is None
    ledger.finish("k", "a", DONE)  # as good as the other's
    ledger.finish("k", "b", {"state": "done", "output": 2})
    assert ledger.look(["k"])[0][0].outcome == DONE
    assert ledger.begin("s", "k", "c") is KNOWN
    assert not ledger.renew("s", "k", "b")


def test_what_failed_is_begun_by_the_next_attempt_alone(ledger: Ledger) -> None:
    ledger.begin("s", "k", "a")
    ledger.finish("k", "a", FAILED)
    ledger.finish("k", "a", DONE)  # it has ended
    assert ledger.begin("s", "k", "a") is KNOWN
    assert ledger.begin("s", "k", "b") is GO


def test_a_process_that_died_gives_back_until_it_is_worn(ledger: Ledger) -> None:
    for _ in range(MOST_LOST):
        assert ledger.begin("s", "k", "a") is GO
        ledger.give_back("k", "a")
    assert ledger.begin("s", "k", "a") is WORN


def test_what_is_cancelled_or_withdrawn_is_not_begun(ledger: Ledger) -> None:
    assert ledger.withdraw("k", "a")
    assert ledger.begin("s", "k", "a") is KNOWN
    assert ledger.begin("s", "k", "b") is GO
    assert not ledger.withdraw("k", "b")
    ledger.cancel("s")
    assert not ledger.renew("s", "k", "b")
    assert ledger.begin("s", "other", "c") is Verdict.CANCELLED
    assert ledger.begin("t", "other", "c") is GO


def test_work_goes_on_where_the_store_has_lost_everything(ledger: Ledger, memory: Memory) -> None:
    ledger.begin("s", "k", "a")
    memory.texts.clear()
    assert ledger.renew("s", "k", "a")
    assert ledger.begin("s", "k", "b") is KNOWN
    ledger.finish("k", "a", DONE)
    assert ledger.look(["k"])[0][0].done


class Deliveries(RuleBasedStateMachine):
    """Whatever is delivered, dies, lapses and comes back late: never twice, and never after the end."""

    tokens = st.sampled_from("abc")

    def __init__(self) -> None:
        super().__init__()
        self.memory = Memory()
        self.ledger = Ledger(self.memory, LEASE)
        self.runs: Counter[str] = Counter()
        self.given_back: Counter[str] = Counter()
        self.first: Any = None

    @rule(token=tokens)
    def deliver(self, token: str) -> None:
        at_work = [t for t in "abc" if self._leased(t)]
        if self.ledger.begin("s", "k", token) is GO:
            assert self.first is None
            assert not at_work
            self.runs[token] += 1
            assert self.runs[token] <= 1 + self.given_back[token]
            assert self.runs[token] <= MOST_LOST

    @rule(token=tokens)
    def die(self, token: str) -> None:
        if self.runs[token] > self.given_back[token] and self._leased(token):
            self.ledger.give_back("k", token)
            self.given_back[token] += 1

    @rule(token=tokens, good=st.booleans())
    def end(self, token: str, good: bool) -> None:
        if not self.runs[token]:
            return
        outcome = {"state": "done" if good else "failed", "by": token}
        self.ledger.finish("k", token, outcome)
        entry = self.ledger.look(["k"])[0][0]
        if self.first is None and entry.done:
            self.first = entry.outcome
        assert self.first is None or entry.outcome == self.first

    @rule(token=tokens)
    def renew(self, token: str) -> None:
        if self.runs[token] and self.ledger.renew("s", "k", token):
            assert self.ledger.look(["k"])[0][0].token == token

    @rule(seconds=st.sampled_from([1.0, LEASE + 1]))
    def wait(self, seconds: float) -> None:
        self.memory.now += seconds

    def _leased(self, token: str) -> bool:
        (entry,), now = self.ledger.look(["k"])
        return entry is not None and entry.token == token and entry.until > now


TestDeliveries = Deliveries.TestCase
TestDeliveries.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "redis":
        return str(request.getfixturevalue("redis").url)
    return f"sqlite://{tmp_path / 'deep' / 'results.db'}"


def _add(url: str, times: int) -> None:
    opened = store.opened(url, keep=60)
    for _ in range(times):
        opened.change("sum", lambda text, _: str(int(text or 0) + 1))


def test_stores_change_atomically(url: str) -> None:
    """Across threads and processes."""
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=_count, args=(url,)) for _ in range(2)]
    others += [threading.Thread(target=_add, args=(url, 25)) for _ in range(3)]
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert store.opened(url, keep=60).read(["sum"])[0] == ["125"]


def _count(url: str) -> None:
    _add(url, 25)


def test_stores_forget(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = store.opened(url, keep=1)
    opened.change("kept", lambda *_: "é\n{}")
    assert opened.read(["kept", "none"])[0] == ["é\n{}", None]
    opened.change("kept", lambda *_: None)
    assert opened.read(["kept"])[0] == ["é\n{}"]
    if url.startswith("sqlite"):
        now = store.time.time()
        monkeypatch.setattr(store.time, "time", lambda: now + 2)
        assert opened.read(["kept"])[0] == [None]
