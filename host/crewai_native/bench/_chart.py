"""Draws a report as SVG: one bar for each ratio, on a logarithmic scale, with its interval."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final
from xml.sax.saxutils import escape

from crewai_native._numbers import digits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crewai_native.bench._results import Comparison, Report, Result

_WIDTH: Final = 960
_LABELS: Final = 380  # left of the bars
_VALUES: Final = 150  # right of them
_ROW: Final = 26
_TOP: Final = 64
_BOTTOM: Final = 46
_LONGEST_LABEL: Final = 58  # characters
_FEW_DECADES: Final = 4  # fewer leave room for marks in between
# Told apart in print and by colour-blind readers (Okabe and Ito 2008).
_COLOURS: Final = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")


def svg(report: Report) -> str:
    """Return the chart; cases that measure a cost, not a gain, are left out."""
    bars = [
        (result, comparison)
        for result in report.results
        if result.subject.limit is None
        for comparison in result.comparisons
    ]
    height = _TOP + _ROW * max(len(bars), 1) + _BOTTOM
    body = "\n".join(_drawing(bars, height, _footer(report)))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'width="{_WIDTH}" height="{height}" font-family="system-ui, sans-serif" font-size="13">\n'
        f"{body}\n</svg>\n"
    )


def _drawing(bars: list[tuple[Result, Comparison]], height: int, footer: str) -> Iterator[str]:
    yield f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>'
    yield _text(16, 26, "Times as fast as the first side, or as small", size=16, weight="600")
    yield _text(16, height - 12, footer, fill="#666666", size=11)
    if not bars:
        yield _text(16, _TOP + 16, "no ratios were measured")
        return
    ends = [end for _, c in bars for end in (c.ratio.low, c.ratio.high)]
    scale = _Scale(ends)
    bottom = _TOP + _ROW * len(bars)
    for tick in scale.ticks():
        x = scale.x(tick)
        weight = 1.5 if tick == 1 else 0.5
        yield _line((x, _TOP - 8), (x, bottom), "#666666" if tick == 1 else "#cccccc", weight)
        yield _text(x, _TOP - 14, f"{tick:g}x", anchor="middle", fill="#666666", size=11)
    sides = list(dict.fromkeys(comparison.side for _, comparison in bars))
    for row, (result, comparison) in enumerate(bars):
        y = _TOP + _ROW * row + _ROW / 2
        colour = _COLOURS[sides.index(comparison.side) % len(_COLOURS)]
        yield from _bar(scale, y, result, comparison, colour)


def _bar(
    scale: _Scale, y: float, result: Result, comparison: Comparison, colour: str
) -> Iterator[str]:
    ratio = comparison.ratio
    one, value = scale.x(1), scale.x(ratio.value)
    label = f"{result.subject.id}: {comparison.side} / {comparison.base}"
    yield _text(_LABELS - 10, y + 4, _shortened(label), anchor="end")
    yield (
        f'<rect x="{min(one, value):.1f}" y="{y - 7:.1f}" width="{abs(value - one):.1f}" '
        f'height="14" rx="2" fill="{colour}"><title>{escape(label)}</title></rect>'
    )
    low, high = scale.x(ratio.low), scale.x(ratio.high)
    yield _line((low, y), (high, y), "#000000", 1)
    yield _line((low, y - 4), (low, y + 4), "#000000", 1)
    yield _line((high, y - 4), (high, y + 4), "#000000", 1)
    if result.subject.target is not None and comparison.side == "native":
        target = scale.x(result.subject.target)
        yield _line((target, y - 11), (target, y + 11), "#d55e00", 2)
    text = f"{digits(ratio.value)}x [{digits(ratio.low)}, {digits(ratio.high)}]"
    yield _text(_WIDTH - _VALUES + 12, y + 4, text, size=12)


class _Scale:
    """A logarithmic scale that holds the values and one."""

    def __init__(self, values: list[float]) -> None:
        self._low = math.log10(min(0.8, *values))
        self._high = math.log10(max(1.25, *values)) + 0.05

    def x(self, value: float) -> float:
        """Return where a value lies, kept within the scale."""
        share = (math.log10(value) - self._low) / (self._high - self._low)
        return _LABELS + min(max(share, 0.0), 1.0) * (_WIDTH - _LABELS - _VALUES)

    def ticks(self) -> list[float]:
        """Return round values to mark."""
        decades = range(math.floor(self._low), math.ceil(self._high) + 1)
        steps = (1, 2, 5) if len(decades) <= _FEW_DECADES else (1,)
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        return [tick for tick in ticks if self._low <= math.log10(tick) <= self._high]


def _footer(report: Report) -> str:
    found = report.environment
    return (
        f"crewai-native {found['crewai_native']}, CrewAI {found['crewai'] or 'not installed'}, "
        f"Python {found['python']}, {found['machine']}, {found['cpus']} CPUs; medians of paired "
        "rounds with 95 % intervals; a mark shows the target"
    )


def _shortened(label: str) -> str:
    return label if len(label) <= _LONGEST_LABEL else f"{label[: _LONGEST_LABEL - 1]}…"


def _line(start: tuple[float, float], end: tuple[float, float], colour: str, width: float) -> str:
    (x1, y1), (x2, y2) = start, end
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
        f'stroke-width="{width}"/>'
    )


def _text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    fill: str = "#111111",
    size: int = 12,
    weight: str = "400",
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}" font-size="{size}" '
        f'font-weight="{weight}">{escape(text)}</text>'
    )
