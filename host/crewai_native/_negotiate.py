"""Who may serve a slot, and in which order: the steps that need no plug-in's code.

Each step leaves on the candidate what it looked at, so that ``explain`` can retell it.
"""

from __future__ import annotations

import functools
import operator
from typing import TYPE_CHECKING, Final

from crewai_native._errors import ConfigurationError
from crewai_native._types import STOCK, State

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from crewai_native._discovery import Offer
    from crewai_native._settings import Settings


_COMPARE: Final = {
    ">=": operator.ge,
    "<=": operator.le,
    "<": operator.lt,
    ">": operator.gt,
    "==": operator.eq,
    "!=": operator.ne,
}


class Screening:
    """Screens and orders the offers for slots under given settings.

    Raises:
        ConfigurationError: The settings ask for a lock file that cannot be read.
    """

    def __init__(self, settings: Settings, crewai: str) -> None:
        self._settings = settings
        self._crewai = crewai
        self._pins: Mapping[str, Mapping[str, Any]] = {}
        if settings.trust == "locked" or (settings.trust == "listed" and settings.lock.exists()):
            from crewai_native import _trust

            self._pins = _trust.read(settings.lock)

    def eligible(self, slot: str, offers: list[Offer]) -> list[Offer]:
        """Return the offers that may serve a slot, in the order in which to try them.

        The others are left with the state and the reason that they dropped out for.

        Raises:
            ConfigurationError: The provider that the settings choose does not offer the slot.
        """
        self._check_choice(slot, offers)
        passed = [
            offer
            for offer in offers
            if self._allowed(slot, offer) and self._trusted(offer) and self._compatible(offer)
        ]
        return self._order(slot, passed)

    def _check_choice(self, slot: str, offers: list[Offer]) -> None:
        choice = self._settings.slots.get(slot, STOCK)
        names = [offer.name for offer in offers]
        if choice not in {STOCK, *names}:
            source = self._settings.source(f"slots.{slot}")
            raise ConfigurationError(
                f"{source} chooses {choice!r} for {slot}, which no installed distribution of that "
                f"name offers; there are: {', '.join([*sorted(names), STOCK])}"
            )

    def _allowed(self, slot: str, offer: Offer) -> bool:
        settings = self._settings
        reason = settings.switched_off(slot)
        if reason is None and offer.name in settings.deny:
            reason = f"on the deny-list ({settings.source('deny')})"
        if reason is None and settings.plugins is not None and offer.name not in settings.plugins:
            reason = f"not on the allow-list ({settings.source('plugins')})"
        if reason is not None:
            offer.candidate.failed("settings", State.DISABLED, reason)
            return False
        offer.candidate.passed("settings", "nothing turns it off")
        return True

    def _trusted(self, offer: Offer) -> bool:
        settings = self._settings
        reason = None
        if settings.trust == "locked":
            from crewai_native import _trust

            reason = _trust.mismatch(self._pins, offer, settings.lock)
        elif settings.trust == "listed":
            named = {*(settings.plugins or ()), *settings.slots.values(), *self._pins}
            if offer.name not in named:
                reason = f"named in no list, and trust is 'listed' ({settings.source('trust')})"
        if reason is not None:
            offer.candidate.failed("trust", State.UNTRUSTED, reason)
            return False
        offer.candidate.passed("trust", f"trust level {settings.trust}")
        return True

    def _compatible(self, offer: Offer) -> bool:
        if offer.accelerates is None:
            offer.candidate.passed("compatibility", "states no CrewAI range")
            return True
        try:
            fits = _within(offer.accelerates, self._crewai)
        except ValueError as error:
            offer.candidate.failed("compatibility", State.INCOMPATIBLE, f"states {error}")
            return False
        detail = f"accelerates crewai {offer.accelerates}, installed is {self._crewai}"
        if not fits:
            offer.candidate.failed("compatibility", State.INCOMPATIBLE, detail)
            return False
        offer.candidate.passed("compatibility", detail)
        return True

    def _order(self, slot: str, offers: list[Offer]) -> list[Offer]:
        choice = self._settings.slots.get(slot)
        ordered = sorted(offers, key=lambda o: (o.name != choice, o.ours, o.name))
        strangers = [offer for offer in offers if not offer.ours]
        for offer in ordered:
            if offer.name == choice:
                rule = f"chosen by {self._settings.source(f'slots.{slot}')}"
            elif len(ordered) == 1:
                rule = "the only candidate"
            elif offer.ours and strangers:
                rule = "after a third party's"
            elif offer.ours:
                rule = "by name among this project's own"
            elif len(strangers) == 1:
                rule = "a third party's goes before this project's own"
            else:
                rule = (
                    f"ambiguous: {len(strangers)} third-party candidates, taken by name; choose "
                    f'with [tool.crewai-native.slots] "{slot}" = "…"'
                )
            offer.candidate.passed("order", rule)
        return ordered


@functools.cache
def _within(specifier: str, version: str) -> bool:
    """Return whether a version lies in a range, as PEP 440 defines it; pre-releases may.

    Raises:
        ValueError: One of them is not written as PEP 440 demands.
    """
    installed = _numbers(version)
    clauses = [_clause(clause) for clause in specifier.split(",")]
    if installed is not None and None not in clauses:
        # As nearly every range and release is written: to import packaging takes longer than the
        # rest of the screening.
        return all(compare(installed, bound) for compare, bound in filter(None, clauses))
    from packaging.specifiers import SpecifierSet
    from packaging.version import Version

    return SpecifierSet(specifier).contains(Version(version), prereleases=True)


def _clause(text: str) -> tuple[Callable[[Any, Any], bool], tuple[int, ...]] | None:
    """Return how a clause of a range compares, and with what; None where it is no plain one."""
    for sign, compare in _COMPARE.items():
        if text.strip().startswith(sign):
            bound = _numbers(text.strip().removeprefix(sign))
            return None if bound is None else (compare, bound)
    return None


def _numbers(release: str) -> tuple[int, ...] | None:
    """Return a release's numbers, without the zeros at its end, which make no difference.

    None where it does not consist of numbers alone.
    """
    parts = release.strip().split(".")
    if not all(part.isascii() and part.isdigit() for part in parts):
        return None
    numbers = [int(part) for part in parts]
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)
