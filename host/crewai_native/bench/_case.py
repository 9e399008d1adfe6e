"""What a benchmark case is. Plug-ins import this: it loads nothing heavy."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    Run = Callable[[], Any]

UNITS: Final = ("s", "B", "x")
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._/-]*")


class Unavailable(Exception):  # noqa: N818 - a finding, not an error
    """Raised by a case's ``setup`` for a side that cannot run here; the message says what it needs.

    The other sides are measured without it.
    """


@dataclasses.dataclass(frozen=True, slots=True)
class Measured:
    """Returned by a run that measures by itself, such as what a process of its own takes.

    Attributes:
        value: What counts, in place of the seconds between call and return, in the case's unit;
            above 0.
        result: What is compared between the sides.
    """

    value: float
    result: Any = None

    def __post_init__(self) -> None:
        """Refuse a value that no ratio can be made of.

        Raises:
            ValueError: It is not a number above 0.
        """
        if not 0 < self.value < math.inf:
            raise ValueError(f"the Measured value is {self.value}; it accepts a number above 0")


def identical(results: Mapping[str, Any]) -> str | None:
    """Return which side's result differs from that of the first side, or None."""
    first, *others = results
    differing = [side for side in others if results[side] != results[first]]
    if not differing:
        return None
    return f"{', '.join(differing)} gave another result than {first}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One thing to measure, done by each of several sides.

    Every side must do the same work on the same data, as durably as the others, and give the same
    result: that is checked before anything is timed, and a case whose results differ has failed.
    A rival whose result differs, such as an approximation, is left out instead.

    Attributes:
        name: Unique in its group together with ``parameters``: lower case, digits, ``. _ / -``.
        group: What ``crewai-native bench GROUP`` selects; the component's name.
        description: What is done, in one line.
        setup: Called with a side, in the process that times it. Returns the callable to time, or
            a context manager that gives it and cleans up. Raises :class:`Unavailable` where the
            side cannot run here. Not timed.
        slot: The slot that is measured; empty where it is none.
        sides: ``stock``, ``native`` and any rivals; ratios are to the first.
        parameters: Sizes and the like, for the reader.
        observe: Turns what a run returned into what JSON can hold, for the comparison; None where
            it is such already.
        check: Says what is wrong with the sides' results, or None where nothing is; by default
            they must be equal. None compares nothing, and the report says so.
        isolated: Sides that need a process of their own, for instance because two libraries must
            not be loaded together. The others share one.
        fresh: Set up anew for every single run: for work that can be done once only, such as
            filling an empty store.
        share: What share of an end-to-end run the measured work is, 0 to 1, so that a large ratio
            of a small share is seen as such.
        target: The ratio to the first side that ``native`` should reach.
        limit: What ``native`` may take beyond the first side, in the case's unit, for a case that
            measures a cost; in all, where it is the only side.
        unit: What is measured: seconds (``s``), or what runs return as :class:`Measured`, bytes
            (``B``) or a ratio of their own (``x``).
        timeout: Seconds after which one set-up or one timed batch counts as hung.
    """

    name: str
    group: str
    description: str
    setup: Callable[[str], Run | AbstractContextManager[Run]]
    slot: str = ""
    sides: tuple[str, ...] = ("stock", "native")
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    observe: Callable[[Any], Any] | None = None
    check: Callable[[Mapping[str, Any]], str | None] | None = identical
    isolated: frozenset[str] = frozenset()
    fresh: bool = False
    share: float | None = None
    target: float | None = None
    limit: float | None = None
    unit: str = "s"
    timeout: float = 120.0

    def __post_init__(self) -> None:
        """Refuse a case that means nothing.

        Raises:
            ValueError: A field means nothing; the message names the case and the field.
        """
        for field in ("name", "group"):
            if not _NAME.fullmatch(getattr(self, field)):
                raise ValueError(
                    f"case {self.name!r}: {field} is {getattr(self, field)!r}; it accepts lower "
                    "case letters, digits and . _ / -"
                )
        if not self.sides or len(set(self.sides)) != len(self.sides):
            raise ValueError(f"case {self.id}: sides are {self.sides}; each must be named once")
        if unknown := set(self.isolated) - set(self.sides):
            raise ValueError(
                f"case {self.id}: isolated names no side: {', '.join(sorted(unknown))}"
            )
        if self.unit not in UNITS:
            raise ValueError(
                f"case {self.id}: unit is {self.unit!r}; it accepts {', '.join(UNITS)}"
            )
        if self.share is not None and not 0 <= self.share <= 1:
            raise ValueError(f"case {self.id}: share is {self.share}; it accepts 0 to 1")
        for field in ("target", "limit", "timeout"):
            value = getattr(self, field)
            if value is not None and not value > 0:
                raise ValueError(f"case {self.id}: {field} is {value}; it accepts a number above 0")

    @property
    def id(self) -> str:
        """The case's name in full, such as ``memory.search[dim=1536,n=10000]``."""
        values = ",".join(f"{key}={value}" for key, value in sorted(self.parameters.items()))
        return f"{self.group}.{self.name}" + (f"[{values}]" if values else "")
