"""The commands and their options. Each imports what it needs when it runs: ``--help`` is quick."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer

from crewai_native import __version__
from crewai_native._errors import CrewAINativeError
from crewai_native.cli import _console
from crewai_native.cli._plugins import Group

if TYPE_CHECKING:
    from collections.abc import Sequence

app = typer.Typer(
    name="crewai-native",
    cls=Group,
    help="Shows and chooses which accelerators serve CrewAI, and measures what they gain.",
    add_completion=False,
    rich_markup_mode=None,  # typer's rich help takes longer to import than all the rest
    pretty_exceptions_enable=False,
)

_NO_ROOM: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}

# Commands that the documentation names, by the wheel that brings them.
_OF_WHEELS: Final = {
    "memory": "crewai-native-memory",
    "db": "crewai-native-db",
    "plan": "crewai-native-tasks",
    "celery": "crewai-native-celery",
}

# typer's own copy of click's ClickException, which has no public name of its own.
_UsageError: Any = typer.BadParameter.__mro__[2]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit.

    Exit status 1 says that something is wrong with what was looked at, 2 that the command or a
    setting means nothing; then standard error has one line that names it.
    """
    _look_only()
    try:
        code = app(args=arguments, prog_name="crewai-native", standalone_mode=False)
        sys.stdout.flush()  # here it can still be told that it fails
    except CrewAINativeError as error:
        _console.complain(str(error))
        code = 2
    except _UsageError as error:
        _console.complain(_with_commands(error))
        code = error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        code = 130
    except BrokenPipeError:
        # Whoever read our output has seen enough; there is nobody to tell.
        _console.forsake_stdout()
        code = 1
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        _console.complain(f"the output cannot be written: {error.strerror}")
        _console.forsake_stdout()
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _with_commands(error: Any) -> str:
    """Return what a usage error says, and where a command is wrong or missing, which there are."""
    message: str = error.format_message()
    if error.ctx is None or not message.startswith(("No such command", "Missing command")):
        return message
    there_are = f"{message} There are: {', '.join(error.ctx.command.list_commands(error.ctx))}"
    if error.ctx.parent is None:
        for command, wheel in _OF_WHEELS.items():
            if message.startswith(f"No such command {command!r}"):
                return f"{there_are}; {command} comes with {wheel}"
    return there_are


def _look_only() -> None:
    """Keep an import of CrewAI in this process from activating: the commands decide that."""
    sys.meta_path[:] = [
        finder
        for finder in sys.meta_path
        if getattr(finder, "__module__", None) != "_crewai_native_hook"
    ]


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"crewai-native {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("list")
def list_(
    as_json: AsJson = False,
    every: Annotated[
        bool, typer.Option("--all", help="Every candidate, not only who serves.")
    ] = False,
) -> None:
    """Show who serves each slot, and why."""
    from crewai_native.cli import _views

    _views.list_slots(as_json=as_json, every=every)


@app.command()
def explain(
    slot: Annotated[str, typer.Argument(metavar="SLOT", help="Such as memory.storage.")],
    as_json: AsJson = False,
) -> None:
    """Tell step by step how it was decided who serves a slot."""
    from crewai_native.cli import _views

    _views.explain(slot, as_json=as_json)


@app.command()
def status(as_json: AsJson = False) -> None:
    """Say in a few lines what is accelerated, and what is not."""
    from crewai_native.cli import _views

    _views.status(as_json=as_json)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Look for what is wrong, from versions to conflicts.

    Exit status 1 when something is.
    """
    from crewai_native.cli import _views

    raise typer.Exit(_views.doctor(as_json=as_json))


@app.command()
def metrics(
    file: Annotated[
        Path | None,
        typer.Argument(help="What a program wrote; by default the file of the setting `metrics`."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show calls and latencies of programs that have ended.

    They are kept where the setting `metrics` names a file, as `crewai-native run --metrics FILE`
    does. A running program has them as crewai_native.metrics().
    """
    from crewai_native.cli import _views

    _views.metrics(file, as_json=as_json)


@app.command()
def fingerprints(
    as_json: AsJson = False,
    refresh: Annotated[
        bool,
        typer.Option("--refresh", help="Record the installed CrewAI's code as tested."),
    ] = False,
) -> None:
    """Show which code of CrewAI the slots replace, and know.

    Exit status 1 when some of it is not code that was tested.
    """
    from crewai_native.cli import _views

    raise typer.Exit(_views.fingerprints(as_json=as_json, refresh=refresh))


@app.command()
def lock(
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit status 1 where it differs.")
    ] = False,
) -> None:
    """Pin the installed accelerators, for trust = "locked"."""
    from crewai_native.cli import _views

    raise typer.Exit(_views.lock(check=check))


@app.command()
def bench(
    patterns: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PATTERN]...", help="Groups, slots or patterns; all by default."),
    ] = None,
    *,
    list_only: Annotated[
        bool, typer.Option("--list", help="List the cases, measure none.")
    ] = False,
    seconds: Annotated[
        float, typer.Option(min=0.1, max=3600, help="Time for the rounds of each case.")
    ] = 5.0,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="A B",
            help="Two sides of the cases, such as stock native; or two files written with --json, "
            "of which the ratios are compared.",
        ),
    ] = None,
    to_json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the results.")
    ] = None,
    chart: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Draw the ratios.")] = None,
) -> None:
    """Measure the accelerators against stock CrewAI.

    Exit status 1 when a case failed, such as by differing results.
    """
    from crewai_native.cli import _bench

    code = _bench.bench(
        patterns or [],
        list_only=list_only,
        seconds=seconds,
        compare=compare,
        to_json=to_json,
        chart=chart,
    )
    raise typer.Exit(code)


@app.command(context_settings={"allow_interspersed_args": False})
def run(
    command: Annotated[
        list[str], typer.Argument(metavar="COMMAND", help="The program and its arguments.")
    ],
    *,
    slot: Annotated[
        list[str] | None,
        typer.Option(metavar="SLOT=PROVIDER", help="Who serves a slot: a distribution, or stock."),
    ] = None,
    off: Annotated[
        list[str] | None, typer.Option(metavar="COMPONENT", help="Switch a component off.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="COMPONENT", help="Switch all others off.")
    ] = None,
    stock: Annotated[bool, typer.Option("--stock", help="Switch everything off.")] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail where a slot should be bound and is not.")
    ] = False,
    verify: Annotated[
        str | None,
        typer.Option(metavar="SHARE", help="Compare this share of the calls with stock, 0 to 1."),
    ] = None,
    metrics: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep each process's metrics as it exits.")
    ] = None,
) -> None:
    """Run a program with a chosen configuration.

    The program takes this process's place: signals and its exit status are its own.
    """
    from crewai_native.cli import _run

    _run.run(
        command,
        _run.environment(
            slots=slot or [],
            off=off or [],
            only=only or [],
            stock=stock,
            strict=strict,
            verify=verify,
            metrics=metrics,
        ),
    )


@app.command("new-plugin")
def new_plugin(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The distribution's, such as acme-tool-cache.")
    ],
    *,
    slot: Annotated[str, typer.Option(metavar="SLOT", help="What it serves, such as tools.cache.")],
    kind: Annotated[
        str, typer.Option(metavar="rust|python", help="What it is written in.")
    ] = "python",
    into: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where to; by default ./NAME.")
    ] = None,
    author: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Who holds the copyright.")
    ] = None,
    sdk_path: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Build with the crate crewai-native-sdk that is here."),
    ] = None,
) -> None:
    """Begin an accelerator: a project that builds and is bound."""
    from crewai_native import new_plugin as _new_plugin

    given = {"name": name, "slot": slot, "kind": kind}
    if author is not None:
        given["author"] = author
    if sdk_path is not None:
        given["sdk_path"] = str(sdk_path.resolve())
    folder = into or Path(name)
    _new_plugin.render(_new_plugin.template(), folder, given)
    typer.echo(f"{folder}: README.md says what is where, `pytest` whether it keeps its contract")
