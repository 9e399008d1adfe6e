"""``crewai-native bench``: chooses, measures, and shows what came out."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from crewai_native import _settings
from crewai_native._errors import ConfigurationError
from crewai_native._numbers import amount, digits, unit_of
from crewai_native.bench import _chart, _results
from crewai_native.bench._results import Outcome, Report, Result, Subject, Timing
from crewai_native.bench._runner import Bench
from crewai_native.cli import _console

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console


def bench(
    patterns: Sequence[str],
    *,
    list_only: bool,
    seconds: float,
    compare: tuple[str, str] | None,
    to_json: Path | None,
    chart: Path | None,
) -> int:
    """Measure and print, and return the exit status: 1 where a case failed.

    Raises:
        ConfigurationError: An option means nothing.
    """
    _check_files(to_json, chart)
    if compare is not None and all(name.endswith(".json") for name in compare):
        _print_changes(_console.stdout(), *(Path(name) for name in compare))
        return 0
    console = _console.stdout()
    found = Bench(_settings.load())
    for problem in found.report.problems:
        _console.warn(problem)
    subjects = found.select(patterns, compare or ())
    if list_only:
        _print_cases(console, subjects)
        return 0
    report = _measure(found, subjects, seconds)
    for group in dict.fromkeys(result.subject.group for result in report.results):
        console.print(_table(group, [r for r in report.results if r.subject.group == group]))
    if to_json is not None:
        to_json.write_text(report.dumps(), encoding="utf-8")
    if chart is not None:
        chart.write_text(_chart.svg(report), encoding="utf-8")
    return int(report.failed)


def _check_files(to_json: Path | None, chart: Path | None) -> None:
    """Find out before measuring for minutes that the results cannot be written."""
    if chart is not None and chart.suffix.lower() != ".svg":
        raise ConfigurationError(f"--chart is {str(chart)!r}; it accepts a file ending in .svg")
    for option, path in (("--json", to_json), ("--chart", chart)):
        if path is not None and not path.parent.is_dir():
            raise ConfigurationError(f"{option}: there is no directory {str(path.parent)!r}")


def _measure(found: Bench, subjects: list[Subject], seconds: float) -> Report:
    done = 0
    with contextlib.ExitStack() as stack:
        shown: Any = stack.enter_context(_console.busy("")) if sys.stderr.isatty() else None

        def progress(subject: Subject) -> None:
            nonlocal done
            done += 1
            line = f"[{done}/{len(subjects)}] {subject.id}"
            if shown is None:
                sys.stderr.write(f"{line}\n")
            else:
                shown.update(Text(line))

        return found.run(subjects, seconds, progress)


def _table(group: str, results: list[Result]) -> Any:
    """Return a table with a line for each side of each case."""
    table = _console.table(
        "case", "side", "median ± spread", "against first", "target", title=group
    )
    for column in table.columns[2:]:
        column.justify = "right"
    for column in table.columns[1:]:
        column.no_wrap = True
    for result in results:
        case = Text(result.subject.id)
        if note := _note(result):
            case.append(f"\n{note}", "dim")
        if result.outcome is not Outcome.MEASURED:
            style = "bold red" if result.outcome is Outcome.FAILED else "dim"
            case.append(f"\n{result.outcome}: {result.reason}", style)
            table.add_row(case)
        else:
            table.add_row(case, *_cells(result))
        table.add_section()
    return table


def _cells(result: Result) -> list[Text]:
    """Return side, median, ratio and target, with as many lines for each side as its longest has.

    One row for a whole case, so that the case's own cell may be as long beside it.
    """
    columns: list[list[Text]] = [[], [], [], []]
    for timing in result.timings:
        entries = (
            Text(timing.side),
            Text(_spread(timing, result.subject.unit)),
            Text(_against(result, timing)),
            _promise(result, timing),
        )
        height = max(len(entry.split(allow_blank=True)) for entry in entries)
        for column, entry in zip(columns, entries, strict=True):
            lines = list(entry.split(allow_blank=True))
            column += [*lines, *[Text()] * (height - len(lines))]
    return [Text("\n").join(column) for column in columns]


def _note(result: Result) -> str:
    subject = result.subject
    notes = []
    if subject.share is not None:
        notes.append(f"{subject.share:.0%} of a run")
    if not subject.compared and len(subject.sides) > 1:
        notes.append("results not compared")
    if result.outcome is Outcome.MEASURED:
        notes += [f"no {side}: {why}" for side, why in result.unavailable.items()]
    return "; ".join(notes)


def _spread(timing: Timing, unit: str) -> str:
    factor, shown = unit_of(timing.median, unit)
    half = (timing.high - timing.low) / 2
    return f"{digits(timing.median * factor)} ± {digits(half * factor, 2)}{shown}"


def _against(result: Result, timing: Timing) -> str:
    found = result.comparison(timing.side)
    if found is None:
        return ""
    if result.subject.limit is not None:
        gap = found.difference
        factor, unit = unit_of(gap.value, result.subject.unit)
        low, middle, high = (digits(x * factor) for x in (gap.low, gap.value, gap.high))
        return f"{'+' if gap.value > 0 else ''}{middle}{unit}\n[{low}, {high}]"
    ratio = found.ratio
    return f"{digits(ratio.value)}x\n[{digits(ratio.low)}, {digits(ratio.high)}]"


def _promise(result: Result, timing: Timing) -> Text:
    subject = result.subject
    if timing.side != "native" or result.reached is None:
        return Text()
    if subject.target is not None:
        promise = f"≥ {subject.target:g}x"
    else:
        promise = f"≤ {amount(subject.limit or 0.0, subject.unit)}"
    return Text.assemble(
        f"{promise}\n", ("reached", "green") if result.reached else ("missed", "bold yellow")
    )


def _print_cases(console: Console, subjects: list[Subject]) -> None:
    table = _console.table("case", "sides", "what is measured")
    for subject in subjects:
        about = Text(subject.description)
        details = []
        if subject.slot:
            details.append(f"slot {subject.slot}")
        if subject.target is not None:
            details.append(f"target {subject.target:g}x")
        if subject.limit is not None:
            details.append(f"limit {amount(subject.limit, subject.unit)}")
        if subject.share is not None:
            details.append(f"{subject.share:.0%} of a run")
        if details:
            about.append("\n" + ", ".join(details), "dim")
        table.add_row(Text(subject.id), "\n".join(subject.sides), about)
    console.print(table)


def _print_changes(console: Console, before: Path, after: Path) -> None:
    """Print how the ratios of two runs differ. Times of two runs say nothing to each other."""
    first, second = _results.ratios(before), _results.ratios(after)
    table = _console.table("case", before.name, after.name, "change")
    for column in table.columns[1:]:
        column.justify = "right"
    for case in dict.fromkeys([*first, *second]):
        old, new = first.get(case), second.get(case)
        if old is None or new is None:
            shown = [f"{digits(c.ratio.value)}x" if c is not None else "" for c in (old, new)]
            table.add_row(Text(case), *shown, Text("only in one", "dim"))
            continue
        apart = new.ratio.low > old.ratio.high or new.ratio.high < old.ratio.low
        change = Text(f"{new.ratio.value / old.ratio.value - 1:+.1%}")
        if not apart:
            change = Text.assemble((f"{change} (within the intervals)", "dim"))
        elif new.ratio.value < old.ratio.value:
            change.stylize("bold red")
        else:
            change.stylize("green")
        table.add_row(
            Text(case),
            *(
                f"{digits(c.ratio.value)}x\n[{digits(c.ratio.low)}, {digits(c.ratio.high)}]"
                for c in (old, new)
            ),
            change,
        )
    console.print(table)
