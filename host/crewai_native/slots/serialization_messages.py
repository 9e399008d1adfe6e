"""``serialization.messages``: messages between agents as bytes.

CrewAI has no such code; programs and accelerators call :func:`codec`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

from crewai_native.slots._base import Slot

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from crewai_native._bind import Binding
    from crewai_native.slots._base import Provider

PROTOCOL: Final = ("encode", "decode", "encode_batch", "decode_batch")


class MessageCodec(Protocol):
    """Turns messages into bytes and back.

    A message is a mapping with the keys ``id``, ``sender``, ``recipient``, ``content`` and
    ``timestamp`` and any others; values are what JSON can hold. Decoding gives equal values, and
    keys that the codec does not know are kept.
    """

    @property
    def formats(self) -> Sequence[str]:
        """What it writes and reads; ``json`` among them, and the first is its own choice."""

    def encode(self, message: Mapping[str, Any], format: str = "json") -> bytes:  # noqa: A002
        """Return a message as bytes.

        Raises:
            TypeError: A value is nothing that JSON can hold.
            ValueError: There is no such format.
        """

    def decode(self, data: bytes, format: str = "json") -> dict[str, Any]:  # noqa: A002
        """Return the message that bytes hold.

        Raises:
            ValueError: They hold none; the text says at which offset it shows.
        """

    def encode_batch(
        self,
        messages: Iterable[Mapping[str, Any]],
        format: str = "json",  # noqa: A002
    ) -> bytes:
        """Return messages as bytes, one after the other."""

    def decode_batch(self, data: bytes, format: str = "json") -> list[dict[str, Any]]:  # noqa: A002
        """Return the messages that a batch holds, in order."""


class JsonCodec:
    """The codec where none is installed: the standard library's JSON; a batch is an array."""

    formats: Final = ("json",)

    def encode(self, message: Mapping[str, Any], format: str = "json") -> bytes:  # noqa: A002
        """Return a message as JSON in UTF-8."""
        self._check(format)
        return json.dumps(dict(message), ensure_ascii=False).encode()

    def decode(self, data: bytes, format: str = "json") -> dict[str, Any]:  # noqa: A002
        """Return the message that JSON holds."""
        self._check(format)
        message = json.loads(data)
        if not isinstance(message, dict):
            raise ValueError(f"a message is a JSON object, not {type(message).__name__}")  # noqa: TRY004
        return message

    def encode_batch(
        self,
        messages: Iterable[Mapping[str, Any]],
        format: str = "json",  # noqa: A002
    ) -> bytes:
        """Return messages as a JSON array."""
        self._check(format)
        return json.dumps([dict(message) for message in messages], ensure_ascii=False).encode()

    def decode_batch(self, data: bytes, format: str = "json") -> list[dict[str, Any]]:  # noqa: A002
        """Return the messages of a JSON array."""
        self._check(format)
        messages = json.loads(data)
        if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
            raise ValueError("a batch of messages is a JSON array of objects")
        return messages

    def _check(self, wanted: str) -> None:
        if wanted not in self.formats:
            raise ValueError(f"there is no format {wanted!r}; there is: {', '.join(self.formats)}")


_codec: MessageCodec = JsonCodec()


def codec() -> MessageCodec:
    """Return the codec of the accelerator that serves the slot, or the plain one of the host."""
    return _codec


class SerializationMessages(Slot):
    """Serves :func:`codec`."""

    name: ClassVar = "serialization.messages"
    summary: ClassVar = "messages between agents"
    how: ClassVar = "crewai_native.slots.serialization_messages.codec()"

    def bind(self, binding: Binding, provider: Provider) -> None:
        """Make the provider what :func:`codec` returns."""
        native = provider.require(provider.call(), PROTOCOL, "a MessageCodec")
        formats = getattr(native, "formats", None)
        if not isinstance(formats, Sequence) or "json" not in formats:
            raise provider.wrong_type(native, "a MessageCodec whose formats include 'json'")
        binding.meter_methods(type(native), PROTOCOL)
        binding.replace(sys.modules[__name__], "_codec", native)


SLOT: Final = SerializationMessages()
