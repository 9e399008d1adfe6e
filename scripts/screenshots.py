"""Takes the pictures of docs/images: what the commands print, in real runs.

    python scripts/screenshots.py [demo] [list]

Takes as long as `make demo`. Run it on a machine that has nothing else to do.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Final

from rich.console import Console

from crewai_native.cli import _console, _views
from crewai_native.demo import report
from crewai_native.demo.run import run

IMAGES: Final = Path(__file__).parents[1] / "docs" / "images"
WIDTH: Final = 144


def _demo() -> None:
    result = run(repetitions=5, live=False, progress=lambda text: print(text, file=sys.stderr))
    for problem in report.problems(result):
        sys.exit(f"not a run to show: {problem}")
    console = _recording()
    report.show(result, console)
    _save(console, "demo", "make demo")


def _list() -> None:
    console = _recording()
    _console.stdout = lambda: console
    _views.list_slots(as_json=False, every=False)
    _save(console, "list", "crewai-native list")


def _recording() -> Console:
    return Console(
        record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, highlight=False
    )


def _save(console: Console, name: str, title: str) -> None:
    # A fixed id, so that the file changes only where the picture does.
    svg = console.export_svg(title=title, unique_id=name)
    IMAGES.mkdir(parents=True, exist_ok=True)
    (IMAGES / f"{name}.svg").write_text(svg)


if __name__ == "__main__":
    # The demo first, for it measures what other work here would disturb.
    pictures = {"demo": _demo, "list": _list}
    for name in sys.argv[1:] or pictures:
        pictures[name]()
