"""Runs CrewAI's own tests on stock CrewAI and with every installed accelerator bound, and compares.

Called by ``scripts/crewai-suite``, in the environment that it prepares. Exit status 1 when a test
ends differently and ``known_differences.toml`` does not say why, when something listed there no
longer differs, or when nothing was bound. A test that fails on stock CrewAI and passes with
accelerators, such as one that needs a newer SQLite, is told and needs no reason.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

_HERE: Final = Path(__file__).parent
_REPEATS: Final = 3
"""How often modules with a difference are run again, on both sides, to tell chance from cause."""

_SIDES: Final = ("stock", "bound")


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """One side's run.

    Attributes:
        outcomes: ``passed``, ``failed`` or ``skipped`` by the test's id.
        why: The error of each failed test, in a line.
        bound: Who served each slot.
        calls: Calls that reached each slot's provider.
    """

    outcomes: dict[str, str]
    why: dict[str, str]
    bound: dict[str, str]
    calls: Counter[str]

    def count(self, outcome: str) -> int:
        """Return how many tests ended so."""
        return sum(1 for found in self.outcomes.values() if found == outcome)


class Suite:
    """CrewAI's tests, unpacked once for each side: they write into their own folder.

    Args:
        tests: The folder ``tests`` of CrewAI's source distribution.
        scratch: Where copies, home directories and results go.
        workers: Processes of each run.
    """

    def __init__(self, tests: Path, scratch: Path, workers: int) -> None:
        self._tests = tests
        self._scratch = scratch
        self._workers = workers

    def run(self, side: str, name: str, arguments: list[str]) -> Run:
        """Run tests on one side.

        Args:
            side: ``stock`` or ``bound``.
            name: Names the folder of the results, below the side's own.
            arguments: Of pytest: paths below ``tests``, ``-k`` and its like.

        Raises:
            SystemExit: pytest itself failed.
        """
        place = self._scratch / side
        # Tests look for what lies two folders further up in CrewAI's repository.
        root, home, report = place / "lib" / "crewai", place / "home", place / name
        for folder in (root, home, report):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        shutil.copytree(self._tests, root / "tests")
        shutil.copy(_HERE / "pytest.ini", root)
        shutil.copy(_HERE / "root_conftest.py", root / "conftest.py")
        command = [
            *(sys.executable, "-m", "pytest", "--quiet", "--disable-warnings"),
            *("-n", str(self._workers), "--dist", "loadfile"),
            *arguments,
        ]
        with (report / "output.txt").open("w") as output:
            status = subprocess.run(
                command,
                cwd=root,
                env=self._environment(side, home, report),
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            ).returncode
        if status not in (0, 1) or not (report / "results.json").exists():
            raise SystemExit(f"pytest ended with status {status}: see {report / 'output.txt'}")
        return _read(report)

    @staticmethod
    def _environment(side: str, home: Path, report: Path) -> dict[str, str]:
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("CREWAI")
        }
        environment |= {
            "CREWAI_SUITE_REPORT": str(report),
            "HOME": str(home),
        }
        if side == "stock":
            environment["CREWAI_NATIVE"] = "0"
        return environment


def _read(report: Path) -> Run:
    results: dict[str, dict[str, str]] = json.loads((report / "results.json").read_text())
    bound: dict[str, str] = {}
    calls: Counter[str] = Counter()
    for file in report.glob("slots-*.json"):
        process: dict[str, Any] = json.loads(file.read_text())
        bound |= process["bound"]
        calls.update(process["calls"])
    return Run(
        {test: result["outcome"] for test, result in results.items()},
        {test: result["why"] for test, result in results.items()},
        bound,
        calls,
    )


def differing(stock: Run, bound: Run) -> list[str]:
    """Return the tests that did not end alike, in the order of their names."""
    tests = stock.outcomes.keys() | bound.outcomes.keys()
    return sorted(t for t in tests if stock.outcomes.get(t) != bound.outcomes.get(t))


def known_differences() -> dict[str, str]:
    """Return the reason of each difference that is meant to be."""
    entries = tomllib.loads((_HERE / "known_differences.toml").read_text())["difference"]
    return {test: entry["reason"] for entry in entries for test in entry["tests"]}


def steady(suite: Suite, tests: list[str], first: dict[str, Run]) -> dict[str, bool]:
    """Say of each test whether it ends differently every time that its module runs.

    A module is run whole: a test may rely on those before it. A test that failed by chance on the
    bound side alone passes in every repeat; one that fails there only now and then, and never on
    stock, differs.
    """
    modules = sorted({test.partition("::")[0] for test in tests})
    runs = {side: [first[side]] for side in _SIDES}
    for repeat in range(1, _REPEATS + 1):
        for side in _SIDES:
            runs[side].append(suite.run(side, f"repeat-{repeat}", modules))
    verdicts = {}
    for test in tests:
        stock, bound = ([run.outcomes.get(test) for run in runs[side]] for side in _SIDES)
        again = any(outcome not in stock for outcome in bound[1:])
        verdicts[test] = again and len(set(stock)) == 1
    return verdicts


def main() -> int:
    """Run both sides, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("tests", type=Path, help="CrewAI's folder of tests")
    parser.add_argument("scratch", type=Path, help="where to run them")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    options, arguments = parser.parse_known_args()
    suite = Suite(options.tests.resolve(), options.scratch.resolve(), options.workers)
    console = Console()

    runs = {}
    for side in _SIDES:
        console.print(f"running on {side} …")
        runs[side] = suite.run(side, "results", arguments or ["tests"])
    stock, bound = runs["stock"], runs["bound"]
    reasons = known_differences()
    found = differing(stock, bound)
    mended = [test for test in found if test not in reasons and _mended(test, stock, bound)]
    unknown = [test for test in found if test not in reasons and test not in mended]
    verdicts = steady(suite, unknown, runs) if unknown else {}
    unexplained = [test for test in unknown if verdicts[test]]
    stale = [test for test in reasons if test in bound.outcomes and test not in found]

    _print(console, stock, bound)
    labels = (
        dict.fromkeys(found, "by chance")
        | dict.fromkeys(reasons, "known")
        | dict.fromkeys(mended, "mended")
        | dict.fromkeys(unexplained, "UNEXPLAINED")
    )
    counts = Counter(labels[test] for test in found)
    kinds = ("known", "mended", "by chance", "UNEXPLAINED")
    console.print("differences: " + ", ".join(f"{counts[kind]} {kind}" for kind in kinds))
    for test in found:
        ends = " -> ".join(run.outcomes.get(test, "missing") for run in (stock, bound))
        console.print(
            f"{labels[test]}: {test}: {ends}", markup=False, highlight=False, soft_wrap=True
        )
        why = reasons.get(test) or bound.why.get(test) or stock.why.get(test, "")
        console.print(f"    {why}", markup=False, highlight=False, soft_wrap=True)
    for test in stale:
        console.print(f"listed as a known difference, but ends alike: {test}", soft_wrap=True)
    if not bound.bound:
        console.print("nothing was bound: the comparison shows nothing")
    return 1 if unexplained or stale or not bound.bound else 0


def _mended(test: str, stock: Run, bound: Run) -> bool:
    return (stock.outcomes.get(test), bound.outcomes.get(test)) == ("failed", "passed")


def _print(console: Console, stock: Run, bound: Run) -> None:
    table = Table("", "tests", "passed", "failed", "skipped")
    for name, run in (("stock", stock), ("bound", bound)):
        counts = (run.count(outcome) for outcome in ("passed", "failed", "skipped"))
        table.add_row(name, str(len(run.outcomes)), *map(str, counts))
    console.print(table)
    served = Table("slot", "served by", "calls")
    for slot, provider in bound.bound.items():
        served.add_row(slot, provider, str(bound.calls[slot]))
    console.print(served)


if __name__ == "__main__":
    sys.exit(main())
