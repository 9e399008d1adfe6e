"""What the slot ``serialization.messages`` is served with: mappings as bytes, and dicts back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from crewai_native_serialization import _native

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

FORMATS: Final = ("json", "msgpack")


class Codec:
    """The slot's codec. Messages are written as they are; an ``AgentMessage`` in its envelope."""

    formats: Final = FORMATS

    def encode(self, message: Mapping[str, Any], format: str = "json") -> bytes:  # noqa: A002
        """Return a message as bytes.

        Raises:
            TypeError: A value is nothing that JSON can hold.
            ValueError: There is no such format, or a value is one that JSON cannot express.
        """
        return _native.encode(message, format)

    def decode(self, data: bytes, format: str = "json") -> dict[str, Any]:  # noqa: A002
        """Return the message that bytes hold.

        Raises:
            MessageError: They hold none.
        """
        return _native.decode(data, format)

    def encode_batch(
        self,
        messages: Iterable[Mapping[str, Any]],
        format: str = "json",  # noqa: A002
    ) -> bytes:
        """Return messages as one list in bytes; see :meth:`encode`."""
        return _native.encode_batch(messages, format)

    def decode_batch(self, data: bytes, format: str = "json") -> list[dict[str, Any]]:  # noqa: A002
        """Return the messages of a batch, in order; see :meth:`decode`."""
        return _native.decode_batch(data, format)
