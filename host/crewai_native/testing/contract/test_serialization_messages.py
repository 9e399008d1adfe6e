"""``serialization.messages``: what goes in comes out, in every format that the codec names."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import pytest

from crewai_native.slots import serialization_messages
from crewai_native.testing.contract.rules import SlotContract

MESSAGE = {
    "id": "1",
    "sender": "Ünï",
    "recipient": "b",
    "content": {"text": "it's", "list": [1, -2.5, None, True, 2**53]},
    "timestamp": "2026-01-01T00:00:00Z",
    "further": "kept",
}


class TestSerializationMessages(SlotContract):
    """Runs on the host's function :func:`codec`; stock is the standard library's JSON."""

    slot: ClassVar = "serialization.messages"

    @staticmethod
    def exercise() -> Any:
        """Encode a batch and decode it."""
        codec = serialization_messages.codec()
        return codec.decode_batch(codec.encode_batch([MESSAGE] * 100))

    @pytest.fixture
    def codec(self, provider: str) -> Any:
        """The codec that is bound."""
        return serialization_messages.codec()

    def test_messages_come_back_equal_in_every_format(self, codec: Any) -> None:
        """One by one and in batches, empty ones too."""
        assert "json" in codec.formats
        for form in codec.formats:
            assert codec.decode(codec.encode(MESSAGE, form), form) == MESSAGE
            for batch in ([], [MESSAGE], [MESSAGE, {**MESSAGE, "id": "2"}]):
                assert codec.decode_batch(codec.encode_batch(batch, form), form) == batch

    def test_json_is_json(self, codec: Any) -> None:
        """Anybody can read it."""
        assert json.loads(codec.encode(MESSAGE)) == MESSAGE

    def test_what_no_message_can_hold_is_refused(self, codec: Any) -> None:
        """As is what is none."""
        with pytest.raises(TypeError):
            codec.encode({**MESSAGE, "content": object()})
        for data in (b"", b"{", b"[1]", b"3"):
            with pytest.raises(ValueError):  # noqa: PT011 - the message is the codec's own
                codec.decode(data)
        with pytest.raises(ValueError, match="morse"):
            codec.encode(MESSAGE, "morse")
