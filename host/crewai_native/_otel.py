"""Exports the slots' metrics through OpenTelemetry's API, where a program uses that.

Only the API is used: without a meter provider the instruments are no-ops, and one that is set
later is found by OpenTelemetry's own proxies.
"""

from __future__ import annotations

import functools
import math
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from crewai_native._host import Host


@functools.cache
def export(host: Host) -> None:
    """Register the instruments, once per process and host."""
    # CrewAI imports the API; where it does not, nobody could read what is exported.
    if "opentelemetry" not in sys.modules:
        return
    from opentelemetry import metrics

    meter = metrics.get_meter("crewai_native")

    def observe(value: Callable[[Any], float]) -> Callable[[Any], Iterator[metrics.Observation]]:
        def callback(_: Any) -> Iterator[metrics.Observation]:
            for slot in host.metrics():
                number = value(slot)
                if not math.isnan(number):
                    yield metrics.Observation(number, {"crewai_native.slot": slot.slot})

        return callback

    for name, description, value in (
        ("calls", "Calls that reached the provider", lambda m: m.calls),
        ("errors", "Calls that raised", lambda m: m.errors),
        ("fallbacks", "Calls that CrewAI's own code answered", lambda m: m.fallbacks),
    ):
        meter.create_observable_counter(
            f"crewai_native.slot.{name}", [observe(value)], "{call}", description
        )
    for name, value in (("p50", lambda m: m.p50), ("p99", lambda m: m.p99)):
        meter.create_observable_gauge(
            f"crewai_native.slot.duration.{name}", [observe(value)], "s", "Duration of a call"
        )
