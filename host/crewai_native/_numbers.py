"""Numbers with their units as people read them."""

from __future__ import annotations

from typing import Final

# What makes an amount in a base unit a readable number, and the unit it is then in, largest first.
_STEPS: Final = {
    "s": ((1.0, "s"), (1e3, "ms"), (1e6, "µs"), (1e9, "ns")),
    "B": ((1e-9, "GB"), (1e-6, "MB"), (1e-3, "kB"), (1.0, "B")),
    "x": ((1.0, "x"),),
}


def digits(value: float, count: int = 3) -> str:
    """Return a number rounded to some significant digits, as ``1230`` rather than ``1.23e+03``."""
    return f"{float(f'{value:.{count}g}'):g}"


def duration(seconds: float) -> str:
    """Return a duration with three digits and a fitting unit, such as ``12.3 ms``."""
    return amount(seconds, "s")


def amount(value: float, unit: str) -> str:
    """Return seconds (``s``), bytes (``B``) or a ratio (``x``), with three digits and a unit."""
    factor, shown = unit_of(value, unit)
    return f"{digits(value * factor)}{shown}"


def unit_of(value: float, unit: str) -> tuple[float, str]:
    """Return what makes an amount a readable number, and the unit it is then in, with its space."""
    steps = _STEPS[unit]
    factor, shown = next((step for step in steps if abs(value) * step[0] >= 1), steps[-1])
    return factor, shown if unit == "x" else f" {shown}"
