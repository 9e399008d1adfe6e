"""serialization.events and serialization.messages."""

from __future__ import annotations

import dataclasses
import datetime as dt
import uuid

import pytest
from crewai import Agent, Crew, Task
from crewai.events import base_events
from crewai.utilities import serialization
from pydantic import BaseModel

from crewai_native._errors import ProviderError
from crewai_native.slots import serialization_messages
from crewai_native.testing import ScriptedLLM

STOCK = serialization.to_serializable


class Inner(BaseModel):
    when: dt.date
    tags: list[str]


@dataclasses.dataclass
class Outer:
    inner: Inner
    again: object = None


def value():
    outer = Outer(Inner(when=dt.date(2025, 1, 2), tags=["a"]), {"id": uuid.UUID(int=1), 5: (1.5,)})
    return [outer, float("nan"), {"deep": {"deep": {"deep": {"deep": {"deep": 1}}}}}, {"x": [None]}]


class TestEvents:
    def test_every_name_for_it_is_the_providers(self, serve):
        calls = []

        def native(obj, exclude=None, max_depth=5, _current_depth=0, _ancestors=None):
            calls.append(obj)
            return STOCK(obj, exclude, max_depth, _current_depth, _ancestors)

        expected = repr(STOCK(value(), exclude={"x"}))
        binding = serve("serialization.events", lambda: native, verify=1.0)
        assert base_events.to_serializable is serialization.to_serializable
        assert repr(base_events.to_serializable(value(), exclude={"x"})) == expected
        calls.clear()
        agent = Agent(role="r", goal="g", backstory="b", llm=ScriptedLLM("done"))
        task = Task(description="d", expected_output="e", agent=agent)
        assert Crew(agents=[agent], tasks=[task]).kickoff().raw == "done"
        assert any(isinstance(obj, list) and "role" in obj[0] for obj in calls)
        assert binding.watch.reverted is None

    def test_stock_answers_the_whole_value_where_the_provider_fails(self, serve):
        calls = []

        def native(obj, *args, **kwargs):
            calls.append(obj)
            raise RuntimeError("bug")

        given = value()
        expected = repr(STOCK(given))
        binding = serve("serialization.events", lambda: native)
        assert repr(serialization.to_serializable(given)) == expected
        # Stock's recursion is stock's: the provider was not asked for the parts.
        assert len(calls) == 1
        assert calls[0] is given
        assert binding.watch.metrics().fallbacks == 1

    def test_a_difference_reverts_the_slot(self, serve):
        binding = serve(
            "serialization.events", lambda: lambda obj, *args, **kwargs: "x", verify=1.0
        )
        assert serialization.to_serializable({"a": 1}) == {"a": 1}
        assert "'x' is not {'a': 1}" in binding.watch.reverted
        assert serialization.to_serializable([1]) == [1]
        assert binding.watch.metrics().calls == 1

    def test_a_wrong_type_names_the_distribution(self, serve):
        with pytest.raises(ProviderError, match=r"fake-dist 1\.2 returned 'dict'.*to_serializable"):
            serve("serialization.events", dict)


MESSAGE = {
    "id": "1",
    "sender": "a",
    "recipient": "b",
    "content": {"text": "schön"},
    "timestamp": "2025-01-02T03:04:05Z",
    "other": [1, None],
}


class TestMessages:
    def test_there_is_a_plain_codec_where_none_is_installed(self):
        codec = serialization_messages.codec()
        assert codec.decode(codec.encode(MESSAGE)) == MESSAGE
        assert codec.decode_batch(codec.encode_batch([MESSAGE, MESSAGE])) == [MESSAGE] * 2
        for wrong in (b"[]", b"{", b"\xff"):
            with pytest.raises(ValueError, match=r"."):
                codec.decode(wrong)
        with pytest.raises(ValueError, match="'msgpack'; there is: json"):
            codec.encode(MESSAGE, "msgpack")

    def test_the_providers_codec_takes_its_place(self, serve):
        plain = serialization_messages.codec()

        class Upper(serialization_messages.JsonCodec):
            def encode(self, message, format="json"):  # noqa: A002
                return super().encode(message, format).upper()

        binding = serve("serialization.messages", Upper)
        assert b"SENDER" in serialization_messages.codec().encode(MESSAGE)
        assert binding.watch.metrics().calls == 1
        binding.undo()
        assert serialization_messages.codec() is plain
        assert b"sender" in plain.encode(MESSAGE)

    @pytest.mark.parametrize("formats", [(), ("msgpack",), 7, None])
    def test_a_codec_reads_json_at_least(self, serve, formats):
        class Odd(serialization_messages.JsonCodec):
            pass

        Odd.formats = formats
        with pytest.raises(ProviderError, match=r"fake-dist 1\.2.*formats include 'json'"):
            serve("serialization.messages", Odd)

    def test_a_wrong_type_names_the_distribution(self, serve):
        with pytest.raises(ProviderError, match=r"fake-dist 1\.2.*a MessageCodec"):
            serve("serialization.messages", object)
