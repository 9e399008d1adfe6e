"""What holds for the provider of any slot: it can be taken back, and says what it can do."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any, ClassVar

import crewai_native
from crewai_native import State, _targets, slots

if TYPE_CHECKING:
    from collections.abc import Iterable

    from crewai_native.slots._base import Target


class SlotContract:
    """The tests that every slot's contract starts with; subclasses name the slot.

    The fixture ``provider`` binds the provider under test for the length of a test.
    """

    slot: ClassVar[str]

    def test_unbinding_restores_every_target(self, provider: str) -> None:
        """Whatever stood at the slot's targets stands there again, the very same objects."""
        targets = targets_of(self.slot)
        crewai_native.deactivate()
        before = standing(targets)
        for _ in range(2):
            crewai_native.activate(enabled=True, slots=alone(self.slot, provider))
            crewai_native.status()
            crewai_native.deactivate()
            after = standing(targets)
            assert [path for path in before if after[path] is not before[path]] == []

    def test_activating_again_changes_nothing(self, provider: str) -> None:
        """The slot is bound once, however often it is asked for."""
        crewai_native.status()
        before = standing(targets_of(self.slot))
        crewai_native.activate(enabled=True, slots=alone(self.slot, provider))
        after = standing(targets_of(self.slot))
        assert [path for path in before if after[path] is not before[path]] == []

    def test_its_features_are_plain_words(self, provider: str) -> None:
        """Settings and ``list`` show them, and ``require`` compares them."""
        status = crewai_native.status()[self.slot]
        for candidate in status.candidates:
            if candidate.state is State.BOUND:
                assert candidate.distribution == provider
                assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", f) for f in candidate.features)


def alone(slot: str, provider: str) -> dict[str, str]:
    """Return the choice of one provider for one slot, and of CrewAI's own code for every other."""
    return {**dict.fromkeys(slots.SLOT_NAMES, "stock"), slot: provider}


def targets_of(slot: str) -> list[Target]:
    """Return the places in CrewAI that binding a slot may change, its repairs' included."""
    found = slots.load(slot)
    return [*found.targets, *(target for repair in found.repairs for target in repair.targets)]


def standing(targets: Iterable[Target]) -> dict[str, Any]:
    """Return what stands at targets, undressed by any descriptor; nothing where there is none."""
    found = {}
    for target in targets:
        try:
            owner, name, _ = _targets.resolve(target.path)
        except (ImportError, AttributeError):
            continue  # an older CrewAI
        found[target.path] = inspect.getattr_static(owner, name)
    return found
