"""The host's whole state at a moment, for API, CLI and JSON; made only where somebody asks."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from crewai_native._types import Step

if TYPE_CHECKING:
    from crewai_native._types import Candidate, State


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
        raise KeyError(f"there is no slot {slot!r}; slots: {', '.join(s.slot for s in self.slots)}")

    def as_json(self) -> dict[str, Any]:
        """Return the same as built-in types, ready for :func:`json.dumps`."""
        return dataclasses.asdict(self, dict_factory=_plain)


def _plain(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key: _built_in(value) for key, value in items}


def _built_in(value: Any) -> Any:
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, list):
        return [item._asdict() if isinstance(item, Step) else item for item in value]
    return value
