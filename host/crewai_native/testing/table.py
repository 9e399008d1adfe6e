"""The table that ends a run of the contracts for given providers: rule, stock, provider."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import pytest

PROPERTY: Final = "crewai-native-rule"
"""Marks the reports of contract tests: slot, rule and provider, so that they cross processes."""

_WIDEST: Final = 72


class Table:
    """Collects outcomes by slot and rule and provider. A pytest plug-in.

    Args:
        providers: The columns, by name.
    """

    def __init__(self, providers: Iterable[str]) -> None:
        self._providers = list(providers)
        self._seen: dict[tuple[str, str], dict[str, collections.Counter[str]]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take down how a test, or its set-up, went."""
        told = dict(report.user_properties).get(PROPERTY)
        if not isinstance(told, (list, tuple)):
            return
        slot, rule, provider = map(str, told)
        row = self._seen.setdefault((slot, rule), {})
        count = row.setdefault(provider, collections.Counter())
        if report.when == "call" or not report.passed:
            count[_outcome(report)] += 1

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the table."""
        terminalreporter.section("contracts")
        for line in self._lines():
            terminalreporter.write_line(line)

    def _lines(self) -> Iterator[str]:
        rules = [rule for _, rule in self._seen]
        first = min(_WIDEST, max([len("contract rule"), *map(len, rules)]) + 2)
        widths = [max(len(provider), len("defect 99/99")) for provider in self._providers]
        slot = None
        for (of, rule), row in self._seen.items():
            if of != slot:
                slot = of
                yield ""
                yield _row(slot, self._providers, first, widths)
                yield "-" * (first + sum(width + 2 for width in widths))
            cells = [_cell(row.get(provider)) for provider in self._providers]
            yield _row(f"  {rule}", cells, first, widths)
        yield ""
        yield "defect: a known one of CrewAI's own code, which this rule is to fail on"
        yield "-: the rule does not apply, or was not run; the reasons are in the summary above"


def rule(function: str) -> str:
    """Return what a test's name says."""
    return function.removeprefix("test_").replace("_", " ")


def _outcome(report: pytest.TestReport) -> str:
    if report.skipped:
        return "defect" if hasattr(report, "wasxfail") else "-"
    return "kept" if report.passed else "FAILED"


def _cell(count: collections.Counter[str] | None) -> str:
    if not count:
        return "-"
    for outcome in ("FAILED", "defect", "kept"):
        if count[outcome]:
            tried = count.total() - count["-"]
            share = "" if count[outcome] == tried else f" {count[outcome]}/{tried}"
            return f"{outcome}{share}"
    return "-"


def _row(head: str, cells: Iterable[str], first: int, widths: Iterable[int]) -> str:
    rest = "".join(f"  {cell:<{width}}" for cell, width in zip(cells, widths, strict=True))
    return f"{head:<{first}}{rest}".rstrip()
