"""Drives the demo: two processes for each side, one phase at a time, in turns."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, Self

from crewai_native.demo.checks import CHECKS
from crewai_native.demo.phases import PHASES, QUESTIONS
from crewai_native.testing.offline import OFFLINE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SIDES: Final = ("stock", "accelerated")
ACKNOWLEDGED: Final = 20
"""Lines that a process has saved when it is killed."""

_SECONDS_PER_REQUEST: Final = 300.0


class DemoError(Exception):
    """The demo could not be run to its end; the message is for the user."""


@dataclasses.dataclass(slots=True)
class Measurement:
    """What one step took and gave on both sides.

    Attributes:
        name: The step's name, as in :data:`~crewai_native.demo.phases.PHASES`.
        title: The step's name for the reader.
        compares: What its outputs are, for the reader; empty where it has none.
        seconds: Durations per side, one for each repetition.
        outputs: What the user would see, per side, one for each repetition.
        model_calls: Calls of the model in one repetition, on the stock side.
        repeated: Whether it is part of every repetition, or was done once.
    """

    name: str
    title: str
    compares: str = ""
    seconds: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    outputs: dict[str, list[Any]] = dataclasses.field(default_factory=dict)
    model_calls: int = 0
    repeated: bool = True

    def add(self, side: str, seconds: float, output: Any) -> None:
        """Record one repetition of one side."""
        self.seconds.setdefault(side, []).append(seconds)
        self.outputs.setdefault(side, []).append(output)


@dataclasses.dataclass(slots=True)
class Trial:
    """A thing that a memory must get right, and what each side did.

    Attributes:
        title: What is asked of the memory.
        right: Whether a side did that.
        seen: What was seen of a side.
    """

    title: str
    right: dict[str, bool] = dataclasses.field(default_factory=dict)
    seen: dict[str, str] = dataclasses.field(default_factory=dict)

    def add(self, side: str, outcome: dict[str, Any]) -> None:
        """Record what was seen of a side."""
        self.right[side], self.seen[side] = outcome["right"], outcome["seen"]


@dataclasses.dataclass(slots=True)
class Result:
    """Everything that the demo found.

    Attributes:
        crewai: CrewAI's version.
        live: Whether a real model answered.
        status: The accelerated side's account of itself: :meth:`crewai_native.Status.as_json`.
        fresh_status: The same of its second process.
        metrics: What its slots did, as in :func:`crewai_native.metrics`.
        builds: The passports of its native modules, by module.
        imports: Seconds that importing CrewAI took in a fresh process, per side.
        measurements: Durations and outputs by step.
        trials: What each side got right and wrong.
    """

    crewai: str
    live: bool
    status: dict[str, Any] = dataclasses.field(default_factory=dict)
    fresh_status: dict[str, Any] = dataclasses.field(default_factory=dict)
    metrics: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    builds: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    imports: dict[str, float] = dataclasses.field(default_factory=dict)
    measurements: list[Measurement] = dataclasses.field(default_factory=list)
    trials: list[Trial] = dataclasses.field(default_factory=list)

    def calls(self, slot: str) -> int:
        """Return how often a slot was called on the accelerated side."""
        return sum(metrics["calls"] for metrics in self.metrics if metrics["slot"] == slot)


class Process:
    """A worker process, and the conversation with it. A context manager: leaving it ends it.

    Args:
        side: ``stock`` or ``accelerated``.
        live: Whether it uses a real model.
    """

    def __init__(self, side: str, *, live: bool) -> None:
        self._side = side
        environment = {**os.environ, **OFFLINE}
        if not live:
            environment.pop("OPENAI_API_KEY", None)  # offline means offline
        if side == "stock":
            environment["CREWAI_NATIVE"] = "0"
        else:
            environment.pop("CREWAI_NATIVE", None)
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - __exit__ closes it
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-m", "crewai_native.demo.worker", *(["--live"] if live else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            with contextlib.suppress(BrokenPipeError):  # the unsent rest of a request
                if stream is not None:
                    stream.close()

    def do(self, what: str, **arguments: Any) -> Any:
        """Have the process do something, and return the result.

        Raises:
            DemoError: It failed, ended, or took too long.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": what, **arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended(what) from None
        return self._result(what)

    def kill_in(self, what: str, answers: int) -> list[Any]:
        """Have the process do something endless, and kill it after some answers.

        Returns:
            Every result that it had answered before it died.
        """
        results = [self.do(what)]
        while len(results) < answers:
            results.append(self._result(what))
        self.kill()
        assert self._process.stdout is not None
        results += [
            json.loads(line)["result"] for line in self._process.stdout if line[-1:] == "\n"
        ]
        return results

    def kill(self) -> None:
        """End the process at once, as ``kill -9`` does."""
        self._process.kill()
        self._process.wait()

    def _result(self, what: str) -> Any:
        assert self._process.stdout is not None
        alarm = threading.Timer(_SECONDS_PER_REQUEST, self._process.kill)
        alarm.start()
        try:
            line = self._process.stdout.readline()
        finally:
            alarm.cancel()
        if not line:
            raise self._ended(what)
        answer = json.loads(line)
        if "error" in answer:
            raise DemoError(f"the {self._side} process failed at {what}: {answer['error']}")
        return answer["result"]

    def _ended(self, what: str) -> DemoError:
        self._process.wait()
        self._errors.seek(0)
        last = self._errors.read().decode(errors="replace").strip().splitlines()[-1:]
        return DemoError(
            f"the {self._side} process ended at {what} with status {self._process.returncode}"
            + (f": {last[0]}" if last else "")
        )


def run(*, repetitions: int, live: bool, progress: Callable[[str], None]) -> Result:
    """Run the demo.

    Args:
        repetitions: Sessions on each side, each in a fresh storage directory.
        live: Use a real model; nothing is then scripted, and no trials are made.
        progress: Told what is going on.

    Raises:
        DemoError: A process failed.
    """
    with (
        tempfile.TemporaryDirectory(prefix="crewai-native-demo-") as folder,
        contextlib.ExitStack() as stack,
    ):
        storage = _storage(Path(folder))

        def processes(title: str) -> tuple[dict[str, Process], dict[str, Any]]:
            found, started = {}, {}
            for side in SIDES:
                progress(f"{side}: starting {title} process")
                found[side] = stack.enter_context(Process(side, live=live))
                started[side] = found[side].do("start")
            return found, started

        first, started = processes("the first")
        result = Result(started["stock"]["crewai"], live)
        for side in SIDES:
            progress(f"{side}: warming up")
            _warm_up(first[side], next(storage), live=live)
        last = _repeat(result, first, storage, repetitions, progress)
        for side in SIDES:
            if not live:
                progress(f"{side}: trying what stock loses or leaks")
                _try_alone(result, side, first[side], storage)
        accelerated = first["accelerated"].do("status")
        result.status, result.metrics = accelerated["status"], accelerated["metrics"]
        result.builds = accelerated["builds"]
        second, restarted = processes("a fresh")
        result.fresh_status = restarted["accelerated"]["status"]
        _reopen(result, second, restarted, last)
        if not live:
            for side in SIDES:
                progress(f"{side}: two processes on one store, then kill -9")
                _try_together(result, side, first[side], second[side], next(storage))
        return result


def _storage(folder: Path) -> Iterator[str]:
    number = 0
    while True:
        path = folder / str(number)
        path.mkdir()
        yield str(path)
        number += 1


def _warm_up(process: Process, storage: str, *, live: bool) -> None:
    """Load what CrewAI loads on first use, so that no phase pays for it."""
    process.do("session", storage=storage)
    for name in ("note", "recall-deep") if live else ("note", "recall-deep", "kickoff"):
        process.do("phase", name=name)


def _repeat(
    result: Result,
    processes: dict[str, Process],
    storage: Iterator[str],
    repetitions: int,
    progress: Callable[[str], None],
) -> dict[str, str]:
    """Run every phase on both sides in turns; return the storage of the last repetition."""
    phases = [phase for phase in PHASES if not (result.live and phase.name == "kickoff-react")]
    opening = Measurement("open", "open an empty memory")
    result.measurements += [opening, *(Measurement(p.name, p.title, p.compares) for p in phases)]
    places: dict[str, str] = {}
    for repetition in range(1, repetitions + 1):
        # The side that goes first changes, so that no side always has the warmer machine.
        order = SIDES if repetition % 2 else SIDES[::-1]
        for side in order:
            places[side] = next(storage)
            opening.add(side, processes[side].do("session", storage=places[side]), None)
        for measurement in result.measurements[1:]:
            for side in order:
                progress(f"{side}: {measurement.title} ({repetition} of {repetitions})")
                done = processes[side].do("phase", name=measurement.name)
                measurement.add(side, done["seconds"], done["output"])
                if side == "stock":
                    measurement.model_calls = done["model_calls"]
    return places


def _reopen(
    result: Result, processes: dict[str, Process], started: dict[str, Any], places: dict[str, str]
) -> None:
    """Read in fresh processes what the first ones have written."""
    cold, warm = (
        Measurement(name, title, "texts recalled, in order", repeated=False)
        for name, title in (
            ("reopen", "new process: open, first recall"),
            ("reopen-warm", "open again, first recall"),
        )
    )
    for side in SIDES:
        result.imports[side] = started[side]["import_seconds"]
        for measurement in (cold, warm):
            opened = processes[side].do("session", storage=places[side])
            recalled = processes[side].do("recall", question=QUESTIONS[0])
            measurement.add(side, opened + recalled["seconds"], recalled["output"])
    result.measurements += [cold, warm]


def _try_alone(result: Result, side: str, process: Process, storage: Iterator[str]) -> None:
    _trial(result, "recall with categories= finds all that fit").add(side, process.do("filtered"))
    for check in CHECKS:
        process.do("session", storage=next(storage))
        _trial(result, check.title).add(side, process.do("check", name=check.name))


def _try_together(result: Result, side: str, writer: Process, reader: Process, place: str) -> None:
    reader.do("session", storage=place)  # opens the store before anything is in it
    writer.do("session", storage=place)
    writer.do("remember", content="first")
    once = len(reader.do("shared"))
    writer.do("remember", content="second")
    twice = len(reader.do("shared"))
    _trial(result, "a handle sees what another process writes").add(
        side,
        {"right": (once, twice) == (1, 2), "seen": f"sees {once} of 1, then {twice} of 2"},
    )
    acknowledged = writer.kill_in("remember_until_killed", ACKNOWLEDGED)
    reader.do("session", storage=place)
    left = set(reader.do("shared"))
    lost = sum(f"line {number}" not in left for number in acknowledged)
    _trial(result, f"kill -9 after {ACKNOWLEDGED} acknowledged saves").add(
        side, {"right": lost == 0, "seen": f"loses {lost}"}
    )


def _trial(result: Result, title: str) -> Trial:
    for trial in result.trials:
        if trial.title == title:
            return trial
    result.trials.append(Trial(title))
    return result.trials[-1]
