"""The plug-ins that may be loaded outside an activation: for sub-commands, benchmarks, checks.

The same screening as for a slot applies: what is switched off, not trusted or not compatible, or
did not survive its first import in a child process, is not imported here either.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Any

from crewai_native import _discovery, _probe, _settings
from crewai_native._negotiate import Screening
from crewai_native.slots import SLOT_NAMES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from crewai_native._discovery import Offer
    from crewai_native._plugins import Plugin, Plugins
    from crewai_native._settings import Settings


@dataclasses.dataclass(frozen=True, slots=True)
class Roster:
    """Plug-ins, one entry for each.

    Attributes:
        sound: The first offer of each plug-in that may be imported, sorted by distribution.
        problems: Distribution and cause of each that is broken.
    """

    sound: list[Offer]
    problems: list[tuple[str, str]]


def roster(settings: Settings, *, again: bool = False) -> Roster:
    """Find the plug-ins that may be imported under these settings.

    Args:
        settings: What is switched off and trusted.
        again: Try every first import once more, whatever is remembered.

    Raises:
        ConfigurationError: The settings choose a provider that there is not, or a lock file that
            cannot be read.
    """
    offers = eligible(settings)
    verdicts = _probe.verdicts(offers.values(), settings, again=again) if offers else {}
    return Roster(
        sorted(
            (offer for offer in offers.values() if verdicts[offer.value].problem is None),
            key=lambda offer: (offer.name, offer.value),
        ),
        [
            (offer.candidate.distribution, problem)
            for value, offer in sorted(offers.items())
            if (problem := verdicts[value].problem) is not None
        ],
    )


def eligible(settings: Settings) -> dict[str, Offer]:
    """Return the first eligible offer of each plug-in, by entry-point value; imports nothing.

    Raises:
        ConfigurationError: As for :func:`roster`.
    """
    screening = Screening(settings, _discovery.crewai_version())
    found, _ = _discovery.offers()
    first: dict[str, Offer] = {}
    for slot, ranked in found.items():
        for offer in screening.eligible(slot, ranked):
            first.setdefault(offer.value, offer)
    return first


def find(value: str) -> Offer:
    """Return an offer of a plug-in, by its entry-point value.

    Raises:
        LookupError: No installed distribution offers it.
    """
    for offers in _discovery.offers()[0].values():
        for offer in offers:
            if offer.value == value:
                return offer
    raise LookupError(f"no installed distribution offers {value}")


def configured(plugins: Plugins, offer: Offer, settings: Settings) -> Plugin:
    """Import a plug-in and hand it the options of each component that it serves.

    Raises:
        Exception: Whatever its import or its ``crewai_native_configure`` raised.
    """
    plugin = plugins.load(offer)
    for component in _components(offer):
        plugin.call("crewai_native_configure", options=settings.options.get(component, {}))
    return plugin


def _components(offer: Offer) -> Iterable[str]:
    entries = offer.distribution.entry_points
    served = {entry.name for entry in entries if entry.value == offer.value}
    return sorted({_settings.component_of(slot) for slot in served if slot in SLOT_NAMES})


def builds(value: str) -> dict[str, dict[str, Any]]:
    """Return the build passports of a plug-in's modules that have been imported, by module."""
    package = value.partition(":")[0].partition(".")[0]
    found: dict[str, dict[str, Any]] = {}
    for name, module in sorted(sys.modules.items()):
        if name == package or name.startswith(f"{package}."):
            # vars(), since a module's __getattr__ may import half the world.
            info = vars(module).get("__build_info__")
            if isinstance(info, dict) and info not in found.values():
                found[name] = info
    return found
