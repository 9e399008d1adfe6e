"""Who works on which item, and what has become of it: what makes a kickoff happen once.

An item has a key. Each attempt at it has a token, made by whoever sent the batch, and a token is
begun at most once: what the broker delivers twice is dropped. While a kickoff runs its process renews
a lease; when that has lapsed, for a crash or a dead machine, the sender makes a new token. A finished
item is never begun again, and its first outcome is the one that stays.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from crewai_native_celery.store import Store

    Outcome = dict[str, Any]

DONE: Final = "done"
MOST_LOST: Final = 3
"""How many processes an attempt may cost before it is given up: it may be what kills them."""
_CANCELLED: Final = "cancelled"


class Verdict(enum.Enum):
    """Whether a token may be begun."""

    GO = "go"
    KNOWN = "it was begun before, is finished, or its item is being worked on"
    CANCELLED = "it was cancelled"
    WORN = "its process died each time"


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """What is known of an item.

    Attributes:
        token: The attempt that was begun last, or withdrawn.
        until: When its lease ends, by the store's clock; 0 where nobody works on it.
        begun: How often this token was begun.
        outcome: What became of it, if it has ended.
        earlier: The attempts before it.
    """

    token: str
    until: float = 0.0
    begun: int = 0
    outcome: Outcome | None = None
    earlier: Sequence[str] = ()

    @property
    def done(self) -> bool:
        """Whether the item is finished, by whichever attempt."""
        return self.outcome is not None and self.outcome["state"] == DONE

    def followed_by(self, token: str, **fields: Any) -> Entry:
        """Return the entry of the next attempt."""
        return Entry(token, earlier=[*self.earlier, self.token], **fields)


class Ledger:
    """The entries of items.

    Args:
        store: Where they lie.
        lease: Seconds that a lease lasts.
    """

    def __init__(self, store: Store, lease: float) -> None:
        self._store = store
        self._lease = lease

    # For workers

    def begin(self, session: str, key: str, token: str) -> Verdict:
        """Ask whether to begin."""
        if self.cancelled(session):
            return Verdict.CANCELLED
        verdict = Verdict.GO

        def change(entry: Entry | None, now: float) -> Entry | None:
            nonlocal verdict
            verdict = Verdict.GO
            until = now + self._lease
            if entry is None:
                return Entry(token, until, begun=1)
            # A lease that has merely lapsed may be that of a process that was cut off for a while:
            # only what was given back is begun again, and whoever sent it decides about the others.
            again = entry.token == token and entry.until == 0.0 and entry.outcome is None
            fresh = token not in {entry.token, *entry.earlier}
            if entry.done or entry.until > now or not (again or fresh):
                verdict = Verdict.KNOWN
                return None
            if fresh:
                return entry.followed_by(token, until=until, begun=1)
            if entry.begun >= MOST_LOST:
                verdict = Verdict.WORN
                return None
            return dataclasses.replace(entry, until=until, begun=entry.begun + 1)

        self._change(key, change)
        return verdict

    def renew(self, session: str, key: str, token: str) -> bool:
        """Give a sign of life. False: stop, the item is somebody else's or was cancelled."""
        mine = True

        def change(entry: Entry | None, now: float) -> Entry | None:
            nonlocal mine
            mine = entry is None or (entry.token == token and entry.outcome is None)
            if not mine:
                return None
            return dataclasses.replace(entry or Entry(token, begun=1), until=now + self._lease)

        self._change(key, change, lasting=False)
        return mine and not self.cancelled(session)

    def give_back(self, key: str, token: str) -> None:
        """Note that the process of an attempt has died, so that a redelivery begins it again."""

        def change(entry: Entry | None, _: float) -> Entry | None:
            if entry is None or entry.token != token or entry.outcome is not None:
                return None
            return dataclasses.replace(entry, until=0.0)

        self._change(key, change)

    def finish(self, key: str, token: str, outcome: Outcome) -> None:
        """Write what became of an attempt. A finished item keeps its first output."""

        def change(entry: Entry | None, _: float) -> Entry | None:
            entry = entry or Entry(token, begun=1)
            if entry.token == token:
                ended = entry.outcome is not None
                return None if ended else dataclasses.replace(entry, until=0.0, outcome=outcome)
            if entry.done or outcome["state"] != DONE:
                return None  # another attempt was quicker, or is under way
            return entry.followed_by(token, begun=1, outcome=outcome)

        self._change(key, change)

    def cancelled(self, session: str) -> bool:
        """Whether a batch was cancelled."""
        (found,), _ = self._store.read([f"session:{session}"])
        return found is not None

    # For whoever sends

    def look(self, keys: Sequence[str]) -> tuple[list[Entry | None], float]:
        """Return items' entries, and the time by which leases end."""
        texts, now = self._store.read([f"item:{key}" for key in keys])
        return [_parsed(text) for text in texts], now

    def withdraw(self, key: str, token: str) -> bool:
        """Take back an attempt that nobody has begun; False if somebody has."""
        withdrawn = False

        def change(entry: Entry | None, now: float) -> Entry | None:
            nonlocal withdrawn
            outcome: Outcome = {"state": "withdrawn"}
            if entry is None:
                withdrawn = True
                return Entry(token, outcome=outcome)
            withdrawn = entry.token != token and entry.until <= now and not entry.done
            return entry.followed_by(token, outcome=outcome) if withdrawn else None

        self._change(key, change)
        return withdrawn

    def cancel(self, session: str) -> None:
        """Have nothing of a batch begun any more, and what runs stopped."""
        self._store.change(f"session:{session}", lambda *_: _CANCELLED)

    def _change(
        self,
        key: str,
        change: Callable[[Entry | None, float], Entry | None],
        *,
        lasting: bool = True,
    ) -> None:
        def changed(text: str | None, now: float) -> str | None:
            entry = change(_parsed(text), now)
            return None if entry is None else json.dumps(dataclasses.asdict(entry))

        self._store.change(f"item:{key}", changed, lasting=lasting)


def _parsed(text: str | None) -> Entry | None:
    return None if text is None else Entry(**json.loads(text))
