"""Child processes: how one ended, in words, and how to end it with all that it started."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import subprocess


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
