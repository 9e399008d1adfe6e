"""What the commands that look at the host print."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from rich.text import Text

from crewai_native import __version__, _discovery, _record, _settings, _trust, slots
from crewai_native._errors import ConfigurationError
from crewai_native._numbers import duration
from crewai_native._status import SlotStatus
from crewai_native._types import State
from crewai_native.cli import _console, _survey
from crewai_native.health import Health

if TYPE_CHECKING:
    from pathlib import Path

    from crewai_native._status import Status
    from crewai_native._types import Candidate
    from crewai_native.slots._base import Target

# States of a candidate that somebody should do something about.
_TELLING = (State.BROKEN, State.TARGET_CHANGED, State.INCOMPATIBLE, State.UNTRUSTED)

_HEALTH_STYLES = {Health.OK: "green", Health.WARNING: "yellow", Health.ERROR: "bold red"}


# --- list, explain, status ------------------------------------------------------------------------


def list_slots(*, as_json: bool, every: bool) -> None:
    """Print a table of the slots, and of their candidates where all are wanted."""
    status = _survey.status()
    if as_json:
        found = status.as_json()
        if not every:
            for slot in found["slots"]:
                del slot["candidates"]
        _console.write_json(found)
        return
    console = _console.stdout()
    wide = console.width >= _console.WIDE
    if wide:
        table = _console.table("slot", "state", "provider", "version", "bound by", "reason")
    else:
        table = _console.table("slot", "state", "provider and reason")
    table.columns[0].no_wrap = table.columns[1].no_wrap = True
    if wide:
        table.columns[4].min_width = len("set_knowledge_storage_factory")
    for slot in status.slots:
        _add_row(table, slot.slot, slot, slot.how, wide=wide)
        for candidate in slot.candidates if every else ():
            _add_row(table, "  candidate", candidate, candidate.entry_point, wide=wide)
    for stranger in status.strangers if every else ():
        _add_row(table, stranger.slot, stranger, stranger.entry_point, wide=wide)
    console.print(table)
    _print_footer(console, status)


def _add_row(table: Any, name: str, entry: SlotStatus | Candidate, how: str, *, wide: bool) -> None:
    provider = entry.provider if isinstance(entry, SlotStatus) else entry.distribution
    state = Text(entry.state, _console.STYLES[entry.state])
    reason = Text(entry.reason, "dim" if entry.state is State.STOCK else "")
    if wide:
        table.add_row(
            Text(name), state, Text(provider), Text(entry.version), Text(how, "dim"), reason
        )
    elif entry.state is State.STOCK:
        table.add_row(Text(name), state, reason)
    else:
        who = Text(f"{provider} {entry.version}")
        table.add_row(Text(name), state, Text("\n").join([who, Text(f"by {how}", "dim"), reason]))


def _print_footer(console: Any, status: Status) -> None:
    console.print(Text(_headline(status)))
    for text in status.warnings:
        console.print(Text.assemble(("warning ", "yellow"), text))


def _headline(status: Status) -> str:
    bound = sum(slot.state is State.BOUND for slot in status.slots)
    crewai = f"CrewAI {status.crewai}" if status.crewai else "CrewAI is not installed"
    if not status.active:
        return f"crewai-native {__version__}, {crewai}: not active, {status.reason}"
    return f"crewai-native {__version__}, {crewai}: {bound} of {len(status.slots)} slots are bound"


def status(*, as_json: bool) -> None:
    """Print a few lines: what is bound, and what is installed and serves nothing."""
    found = _survey.status()
    if as_json:
        _console.write_json(found.as_json())
        return
    console = _console.stdout()
    _print_footer(console, found)
    for slot in found.slots:
        if slot.state is State.BOUND:
            console.print(
                Text.assemble(("bound ", "green"), f"{slot.slot}: {slot.provider} {slot.version}")
            )
    for slot in found.slots:
        for candidate in slot.candidates:
            if candidate.state in _TELLING:
                console.print(
                    Text.assemble(
                        (f"{candidate.state} ", _console.STYLES[candidate.state]),
                        f"{slot.slot}: {candidate.distribution}: {candidate.reason}",
                    )
                )


def explain(name: str, *, as_json: bool) -> None:
    """Print each candidate's way through the negotiation."""
    _settings.check_slot(name, "SLOT")
    slot = slots.load(name)
    status = _survey.status()
    found = status[name]
    if as_json:
        _console.write_json({**slot.describe(), "status": _slot_json(status, name)})
        return
    console = _console.stdout()
    console.print(Text.assemble((name, "bold"), f": {slot.summary}"))
    console.print(Text(f"bound by {slot.how}; a plug-in implements {slot.hook}()"))
    if slot.repairs:
        table = _console.table("repair", "what goes wrong in CrewAI without it")
        for repair in slot.repairs:
            table.add_row(Text(repair.name), Text(repair.summary))
        console.print(table)
    console.print(
        Text.assemble(
            (found.state, _console.STYLES[found.state]),
            f" {found.provider} {found.version}: {found.reason}",
        )
    )
    for candidate in found.candidates:
        console.print()
        console.print(
            Text.assemble(
                (candidate.state, _console.STYLES[candidate.state]),
                f" {candidate.distribution} {candidate.version} in {candidate.location}",
            )
        )
        table = _console.table("step", "", "found")
        table.columns[0].no_wrap = True
        for step in candidate.steps:
            mark = Text("passed", "green") if step.passed else Text("stopped", "bold red")
            table.add_row(Text(step.name), mark, Text(step.detail))
        console.print(table)


def _slot_json(status: Status, name: str) -> Any:
    return next(slot for slot in status.as_json()["slots"] if slot["slot"] == name)


# --- doctor ---------------------------------------------------------------------------------------


def doctor(*, as_json: bool) -> int:
    """Print every check and return the exit status."""
    from crewai_native import _doctor
    from crewai_native._host import HOST

    settings = _survey.settings()
    with _survey.importing_crewai():
        checks = list(_doctor.examine(HOST, settings))
    errors = sum(check.health is Health.ERROR for check in checks)
    if as_json:
        _console.write_json([dataclasses.asdict(check) for check in checks])
        return min(errors, 1)
    table = _console.table("", "check", "found")
    table.columns[0].no_wrap = True
    for check in checks:
        mark = Text(check.health, _HEALTH_STYLES[check.health])
        table.add_row(mark, Text(check.name), Text(check.detail))
    console = _console.stdout()
    console.print(table)
    warnings = sum(check.health is Health.WARNING for check in checks)
    counted = ", ".join([_counted(errors, "error"), _counted(warnings, "warning")])
    console.print(Text(f"{_counted(len(checks), 'check')}: {counted}"))
    return min(errors, 1)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


# --- metrics --------------------------------------------------------------------------------------


def metrics(file: Path | None, *, as_json: bool) -> None:
    """Print what processes wrote down as they exited.

    Raises:
        ConfigurationError: No file is named, or it holds no metrics.
    """
    path = file or _settings.load().metrics
    if path is None:
        raise ConfigurationError(
            "metrics belong to the process that they are of, and none were kept: run the program "
            "with `crewai-native run --metrics FILE -- …` and name that FILE, or call "
            "crewai_native.metrics() in the program"
        )
    found, strange = _record.read(path)
    if strange:
        numbers = ", ".join(map(str, strange))
        _console.warn(f"{path} has lines that hold no metrics, which are left out: {numbers}")
    if as_json:
        _console.write_json(found)
        return
    console = _console.stdout()
    for entry in found:
        program = " ".join(str(word) for word in entry["program"])
        console.print(Text(f"process {entry['pid']}, ended {entry['ended']}: {program}"))
        table = _console.table("slot", "calls", "errors", "fallbacks", "p50", "p99")
        for column in table.columns[1:]:
            column.justify = "right"
        for slot in entry["slots"]:
            counts = (str(slot[key]) for key in ("calls", "errors", "fallbacks"))
            table.add_row(
                slot["slot"],
                *counts,
                *("" if slot[key] is None else duration(slot[key]) for key in ("p50", "p99")),
            )
        console.print(table)
        _print_own_metrics(console, entry["plugins"])


def _print_own_metrics(console: Any, plugins: dict[str, dict[str, Any]]) -> None:
    if not any(plugins.values()):
        return
    table = _console.table("plug-in", "metric", "value")
    table.columns[2].justify = "right"
    for distribution, values in plugins.items():
        for name, value in values.items():
            shown = f"{value:g}" if isinstance(value, float) else str(value)
            table.add_row(Text(distribution), Text(name), Text(shown))
    console.print(table)


# --- fingerprints, lock ---------------------------------------------------------------------------


def fingerprints(*, as_json: bool, refresh: bool) -> int:
    """Print each wrapped target and return the exit status: 1 where one is not known."""
    from crewai_native import _targets

    crewai = _discovery.crewai_version()
    if not crewai:
        raise ConfigurationError("CrewAI is not installed; pip install crewai")
    wrapped: dict[str, list[Any]] = {}
    for name in slots.SLOT_NAMES:
        slot = slots.load(name)
        targets = [*slot.targets, *(t for repair in slot.repairs for t in repair.targets)]
        wrapped[name] = [target for target in targets if target.wrapped]
    with _survey.importing_crewai():
        if refresh:
            _refresh([target for targets in wrapped.values() for target in targets], crewai)
        reports = [(name, _targets.probe(t)) for name, targets in wrapped.items() for t in targets]
    unknown = sum(report.problem is not None for _, report in reports)
    if as_json:
        rows = [{"slot": name, **report._asdict()} for name, report in reports]
        _console.write_json({"crewai": crewai, "targets": rows})
        return min(unknown, 1)
    table = _console.table("target", "fingerprint", "tested with CrewAI")
    table.columns[1].no_wrap = True
    heading = ""
    for name, report in reports:
        if name != heading:
            heading = name
            table.add_section()
            table.add_row(Text(name, "bold"))
        if report.problem is None:
            verdict = Text(", ".join(report.known), "green")
        else:
            verdict = Text("not tested" if report.fingerprint else report.problem, "yellow")
        table.add_row(Text(report.path), Text(report.fingerprint or ""), verdict)
    console = _console.stdout()
    console.print(table)
    console.print(
        Text(f"CrewAI {crewai}: {len(reports) - unknown} of {len(reports)} targets are known")
    )
    return min(unknown, 1)


def _refresh(targets: list[Target], crewai: str) -> None:
    from crewai_native import _targets

    try:
        _targets.refresh(targets, crewai)
    except OSError as error:
        raise ConfigurationError(
            f"fingerprints in {_targets.FINGERPRINTS} cannot be written: {error.strerror}"
        ) from error


def lock(*, check: bool) -> int:
    """Pin what is installed, or say how it differs from what is pinned; return the exit status."""
    settings = _settings.load()
    offers = {
        offer.name: offer
        for ranked in _discovery.offers()[0].values()
        for offer in ranked
        if offer.name not in settings.deny
        and (settings.plugins is None or offer.name in settings.plugins)
    }
    console = _console.stdout()
    if check:
        pins = _trust.read(settings.lock)
        found = [_trust.mismatch(pins, offer, settings.lock) for offer in offers.values()]
        differences = [
            f"{name}: {difference}"
            for name, difference in zip(offers, found, strict=True)
            if difference is not None
        ]
        differences += [
            f"{name}: pinned by {settings.lock}, but not installed"
            for name in sorted(set(pins) - set(offers))
        ]
        for difference in differences:
            console.print(Text(difference))
        if not differences:
            console.print(Text(f"{settings.lock} pins exactly what is installed"))
        return min(len(differences), 1)
    try:
        names = _trust.write(settings.lock, offers.values())
    except OSError as error:
        raise ConfigurationError(
            f"lock file {settings.lock} cannot be written: {error.strerror}"
        ) from error
    for name in names:
        console.print(Text(f"pinned {name} {offers[name].candidate.version}"))
    console.print(
        Text(
            f"{_counted(len(names), 'distribution')} in {settings.lock}; in force with "
            'trust = "locked" under [tool.crewai-native], or CREWAI_NATIVE_TRUST=locked'
        )
    )
    return 0
