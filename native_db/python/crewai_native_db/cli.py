"""``crewai-native db``: looking after flow states, replay logs and checkpoints, also in use."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator  # noqa: TC003 - typer evaluates the annotations
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from crewai_native.cli import _console
from crewai_native_db import DatabaseError, _native, exports, location, plugin
from crewai_native_db.checkpoints import places

app = typer.Typer(help="Look after flow states, replay logs and checkpoints.")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
States = Annotated[
    Path | None,
    typer.Option("--store", help="The file of flow states; the configured one if absent."),
]
Replay = Annotated[
    Path | None, typer.Option("--replay", help="The replay log; CrewAI's default place if absent.")
]
Checkpoints = Annotated[
    Path | None,
    typer.Option("--checkpoints", help="A location of checkpoints, as CheckpointConfig has it."),
]
_DAY = 86_400 * 10**6
_MOST = 2**32 - 1
# Days. Times are 64 bits of microseconds.
_LONGEST = 100_000_000


def _age(days: float | None) -> float | None:
    # Not a number is neither less nor more than anything, so bounds alone let it pass.
    if days is not None and not 0 <= days <= _LONGEST:
        raise typer.BadParameter(f"{days} is not in the range 0<=x<={_LONGEST}.")
    return days


@app.command()
def stats(
    store: States = None,
    replay: Replay = None,
    checkpoints: Checkpoints = None,
    as_json: AsJson = False,
) -> None:
    """Show what the files hold and how much room they take."""
    with _told():
        found: dict[str, dict[str, Any]] = {}
        for name, file in _files(store, replay, checkpoints).items():
            size = sum(
                part.stat().st_size
                for part in (file.path, Path(f"{file.path}-wal"))
                if part.exists()
            )
            found[name] = {"path": str(file.path), **file.totals(), "file_bytes": size}
    if as_json:
        _console.write_json(found)
        return
    for name, rows in found.items():
        table = _console.table(name, "")
        for key, value in rows.items():
            table.add_row(key, str(value))
        _console.stdout().print(table)


@app.command()
def check(
    store: States = None,
    replay: Replay = None,
    checkpoints: Checkpoints = None,
    as_json: AsJson = False,
) -> None:
    """Read everything. Exit status 1 when something cannot be read."""
    with _told():
        found = {name: file.check() for name, file in _files(store, replay, checkpoints).items()}
    if as_json:
        _console.write_json(found)
    else:
        for name, problems in found.items():
            for problem in problems:
                _console.stdout().print(f"{name}: {problem}")
            if not problems:
                _console.stdout().print(f"{name}: all of it can be read")
    raise typer.Exit(1 if any(found.values()) else 0)


@app.command()
def prune(
    store: States = None,
    replay: Replay = None,
    keep: Annotated[
        int | None, typer.Option(min=1, max=_MOST, help="States of each flow to keep, the newest.")
    ] = None,
    older_than: Annotated[
        float | None,
        typer.Option(callback=_age, metavar="DAYS", help="Drop flows untouched for so many days."),
    ] = None,
    keep_runs: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=_MOST,
            help="Runs of each project to keep in the replay log; crewai reset-memories -k drops all.",
        ),
    ] = None,
    *,
    checkpoints: Annotated[
        Path | None,
        typer.Option(
            metavar="LOCATION", help="Drop the data of checkpoints that were removed from there."
        ),
    ] = None,
) -> None:
    """Drop what is old. Flows that wait for an answer are kept; `vacuum` frees the space."""
    if keep is None and older_than is None and keep_runs is None and checkpoints is None:
        raise typer.BadParameter(
            "say what to drop: --keep, --older-than, --keep-runs or --checkpoints"
        )
    with _told():
        files = _files(store, replay)
        before = None if older_than is None else time.time_ns() // 1000 - round(older_than * _DAY)
        if keep is not None or before is not None:
            states = files["flow states"].prune(keep=keep, before=before)
            _console.stdout().print(f"{states} states dropped")
        if keep_runs is not None:
            _console.stdout().print(f"{files['replay log'].prune(keep_runs)} runs dropped")
        if checkpoints is not None:
            place = places.of(_location(checkpoints))
            dropped = places.reclaim(place, _native.CheckpointStore(place.store))
            _console.stdout().print(f"data of {dropped} checkpoints dropped")


@app.command()
def vacuum(store: States = None, replay: Replay = None, checkpoints: Checkpoints = None) -> None:
    """Rewrite the files without the space that was freed."""
    with _told():
        for file in _files(store, replay, checkpoints).values():
            file.vacuum()


@app.command()
def export(
    file: Annotated[
        Path | None,
        typer.Argument(help="Where to write; lines of JSON on standard output if absent."),
    ] = None,
    store: States = None,
    flow: Annotated[str | None, typer.Option(help="Only the flow of this id.")] = None,
    stock: Annotated[
        bool, typer.Option("--stock", help="A file that CrewAI's own persistence opens.")
    ] = False,
    checkpoints: Annotated[
        Path | None,
        typer.Option(
            "--checkpoints",
            metavar="LOCATION",
            help="Write the checkpoints there instead, whole, as CrewAI writes them.",
        ),
    ] = None,
) -> None:
    """Write the states of flows, as lines of JSON or as a file of CrewAI's own; or checkpoints."""
    if checkpoints is not None:
        if file is None:
            raise typer.BadParameter("--checkpoints needs a place to write to")
        with _told():
            count = exports.checkpoints(_location(checkpoints), file)
        _console.stdout().print(f"{count} checkpoints written to {file}")
        return
    with _told():
        states = _native.FlowStore(_states(store), True)
        if stock:
            if file is None:
                raise typer.BadParameter("--stock needs a file to write")
            count = exports.as_stock(states, file, flow)
        elif file is None:
            count = exports.as_lines(states, sys.stdout, flow)
        else:
            with exports.drafted(file) as draft, draft.open("w", encoding="utf-8") as out:
                count = exports.as_lines(states, out, flow)
    if file is not None:
        _console.stdout().print(f"{count} states written to {file}")


def _states(store: Path | None) -> str | Path:
    return _there(store) if store is not None else plugin.flow_path()


def _files(
    store: Path | None, replay: Path | None, checkpoints: Path | None = None
) -> dict[str, Any]:
    log = _there(replay) if replay is not None else location.default_path("replay.db")
    files: dict[str, Any] = {
        "flow states": _native.FlowStore(_states(store), True),
        "replay log": _native.ReplayStore(log, True),
    }
    if checkpoints is not None:
        files["checkpoints"] = _native.CheckpointStore(places.of(_location(checkpoints)).store)
    return files


def _there(path: Path) -> Path:
    """What the user names has to be there; a default that nothing was written to yet need not."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file or directory")
    return path


def _location(path: Path) -> Path:
    if not (_there(path).is_dir() or places.is_table(path)):
        raise NotADirectoryError(
            f"{path}: checkpoints are in a directory or in a SQLite file, and this is neither"
        )
    return path


@contextmanager
def _told() -> Iterator[None]:
    """One line for what is wrong with a file."""
    try:
        yield
    except (DatabaseError, OSError) as error:
        _console.complain(str(error))
        raise typer.Exit(1) from error
