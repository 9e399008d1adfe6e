"""What holds for the provider of any slot: it can be taken back, and says what it can do."""

from __future__ import annotations

import inspect
import os
import re
from typing import TYPE_CHECKING, Any, ClassVar, Final

import pytest

import crewai_native
from crewai_native import State, _targets, slots
from crewai_native.testing.contract import _trials

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from crewai_native.slots._base import Target
    from crewai_native.testing.contract._trials import Import, Trial


class SlotContract:
    """The tests that every slot's contract starts with; subclasses name the slot.

    The fixture ``provider`` binds the provider under test for the length of a test; ``trial`` is
    what became of it in a process of its own, where it went through :meth:`exercise`.

    Attributes:
        slot: The slot's name.
        stock_defects: Tests of this class that stock fails, and why. They are not run on it: what
            goes wrong is a hang, or a matter of chance.
        runs_crews: Whether :meth:`exercise` runs crews or flows.
    """

    slot: ClassVar[str]
    stock_defects: ClassVar[Mapping[str, str]] = {}
    runs_crews: ClassVar[bool] = False

    @staticmethod
    def exercise() -> Any:
        """Use the slot as CrewAI does, in a small way, and return what its user would see.

        It gives the same each time, as JSON can hold it, whatever else uses the slot meanwhile.
        """
        raise NotImplementedError

    @classmethod
    def why_not_forked(cls, provider: str) -> str | None:
        """Return why a process that has used the slot cannot go on in a forked child, or None."""
        if cls.runs_crews:
            return "CrewAI's event bus has threads from the first crew on, and no child has them"
        if provider == "stock":
            return cls.stock_defects.get("test_a_process_that_used_it_can_fork")
        return None

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
        bound = {c.distribution: c for c in status.candidates if c.state is State.BOUND}
        if provider == "stock":
            assert not bound
            return
        assert provider in bound
        # Others are there only where several serve side by side.
        assert slots.load(self.slot).shared or len(bound) == 1
        words = bound[provider].features
        assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", word) for word in words)

    # --- in processes of its own --------------------------------------------------------------

    def test_its_user_sees_what_stock_shows(self, trial: Trial, stock_trial: Trial) -> None:
        """The slot's smallest use gives the same."""
        assert trial.alone == stock_trial.alone

    def test_no_call_fails_or_falls_back(self, trial: Trial) -> None:
        """What looks right may be stock's answer in the place of the provider's."""
        assert trial.failures == 0

    def test_threads_can_use_it_at_once(self, trial: Trial) -> None:
        """Each gets what one alone gets."""
        assert trial.together == [trial.alone] * _trials.THREADS

    def test_other_threads_run_while_it_works_or_waits(self, trial: Trial) -> None:
        """Native code that waits, for a file or for its turn, must let go of the GIL."""
        assert trial.pause < LONGEST_PAUSE

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
    def test_a_process_that_bound_it_can_fork(self, trial: Trial) -> None:
        """As web servers and task queues do once they have loaded a program."""
        assert trial.unused == trial.alone

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
    def test_a_process_that_used_it_can_fork(self, trial: Trial, provider: str) -> None:
        """The child gets what it asks for, and the parent can go on as well."""
        if (reason := self.why_not_forked(provider)) is not None:
            pytest.skip(reason)
        assert trial.used == trial.alone
        assert trial.after == trial.alone

    def test_the_process_ends_as_its_program_does(self, trial: Trial) -> None:
        """With its exit status, without a hang, a crash or a traceback, while it is bound."""
        assert trial.ending == "exit status 0", trial.stderr
        assert not re.search("Traceback|Fatal Python error|panicked", trial.stderr), trial.stderr

    def test_importing_it_starts_nothing(self, start_up: Import) -> None:
        """No thread, no file and no import of CrewAI, which `crewai-native list` can do without."""
        assert start_up.raised == ""
        assert (start_up.crewai, start_up.threads, start_up.files) == (False, 0, 0)

    def test_importing_it_is_cheap(self, start_up: Import) -> None:
        """Every program that imports CrewAI pays for it, and every command."""
        assert start_up.seconds < LONGEST_IMPORT


LONGEST_PAUSE: Final = 2.0
"""Seconds. Far more than any pause on an idle machine, far less than a wait with the GIL held."""
LONGEST_IMPORT: Final = 0.5
"""Seconds of processor time. Ours take some hundredths; importing CrewAI takes several seconds."""


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
