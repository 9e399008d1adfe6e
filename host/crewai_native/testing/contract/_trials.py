"""What a provider does in processes of its own: among threads, after a fork, at the exit.

Run as a program, this module imports CrewAI once, and then gives each provider of each slot a forked
process, which the trial of one cannot spoil for the next. Where there is no fork, each process
imports CrewAI for itself.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from crewai_native import _children
from crewai_native.testing.offline import OFFLINE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from crewai_native.testing.contract.rules import SlotContract

THREADS: Final = 4
LIMIT: Final = 600.0
"""Seconds after which a trial hangs; one takes some seconds, on a busy machine many more."""
CHILD_LIMIT: Final = 120.0
"""Seconds after which a forked child hangs."""

Pair = tuple[str, str]
"""A slot and its provider."""


@dataclasses.dataclass(frozen=True, slots=True)
class Trial:
    """What became of a provider in a process of its own.

    Every outcome is what the slot's ``exercise`` returned, as JSON, or the text of what it raised,
    under ``"raised"``. The process may end before it has all of them.

    Attributes:
        unused: The outcome of a forked child of a process that has bound the slot and not used it.
        alone: That of the first use in the process itself.
        together: Those of several threads that used it at once.
        pause: The longest time in seconds in which no other Python thread could run meanwhile.
        used: That of a forked child of a process that has used the slot; None where it is not tried.
        after: That of the process itself, after all that.
        failures: Calls of the slot that the provider failed at, or stock answered in its place.
        ending: How the process ended; ``exit status 0`` is as it should.
        stderr: What it wrote to standard error.
    """

    unused: Any = None
    alone: Any = None
    together: list[Any] = dataclasses.field(default_factory=list)
    pause: float = 0.0
    used: Any = None
    after: Any = None
    failures: int = 0
    ending: str = ""
    stderr: str = ""


class Trials:
    """The trials of some providers, which go on in the background. Closed after use.

    Args:
        pairs: Slots and providers, in the order in which they are tried and will be asked for.
    """

    def __init__(self, pairs: Iterable[Pair]) -> None:
        self._numbers = {pair: number for number, pair in enumerate(pairs)}
        self._ended = -1
        self._place = tempfile.TemporaryDirectory(
            prefix="crewai-native-trials-", ignore_cleanup_errors=True
        )
        self._folder = Path(self._place.name)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("CREWAI_NATIVE")}
        # Crews of that process run stock until a trial binds something.
        environment |= {
            **OFFLINE,
            "CREWAI_NATIVE": "0",
            "CREWAI_NATIVE_CACHE_DIR": str(self._folder),
        }
        with (self._folder / "stderr").open("wb") as stderr:
            self._program = subprocess.Popen(  # noqa: S603 - this module
                [
                    sys.executable,
                    "-m",
                    __name__,
                    str(self._folder),
                    json.dumps(list(self._numbers)),
                ],
                cwd=self._folder,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=stderr,
            )

    def __getitem__(self, pair: Pair) -> Trial:
        """Return what became of a provider, waiting for it.

        Raises:
            RuntimeError: The program that tries them ended before.
        """
        number = self._numbers[pair]
        stdout = self._program.stdout
        while self._ended < number:
            line = stdout.readline() if stdout is not None else b""
            if not line:
                stderr = (self._folder / "stderr").read_text(errors="replace")
                ending = _children.ending(self._program.wait())
                raise RuntimeError(f"the trials ended early, with {ending}: {stderr}")
            self._ended = int(line)
        return _read(self._folder, number)

    def close(self) -> None:
        """End what has not ended."""
        self._program.kill()
        self._program.wait()
        if self._program.stdout is not None:
            self._program.stdout.close()
        self._place.cleanup()


@dataclasses.dataclass(frozen=True, slots=True)
class Import:
    """What the import of a plug-in does to a process that has not imported CrewAI.

    Attributes:
        raised: The traceback of what it raised; empty where it ended well.
        crewai: Whether it imported CrewAI.
        threads: Threads that it started, Python's and native ones.
        files: Files and sockets that it left open.
        seconds: The processor time that it took.
    """

    raised: str
    crewai: bool
    threads: int
    files: int
    seconds: float


@functools.cache
def imported(value: str) -> Import:
    """Import a plug-in in a process of its own.

    Args:
        value: Its entry-point value.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CREWAI_NATIVE")}
    done = subprocess.run(  # noqa: S603 - the text below
        [sys.executable, "-c", _IMPORT, value.partition(":")[0]],
        env={**environment, "CREWAI_NATIVE": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        code = _children.ending(done.returncode)
        return Import(f"the process ended with {code}\n{done.stderr}", False, 0, 0, 0.0)
    return Import(*json.loads(done.stdout.splitlines()[-1]))


_IMPORT: Final = """
import importlib, json, os, sys, threading, time, traceback
import crewai_native.hookspecs
def held(kind):
    try:
        return len(os.listdir(f"/proc/self/{kind}"))
    except OSError:  # outside Linux
        return threading.active_count() if kind == "task" else 0
threads, files, start = held("task"), held("fd"), time.process_time()
raised = ""
try:
    importlib.import_module(sys.argv[1])
except BaseException:
    raised = traceback.format_exc()
seconds = time.process_time() - start
threads, files = held("task") - threads, held("fd") - files
print(json.dumps([raised, "crewai" in sys.modules, threads, files, seconds]))
"""


def contract(slot: str) -> type[SlotContract]:
    """Return the class that holds the contract of a slot."""
    name = f"{__package__}.test_{slot.replace('.', '_')}"
    (found,) = (
        value
        for value in vars(importlib.import_module(name)).values()
        if isinstance(value, type) and value.__module__ == name and hasattr(value, "slot")
    )
    return found


def _read(folder: Path, number: int) -> Trial:
    seen = {}
    with contextlib.suppress(FileNotFoundError), (folder / f"{number}.jsonl").open() as lines:
        for line in lines:
            seen.update(json.loads(line))
    ending = (folder / f"{number}.ending").read_text()
    stderr = (folder / f"{number}.stderr").read_text(errors="replace")
    return Trial(**seen, ending=ending, stderr=stderr)


# --- the program ------------------------------------------------------------------------------


def _main(folder: Path, pairs: list[Pair]) -> None:
    # What a library prints is no answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import crewai_native
    from crewai_native.testing.contract.rules import alone

    # What every trial needs is loaded once; frozen, a child does not walk over it as it ends.
    for slot, _ in pairs:
        contract(slot)
        crewai_native.activate(enabled=True, slots=alone(slot, "stock"))
        crewai_native.deactivate()
    gc.freeze()
    for number, (slot, provider) in enumerate(pairs):
        stderr = folder / f"{number}.stderr"
        if not hasattr(os, "fork"):
            ending = _spawned(folder, number, (slot, provider), stderr)
        elif (ended := _forked(stderr)) is None:
            # The child leaves through the end of the program, as any program does.
            _try(slot, provider, folder, folder / f"{number}.jsonl")
            return
        else:
            ending = ended
        (folder / f"{number}.ending").write_text(ending)
        answers.write(f"{number}\n")
        answers.flush()


def _forked(stderr: Path) -> str | None:
    """Fork: return None in the child and, in the parent, how the child ended."""
    # Whoever holds the writing end is still there: the child, or something that it started.
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.setpgid(0, 0)
        with stderr.open("wb") as file:
            os.dup2(file.fileno(), 2)
        return None
    os.close(writing)
    ended, _, _ = select.select([reading], [], [], LIMIT)
    os.close(reading)
    if not ended:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return _children.ending(code) if ended else f"nothing within {LIMIT:g} s"


def _spawned(folder: Path, number: int, pair: Pair, stderr: Path) -> str:
    code = (
        f"from pathlib import Path; from {__name__} import _try; "
        f"_try({pair[0]!r}, {pair[1]!r}, Path({str(folder)!r}), "
        f"Path({str(folder / f'{number}.jsonl')!r}))"
    )
    with stderr.open("wb") as file:
        try:
            done = subprocess.run(  # noqa: S603 - the text above
                [sys.executable, "-c", code], stderr=file, check=False, timeout=LIMIT
            )
        except subprocess.TimeoutExpired:
            return f"nothing within {LIMIT:g} s"
    return _children.ending(done.returncode)


def _try(slot: str, provider: str, folder: Path, answers: Path) -> None:
    """Use a provider in this process, and leave it bound."""
    import crewai_native
    from crewai_native.testing.contract.rules import alone

    os.environ["CREWAI_STORAGE_DIR"] = str(folder / f"{slot}-{provider}")
    rules = contract(slot)
    exercise = rules.exercise
    with answers.open("a") as file:

        def tell(**seen: Any) -> None:
            file.write(json.dumps(seen) + "\n")
            file.flush()

        crewai_native.activate(enabled=True, slots=alone(slot, provider))
        if hasattr(os, "fork"):
            tell(unused=_in_child(exercise))
        tell(alone=_outcome(exercise))
        together, pause = _together(exercise)
        tell(together=together, pause=pause)
        if hasattr(os, "fork") and rules.why_not_forked(provider) is None:
            tell(used=_in_child(exercise))
        tell(after=_outcome(exercise))
        counted = [m.errors + m.fallbacks for m in crewai_native.metrics() if m.slot == slot]
        tell(failures=sum(counted))


def _outcome(exercise: Callable[[], Any]) -> Any:
    try:
        # As JSON has it, so that what crossed a process can be compared with what did not.
        return json.loads(json.dumps(exercise()))
    except BaseException:  # noqa: BLE001 - a panic in Rust is no Exception; the rules look at it
        return {"raised": traceback.format_exc()}


def _together(exercise: Callable[[], Any]) -> tuple[list[Any], float]:
    """Return the outcomes of several threads, and how long a further one had to wait meanwhile."""
    barrier = threading.Barrier(THREADS)
    looking, over = threading.Event(), threading.Event()
    pause = 0.0

    def use() -> Any:
        barrier.wait()
        return _outcome(exercise)

    def look() -> None:
        nonlocal pause
        before = time.monotonic()
        # Before the others begin, or the first of them could hold the GIL until all is over.
        looking.set()
        while not over.wait(0.001):
            now = time.monotonic()
            pause, before = max(pause, now - before), now
        # What kept it from looking may have lasted to the end.
        pause = max(pause, time.monotonic() - before)

    watching = threading.Thread(target=look)
    watching.start()
    looking.wait()
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        outcomes = [used.result() for used in [pool.submit(use) for _ in range(THREADS)]]
    over.set()
    watching.join()
    return outcomes, pause


def _in_child(exercise: Callable[[], Any]) -> Any:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with os.fdopen(writing, "w") as file:
            file.write(json.dumps(_outcome(exercise)))
        os._exit(0)
    os.close(writing)
    ended, _, _ = select.select([reading], [], [], CHILD_LIMIT)
    if not ended:
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reading) as file:
        answer = file.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if not ended:
        return {"raised": f"the child gave no answer within {CHILD_LIMIT:g} s"}
    return json.loads(answer) if answer else {"raised": f"it ended with {_children.ending(code)}"}


if __name__ == "__main__":
    _main(Path(sys.argv[1]), [(slot, provider) for slot, provider in json.loads(sys.argv[2])])
