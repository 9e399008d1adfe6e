"""``python -m crewai_native.demo``: a crew on stock CrewAI and accelerated, side by side."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from rich.console import Console

from crewai_native.demo import report
from crewai_native.demo.run import DemoError, run


def main(arguments: list[str] | None = None) -> int:
    """Run the demo.

    Returns:
        The exit status: 0, 1 where the run does not show what it should, 2 where it could not run.
    """
    options = _options(arguments)
    console, errors = Console(), Console(stderr=True)
    if options.live and not os.environ.get("OPENAI_API_KEY"):
        errors.print("demo: --live needs OPENAI_API_KEY in the environment", highlight=False)
        return 2
    try:
        with errors.status("starting") as status:
            result = run(
                repetitions=1 if options.live else options.repetitions,
                live=options.live,
                progress=status.update,
            )
    except DemoError as error:
        errors.print(f"demo: {error}", highlight=False, markup=False)
        return 2
    report.show(result, console)
    if options.json is not None:
        options.json.write_text(json.dumps(report.as_json(result), indent=1) + "\n")
    problems = report.problems(result)
    for problem in problems:
        errors.print(f"demo: {problem}", highlight=False, markup=False)
    return 1 if problems else 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m crewai_native.demo",
        description="Run a crew on stock CrewAI and accelerated, compare answers and times.",
    )
    parser.add_argument(
        "--live", action="store_true", help="ask the real model and embedder (OPENAI_API_KEY)"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the findings to a file too"
    )
    parser.add_argument(
        "--repetitions", type=_positive, default=3, metavar="N", help="runs on each side (3)"
    )
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


if __name__ == "__main__":
    sys.exit(main())
