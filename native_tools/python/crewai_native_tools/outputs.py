"""Results that are too long to be shown to a model: their ends are, the whole is kept in a file.

Files lie in ``native/tool_outputs/`` under CrewAI's storage directory, readable by their owner
alone, and go when they are old or too many. A file is found by its handle, which nobody can guess.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
import secrets
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from crewai_native_tools.policy import Size

READER: Final = "read_tool_output"
"""The name of the tool that pages through what was kept."""
BYTES_PER_TOKEN: Final = 4
"""An estimate for English text in UTF-8. Other languages and code have more tokens to a byte."""

_HANDLE: Final = re.compile(r"[0-9a-f]{32}")
_HEAD: Final = 2 / 3
_PAGE: Final = 8_000
_LARGEST_PAGE: Final = 64_000


class Outputs:
    """The files of one directory.

    Any number of threads and processes may use one directory. Nothing happens to it before the
    first result is kept.

    Args:
        directory: Where the files lie; by default in CrewAI's storage directory.
        keep: How many files are kept; the oldest go first. Looking for them is work: between two
            times a process may add a twentieth.
        max_age: Seconds for which a file is kept.
    """

    def __init__(
        self, directory: Path | None = None, *, keep: int = 1000, max_age: float = 7 * 86_400.0
    ) -> None:
        if keep < 1 or not 0 < max_age < math.inf:
            raise ValueError(
                f"keep is {keep} and max_age {max_age}; they accept a whole number and seconds, "
                "above 0"
            )
        self._directory = directory
        self._keep = keep
        self._max_age = max_age
        self._written = itertools.count()

    @property
    def directory(self) -> Path:
        """Where the files lie."""
        if self._directory is None:
            from crewai_core.paths import db_storage_path

            return Path(db_storage_path()) / "native" / "tool_outputs"
        return self._directory

    def cap(self, result: Any, limit: Size, *, tool: str) -> Any:
        """Return a result, or its two ends if its text is longer than a limit.

        What is no text is measured, and cut, as the text that CrewAI makes of it. A
        ``ToolFailure`` and what :data:`READER` returns come back as they are.

        Args:
            result: What a tool returned.
            limit: Bytes of UTF-8, or tokens, which are estimated: :data:`BYTES_PER_TOKEN` each.
            tool: The tool's name.

        Returns:
            ``result`` itself; or text of at most ``limit``, as far as the note in its middle, which
            says what is missing and how to read it, leaves room.
        """
        if tool == READER or is_failure(result):
            return result
        most = limit.amount * (BYTES_PER_TOKEN if limit.unit == "tokens" else 1)
        # Most results are short, and need not be encoded to see that.
        if isinstance(result, str) and len(result) * 4 <= most:
            return result
        text = result if isinstance(result, str) else str(result)
        whole = text.encode("utf-8", errors="replace")
        if len(whole) <= most:
            return result
        try:
            kept = f"The whole is kept: {READER}(handle={self._write(whole)!r}, offset={{}})."
        except OSError as error:
            # The agent is told, and the two ends are worth more than no result.
            kept = f"The rest could not be kept ({error.strerror})."
        room = max(most - len(_note(len(whole), len(whole), kept, len(whole))), 0)
        head = _whole_characters(whole[: int(room * _HEAD)])
        tail = whole[len(whole) - (room - len(head)) :]
        tail = tail.decode("utf-8", errors="ignore").encode()
        missing = len(whole) - len(head) - len(tail)
        note = _note(missing, len(whole), kept, len(head))
        return head.decode() + note + tail.decode()

    def read(self, handle: str, offset: int = 0, length: int = _PAGE) -> str:
        """Return a part of a kept result, and where it stands in the whole.

        Args:
            handle: As the capped result names it.
            offset: The byte at which to begin; moved on to the next whole character.
            length: Bytes to return, at most 64,000.

        Raises:
            LookupError: Nothing is kept under this handle, any more or at all.
            ValueError: ``offset`` or ``length`` means nothing.
        """
        if offset < 0 or not 0 < length <= _LARGEST_PAGE:
            raise ValueError(
                f"offset is {offset} and length {length}; they accept a number from 0 on, and one "
                f"from 1 to {_LARGEST_PAGE}"
            )
        if not _HANDLE.fullmatch(handle):
            raise LookupError(f"{handle!r} is no handle of a kept result")
        try:
            with (self.directory / handle).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                file.seek(offset)
                part = file.read(length)
        except FileNotFoundError:
            raise LookupError(f"the result {handle!r} is not kept any more") from None
        skipped = next((at for at, byte in enumerate(part) if byte & 0xC0 != 0x80), len(part))  # noqa: PLR2004 - how UTF-8 continues
        part = _whole_characters(part[skipped:])
        begin, end = offset + skipped, offset + skipped + len(part)
        more = f"; go on with offset={end}" if end < size else ", the end"
        return f"{part.decode()}\n[bytes {begin} to {end} of {size}{more}]"

    def _write(self, whole: bytes) -> str:
        directory = self.directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = secrets.token_hex(16)
        # Under a name of its own first: nobody reads half a result.
        beginning = directory / f".{handle}"
        try:
            descriptor = os.open(beginning, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(whole)
            beginning.rename(directory / handle)
        except BaseException:
            beginning.unlink(missing_ok=True)
            raise
        if next(self._written) % max(self._keep // 20, 1) == 0:
            # Nobody waits for that: among busy threads, looking at a thousand files takes seconds.
            prune = threading.Thread(
                target=self._prune, args=(directory,), name="crewai-native-outputs", daemon=True
            )
            # Where the system has no more threads, a later result's will do it.
            with contextlib.suppress(RuntimeError):
                prune.start()
        return handle

    def _prune(self, directory: Path) -> None:
        found = []
        for file in directory.iterdir():
            try:
                found.append((file.stat().st_mtime_ns, file))
            except FileNotFoundError:
                # Another process prunes, too.
                continue
        found.sort(reverse=True)
        oldest = time.time_ns() - int(self._max_age * 1e9)
        for at, (written, file) in enumerate(found):
            # What is being written has no name of its own yet, and is dropped by age alone.
            if (at >= self._keep and not file.name.startswith(".")) or written < oldest:
                file.unlink(missing_ok=True)


DEFAULT: Final = Outputs()
"""The files in CrewAI's storage directory."""


def cap(result: Any, limit: Size, *, tool: str) -> Any:
    """As :meth:`Outputs.cap`, with files in CrewAI's storage directory."""
    return DEFAULT.cap(result, limit, tool=tool)


def read_tool_output(outputs: Outputs = DEFAULT) -> Any:
    """Return a CrewAI tool with which an agent pages through results that were too long."""
    from crewai.tools import BaseTool
    from pydantic import BaseModel, Field

    class Arguments(BaseModel):
        """What part of which result."""

        handle: str = Field(description="The handle that stands in the shortened result.")
        offset: int = Field(default=0, ge=0, description="The byte at which to begin.")
        length: int = Field(
            default=_PAGE, ge=1, le=_LARGEST_PAGE, description="How many bytes to read."
        )

    class ReadToolOutput(BaseTool):
        """Reads results that were too long to be shown whole."""

        name: str = READER
        description: str = (
            "Reads a part of a tool's result that was too long to be shown whole. The shortened "
            "result names the handle and the offset of what is missing."
        )
        args_schema: type[BaseModel] = Arguments

        def _run(self, handle: str, offset: int = 0, length: int = _PAGE) -> Any:
            try:
                return outputs.read(handle, offset, length)
            except LookupError as error:
                return _failure(str(error.args[0]))

    return ReadToolOutput()


def _note(missing: int, whole: int, kept: str, offset: int) -> str:
    return f"\n\n[{missing} of {whole} bytes are left out here. {kept.format(offset)}]\n\n"


def _whole_characters(part: bytes) -> bytes:
    """Drop a character that is cut at the end."""
    return part.decode("utf-8", errors="ignore").encode()


def is_failure(result: Any) -> bool:
    """Whether a result is a ``ToolFailure``: the tool's own word that it did not succeed."""
    return type(result).__name__ == "ToolFailure"


def _failure(message: str) -> Any:
    try:
        from crewai.tools.tool_failure import ToolFailure
    except ImportError:
        # CrewAI before 1.15.9 knows failures as text alone.
        return f"Error: {message}"
    return ToolFailure(message=message)
