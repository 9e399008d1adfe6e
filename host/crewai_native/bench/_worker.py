"""The process that times: sets cases up and runs them at the word of the runner.

Requests come as lines of JSON on standard input, answers go as such to what was standard output.
What cases print goes to standard error, so that it cannot be taken for an answer.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from crewai_native._errors import CrewAINativeError
from crewai_native.bench._case import Case, Measured, Unavailable
from crewai_native.bench._results import Subject

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HOST: Final = "crewai_native.bench._own"
"""Stands for the host's own cases where a plug-in's entry-point value is asked for."""

# A timed batch is long beside the clock's resolution and the cost of a loop, and short beside the
# minutes over which a machine's speed drifts.
_BATCH: Final = 0.02
_MOST_LOOPS: Final = 10_000_000


class Worker:
    """Holds the cases of one plug-in, and what is set up of them."""

    def __init__(self, plugin: str) -> None:
        self._plugin = plugin
        self._cases = {case.id: case for case in _cases(plugin)}
        self._open: dict[str, tuple[contextlib.ExitStack, Callable[[], Any]]] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what a request asks."""
        match request.pop("op"):
            case "cases":
                return {
                    "cases": [_subject(case, self._plugin) for case in self._cases.values()],
                    "builds": _builds(self._plugin),
                }
            case "open":
                return self._opened(**request)
            case "check":
                return self._checked(**request)
            case "calibrate":
                return self._calibrated(**request)
            case "time":
                return self._timed(**request)
            case "close":
                return self._closed()
            case other:
                raise ValueError(f"unknown request {other!r}")

    def _opened(self, case: str, side: str) -> dict[str, Any]:
        subject = self._cases[case]
        stack = contextlib.ExitStack()
        try:
            run = _set_up(subject, side, stack)
            result = run()
        except Unavailable as reason:
            stack.close()
            return {"unavailable": str(reason)}
        except BaseException:
            stack.close()
            raise
        if subject.fresh:
            stack.close()
        else:
            self._open[side] = stack, run
        if subject.check is None:
            return {"result": None}
        if isinstance(result, Measured):
            result = result.result
        if subject.observe is not None:
            result = subject.observe(result)
        try:
            json.dumps(result)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"the result cannot be compared as JSON ({error}); set observe"
            ) from None
        return {"result": result}

    def _checked(self, case: str, results: dict[str, Any]) -> dict[str, Any]:
        check = self._cases[case].check
        return {"difference": None if check is None else check(results)}

    def _calibrated(self, case: str, side: str) -> dict[str, Any]:
        if self._cases[case].fresh:
            return {"loops": 1}
        run = self._open[side][1]
        loops = 1
        while True:
            start = time.perf_counter()
            seconds = _time(run, loops)
            # Of runs that measure by themselves, what they do not count is waited for as well. What
            # is no time is a large number here, and one run of it is a batch.
            seconds = max(seconds, time.perf_counter() - start)
            if seconds >= _BATCH or loops >= _MOST_LOOPS:
                return {"loops": loops}
            # Ten times more at most: a first short batch says little.
            loops = min(10 * loops, max(loops + 1, int(1.2 * loops * _BATCH / seconds)))

    def _timed(self, case: str, side: str, loops: int) -> dict[str, Any]:
        subject = self._cases[case]
        if not subject.fresh:
            return {"value": _time(self._open[side][1], loops)}
        with contextlib.ExitStack() as stack:
            return {"value": _time(_set_up(subject, side, stack), 1)}

    def _closed(self) -> dict[str, Any]:
        with contextlib.ExitStack() as stacks:
            for stack, _ in self._open.values():
                stacks.push(stack)
            self._open.clear()
        return {}


def _set_up(case: Case, side: str, stack: contextlib.ExitStack) -> Callable[[], Any]:
    found: Any = case.setup(side)
    run = stack.enter_context(found) if hasattr(found, "__enter__") else found
    if not callable(run):
        raise TypeError(
            f"setup({side!r}) gave {type(run).__name__!r}; it accepts a callable, or a context "
            "manager that gives one"
        )
    return run


def _time(run: Callable[[], Any], loops: int) -> float:
    """Return the seconds that a number of runs take together, or the sum of what they measured."""
    clock = time.perf_counter
    others = itertools.repeat(None, loops - 1)  # iterates with less overhead than range
    start = clock()
    result = run()
    if isinstance(result, Measured):
        return result.value + sum(run().value for _ in others)
    for _ in others:
        result = run()
    return max(clock() - start, 1e-9)  # a clock with coarse ticks may not have moved


def _cases(plugin: str) -> Iterator[Case]:
    """Return a plug-in's cases.

    Raises:
        TypeError: It contributes something that is no case.
        ValueError: Two of its cases have one name.
    """
    if plugin == HOST:
        from crewai_native.bench import _own

        contributed = _own.cases()
    else:
        from crewai_native import _roster, _settings
        from crewai_native._plugins import Plugins

        offer = _roster.find(plugin)
        loaded = Plugins().load(offer)
        # What is measured are the defaults, not this project's settings: of its options, only
        # those that say what to measure reach the plug-in.
        options = _settings.load().options.get(_settings.component_of(offer.candidate.slot), {})
        loaded.call(
            "crewai_native_configure",
            options={name: v for name, v in options.items() if name.startswith("bench_")},
        )
        contributed = loaded.call("crewai_native_benchmarks", ())
    seen = set()
    for case in contributed:
        if not isinstance(case, Case):
            raise TypeError(
                f"crewai_native_benchmarks() gave {type(case).__name__!r}; it accepts "
                "crewai_native.bench.Case"
            )
        if case.id in seen:
            raise ValueError(f"crewai_native_benchmarks() gave two cases {case.id}")
        seen.add(case.id)
        yield case


def _subject(case: Case, plugin: str) -> dict[str, Any]:
    return {
        "id": case.id,
        "plugin": plugin,
        "compared": case.check is not None,
        **{
            name: getattr(case, name)
            for name in Subject.__dataclass_fields__
            if name not in {"id", "plugin", "compared", "sides", "isolated", "parameters"}
        },
        "sides": list(case.sides),
        "isolated": sorted(case.isolated),
        "parameters": {key: _plain(value) for key, value in case.parameters.items()},
    }


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _builds(plugin: str) -> dict[str, Any]:
    from crewai_native import _roster

    return _roster.builds(plugin)


def serve(plugin: str) -> None:
    """Answer requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        worker = Worker(plugin)
    except Exception as error:  # noqa: BLE001 - told to the runner
        say({"error": _words(error)})
        return
    for line in sys.stdin:
        try:
            say(worker.answer(json.loads(line)))
        except Exception as error:  # noqa: BLE001 - told to the runner
            say({"error": _words(error)})
    # Not the interpreter's exit: threads and handlers of what was measured are not at issue here.
    os._exit(0)


def _words(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, CrewAINativeError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
