"""Prints what the demo found, and says what is wrong with it."""

from __future__ import annotations

import itertools
import math
import statistics
from typing import TYPE_CHECKING, Any, Final

from rich.text import Text

from crewai_native.cli import _console
from crewai_native.demo.run import SIDES, Measurement, Result

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console
    from rich.table import Table

_SLOT: Final = "memory.storage"
_SECONDS_PER_MODEL_CALL: Final = 1.0
_SHOWN: Final = 3


def problems(result: Result) -> list[str]:
    """Return why the run does not show what it is for; nothing where it does."""
    found = []
    slots = [_slot(status, _SLOT) for status in (result.status, result.fresh_status)]
    unbound = next((slot for slot in slots if slot["state"] != "bound"), None)
    if unbound is not None:
        found.append(f"{_SLOT} was not accelerated: {unbound['reason']}")
    elif result.calls(_SLOT) == 0:
        found.append(f"{_SLOT} is bound to {slots[0]['provider']}, but was never called")
    if not result.live:
        found += [
            f"the answers differ: {measurement.title}: {count} values"
            for measurement in result.measurements
            if (count := sum(1 for _ in differences(measurement)))
        ]
    found += [
        f"the accelerated run got it wrong: {trial.title}: {trial.seen['accelerated']}"
        for trial in result.trials
        if not trial.right["accelerated"]
    ]
    return found


def show(result: Result, console: Console) -> None:
    """Print everything."""
    console.print(_slots(result))
    if result.live:
        console.print("A real model does not say the same twice, so answers are not compared.\n")
    else:
        console.print(_agreement(result))
        for measurement in result.measurements:
            for place, stock, accelerated in itertools.islice(differences(measurement), _SHOWN):
                console.print(f"[red]differs[/] {measurement.title}: {place}")
                console.print(f"  stock        {stock!r}", markup=False)
                console.print(f"  accelerated  {accelerated!r}", markup=False)
    console.print(_times(result))
    if result.trials:
        console.print(_trials(result))
    for line in _limits(result):
        console.print(line, highlight=False)


def as_json(result: Result) -> dict[str, Any]:
    """Return the findings as built-in types."""
    return {
        "crewai": result.crewai,
        "live": result.live,
        "problems": problems(result),
        "status": result.status,
        "metrics": result.metrics,
        "builds": result.builds,
        "imports": result.imports,
        "measurements": [
            {
                "name": measurement.name,
                "title": measurement.title,
                "seconds": measurement.seconds,
                "ratio": _ratio(measurement),
                "compared": sum(1 for _ in _leaves(measurement.outputs["stock"])),
                "agree": None if result.live else not list(differences(measurement)),
            }
            for measurement in result.measurements
        ],
        "trials": [
            {"title": trial.title, "right": trial.right, "seen": trial.seen}
            for trial in result.trials
        ],
    }


def differences(measurement: Measurement) -> Iterator[tuple[str, Any, Any]]:
    """Yield where the two sides' outputs differ: the place, stock's value, the accelerated one."""
    stock, accelerated = (dict(_leaves(measurement.outputs[side])) for side in SIDES)
    for place in [*stock, *(place for place in accelerated if place not in stock)]:
        values = stock.get(place, "nothing"), accelerated.get(place, "nothing")
        if values[0] != values[1]:
            yield (place, *values)


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every single value in nested lists and dictionaries, with the place where it stands."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{place}[{key!r}]")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _leaves(item, f"{place}[{number}]")
    elif value is not None:
        yield place, value


def _slot(status: dict[str, Any], name: str) -> dict[str, Any]:
    slots: list[dict[str, Any]] = status["slots"]
    return next(slot for slot in slots if slot["slot"] == name)


def _slots(result: Result) -> Table:
    table = _console.table(
        "slot", "served by", "calls", "through, or why not", title="What serves the accelerated run"
    )
    _align_right(table, 2)
    stock: dict[tuple[str, str], list[str]] = {}
    for slot in result.status["slots"]:
        provider = f"{slot['provider']} {slot['version']}"
        if slot["state"] == "bound":
            calls = f"{result.calls(slot['slot']):,}"
            table.add_row(slot["slot"], Text(provider, "green"), calls, slot["how"])
        else:
            stock.setdefault((provider, slot["reason"]), []).append(slot["slot"])
    for (provider, reason), names in stock.items():
        table.add_row(Text(", ".join(names), "dim"), provider, "", reason)
    return table


def _agreement(result: Result) -> Table:
    table = _console.table(
        "step", "what is compared", "values", "agree", title="Do the answers agree?"
    )
    _align_right(table, 2)
    for measurement in result.measurements:
        values = sum(1 for _ in _leaves(measurement.outputs["stock"]))
        if not values:
            continue
        wrong = sum(1 for _ in differences(measurement))
        table.add_row(
            measurement.title,
            measurement.compares,
            f"{values:,}",
            Text(f"{wrong} differ", "red") if wrong else Text("all", "green"),
        )
    return table


def _times(result: Result) -> Table:
    repetitions = max(len(m.seconds["stock"]) for m in result.measurements)
    runs = "one run" if repetitions == 1 else f"medians of {repetitions} runs, in turns"
    table = _console.table("step", *SIDES, "ratio", "share", title=f"How long it took ({runs})")
    _align_right(table, 1, 2, 3, 4)
    repeated = [measurement for measurement in result.measurements if measurement.repeated]
    whole = Measurement("whole", "whole run")
    for side in SIDES:
        whole.seconds[side] = [
            math.fsum(runs) for runs in zip(*(m.seconds[side] for m in repeated), strict=True)
        ]
    total = _median(whole, "stock")
    for measurement in repeated:
        _add_times(table, measurement, f"{_median(measurement, 'stock') / total:.0%}")
    table.add_section()
    _add_times(table, whole, "100%", style="bold")
    table.add_section()
    for measurement in result.measurements:
        if not measurement.repeated:
            _add_times(table, measurement, "once")
    return table


def _add_times(table: Table, measurement: Measurement, share: str, style: str = "") -> None:
    table.add_row(
        measurement.title,
        *(_duration(_median(measurement, side)) for side in SIDES),
        f"{_ratio(measurement):.1f}x",
        share,
        style=style,
    )


def _trials(result: Result) -> Table:
    table = _console.table("asked of the memory", *SIDES, title="What must not be lost or leaked")
    for trial in result.trials:
        table.add_row(
            trial.title,
            *(
                Text(
                    f"{'right' if trial.right[side] else 'WRONG'}: {trial.seen[side]}",
                    "green" if trial.right[side] else "red",
                )
                for side in SIDES
            ),
        )
    return table


def _limits(result: Result) -> Iterator[str]:
    """Yield what the numbers do not show."""
    kickoffs = [m for m in result.measurements if m.model_calls]
    calls = sum(measurement.model_calls for measurement in kickoffs)
    taken = sum(_median(measurement, "stock") for measurement in kickoffs)
    if calls and not result.live:
        yield (
            f"[bold]What this does not show:[/] the model answered at once. The kickoffs made "
            f"{calls} model calls; at {_SECONDS_PER_MODEL_CALL:g} s each, which is fast for a real "
            f"model, they alone take {calls * _SECONDS_PER_MODEL_CALL:.0f} s, beside the "
            f"{taken:.1f} s of everything else in stock CrewAI's kickoffs. An accelerator does not "
            "make the model, or the embedder, answer sooner."
        )
    debug = [name for name, build in result.builds.items() if build.get("profile") == "debug"]
    if debug:
        yield (
            f"[yellow]{', '.join(debug)} was built for debugging, without optimisation:[/] the "
            "accelerated times say nothing."
        )
    bound = [c for s in result.status["slots"] for c in s["candidates"] if c["state"] == "bound"]
    tried = [
        candidate["distribution"]
        for candidate in bound
        for step in candidate["steps"]
        if step["name"] == "first-import" and step["detail"] == "tried now"
    ]
    yield (
        "Importing CrewAI in a new process took "
        + " and ".join(f"{_duration(result.imports[side])} {side}" for side in SIDES)
        + ": one look at something that disk caches decide, and that no accelerator shortens."
    )
    yield (
        "Both sides were warmed up before the runs. "
        + (
            f"{', '.join(dict.fromkeys(tried))} had not been seen on this machine. What is new "
            "is imported in a child process first, once, which is in no figure."
            if tried
            else "The accelerators had been seen on this machine before, so none was tried out in "
            "a child process first."
        )
    )


def _align_right(table: Table, *columns: int) -> None:
    for column in columns:
        table.columns[column].justify = "right"


def _median(measurement: Measurement, side: str) -> float:
    return statistics.median(measurement.seconds[side])


def _ratio(measurement: Measurement) -> float:
    return _median(measurement, "stock") / _median(measurement, "accelerated")


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
