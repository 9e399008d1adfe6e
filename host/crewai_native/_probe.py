"""The first import of a plug-in, in a child process.

Native code can end a process in ways that no ``try`` catches: an illegal instruction on an older
CPU, an abort in a static initialiser, a missing library, a deadlock. A plug-in that was not yet
seen is therefore imported in a child first, and the verdict kept until the plug-in's files, the
interpreter or the CPU change.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, NamedTuple

from crewai_native import _cache
from crewai_native._discovery import content_hash

if TYPE_CHECKING:
    from collections.abc import Iterable

    from crewai_native._discovery import Offer
    from crewai_native._settings import Settings

# Says that it has begun, and answers for one plug-in after the other once it has been imported. The
# answers go to a duplicate of standard output and are marked: neither what a plug-in prints nor what
# the start of the interpreter does, as a sitecustomize may, is taken for one. An ordinary exception
# is no problem of this kind: the host meets it again, in its own process, where it is harmless, and
# tells it from there, for as long as it lasts.
_CHILD: Final = """
import importlib, json, os, sys
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
mark, sys.path[:], values = json.load(sys.stdin.buffer)
def answer(*words):
    answers.write("\\n" + mark + json.dumps(words) + "\\n")
    answers.flush()
answer()
for value in values:
    problem = None
    try:
        importlib.import_module(value.partition(":")[0])
    except Exception:
        pass  # harmless, and the same in the parent, which reports it when it imports the module
    except BaseException as error:
        problem = f"its import raised {type(error).__name__}: {error}"
    answer(value, problem)
# Exit handlers of what was imported are the plug-in's business in a real run, not in a trial.
os._exit(0)
"""
_MARK: Final = "crewai-native answers: "

# What of this interpreter's flags decides on what the child's finds and leaves.
_FLAGS: Final = {
    "isolated": "-I",
    "ignore_environment": "-E",
    "no_user_site": "-s",
    "no_site": "-S",
    "dont_write_bytecode": "-B",
}


class _NoTrialError(Exception):
    """A child cannot try anything here; the message says why."""


class Verdict(NamedTuple):
    """What became of a plug-in's first import.

    Attributes:
        problem: Why the plug-in must not be imported here, or None.
        fresh: Whether it was tried just now, rather than remembered.
    """

    problem: str | None
    fresh: bool


def verdicts(
    offers: Iterable[Offer], settings: Settings, *, again: bool = False
) -> dict[str, Verdict]:
    """Return the verdict on each plug-in, trying those that were not yet seen.

    Args:
        offers: The plug-ins' entry points.
        settings: For the time limit and the cache's place.
        again: Try all of them, whatever is remembered.

    Returns:
        Verdicts by entry-point value.
    """
    plugins = {offer.value: offer for offer in offers}
    keys = {value: _key(offer) for value, offer in plugins.items()}
    path = cache_file(settings)
    remembered = _cache.read(path)
    found: dict[str, Verdict] = {}
    unseen = []
    for value, key in keys.items():
        if not again and key in remembered:
            found[value] = Verdict(remembered[key], fresh=False)
        else:
            unseen.append(value)
    if unseen:
        tried, obstacle = _try_all(unseen, settings.probe_timeout)
        if tried:
            fresh = {keys[value]: problem for value, problem in tried.items()}
            _cache.write(path, remembered | fresh)
        # Where there is an obstacle it says nothing of the plug-in, and may be gone the next time.
        found |= {value: Verdict(tried.get(value, obstacle), fresh=True) for value in unseen}
    return found


def cache_file(settings: Settings) -> Path:
    """Return the file that holds the verdicts."""
    return _cache.file(settings, "first-imports.json")


def _try_all(values: list[str], limit: float) -> tuple[dict[str, str | None], str | None]:
    """Import plug-ins in as few children as possible: one more for each that ends its child.

    Returns:
        What became of them; and why those that are missing there could not be tried.
    """
    found: dict[str, str | None] = {}
    try:
        executable = _interpreter()
        while len(found) < len(values):
            left = [value for value in values if value not in found]
            answered, ending = _try(executable, left, limit)
            found.update(answered)
            culprit = next((value for value in left if value not in answered), None)
            if culprit is not None:
                found[culprit] = f"its import {ending}"
    except (OSError, _NoTrialError) as error:
        return found, f"it cannot be tried in a child process: {error}"
    return found, None


def _interpreter() -> str:
    from crewai_native import _children

    try:
        return _children.interpreter()
    except LookupError as error:
        raise _NoTrialError(str(error)) from error


def _try(executable: str, values: list[str], limit: float) -> tuple[dict[str, str | None], str]:
    """Import plug-ins in one child.

    Args:
        executable: The interpreter.
        values: Their entry-point values.
        limit: Seconds in which at least one import has to end.

    Returns:
        What it answered, and how it ended: the fate of the first one it did not answer for.

    Raises:
        OSError: It cannot be started.
        _NoTrialError: It did not get as far as the first import.
    """
    from crewai_native import _children

    # What else there may be on the path is none of Python's business, either.
    path = [entry for entry in sys.path if isinstance(entry, str)]
    # Files, not pipes: nothing that a plug-in starts and leaves behind can keep us waiting.
    with tempfile.TemporaryFile() as questions, tempfile.TemporaryFile() as answers:
        questions.write(json.dumps([_MARK, path, values]).encode())
        questions.seek(0)
        child = subprocess.Popen(  # noqa: S603 - this interpreter, running the text above
            [executable, *_flags(), "-c", _CHILD],
            stdin=questions,
            stdout=answers,
            stderr=subprocess.DEVNULL,
            # It must not wire itself into CrewAI, nor try plug-ins in turn.
            env={**os.environ, "CREWAI_NATIVE": "0"},
            start_new_session=True,
        )
        try:
            ending = _wait(child, answers, limit)
        finally:
            _children.kill(child)
        answers.seek(0)
        mark = _MARK.encode()
        found = [
            json.loads(line.removeprefix(mark))
            for line in answers
            if line.startswith(mark) and line.endswith(b"\n")
        ]
    if not found:
        raise _NoTrialError(f"before the first import, {executable} {ending}")
    return dict(found[1:]), ending


def _flags() -> list[str]:
    """Return with which flags the child is started.

    With ``-P`` whatever happens: what lies in the working directory is no part of a program whose
    path does not say so, and the program's path is handed over.
    """
    return ["-P", *(flag for name, flag in _FLAGS.items() if getattr(sys.flags, name))]


def _wait(child: subprocess.Popen[bytes], answers: IO[bytes], limit: float) -> str:
    """Wait for as long as answers come, and return how the child ended."""
    from crewai_native import _children

    answered = -1
    while answered < (size := os.fstat(answers.fileno()).st_size):
        answered = size
        try:
            code = child.wait(limit)
        except subprocess.TimeoutExpired:
            continue
        return f"ended the process with {_children.ending(code)}"
    return f"did not end within {limit:g} s"


def _key(offer: Offer) -> str:
    parts = (offer.name, offer.candidate.version, offer.value, content_hash(offer), *_machine())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@functools.cache
def _machine() -> tuple[str, ...]:
    flags = ""
    try:
        with Path("/proc/cpuinfo").open() as lines:
            flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        flags = platform.processor()  # no such file outside Linux
    return (str(sys.executable), sys.version, platform.machine(), flags)
