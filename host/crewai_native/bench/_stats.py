"""Robust statistics of repeated timings: medians, quartiles, and intervals that assume no shape.

Timings are skewed, with a long tail of interruptions; means and standard deviations describe
neither what is usual nor how sure it is.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

LEAST_ROUNDS: Final = 6
"""Fewer values than this give no 95 % interval of a median: their whole range covers less."""

_CONFIDENCE: Final = 0.95


@dataclasses.dataclass(frozen=True, slots=True)
class Estimate:
    """A median with its 95 % interval."""

    value: float
    low: float
    high: float


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the first quartile, the median and the third quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def median(values: Sequence[float]) -> Estimate:
    """Return the median and the distribution-free interval that order statistics give for it.

    Each value lies below the true median with probability one half, so the number that do is
    binomial: the k-th smallest and the k-th largest value enclose the median with a confidence
    that depends on k and the number of values alone (e.g. Conover, Practical Nonparametric
    Statistics, 3.2). With fewer than six values the interval is their range.
    """
    ordered = sorted(values)
    count = len(ordered)
    left_out = 0  # values beyond the interval at each end
    outside = 2 / 2**count  # probability that the median lies there
    while True:
        outside += 2 * math.comb(count, left_out + 1) / 2**count
        if outside > 1 - _CONFIDENCE:
            break
        left_out += 1
    return Estimate(statistics.median(ordered), ordered[left_out], ordered[-1 - left_out])
