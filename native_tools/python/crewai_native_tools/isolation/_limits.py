"""What a call in a worker process may take."""

from __future__ import annotations

import dataclasses
import math
import sys
from typing import Final

_MEBIBYTE: Final = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one call may take, enforced by the operating system (``setrlimit``) but for the last.

    They hold for each process: for the worker, and anew for each that it starts. None is no limit.

    Attributes:
        cpu_seconds: Processor time, rounded up to whole seconds, as the system counts it.
        memory_mb: MiB of address space beyond what the worker has when the call begins. Linux only.
        open_files: Files, sockets and pipes beyond those that the worker has open.
        file_size: Bytes that a file may grow to by writing.
        result_bytes: Bytes that a result, or an exception, may take on its way back.
    """

    cpu_seconds: float | None = None
    memory_mb: int | None = None
    open_files: int | None = None
    file_size: int | None = None
    result_bytes: int = 32 * _MEBIBYTE

    def __post_init__(self) -> None:
        """Refuse limits that mean nothing.

        Raises:
            ValueError: One is not a number above 0.
            NotImplementedError: The system cannot enforce it.
        """
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is None and field.name != "result_bytes":
                continue
            whole = field.name != "cpu_seconds"
            kinds = (int,) if whole else (int, float)
            if (
                isinstance(value, bool)
                or not isinstance(value, kinds)
                or not 0 < value < math.inf
                or value > sys.maxsize // _MEBIBYTE
            ):
                accepted = "a whole number" if whole else "a number"
                raise ValueError(f"{field.name} is {value!r}; it accepts {accepted} above 0")
        if self.memory_mb is not None and sys.platform != "linux":
            raise NotImplementedError(
                f"memory_mb is {self.memory_mb}; {sys.platform} does not enforce a limit of "
                "memory, Linux does"
            )
