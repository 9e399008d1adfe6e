"""Activates the host in this process, to look at it."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING

from crewai_native import _settings
from crewai_native.cli import _console

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crewai_native._settings import Settings
    from crewai_native._status import Status


def settings() -> Settings:
    """Return the settings in force here, but without what would keep a command from looking.

    ``strict`` makes an activation fail, which is not how to find out what is wrong; and a look at
    the slots is no run whose metrics anybody wants to keep.
    """
    return _settings.load()._replace(strict=False, metrics=None)


def status() -> Status:
    """Negotiate and bind every slot and return the outcome."""
    from crewai_native._host import HOST

    with importing_crewai():
        HOST.activate(settings(), "to look at it")
        return HOST.status()


@contextlib.contextmanager
def importing_crewai() -> Iterator[None]:
    """Surround what imports CrewAI and plug-ins.

    What they print goes to standard error, where it cannot spoil a table or JSON.
    """
    # To look at CrewAI is not to use it: nothing is reported to its makers.
    os.environ.setdefault("CREWAI_DISABLE_TELEMETRY", "true")
    with contextlib.redirect_stdout(sys.stderr), _console.busy("importing CrewAI"):
        yield
