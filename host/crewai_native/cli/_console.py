"""What the commands share in talking to the user."""

from __future__ import annotations

import json
import os
import shutil
import sys
from typing import TYPE_CHECKING, Any, Final

from crewai_native._types import State

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from rich.console import Console
    from rich.table import Table

WIDE: Final = 140
"""Columns from which on a table has a column for everything."""

STYLES: Final = {
    State.BOUND: "green",
    State.STOCK: "dim",
    State.SHADOWED: "dim",
    State.DISABLED: "dim",
    State.DECLINED: "cyan",
    State.INCOMPATIBLE: "yellow",
    State.TARGET_CHANGED: "yellow",
    State.UNTRUSTED: "yellow",
    State.BROKEN: "bold red",
}


def stdout() -> Console:
    """Return a console for results. Made anew, since standard output may be replaced."""
    from rich.console import Console

    # No markup: reasons and names hold brackets, as in [tool.crewai-native], that mean themselves.
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.width:
        # COLUMNS=0 says that nobody knows, and rich would take it at its word.
        console.width = shutil.get_terminal_size().columns
    return console


def table(*headings: str, title: str | None = None) -> Table:
    """Return an empty table in the common style."""
    from rich import box
    from rich.table import Table

    found = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for heading in headings:
        # Folded, never cut: a path or a reason that lacks its end helps nobody.
        found.add_column(heading, overflow="fold")
    return found


def busy(text: str) -> AbstractContextManager[Any]:
    """Show on a terminal that something takes its time."""
    from rich.console import Console

    return Console(stderr=True).status(text)


def write_json(value: Any) -> None:
    """Print a value as JSON."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def forsake_stdout() -> None:
    """Have nothing more written to standard output, which takes no more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def warn(text: str) -> None:
    """Print one line to standard error."""
    sys.stderr.write(f"crewai-native: warning: {_one_line(text)}\n")


def complain(text: str) -> None:
    """Print the one line of an error."""
    sys.stderr.write(f"crewai-native: error: {_one_line(text)}\n")


def _one_line(text: str) -> str:
    return " ".join(text.split())
