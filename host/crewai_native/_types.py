"""What the host knows about slots and candidates: one set of dataclasses for API, CLI and JSON."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any, Final

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


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
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


@dataclasses.dataclass(slots=True)
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


@dataclasses.dataclass(slots=True)
class SlotStatus:
    """Who serves a slot and why.

    Attributes:
        slot: The slot's name, ``area.thing``.
        summary: What the slot is, in a few words.
        state: ``bound``, or ``stock`` with the most telling reason.
        provider: Distribution that serves the slot; ``stock`` for CrewAI itself.
        version: Version of that distribution, or of CrewAI.
        how: The extension point that is used, or the methods that are wrapped.
        reason: Why this provider: the rule that chose it, or why nobody else serves.
        candidates: Every distribution that offered to, in the order they were considered.
    """

    slot: str
    summary: str
    state: State
    provider: str
    version: str
    how: str
    reason: str
    candidates: list[Candidate] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(slots=True)
class Status:
    """The host's whole state.

    Attributes:
        active: Whether the host is wired into CrewAI.
        reason: Why it is not, or how it was activated.
        crewai: CrewAI's version; empty where CrewAI is not installed.
        slots: One entry for each slot, in the host's order.
        strangers: Offers for slots or contracts that this host does not know.
        warnings: What the user should look at, one line each.
    """

    active: bool
    reason: str
    crewai: str
    slots: list[SlotStatus]
    strangers: list[Candidate] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)

    def __getitem__(self, slot: str) -> SlotStatus:
        """Return the status of one slot.

        Raises:
            KeyError: There is no slot of that name.
        """
        for status in self.slots:
            if status.slot == slot:
                return status
        raise KeyError(slot)

    def as_json(self) -> dict[str, Any]:
        """Return the same as built-in types, ready for :func:`json.dumps`."""
        return dataclasses.asdict(self, dict_factory=_plain)


def _plain(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key: sorted(value) if isinstance(value, frozenset) else value for key, value in items}
