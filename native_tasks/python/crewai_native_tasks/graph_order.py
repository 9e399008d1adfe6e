"""In which order tasks may run, by the rules of CrewAI's own loop.

A task with an explicit ``context`` needs those tasks and no others. One without reads what all
earlier tasks gave, so it keeps its place: after every one of them. One that is ``async_execution``
without a context starts, in CrewAI's loop, when the synchronous tasks before it have ended, and reads
none of them. A conditional task looks at the output before its own, so it keeps its place, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence


class Place(NamedTuple):
    """What matters about one of a list of tasks.

    Attributes:
        context: The tasks that it reads, by their places; None where it keeps its place.
        background: Whether it is ``async_execution``.
    """

    context: Sequence[int] | None = None
    background: bool = False


def dependencies(places: Sequence[Place]) -> list[list[int]]:
    """Return for each task the tasks that it must wait for, by their places.

    Not every pair is listed: what another dependency waits for already may be left out.
    """
    found: list[list[int]] = []
    # The last task that waits for every earlier one: waiting for it is waiting for those.
    barrier = -1
    for number, place in enumerate(places):
        if place.context is not None:
            found.append(list(place.context))
            continue
        since = range(barrier + 1, number)
        before = [barrier] if barrier >= 0 else []
        if place.background:
            found.append([*before, *(n for n in since if not places[n].background)])
        else:
            found.append([*before, *since])
            barrier = number
    return found


def is_sequence(order: Sequence[Sequence[int]]) -> bool:
    """Return whether each task waits for the one before it, so that no two can run at a time."""
    return all(number - 1 in own for number, own in enumerate(order) if number)
