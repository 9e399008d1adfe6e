"""Runs cases: one worker process for each plug-in, the sides interleaved round by round.

A machine's speed drifts from minute to minute and jumps when something else wakes up. So within a
round every side is timed once, close together and in a random order, and a ratio is the median of
the rounds' ratios: what hits a whole round cancels out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import json
import os
import platform
import queue
import random
import subprocess
import sys
import tempfile
import threading
import time
from typing import TYPE_CHECKING, Any, Final, Self

import crewai_native
from crewai_native import _children, _discovery, _roster
from crewai_native._errors import ConfigurationError
from crewai_native.bench import _stats
from crewai_native.bench._results import Comparison, Outcome, Report, Result, Subject, Timing
from crewai_native.bench._worker import HOST

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType

    from crewai_native._settings import Settings

_MOST_ROUNDS: Final = 300
# Rounds end before the time is up when every ratio is known as closely as this.
_CLOSE_ENOUGH: Final = 0.01
_FIRST_ANSWER: Final = 120.0  # importing a plug-in may import CrewAI, on a slow disk

_CHILD: Final = """
import json, sys
sys.path[:] = json.loads(sys.stdin.readline())
plugin = json.loads(sys.stdin.readline())
from crewai_native.bench import _worker
_worker.serve(plugin)
"""

# CrewAI's reports of its use go to the network, on threads whose work would count on either side.
_QUIET: Final = {
    "CREWAI_DISABLE_TELEMETRY": "true",
    "CREWAI_TRACING_ENABLED": "false",
    "OTEL_SDK_DISABLED": "true",
}


class _Failure(Exception):  # noqa: N818 - it becomes a finding
    """A worker could not do what it was asked."""


class _Worker:
    """A child process that times the cases of one plug-in."""

    def __init__(self, plugin: str) -> None:
        # A worker is killed, and cannot remove what its cases have stored: gigabytes, for some.
        self._scratch = tempfile.TemporaryDirectory(
            prefix="crewai-native-bench-", ignore_cleanup_errors=True
        )
        scratch = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), self._scratch.name)
        # Cases choose by themselves what is served by whom.
        environment = {**_QUIET, **os.environ, "CREWAI_NATIVE": "0", **scratch}
        self._closed = False
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._child = subprocess.Popen(  # noqa: S603 - this interpreter, running the text above
            [sys.executable, "-P", "-c", _CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            start_new_session=True,
        )
        self._answers: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()
        self._send(sys.path)
        self._send(plugin)

    def ask(self, op: str, timeout: float, **arguments: Any) -> dict[str, Any]:
        """Have something done.

        Raises:
            _Failure: It went wrong, took too long, or ended the process.
        """
        try:
            self._send({"op": op, **arguments})
            line = self._answers.get(timeout=timeout)
        except BrokenPipeError:
            line = None
        except queue.Empty:
            self.close()
            raise _Failure(f"{op} did not end within {timeout:g} s") from None
        if line is None:
            raise _Failure(f"{op} ended the process with {self._ending()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise _Failure(answer["error"])
        return answer

    @property
    def alive(self) -> bool:
        """Whether it can still be asked."""
        return not self._closed and self._child.poll() is None

    def close(self) -> None:
        """End the process and whatever it has started, and remove what it has left."""
        if self._closed:
            return
        self._closed = True
        _children.kill(self._child)
        self._errors.close()
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # a request it did not read any more
            self._child.stdin.close()
        self._scratch.cleanup()

    def _send(self, message: Any) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(message).encode() + b"\n")
        self._child.stdin.flush()

    def _listen(self) -> None:
        assert self._child.stdout is not None
        with self._child.stdout as answers:
            for line in answers:
                self._answers.put(line)
        self._answers.put(None)

    def _ending(self) -> str:
        code = self._child.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(said) if line.strip()), "")
        return _children.ending(code) + (f" ({last})" if last else "")


class _Workers:
    """The workers of one plug-in: one that sides share, and one for each isolated side."""

    def __init__(self, plugin: str) -> None:
        self._plugin = plugin
        self._running: dict[str, _Worker] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    def of(self, side: str) -> _Worker:
        """Return the worker of an isolated side, or, for an empty name, the shared one."""
        worker = self._running.get(side)
        if worker is not None and worker.alive:
            return worker
        if worker is not None:
            worker.close()
        self._running[side] = _Worker(self._plugin)
        return self._running[side]

    def end(self) -> None:
        """End all of them."""
        for worker in self._running.values():
            worker.close()
        self._running.clear()


class Bench:
    """Finds cases, chooses among them, and measures.

    Args:
        settings: Which plug-ins may be loaded.
    """

    def __init__(self, settings: Settings) -> None:
        self.report = Report(_environment())
        self.subjects: list[Subject] = []
        roster = _roster.roster(settings)
        for distribution, problem in roster.problems:
            self.report.problems.append(f"{distribution}: {problem}")
        self._collect(HOST, "crewai-native")
        for offer in roster.sound:
            self._collect(offer.value, offer.candidate.distribution)

    def _collect(self, plugin: str, distribution: str) -> None:
        with _Workers(plugin) as workers:
            try:
                answer = workers.of("").ask("cases", _FIRST_ANSWER)
            except _Failure as failure:
                self.report.problems.append(f"{distribution}: its benchmarks: {failure}")
                return
        self.subjects += [Subject(**case) for case in answer["cases"]]
        for module, build in answer["builds"].items():
            self.report.environment["builds"][module] = build
            if build.get("profile") == "debug":
                self.report.problems.append(
                    f"{distribution}: {module} is a debug build; its figures say nothing"
                )

    def select(self, patterns: Sequence[str], sides: Sequence[str] = ()) -> list[Subject]:
        """Choose cases.

        Args:
            patterns: Groups, slots, or shell-style patterns of names; none chooses all.
            sides: Measure only these sides, the first being the base; cases without are left out.

        Raises:
            ConfigurationError: A pattern fits no case, or no case has these sides.
        """
        chosen = []
        for pattern in patterns:
            fitting = [subject for subject in self.subjects if _fits(pattern, subject)]
            if not fitting:
                groups = sorted({subject.group for subject in self.subjects})
                raise ConfigurationError(
                    f"no benchmark fits {pattern!r}; it accepts a slot, a pattern such as "
                    f"'memory.*' (see `crewai-native bench --list`), or a group: "
                    f"{', '.join(groups)}"
                )
            chosen += [subject for subject in fitting if subject not in chosen]
        chosen = chosen if patterns else list(self.subjects)
        if not sides:
            return chosen
        having = [_narrowed(s, sides) for s in chosen if set(sides) <= set(s.sides)]
        if not having:
            known = sorted({side for subject in chosen for side in subject.sides})
            raise ConfigurationError(
                f"--compare: no benchmark has the sides {' and '.join(sides)}; there are: "
                f"{', '.join(known)}, or two files written with --json"
            )
        return having

    def run(
        self, subjects: Iterable[Subject], seconds: float, progress: Callable[[Subject], None]
    ) -> Report:
        """Measure.

        Args:
            subjects: What.
            seconds: Time for the rounds of each case. The fewest rounds that give an interval are
                made however long they take.
            progress: Told of each case before it starts.
        """
        by_plugin: dict[str, list[Subject]] = {}
        for subject in subjects:
            by_plugin.setdefault(subject.plugin, []).append(subject)
        for plugin, cases in by_plugin.items():
            with _Workers(plugin) as workers:
                for subject in cases:
                    progress(subject)
                    self.report.results.append(_measure(subject, workers, seconds))
        return self.report


def _fits(pattern: str, subject: Subject) -> bool:
    name = subject.id.partition("[")[0]
    # Brackets belong to a case's parameters; only * and ? mean something here.
    literal = pattern.replace("[", "[[]")
    return pattern in {subject.group, subject.slot, subject.id, name} or fnmatch.fnmatchcase(
        subject.id, literal
    )


def _narrowed(subject: Subject, sides: Sequence[str]) -> Subject:
    return dataclasses.replace(
        subject,
        sides=list(sides),
        isolated=[side for side in subject.isolated if side in sides],
        # They are promises about native against the first side.
        target=subject.target if list(sides) == [subject.sides[0], "native"] else None,
        limit=subject.limit if list(sides) == [subject.sides[0], "native"] else None,
    )


def _measure(subject: Subject, workers: _Workers, seconds: float) -> Result:
    result = Result(subject)
    try:
        side_workers = {
            side: workers.of(side if side in subject.isolated else "") for side in subject.sides
        }
        found = {}
        for side, worker in side_workers.items():
            answer = _ask(worker, subject, side, "open")
            if "unavailable" in answer:
                result.unavailable[side] = answer["unavailable"]
            else:
                found[side] = answer["result"]
        sides = list(found)
        if not sides or (len(sides) == 1 and len(subject.sides) > 1):
            result.outcome = Outcome.SKIPPED
            result.reason = "; ".join(f"{s}: {why}" for s, why in result.unavailable.items())
        else:
            if subject.compared:
                differing = _check(workers.of(""), subject, found)
                result.unavailable.update(differing)
                sides = [side for side in sides if side not in differing]
            _time(result, {side: side_workers[side] for side in sides}, seconds)
        for worker in set(side_workers.values()):
            worker.ask("close", subject.timeout)
    except _Failure as failure:
        result.outcome, result.reason = Outcome.FAILED, str(failure)
        # What it has set up is in an unknown state; the next case starts afresh.
        workers.end()
    return result


def _check(worker: _Worker, subject: Subject, results: dict[str, Any]) -> dict[str, str]:
    """Compare what the sides gave; return the rivals that gave something else, and what.

    A rival may be an approximation. It is not measured then; native and the first side still are.

    Raises:
        _Failure: Native, or the side that all are compared with, gave something else.
    """

    def difference(of: dict[str, Any]) -> str | None:
        answer = worker.ask("check", subject.timeout, case=subject.id, results=of)
        found: str | None = answer["difference"]
        return found

    found = difference(results)
    if found is None:
        return {}
    first = next(iter(results))
    rivals = [side for side in results if side not in {first, "native"}]
    ours = {side: result for side, result in results.items() if side not in rivals}
    if rivals and len(ours) > 1 and difference(ours) is None:
        pairs = {side: {first: results[first], side: results[side]} for side in rivals}
        apart = {side: said for side, pair in pairs.items() if (said := difference(pair))}
        if apart:
            return apart
    what = "the results differ" if len(results) > 1 else "the result is wrong"
    raise _Failure(f"{what}: {found}")


def _ask(worker: _Worker, subject: Subject, side: str, op: str, **arguments: Any) -> dict[str, Any]:
    try:
        return worker.ask(op, subject.timeout, case=subject.id, side=side, **arguments)
    except _Failure as failure:
        raise _Failure(f"{side}: {failure}") from None


def _time(result: Result, workers: dict[str, _Worker], seconds: float) -> None:
    subject = result.subject
    sides = list(workers)
    loops = {
        side: _ask(worker, subject, side, "calibrate")["loops"] for side, worker in workers.items()
    }
    rounds: dict[str, list[float]] = {side: [] for side in sides}
    shuffled = list(sides)
    order = random.Random(subject.id)  # noqa: S311 - not for secrets; the same order every time
    end = time.monotonic() + seconds
    for done in range(1, _MOST_ROUNDS + 1):
        order.shuffle(shuffled)
        for side in shuffled:
            answer = _ask(workers[side], subject, side, "time", loops=loops[side])
            rounds[side].append(answer["value"] / loops[side])
        if done < _stats.LEAST_ROUNDS:
            continue
        result.comparisons = [_compare(side, sides[0], rounds) for side in sides[1:]]
        if time.monotonic() >= end or _close_enough(result.comparisons):
            break
    for side in sides:
        low, middle, high = _stats.quartiles(rounds[side])
        result.timings.append(Timing(side, middle, low, high, loops[side], rounds[side]))
    result.reached = _reached(result)


def _compare(side: str, base: str, rounds: dict[str, list[float]]) -> Comparison:
    pairs = list(zip(rounds[base], rounds[side], strict=True))
    return Comparison(
        side,
        base,
        _stats.median([first / second for first, second in pairs]),
        _stats.median([second - first for first, second in pairs]),
    )


def _close_enough(comparisons: list[Comparison]) -> bool:
    return bool(comparisons) and all(
        c.ratio.high - c.ratio.low <= 2 * _CLOSE_ENOUGH * c.ratio.value for c in comparisons
    )


def _reached(result: Result) -> bool | None:
    """Return whether native kept its promise."""
    subject = result.subject
    against = result.comparison("native")
    if against is not None:
        # A target compared with a base that could not run is no target.
        if against.base != subject.sides[0]:
            return None
        if subject.target is not None:
            return against.ratio.value >= subject.target
        if subject.limit is not None:
            return against.difference.value <= subject.limit
    elif subject.limit is not None and subject.sides == ["native"]:
        return result.timings[0].median <= subject.limit
    return None


def _environment() -> dict[str, Any]:
    return {
        "crewai_native": crewai_native.__version__,
        "crewai": _discovery.crewai_version(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "builds": {},
    }
