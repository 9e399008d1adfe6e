"""Child processes: which Python one runs, how one ended, and how to end it with all that it started."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import subprocess

# Such as python, python3.13t, pythonw.exe, python3-dbg, pypy3.11.
_INTERPRETER: Final = re.compile(
    r"\.?(python|pypy|graalpy)w?[\d.]*(t|d|td|_d)?(-(dbg|intel64|wrapped))?(\.exe)?", re.IGNORECASE
)


def interpreter() -> str:
    """Return the path of this process's interpreter.

    A program that brings an interpreter along often calls itself that, and what was started then
    would be the program once more. The interpreter that it took its library from, if there is one,
    is found by the version in its name, where it is installed.

    Raises:
        LookupError: There is none that is known to be one.
    """
    if getattr(sys, "frozen", False):
        raise LookupError("the program is frozen, and has no interpreter of its own to start")
    if sys.executable:
        names = {Path(sys.executable).name, Path(os.path.realpath(sys.executable)).name}
        if any(_INTERPRETER.fullmatch(name) for name in names):
            return sys.executable
    if os.name == "nt":
        installed = Path(sys.exec_prefix, "python.exe")
    else:
        major, minor = sys.version_info[:2]
        installed = Path(sys.exec_prefix, "bin", f"python{major}.{minor}{sys.abiflags}")
    if os.access(installed, os.X_OK):
        return str(installed)
    known = (
        f"{sys.executable}, which is not named like a Python interpreter"
        if sys.executable
        else "unknown"
    )
    raise LookupError(f"sys.executable is {known}, and there is no {installed}")


def ending(code: int) -> str:
    """Return what a return code says, such as ``SIGABRT`` or ``exit status 3``."""
    if code >= 0:
        return f"exit status {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def kill(child: subprocess.Popen[bytes]) -> None:
    """End a child that leads a session of its own, and whatever it started; wait for it."""
    if hasattr(os, "killpg"):
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it and its group have ended
        except PermissionError:
            child.kill()  # macOS answers this for a group of zombies
    else:
        child.kill()
    child.wait()
