"""What the host knows about candidates for slots, for API, CLI and JSON."""

from __future__ import annotations

import dataclasses
import enum
from typing import Final, NamedTuple

CONTRACT: Final = 1
"""Major version of the contract between host and plug-ins; part of the entry-point group."""

GROUP: Final = f"crewai_native.v{CONTRACT}"

COMPONENTS: Final = ("memory", "tools", "tasks", "db", "serialization")
"""Families of slots that one switch turns off, named as the extras are."""

STOCK: Final = "stock"
"""The provider name that stands for CrewAI's own code."""


class State(enum.StrEnum):
    """What became of a candidate, or of a slot."""

    BOUND = "bound"
    SHADOWED = "shadowed"
    DISABLED = "disabled"
    INCOMPATIBLE = "incompatible"
    BROKEN = "broken"
    DECLINED = "declined"
    TARGET_CHANGED = "target-changed"
    UNTRUSTED = "untrusted"
    STOCK = "stock"


class Step(NamedTuple):
    """One step of the negotiation over a candidate.

    Attributes:
        name: ``discover``, ``settings``, ``trust``, ``compatibility``, ``order``, ``target``,
            ``first-import``, ``features`` or ``bind``.
        passed: Whether the candidate went on to the next step.
        detail: What was looked at and found, in words for the user.
    """

    name: str
    passed: bool
    detail: str


@dataclasses.dataclass(slots=True, eq=False)
class Candidate:
    """One distribution's offer to serve one slot, and what became of it."""

    slot: str
    distribution: str
    version: str
    entry_point: str
    location: str
    state: State = State.SHADOWED
    reason: str = ""
    features: frozenset[str] = frozenset()
    steps: list[Step] = dataclasses.field(default_factory=list)

    def passed(self, step: str, detail: str) -> None:
        """Record a step that the candidate passed."""
        self.steps.append(Step(step, passed=True, detail=detail))

    def failed(self, step: str, state: State, detail: str) -> None:
        """Record the step at which the candidate dropped out, and the state that leaves it in."""
        self.steps.append(Step(step, passed=False, detail=detail))
        self.state = state
        self.reason = detail
