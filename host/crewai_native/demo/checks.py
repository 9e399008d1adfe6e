"""What a memory must neither lose nor leak, tried out on whatever serves it.

Each check uses CrewAI's public interface alone, on a fresh store, and says what it saw.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import TYPE_CHECKING, Any, Final

from crewai_native.demo.phases import LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable

    from crewai import Memory

_SECRETS: Final = ("the safe's code is 4711", "the alarm's code is 0815", "the garage's code is 31")
_ME: Final = "/user/1"
_OTHER: Final = "/user/10"
_FIELDS: Final[dict[str, Any]] = {"categories": ["private"], "importance": 0.5}


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What a check saw.

    Attributes:
        right: Whether that is what the caller asked for.
        seen: What was seen, in a few words.
    """

    right: bool
    seen: str


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """Something that a memory must get right.

    Attributes:
        name: Its name between processes.
        title: What is asked of the memory.
        run: Does it, given a function that opens a memory with some settings.
    """

    name: str
    title: str
    run: Callable[[Callable[..., Memory]], Outcome]


def _recall_of_another_user(open_memory: Callable[..., Memory]) -> Outcome:
    mine = _two_users(open_memory)
    seen = [match.record for match in mine.recall("What is the code?", limit=10, depth="shallow")]
    foreign = sum(record.scope.startswith(_OTHER) for record in seen)
    return Outcome(foreign == 0, f"shows {foreign} of its {len(_SECRETS)}")


def _forget_of_another_user(open_memory: Callable[..., Memory]) -> Outcome:
    mine = _two_users(open_memory)
    mine.forget()
    left = len(open_memory(root_scope=_OTHER).list_records())
    return Outcome(left == len(_SECRETS), f"keeps {left} of {len(_SECRETS)}")


def _forget_what_is_old(open_memory: Callable[..., Memory]) -> Outcome:
    memory = open_memory()
    memory.remember("An old entry", scope="/journal", **_FIELDS)
    # CrewAI's times are naive and in UTC.
    now = dt.datetime.now(dt.UTC).replace(tzinfo=None)
    for day in ("Monday", "Tuesday", "Wednesday"):
        memory.remember(f"A new entry, of {day}", scope="/journal", **_FIELDS)
    memory.forget(scope="/journal", older_than=now)
    left = [record.content for record in memory.list_records("/journal")]
    return Outcome(len(left) == 3, f"leaves {len(left)} of 3")  # noqa: PLR2004


def _recall_at_the_scope(open_memory: Callable[..., Memory]) -> Outcome:
    memory = open_memory()
    memory.remember("The office key hangs by the door", scope="/house", **_FIELDS)
    memory.remember("The cellar key hangs in the hall", scope="/house/cellar", **_FIELDS)
    found = memory.recall("Where does the office key hang?", scope="/house", depth="deep")
    kept = sum(match.record.scope == "/house" for match in found)
    return Outcome(kept == 1, f"finds {kept} of 1")


def _update_inside_root(open_memory: Callable[..., Memory]) -> Outcome:
    memory = open_memory(root_scope=_ME)
    record = memory.remember("A note to be filed", scope="/inbox", **_FIELDS)
    if record is None:
        raise RuntimeError("a memory that is not read-only gave no record")
    memory.update(record.id, scope="/archive")
    left = len(open_memory(root_scope=_ME).list_records())
    return Outcome(left == 1, f"its owner sees {left} of 1")


def _forget_what_is_being_saved(open_memory: Callable[..., Memory]) -> Outcome:
    memory = open_memory()
    memory.remember_many(list(_SECRETS), scope="/codes", **_FIELDS)
    memory.forget(scope="/codes")
    memory.drain_writes()
    left = len(open_memory().list_records("/codes"))
    return Outcome(left == 0, f"{left} of {len(_SECRETS)} come back")


def _two_users(open_memory: Callable[..., Memory]) -> Memory:
    """Write for two users, and return the memory of the first."""
    open_memory(root_scope=_ME).remember("the bicycle's code is 123", scope="/codes", **_FIELDS)
    for secret in _SECRETS:
        open_memory(root_scope=_OTHER).remember(secret, scope="/codes", **_FIELDS)
    # Opened anew: a handle that does not see what another one has written would hide the leak.
    return open_memory(root_scope=_ME)


def filtered(memory: Memory) -> Outcome:
    """Recall under a filter that the nearest records do not pass; ``memory`` holds the text."""
    matches = memory.recall(
        "The Congress shall have power to enforce this article by appropriate legislation.",
        categories=["bill-of-rights"],
        limit=LIMIT,
        depth="shallow",
    )
    return Outcome(len(matches) == LIMIT, f"finds {len(matches)} of {LIMIT}")


CHECKS: Final = (
    Check(
        "recall-isolated",
        "/user/1 recalls nothing of /user/10",
        _recall_of_another_user,
    ),
    Check(
        "forget-isolated",
        "/user/1 forgets: /user/10 keeps its records",
        _forget_of_another_user,
    ),
    Check(
        "forget-old",
        "forget(older_than=…) leaves what is newer",
        _forget_what_is_old,
    ),
    Check(
        "forget-pending",
        "forget() covers what is still being saved",
        _forget_what_is_being_saved,
    ),
    Check(
        "recall-at-scope",
        "deep recall finds records at its scope itself",
        _recall_at_the_scope,
    ),
    Check(
        "update-inside-root",
        "update(scope=…) stays inside root_scope",
        _update_inside_root,
    ),
)
