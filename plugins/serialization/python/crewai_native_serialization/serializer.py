"""Messages one by one, in batches and in streams, by a schema that may grow."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from crewai_native_serialization import _native
from crewai_native_serialization._native import AgentMessage, MessageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    Upgrade = Callable[[dict[str, Any]], dict[str, Any]]

_FORMATS: Final = ("json", "msgpack")
_PIECE: Final = 256 * 1024


class Serializer:
    """Turns :class:`AgentMessage` into bytes and back.

    A message is written in an envelope that names its schema. When the meaning of ``content`` or of
    further fields changes, count ``schema`` up and say how an older message becomes a newer one:
    ``upgrades[n]`` takes the dict of a message of schema ``n`` and returns that of schema
    ``n + 1``. Messages that name no schema, such as the codec of the slot writes, are of schema 0,
    whose upgrade keeps them as they are unless another is given.

    Args:
        format: ``json`` or ``msgpack``.
        schema: What is written, and what is read without an upgrade; 1 or more.
        upgrades: By the schema that they upgrade from. Every one from 1 to ``schema`` must be there.
        max_bytes: Bytes that one message of a stream may have. What claims more is refused before
            it is read.

    Raises:
        ValueError: An argument means nothing.
    """

    def __init__(
        self,
        format: str = "json",  # noqa: A002 - as the slot calls it
        *,
        schema: int = _native.SCHEMA,
        upgrades: Mapping[int, Upgrade] | None = None,
        max_bytes: int = 64 * 1024 * 1024,
    ) -> None:
        if format not in _FORMATS:
            raise ValueError(f"there is no format {format!r}; there is: {', '.join(_FORMATS)}")
        if schema < 1:
            raise ValueError(f"schema is {schema}; it accepts 1 and more")
        if max_bytes < 1:
            raise ValueError(f"max_bytes is {max_bytes}; it accepts 1 and more")
        self.format = format
        self.schema = schema
        self.max_bytes = max_bytes
        self._upgrades: dict[int, Upgrade] = {0: dict, **(upgrades or {})}
        if missing := [number for number in range(schema) if number not in self._upgrades]:
            raise ValueError(f"upgrades lack {missing[0]}; they are needed from 1 to {schema - 1}")
        if beyond := [number for number in self._upgrades if not 0 <= number < schema]:
            raise ValueError(f"upgrades have {beyond[0]}; the schema is {schema}")

    def serialize(self, message: AgentMessage | Mapping[str, Any]) -> bytes:
        """Return a message as bytes.

        Raises:
            TypeError: A value is nothing that JSON can hold; the text says which.
            ValueError: A value is one that JSON cannot express, such as NaN.
        """
        return _native.encode_message(message, self.format, self.schema)

    def deserialize(self, data: bytes) -> AgentMessage:
        """Return the message that bytes hold.

        Raises:
            MessageError: They hold none, or one of a newer schema; a ``ValueError``.
        """
        return self._upgraded(_native.decode_message(data, self.format, self.schema), 0)

    def serialize_batch(self, messages: Iterable[AgentMessage | Mapping[str, Any]]) -> bytes:
        """Return messages as one list; see :meth:`serialize`."""
        return _native.encode_messages(messages, self.format, self.schema)

    def deserialize_batch(self, data: bytes) -> list[AgentMessage]:
        """Return the messages of a batch, in order; see :meth:`deserialize`."""
        found = _native.decode_messages(data, self.format, self.schema)
        return self._all_upgraded(found)

    def serialize_stream(
        self, messages: Iterable[AgentMessage | Mapping[str, Any]]
    ) -> Iterator[bytes]:
        """Yield a stream of messages piece by piece, as they come; one is in memory at a time.

        Raises:
            ValueError: A message has more than ``max_bytes``; see :meth:`serialize`, too.
        """
        yield _native.stream_header(self.format)
        count = 0
        for message in messages:
            data = self.serialize(message)
            if len(data) > self.max_bytes:
                raise ValueError(
                    f"message {count} has {len(data)} bytes; max_bytes is {self.max_bytes}"
                )
            yield _native.stream_length(len(data)) + data
            count += 1
        yield _native.stream_end(count)

    def deserialize_stream(self, pieces: Iterable[bytes]) -> Iterator[AgentMessage]:
        """Yield the messages of a stream, in whatever pieces it comes and in either format.

        Raises:
            MessageError: It is no stream, is cut off, or a message is none or too long. The messages
                before that were yielded. ``offset`` counts from the beginning of the stream.
        """
        frames = _native.Frames(self.max_bytes)
        for piece in pieces:
            frames.feed(piece)
            while (frame := frames.next_frame()) is not None:
                yield self._framed(*frame)
        frames.finish()

    def write(
        self,
        messages: Iterable[AgentMessage | Mapping[str, Any]],
        file: str | os.PathLike[str] | BinaryIO,
    ) -> int:
        """Write a stream of messages to a file, by its path or open for writing bytes.

        Returns:
            The number of bytes.

        Raises:
            BlockingIOError: A file that is not to be waited for takes no more at the moment.
        """
        if isinstance(file, str | os.PathLike):
            with Path(file).open("wb") as opened:
                return self.write(messages, opened)
        written = 0
        for piece in self.serialize_stream(messages):
            _write_all(file, piece)
            written += len(piece)
        return written

    def read(self, file: str | os.PathLike[str] | BinaryIO) -> Iterator[AgentMessage]:
        """Yield the messages of a file that :meth:`write` wrote; see :meth:`deserialize_stream`."""
        if isinstance(file, str | os.PathLike):
            with Path(file).open("rb") as opened:
                yield from self.read(opened)
        else:
            yield from self.deserialize_stream(iter(lambda: file.read(_PIECE), b""))

    def _framed(self, form: str, at: int, data: bytes) -> AgentMessage:
        try:
            return self._upgraded(_native.decode_message(data, form, self.schema), 0)
        except MessageError as error:
            raise _error(f"{error} of the message at byte {at}", at + error.offset) from error

    def _all_upgraded(self, found: list[AgentMessage | dict[str, Any]]) -> list[AgentMessage]:
        if dict not in set(map(type, found)):
            return found  # type: ignore[return-value]
        return [self._upgraded(message, number) for number, message in enumerate(found)]

    def _upgraded(self, found: AgentMessage | dict[str, Any], number: int) -> AgentMessage:
        if isinstance(found, AgentMessage):
            return found
        schema = found.pop("schema", 0)
        if not 0 <= schema < self.schema:
            raise _error(
                f"message {number} is of schema {schema}; up to {self.schema} is understood", 0
            )
        for step in range(schema, self.schema):
            found = self._upgrades[step](found)
        try:
            return AgentMessage(**found)
        except TypeError as error:
            raise _error(f"message {number}, upgraded from schema {schema}: {error}", 0) from error


def _write_all(file: BinaryIO, data: bytes) -> None:
    """Write bytes to a file, which takes a part at a time if it has no buffer."""
    while data:
        taken: Any = file.write(data)
        if taken is None and not isinstance(file, io.RawIOBase):
            return  # of an object that is no file and does not say
        if not taken:
            raise BlockingIOError(errno.EAGAIN, "the file takes nothing more at the moment")
        data = data[taken:]


def _error(text: str, offset: int) -> MessageError:
    error = MessageError(text)
    error.offset = offset
    return error
