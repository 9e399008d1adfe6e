"""Numbers and durations as people read them."""

from __future__ import annotations


def digits(value: float, count: int = 3) -> str:
    """Return a number rounded to some significant digits, as ``1230`` rather than ``1.23e+03``."""
    return f"{float(f'{value:.{count}g}'):g}"


def duration(seconds: float) -> str:
    """Return a duration with three digits and a fitting unit, such as ``12.3 ms``."""
    factor, unit = unit_of(seconds)
    return f"{digits(seconds * factor)} {unit}"


def unit_of(seconds: float) -> tuple[float, str]:
    """Return what makes a duration of seconds a readable number, and the unit it is then in."""
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "µs")):
        if abs(seconds) * factor >= 1:
            return factor, unit
    return 1e9, "ns"
