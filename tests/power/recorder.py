"""Records what a program does to the files below a directory."""

from __future__ import annotations

import dataclasses
import os
import struct
import subprocess
from pathlib import Path
from typing import Final

_SOURCE: Final = Path(__file__).with_name("recorder.c")
_RECORD: Final = struct.Struct("<c7xQQQ")


@dataclasses.dataclass(frozen=True, slots=True)
class Operation:
    """One call.

    Attributes:
        kind: ``C`` a file is created, ``M`` a directory; ``W`` a file is written to, ``T`` cut to a
            length, ``I`` given a time; ``R`` and ``L`` rename and link, ``U`` removes; ``S`` and ``E``
            begin and end a sync; ``A`` is a mark.
        inode: Of what, where the call is about what is in it.
        number: An offset, a length, a time in ns, or which sync it is.
        data: What was written, or the paths.
    """

    kind: str
    inode: int
    number: int
    data: bytes

    @property
    def paths(self) -> list[str]:
        return [os.fsdecode(path) for path in self.data.split(b"\0")]


def build(directory: Path) -> Path:
    """Compile what is preloaded. Raises where there is no compiler, or none that can."""
    library = directory / "recorder.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", library, _SOURCE, "-ldl", "-lpthread"]
    subprocess.run(command, check=True, capture_output=True)
    return library


def record(
    library: Path, command: list[str], watched: Path, work: Path
) -> tuple[int, list[Operation]]:
    """Run a program; return the number of the directory, and what was done to what is in it."""
    log = work / "operations"
    environment = {
        **os.environ,
        "LD_PRELOAD": str(library),
        "POWER_DIRECTORY": str(watched),
        "POWER_LOG": str(log),
        "POWER_MARKS": str(work / "marks"),
    }
    watched.mkdir()
    root = watched.stat().st_ino
    subprocess.run(command, check=True, env=environment, timeout=120)
    return root, list(_parsed(log.read_bytes()))


def _parsed(log: bytes):
    at = 0
    while at < len(log):
        kind, inode, number, length = _RECORD.unpack_from(log, at)
        at += _RECORD.size
        yield Operation(kind.decode(), inode, number, log[at : at + length])
        at += length
