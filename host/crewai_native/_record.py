"""Keeps what the slots did when a program ends: one line of JSON for each process, in one file.

Metrics live in the process that they are of. A command that is typed afterwards can only show what
was written down, so with the setting ``metrics`` every process adds its figures as it exits. One
that is killed, or leaves through ``os._exit`` as children of ``multiprocessing`` do, adds nothing;
one that was forked counts on from what its parent had done.
"""

from __future__ import annotations

import atexit
import datetime as dt
import functools
import json
import logging
import math
import os
import sys
from typing import TYPE_CHECKING, Any, Final

from crewai_native._errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

    from crewai_native._host import Host

_KEYS: Final = {"pid", "program", "ended", "slots", "plugins"}
_logger = logging.getLogger("crewai_native")


@functools.cache
def at_exit(host: Host, path: Path) -> None:
    """Have the host's metrics added to a file when the process exits; once per host and file."""
    atexit.register(_append, host, path.absolute())


def snapshot(host: Host) -> dict[str, Any]:
    """Return what a host's slots and plug-ins have to say, ready for JSON."""
    return {
        "pid": os.getpid(),
        "program": sys.argv,
        "ended": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "slots": [
            {
                key: None if isinstance(value, float) and math.isnan(value) else value
                for key, value in slot._asdict().items()
            }
            for slot in host.metrics()
        ],
        "plugins": {plugin.distribution: _of(plugin) for plugin in host.plugins()},
    }


def _of(plugin: Any) -> dict[str, Any]:
    try:
        found = plugin.call("crewai_native_metrics", {})
        return {str(name): float(value) for name, value in found.items()}
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - what a plug-in raises is its answer
        return {"error": f"{type(error).__name__}: {error}"}


def _append(host: Host, path: Path) -> None:
    line = json.dumps(snapshot(host)) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # One write to a file opened for appending: lines of processes that exit together stay whole.
        with path.open("ab", buffering=0) as file:
            file.write(line.encode())
    except OSError as error:
        _logger.warning("metrics cannot be written to %s: %s", path, error)


def read(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """Return the snapshots in a file, oldest first, and the numbers of lines that hold none.

    A process that is killed, or whose disk is full, may leave the beginning of a line.

    Raises:
        ConfigurationError: The file cannot be read, or holds something else.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    found, strange = [], []
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if isinstance(entry, dict) and entry.keys() >= _KEYS:
            found.append(entry)
        else:
            strange.append(number)
    if strange and not found:
        raise ConfigurationError(
            f"{path} holds no metrics; `crewai-native run --metrics {path} -- …` writes them"
        )
    return found, strange
