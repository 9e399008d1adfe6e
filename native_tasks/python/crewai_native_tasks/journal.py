"""The finished items of a batch, in a file that outlives the process.

The file begins with its format and is then a sequence of records, each its length, its CRC-32 and
JSON. A record is written with one call and reaches the disk before its item counts as done. The last
record, if the end of the process or a power cut left a part of it, is dropped when the file is opened
again; one that is damaged otherwise is an error. Nothing in it is executed or unpickled: models are those that the crew names
or the program has imported.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import struct
import threading
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from crewai_native import CrewAINativeError
from crewai_native_tasks import outputs
from crewai_native_tasks.batch_target import is_a

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_MAGIC: Final = b"crewai-native batch journal 1\n"
_ANY_MAGIC: Final = b"crewai-native batch journal "
_HEAD: Final = struct.Struct("<II")
# How the JSON of each record but the first begins.
_ITEM: Final = b'{"index":'
# A file without a whole record is shorter.
_SHORT: Final = 1 << 12


class JournalError(CrewAINativeError):
    """A journal that cannot be used for a batch: another's, in use, damaged or too new."""


@dataclasses.dataclass(frozen=True, slots=True)
class Known:
    """A finished item.

    Attributes:
        output: What its kickoff returned.
        usage: Its tokens, or None.
    """

    output: Any
    usage: Any


@dataclasses.dataclass(frozen=True, slots=True)
class _Place:
    key: str
    at: int
    length: int


class Journal:
    """The journal of one batch, open for one process at a time.

    Args:
        path: The file; made if there is none.
        key: What tells the batch's crew or flow from others.
        models: Models that outputs may be of, beside those of imported modules.

    Raises:
        JournalError: It is another batch's, in use, damaged, or of a newer format.
    """

    def __init__(self, path: str | os.PathLike[str], key: str, models: Iterable[type] = ()) -> None:
        self._path = Path(path)
        self._models = {outputs.name_of(model): model for model in models}
        self._lock = threading.Lock()
        self._places: dict[int, _Place] = {}
        _make(self._path.parent)
        self._file: int | None = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._begin(key)
        except BaseException:
            self.close()
            raise

    def _begin(self, key: str) -> None:
        file = self._open()
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise JournalError(f"journal {self._path} is in use by another batch") from error
        start = os.pread(file, len(_MAGIC), 0)
        if os.fstat(file).st_size < _SHORT:
            # A power cut can leave a file that has its length, and zeros where its text is missing.
            start = os.pread(file, _SHORT, 0).rstrip(b"\0")[: len(_MAGIC)]
        if not _MAGIC.startswith(start):
            known = start.startswith(_ANY_MAGIC)
            what = "has a format newer than this version's" if known else "is no journal"
            raise JournalError(f"{self._path} {what}; name another file")
        end = len(_MAGIC)
        header = None
        if start == _MAGIC:
            for at, record in self._records():
                end = at + len(record)
                content = self._parse(record, at)
                if header is None:
                    header = content
                    if header.get("batch") != key:
                        raise JournalError(
                            f"journal {self._path} is of another crew or flow, or of this one before "
                            "it was changed; name another file"
                        )
                    continue
                place = _Place(content["inputs"], at, len(record))
                self._places[content["index"]] = place
        # What follows was cut short.
        os.ftruncate(file, end if header is not None else 0)
        os.lseek(file, 0, os.SEEK_END)
        if header is None:
            self._append(_MAGIC + _framed({"batch": key}))
            _sync(self._path.parent)

    def _records(self) -> Iterator[tuple[int, bytes]]:
        """Yield where each whole record's JSON begins, and the JSON."""
        file = self._open()
        size = os.fstat(file).st_size
        at = len(_MAGIC)
        while at + _HEAD.size <= size:
            length, checksum = _HEAD.unpack(os.pread(file, _HEAD.size, at))
            record = os.pread(file, min(length, size), at + _HEAD.size)
            if not _is_whole(record, length, checksum):
                if _has_item(os.pread(file, size - at, at)):
                    raise JournalError(f"journal {self._path} is damaged at byte {at}")
                return  # the last, of which anything may have reached the disk, its length or not
            at += _HEAD.size
            yield at, record
            at += len(record)

    def _parse(self, record: bytes, at: int) -> dict[str, Any]:
        content = json.loads(record)
        if not isinstance(content, dict):
            raise JournalError(f"journal {self._path} is damaged at byte {at}")
        return content

    def _open(self) -> int:
        if self._file is None:
            raise JournalError(f"journal {self._path} is closed")
        return self._file

    def __len__(self) -> int:
        """Return how many items are finished."""
        return len(self._places)

    @staticmethod
    def key_of(inputs: Mapping[str, Any] | None) -> str:
        """Return what tells inputs from others.

        Raises:
            TypeError: They hold something that has no JSON.
        """
        text = json.dumps(inputs, sort_keys=True, ensure_ascii=True, default=_plain)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def find(self, index: int, key: str) -> Known | None:
        """Return a finished item.

        Args:
            index: Its number.
            key: That of its inputs.

        Raises:
            JournalError: The item of this number had other inputs.
        """
        place = self._places.get(index)
        if place is None:
            return None
        if place.key != key:
            raise JournalError(
                f"journal {self._path} is of a batch whose item {index} has other inputs; name "
                "another file"
            )
        with self._lock:
            record = os.pread(self._open(), place.length, place.at)
        content = self._parse(record, place.at)
        return Known(self._output(content["output"]), outputs.usage(content["usage"]))

    def write(self, index: int, key: str, output: Any, usage: Any) -> None:
        """Add a finished item, by the key of its inputs; it is on the disk when this returns.

        Raises:
            TypeError: The output is nothing that a journal keeps.
        """
        content = {
            "index": index,
            "inputs": key,
            "output": outputs.plain(output, self._models),
            "usage": None if usage is None else usage.model_dump(mode="json"),
        }
        self._append(_framed(content))

    def _append(self, data: bytes) -> None:
        with self._lock:
            file = self._open()
            before = os.fstat(file).st_size
            try:
                while data:
                    data = data[os.write(file, data) :]
                os.fsync(file)
            except BaseException:
                # A full disk, for one: the next record must not come after half of this.
                os.ftruncate(file, before)
                os.lseek(file, 0, os.SEEK_END)
                raise

    def close(self) -> None:
        """Let other batches have it."""
        with self._lock:
            if self._file is not None:
                os.close(self._file)
                self._file = None

    def _output(self, content: dict[str, Any]) -> Any:
        try:
            return outputs.restored(content, self._models)
        except outputs.UnreadableError as error:
            raise JournalError(f"journal {self._path} has {error}") from error


def _plain(value: Any) -> Any:
    if is_a(value, "pydantic", "BaseModel"):
        return {outputs.name_of(type(value)): value.model_dump(mode="json")}
    if isinstance(value, bytes):
        return {"bytes": hashlib.sha256(value).hexdigest()}
    if isinstance(value, Path):
        return {"path": str(value)}
    raise TypeError(f"inputs of a batch with a journal are JSON; they hold {value!r}")


def _framed(content: dict[str, Any]) -> bytes:
    record = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    return _HEAD.pack(len(record), zlib.crc32(record)) + record


def _is_whole(record: bytes, length: int, checksum: int) -> bool:
    # Zeros, which are what a power cut leaves where nothing was written yet, are a checksum of nothing.
    return 0 < length == len(record) and zlib.crc32(record) == checksum


def _has_item(data: bytes) -> bool:
    """Return whether there is a whole record of an item behind the first."""
    at = data.find(_ITEM, 2 * _HEAD.size)
    while at >= 0:
        length, checksum = _HEAD.unpack_from(data, at - _HEAD.size)
        if _is_whole(data[at : at + length], length, checksum):
            return True
        at = data.find(_ITEM, at + 1)
    return False


def _make(directory: Path) -> None:
    """Create a directory that is still there after a power cut."""
    if not directory.exists():
        _make(directory.parent)
        directory.mkdir(exist_ok=True)
        _sync(directory.parent)


def _sync(directory: Path) -> None:
    """Have the names in a directory reach the disk, which a sync of a file says nothing of."""
    file = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
