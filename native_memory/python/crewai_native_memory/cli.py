"""``crewai-native memory``: looking after memory stores. All of it works on a store in use."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator  # noqa: TC003 - typer evaluates the annotations
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal

from crewai_native.cli import _console
from crewai_native_memory import StoreError, exports, imports, plugin, sources
from crewai_native_memory.storage import NativeStorage

app = typer.Typer(help="Look after memory stores: sizes, checks, copies, moving over.")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
AStore = Annotated[
    Path | None,
    typer.Option(
        "--store", help="The store's file or directory; CrewAI's default place if absent."
    ),
]


@app.command()
def stats(store: AStore = None, as_json: AsJson = False) -> None:
    """Show what a store holds and how much room it takes."""
    with _told():
        storage = _open(store)
        if store is not None:
            _existing(storage)
        sizes = storage.stats()._asdict()
        rows = {
            "path": storage.path,
            **sizes,
            "embedder": storage.note("embedder"),
            "imported": storage.note("import"),
            "categories": storage.list_categories(),
            "scopes": {scope: storage.count(scope) for scope in ("/", *storage.list_scopes("/"))},
        }
    if as_json:
        _console.write_json(rows)
        return
    table = _console.table("", "")
    for name in ("path", "records", "vectors", "dimension", "embedder", "imported"):
        table.add_row(name, "-" if rows[name] is None else str(rows[name]))
    for name in ("file", "log", "free"):
        table.add_row(name, decimal(sizes[name]))
    _console.stdout().print(table)
    for name in ("scopes", "categories"):
        counted = _console.table(name, "records")
        for key, count in sorted(rows[name].items(), key=lambda item: (-item[1], item[0]))[:20]:
            counted.add_row(key, str(count))
        if counted.row_count:
            _console.stdout().print(counted)


@app.command()
def check(store: AStore = None, as_json: AsJson = False) -> None:
    """Read everything in a store and compare it with its checksums and counts.

    Exit status 1 when something does not add up.
    """
    with _told():
        storage = _open(store)
        _existing(storage)
        problems = storage.check()
    if as_json:
        _console.write_json({"path": storage.path, "problems": problems})
    else:
        for problem in problems:
            _console.complain(f"{storage.path}: {problem}")
        if not problems:
            typer.echo(f"{storage.path}: {storage.count()} records, all as they should be")
    raise typer.Exit(1 if problems else 0)


@app.command()
def compact(store: AStore = None, as_json: AsJson = False) -> None:
    """Give the room of what was deleted back to the file system."""
    with _told():
        storage = _open(store)
        _existing(storage)
        before = storage.stats()
        storage.optimize()
        after = storage.stats()
    freed = before.file + before.log - after.file - after.log
    if as_json:
        _console.write_json({"path": storage.path, "file": after.file, "freed": freed})
    else:
        typer.echo(f"{storage.path}: {decimal(after.file)}, {decimal(max(freed, 0))} freed")


@app.command()
def backup(to: Annotated[Path, typer.Argument(help="The new file.")], store: AStore = None) -> None:
    """Copy a store, as it is at this moment, to a new file that is a store itself."""
    with _told():
        storage = _open(store)
        _existing(storage)
        storage.backup(to)
        typer.echo(f"{to}: {NativeStorage(to).count()} records")


@app.command("import")
def import_(
    source: Annotated[
        Path | None,
        typer.Argument(
            help="A LanceDB or Qdrant-edge directory of CrewAI's, or a .jsonl file; CrewAI's "
            "default place if absent."
        ),
    ] = None,
    store: AStore = None,
    as_json: AsJson = False,
) -> None:
    """Bring the records of another store over; those that are here already stay as they are.

    The other store is only read. After an interruption, running it again brings what is missing; what
    has been forgotten here and is still there comes back.
    """
    with _told():
        found = sources.open_source(sources.default_directory() if source is None else source)
        storage = _open(store)
        report = imports.bring(storage, found)
        if source is None and store is None:
            imports.remember(storage, found, "done", left=len(report.left))
    if as_json:
        _console.write_json({"path": storage.path, **dataclasses.asdict(report)})
        return
    typer.echo(f"{storage.path}: {report}")


@app.command()
def export(
    to: Annotated[
        Path,
        typer.Argument(help="A new .jsonl file, or a directory for a new LanceDB store."),
    ],
    store: AStore = None,
) -> None:
    """Write every record to a JSON Lines file or into a LanceDB store that CrewAI can use."""
    with _told():
        storage = _open(store)
        _existing(storage)
        if to.suffix.lower() == ".jsonl":
            count = exports.export_json_lines(storage, to)
        else:
            count = exports.export_lance(storage, to)
        typer.echo(f"{to}: {count} records")


@app.command()
def reembed(
    embedder: Annotated[
        str,
        typer.Argument(
            help="CrewAI's embedder configuration as JSON, a provider's name, or module:function."
        ),
    ],
    store: AStore = None,
) -> None:
    """Exchange every vector for another embedder's.

    The store stays in use; the old vectors serve until all new ones are there. After an
    interruption, running it again goes on where it stopped.
    """
    from crewai_native_memory.reembed import load_embedder
    from crewai_native_memory.reembed import reembed as exchange

    with _told():
        storage = _open(store)
        _existing(storage)
        with _naming(embedder):
            function = load_embedder(embedder)
        with _naming(
            embedder, "; what it has embedded is kept, and the same command goes on there"
        ):
            count = exchange(storage, function)
        typer.echo(
            f"{storage.path}: {count} records embedded, by {storage.note('embedder')}, "
            f"{storage.stats().dimension} dimensions"
        )


def _open(place: Path | None) -> NativeStorage:
    # Looking at a store must not begin an import.
    return plugin.open_store(None if place is None else str(place))


def _existing(storage: NativeStorage) -> None:
    if not Path(storage.path).exists():
        raise FileNotFoundError(2, "there is no store", storage.path)


class _EmbedderError(Exception):
    """An embedder's own failure; it may raise anything."""


@contextmanager
def _naming(embedder: str, hint: str = "") -> Iterator[None]:
    """Name the embedder in whatever it raises."""
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        message = str(error)
        if isinstance(error, ValueError) and message.startswith(("embedder ", "the embedder ")):
            raise  # ours, which name it
        if isinstance(error, OSError) and error.filename is not None:
            raise  # the store's, or a file that is named
        raise _EmbedderError(
            f"embedder {embedder}: {type(error).__name__}: {message}{hint}"
        ) from error


@contextmanager
def _told() -> Iterator[None]:
    """Turn what can go wrong into one line and exit status 1."""
    try:
        yield
    except (StoreError, OSError, ValueError, sources.MoveError, _EmbedderError) as error:
        _console.complain(str(error))
        raise typer.Exit(1) from error
