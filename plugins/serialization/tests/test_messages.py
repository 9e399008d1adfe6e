"""Messages: what goes in comes out, older ones too, and bytes that hold none are refused."""

from __future__ import annotations

import copy
import datetime as dt
import gc
import io
import json
import math
import os
import pickle
import random
import re
import threading
import tracemalloc
import types
from pathlib import Path

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crewai_native_serialization import AgentMessage, MessageError, Serializer, _native
from crewai_native_serialization.codec import Codec

GOLDEN = Path(__file__).parent / "golden"
FORMATS = ["json", "msgpack"]
FIELDS = {
    "id": "1",
    "sender": "Ünï",
    "recipient": "b",
    "content": {"text": "it's", "list": [1, -2.5, None, True, 2**70, []], "map": {}},
    "timestamp": "2026-01-01T00:00:00+00:00",
}
MESSAGE = AgentMessage(**FIELDS, reply_to="0", tags=["x"])

texts = st.text(st.characters(exclude_categories=["Cs"]))
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(texts, inner, max_size=5),
    max_leaves=20,
)
mappings = st.dictionaries(texts, values, max_size=6)
messages = st.builds(
    lambda fields, content, extra: AgentMessage(
        **dict(zip(["id", "sender", "recipient", "timestamp"], fields, strict=True)),
        content=content,
        **{k: v for k, v in extra.items() if k not in {*FIELDS, "schema"}},
    ),
    st.tuples(texts, texts, texts, texts),
    values,
    mappings,
)


def alike(left, right):
    """Equal, and of the same types: 1 is not True, and 0.0 is not -0.0."""
    return left == right and repr(left) == repr(right)


# --- messages -----------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(messages, st.sampled_from(FORMATS))
def test_a_message_comes_back_equal(message, form):
    data = getattr(message, f"to_{form}")()
    back = getattr(AgentMessage, f"from_{form}")(data)
    assert back == message
    assert alike(back.to_dict(), message.to_dict())
    if form == "json":
        assert alike(json.loads(data), {"schema": 1, **message.to_dict()})


@settings(max_examples=300, deadline=None)
@given(st.lists(mappings, max_size=4))
def test_others_read_what_the_codec_writes_and_it_what_they_write(batch):
    codec = Codec()
    assert alike(json.loads(codec.encode_batch(batch)), batch)
    for options in ({}, {"ensure_ascii": False}, {"indent": 2}):
        assert alike(codec.decode_batch(json.dumps(batch, **options).encode()), batch)
    small = json.loads(json.dumps(batch), parse_int=lambda digits: int(digits) % 2**64)
    assert alike(msgpack.unpackb(codec.encode_batch(small, "msgpack")), small)
    assert alike(codec.decode_batch(msgpack.packb(small), "msgpack"), small)


@pytest.mark.parametrize("form", FORMATS)
def test_texts_and_numbers_are_written_whatever_their_size_and_class(form):
    class Text(str):
        __slots__ = ()

    class Int(int):
        pass

    class Float(float):
        pass

    written = []
    # Python keeps a text by its widest character, and what derives from str elsewhere.
    for length in (*range(70), 127, 128, 129, 300):
        for end in ("", "~", '"', "\\", "\x1f", "\x7f", "é", "日", "😀"):
            text = ("plain" * length)[:length] + end
            written += [text, end + text, Text(text), {text: Text(end)}]
    # It keeps a number in pieces of 30 bits, and its sign beside them.
    for bits in range(65):
        for number in (2**bits - 1, 2**bits, 2**bits + 1, 10 ** (bits % 20)):
            if number < 2**63:
                written += [number, -number, Int(number), Int(-number)]
    written += [0.5, -0.0, 1e300, Float(0.25), True, False, None, [], (1, [2, (3,)])]
    data = Codec().encode_batch([{"a": item} for item in written], form)
    back = json.loads(data) if form == "json" else msgpack.unpackb(data)
    assert alike([item["a"] for item in back], json.loads(json.dumps(written)))


def test_fields_and_what_else_there_is():
    assert (MESSAGE.id, MESSAGE.sender, MESSAGE.recipient) == ("1", "Ünï", "b")
    assert MESSAGE.content == FIELDS["content"]
    assert MESSAGE.timestamp == FIELDS["timestamp"]
    assert MESSAGE.extra == {"reply_to": "0", "tags": ["x"]}
    assert MESSAGE.to_dict() == {**FIELDS, **MESSAGE.extra}
    MESSAGE.extra["reply_to"] = "changed"
    assert MESSAGE.extra["reply_to"] == "0"
    with pytest.raises(AttributeError):
        MESSAGE.id = "2"
    assert MESSAGE.replace(id="2", more=1).to_dict() == {**MESSAGE.to_dict(), "id": "2", "more": 1}
    assert MESSAGE.replace(id="2") != MESSAGE
    assert MESSAGE != FIELDS
    assert repr(AgentMessage("1", "a", "b", None, "t", n=1)) == (
        "AgentMessage(id='1', sender='a', recipient='b', content=None, timestamp='t', n=1)"
    )
    for copied in (copy.copy(MESSAGE), copy.deepcopy(MESSAGE), pickle.loads(pickle.dumps(MESSAGE))):
        assert copied == MESSAGE
    with pytest.raises(TypeError):
        hash(MESSAGE)
    moment = dt.datetime(2026, 1, 2, 3, 4, tzinfo=dt.UTC)
    assert AgentMessage("1", "a", "b", "c", moment).timestamp == "2026-01-02T03:04:00+00:00"
    made = AgentMessage.create("a", "b", "c", reply_to="1")
    assert len(made.id) == 36
    assert dt.datetime.fromisoformat(made.timestamp).utcoffset() == dt.timedelta()
    assert made.extra == {"reply_to": "1"}
    for wrong in ({"id": 1}, {"timestamp": 3}, {"schema": 1}):
        with pytest.raises(TypeError):
            AgentMessage(**{**FIELDS, **wrong})
    with pytest.raises(TypeError):
        AgentMessage("1", "a")


def test_a_cycle_of_messages_is_collected():
    content = []
    content.append(AgentMessage("1", "a", "b", content, "t"))
    gc.collect()
    del content
    assert gc.collect() > 0


@pytest.mark.parametrize("form", FORMATS)
def test_what_no_message_can_hold_is_refused_with_its_place(form):
    codec = Codec()
    for value in (object(), b"bytes", {1}, dt.date(2026, 1, 1), 1j, {"k": {1: 2}}, [{None: 1}]):
        with pytest.raises(TypeError, match="content"):
            codec.encode({"content": ["first", value]}, form)
        with pytest.raises(TypeError, match=r"message\.content"):
            codec.encode(MESSAGE.replace(content=value), form)
    for value in (math.nan, math.inf, -math.inf, "\ud800", {"\udfff": 1}, 10**4300):
        with pytest.raises(ValueError, match=r"content|k"):
            codec.encode({"content": {"k": value}}, form)
    loop = []
    loop.append(loop)
    with pytest.raises(ValueError, match="nested deeper than 256"):
        codec.encode({"content": loop}, form)
    with pytest.raises(TypeError):
        codec.encode(5, form)
    with pytest.raises(TypeError) as refused:
        codec.encode_batch([{}, {"a": {1}}], form)
    assert refused.value.__notes__ == ["in message 1 of the batch"]


@pytest.mark.parametrize("form", FORMATS)
def test_subclasses_are_taken_as_what_they_derive_from(form):
    class Text(str):
        __slots__ = ()

    class Number(int):
        def __repr__(self):
            raise RuntimeError

    class Ratio(float):
        pass

    codec = Codec()
    given = {Text("k"): [Text("t"), Number(3), Number(2**80), Ratio(0.5), (1, 2)]}
    assert codec.decode(codec.encode(types.MappingProxyType(given), form), form) == {
        "k": ["t", 3, 2**80, 0.5, [1, 2]]
    }


def test_numbers_at_the_edges():
    codec = Codec()
    for number in (2**63 - 1, 2**63, 2**64, -(2**63), -(2**63) - 1, 10**4299, -(10**4299)):
        for form in FORMATS:
            assert alike(codec.decode(codec.encode({"n": number}, form), form), {"n": number})
    for text, number in (
        ("-0", 0),
        ("-0.0", -0.0),
        ("1e5", 1e5),
        ("1E+2", 100.0),
        ("5e-324", 5e-324),
        ("1e-400", 0.0),
        ("1.7976931348623157e308", 1.7976931348623157e308),
        ("0.1000000000000000055511151231257827021181583404541015625", 0.1),
    ):
        assert alike(codec.decode(f'{{"n":{text}}}'.encode()), {"n": number})


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, bytes.decode])
def test_bytes_come_in_several_types(kind):
    assert AgentMessage.from_json(kind(MESSAGE.to_json())) == MESSAGE


# --- what holds no message ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "offset"),
    [
        (b"", 0),
        (b"  ", 2),
        (b"{", 1),
        (b'{"a"', 4),
        (b'{"a":', 5),
        (b'{"a":1', 6),
        (b'{"a":1,', 7),
        (b'{"a":1,}', 7),
        (b'{"a" 1}', 5),
        (b"{a:1}", 1),
        (b'{"a":[1,]}', 8),
        (b'{"a":[1}', 7),
        (b'{"a":1]', 6),
        (b"{}x", 2),
        (b"{}{}", 2),
        (b"3", 0),
        (b"[1]", 0),
        (b'{"a":tru}', 5),
        (b'{"a":NaN}', 5),
        (b'{"a":Infinity}', 5),
        (b'{"a":-}', 6),
        (b'{"a":01}', 5),
        (b'{"a":1.}', 7),
        (b'{"a":.5}', 5),
        (b'{"a":1e}', 7),
        (b'{"a":+1}', 5),
        (b'{"a":1e400}', 5),
        (b'{"a":' + b"9" * 4301 + b"}", 5),
        (b'{"a":"x', 7),
        (b'{"a":"\\x"}', 6),
        (b'{"a":"\\u12"}', 6),
        (b'{"a":"\\u12"', 6),
        (b'{"a":"\\u+123"}', 6),
        (b'{"a":"\\n\\u00e9\\u12g4"}', 14),
        (b'{"a":"\\ud800"}', 6),
        (b'{"a":"\\ud800\\u0041"}', 6),
        (b'{"a":"\\udc00"}', 6),
        (b'{"a":"b\n"}', 7),
        (b'{"a":"\xff"}', 6),
        (b'{"a":"\xed\xa0\x80"}', 6),
        (b'{"a":1,"b":2,"a":3}', 13),
        (b'{"a":1,"b":{"c":1,"c":2}}', 18),
        (b'{"a":1,"\\u0061":3}', 7),
        (b'{"a":' + b"[" * 300, 5 + 255),
        (b'{"a":' + b'{"a":' * 300, 5 * 256),
        (b"\xef\xbb\xbf{}", 0),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_hostile_json_is_refused_with_the_offset(text, offset):
    for read in (Codec().decode, AgentMessage.from_json):
        with pytest.raises(ValueError, match=f"at byte {offset}$") as refused:
            read(text)
        assert type(refused.value) is MessageError
        assert refused.value.offset == offset


@pytest.mark.parametrize("upper", [False, True])
def test_escapes_in_a_row_and_among_others_are_read_as_python_reads_them(upper):
    text = '漢字 😀é\n"\\ \x7f plain, and long enough for a block of it 語語\t' * 3 + "end é"
    escaped = json.dumps({"a": text})
    if upper:
        escaped = re.sub(
            r"\\u[0-9a-f]{4}", lambda found: found[0][:2] + found[0][2:].upper(), escaped
        )
    assert Codec().decode(escaped.encode()) == json.loads(escaped) == {"a": text}


@pytest.mark.parametrize(
    ("data", "offset"),
    [
        (b"", 0),
        (b"\x81", 0),
        (b"\x81\xa1a", 3),
        (b"\x80\x00", 1),
        (b"\x03", 0),
        (b"\xc1", 0),
        (b"\x81\x01\x01", 1),
        (b"\x81\xa1a\xc4\x01x", 3),
        (b"\x81\xa1a\xd4\x05x", 3),
        (b"\x81\xa1a\xd4\x01x", 3),
        (b"\x81\xa1a\xcb\x7f\xf8" + bytes(6), 3),
        (b"\x81\xa1a\xca\x7f\x80\x00\x00", 3),
        (b"\x81\xa1a\xa2\xff\xff", 4),
        (b"\x82\xa1a\x01\xa1a\x02", 4),
        (b"\x81\xa1a\xdd\xff\xff\xff\xff", 3),
        (b"\x81\xa1a\xdf\xff\xff\xff\xff", 3),
        (b"\x81\xa1a\xdb\xff\xff\xff\xffx", 9),
        (b"\x81\xa1a" + b"\x91" * 300, 3 + 255),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_hostile_msgpack_is_refused_with_the_offset(data, offset):
    with pytest.raises(MessageError, match=f"at byte {offset}$") as refused:
        Codec().decode(data, "msgpack")
    assert refused.value.offset == offset


def test_messages_that_lack_something():
    for name in FIELDS:
        fields = {"schema": 1, **{k: v for k, v in FIELDS.items() if k != name}}
        with pytest.raises(MessageError, match=name):
            AgentMessage.from_json(json.dumps(fields))
        if name != "content":
            with pytest.raises(MessageError, match=name):
                AgentMessage.from_json(json.dumps({**fields, name: 5}))
    for schema in ("1", True, 1.0, None, 2**70):
        with pytest.raises(MessageError, match="schema"):
            AgentMessage.from_json(json.dumps({**FIELDS, "schema": schema}))
    for twice in (
        '"schema":1,"schema":1',
        '"schema":1,"id":"1","id":"2"',
        '"schema":1,"x":1,"x":1',
    ):
        with pytest.raises(MessageError, match="already has"):
            AgentMessage.from_json(f"{{{twice}}}")
    for batch in (b"{}", b"3", b"[1]", b"[[]]", b'[{},"x"]'):
        with pytest.raises(MessageError):
            Codec().decode_batch(batch)
        with pytest.raises(MessageError):
            Serializer().deserialize_batch(batch)


SEEDS = [MESSAGE.to_json(), MESSAGE.to_msgpack(), Serializer().serialize_batch([MESSAGE] * 2)]


@settings(max_examples=2000, deadline=None)
@given(st.data())
def test_damaged_bytes_are_read_or_refused(data):  # noqa: C901 - a way of damage each
    """Each of 2,000 inputs, cut, changed and put together anew, by both readers of both formats."""
    damaged = bytearray(data.draw(st.sampled_from(SEEDS) | st.binary(max_size=60)))
    for _ in range(data.draw(st.integers(0, 4))):
        place = data.draw(st.integers(0, len(damaged)))
        match data.draw(st.integers(0, 3)):
            case 0:
                del damaged[place:]
            case 1:
                damaged[place : place + 1] = data.draw(st.binary(max_size=3))
            case 2:
                damaged[place:place] = damaged[: data.draw(st.integers(0, 20))]
            case 3:
                damaged[place:place] = data.draw(
                    st.sampled_from([b"[", b"{", b'"', b"\\u", b"\xdf"])
                )
    damaged = bytes(damaged)
    for form in FORMATS:
        for read in (_native.decode, _native.decode_batch):
            try:
                found = read(damaged, form)
            except MessageError as error:
                assert 0 <= error.offset <= len(damaged)  # noqa: PT017 - either will do
            else:
                write = _native.encode if read is _native.decode else _native.encode_batch
                assert alike(read(write(found, form), form), found)
                if form == "json":
                    assert alike(json.loads(damaged), found)


@pytest.mark.parametrize("form", FORMATS)
def test_hostile_bytes_take_memory_as_they_have_bytes_at_most(form):
    deep = b"[" * 1_000_000 if form == "json" else b"\x91" * 1_000_000
    claims = b"\xdd\xff\xff\xff\xff" * 1000
    tracemalloc.start()
    for data in (deep, claims, b'{"a":"' + b"x" * 1_000_000):
        with pytest.raises(MessageError):
            Codec().decode(data, form)
    assert tracemalloc.get_traced_memory()[1] < 4_000_000
    tracemalloc.stop()


# --- schemas ------------------------------------------------------------------------------------


def older():
    """How a program whose schema is 3 reads what it wrote before."""
    return {
        1: lambda fields: {**fields, "content": {"text": fields["content"]}},
        2: lambda fields: {**fields, "priority": fields.get("priority", 0)},
    }


@pytest.mark.parametrize("path", sorted(GOLDEN.iterdir()), ids=lambda path: path.name)
def test_golden_files_are_read_for_ever(path):
    """Files of every schema and format, as they were written: never written anew."""
    expected = [MESSAGE, MESSAGE.replace(id="2", content="text")]
    form = "msgpack" if ".msgpack" in path.name else "json"
    if path.suffix == ".stream":
        assert list(Serializer().read(path)) == expected
    else:
        assert Serializer(form).deserialize_batch(path.read_bytes()) == expected
    if not path.name.startswith("0."):
        assert (
            path.suffix == ".stream"
            or Serializer(form).serialize_batch(expected) == path.read_bytes()
        )


def test_older_messages_are_upgraded_step_by_step():
    first = Serializer()
    third = Serializer(schema=3, upgrades=older())
    message = AgentMessage("1", "a", "b", "hi", "t", kept=[1])
    upgraded = message.replace(content={"text": "hi"}, priority=0)
    second = {"schema": 2, **message.to_dict(), "content": {"text": "hi"}, "priority": 5}
    assert third.deserialize(first.serialize(message)) == upgraded
    assert third.deserialize(json.dumps(message.to_dict()).encode()) == upgraded
    assert third.deserialize(json.dumps(second).encode()) == upgraded.replace(priority=5)
    mixed = json.dumps([{"schema": 1, **message.to_dict()}, {"schema": 3, **upgraded.to_dict()}])
    assert third.deserialize_batch(mixed.encode()) == [upgraded, upgraded]
    stream = b"".join(first.serialize_stream([message]))
    assert list(third.deserialize_stream([stream])) == [upgraded]
    assert json.loads(third.serialize(upgraded))["schema"] == 3
    for schema in (4, -1):
        newer = json.dumps({**second, "schema": schema}).encode()
        with pytest.raises(MessageError, match=rf"schema {schema}; up to 3"):
            third.deserialize(newer)
        with pytest.raises(MessageError):
            AgentMessage.from_json(newer)
    with pytest.raises(MessageError, match="upgraded from schema 1"):
        Serializer(schema=2, upgrades={1: lambda _: {"id": "1"}}).deserialize(message.to_json())


def test_senseless_serializers_are_refused():
    for arguments in (
        {"format": "morse"},
        {"schema": 0},
        {"schema": 3, "upgrades": {1: dict}},
        {"schema": 1, "upgrades": {1: dict}},
        {"max_bytes": 0},
    ):
        with pytest.raises(ValueError, match=r"format|schema|upgrades|max_bytes"):
            Serializer(**arguments)


# --- streams ------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_a_stream_comes_back_in_whatever_pieces(form, tmp_path):
    serializer = Serializer(form)
    batch = [MESSAGE.replace(id=str(number), content="x" * number) for number in range(300)]
    stream = b"".join(serializer.serialize_stream(iter(batch)))
    chance = random.Random(1)
    for longest in (1, 2, 50, 10**6):
        pieces, rest = [], stream
        while rest:
            size = chance.randint(1, longest)
            pieces.append(rest[:size])
            rest = rest[size:]
        # Either serializer reads either format.
        assert list(Serializer().deserialize_stream(pieces)) == batch
    path = tmp_path / "messages"
    assert serializer.write(batch, path) == len(stream) == path.stat().st_size
    assert list(serializer.read(str(path))) == batch
    with io.BytesIO() as file:
        serializer.write(batch, file)
        file.seek(0)
        assert list(serializer.read(file)) == batch
    assert list(serializer.deserialize_stream(serializer.serialize_stream([]))) == []


def test_a_file_without_a_buffer_gets_all_of_a_stream_or_an_error_tells(tmp_path):
    class Narrow(io.FileIO):
        def write(self, data):
            return super().write(bytes(data[:7]))

    with Narrow(tmp_path / "messages", "w") as file:
        written = Serializer().write([MESSAGE] * 3, file)
    assert written == (tmp_path / "messages").stat().st_size
    assert list(Serializer().read(tmp_path / "messages")) == [MESSAGE] * 3
    # What is no file and does not say has taken all.
    pieces = []
    assert Serializer().write([MESSAGE], types.SimpleNamespace(write=pieces.append)) > 0
    assert list(Serializer().deserialize_stream(pieces)) == [MESSAGE]
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with (
        open(reader, "rb"),  # noqa: PTH123
        open(writer, "wb", buffering=0) as full,  # noqa: PTH123
        pytest.raises(BlockingIOError, match="nothing more"),
    ):
        Serializer().write([MESSAGE] * 10_000, full)


def test_a_damaged_stream_gives_what_came_before_and_then_raises():
    stream = b"".join(Serializer().serialize_stream([MESSAGE] * 3))
    for cut in range(len(stream)):
        found = []

        def collect(cut=cut, found=found):
            for message in Serializer().deserialize_stream([stream[:cut]]):
                found.append(message)

        with pytest.raises(MessageError) as refused:
            collect()
        assert refused.value.offset == cut
        assert found == [MESSAGE] * len(found)
        assert (
            len(found) == max(0, (cut - 6) // (len(MESSAGE.to_json()) + 4))
            or cut > len(stream) - 12
        )
    broken = stream.replace(b"recipient", b'recip"ent', 1)
    with pytest.raises(MessageError, match="of the message at byte 10") as refused:
        list(Serializer().deserialize_stream([broken]))
    assert refused.value.offset == broken.index(b'"ent') + 1
    for wrong in (b"x" + stream, stream + b"x", stream[:4] + b"\x02" + stream[5:]):
        with pytest.raises(MessageError):
            list(Serializer().deserialize_stream([wrong]))
    with pytest.raises(MessageError, match="after 3"):
        list(Serializer().deserialize_stream([stream[:-1] + b"\x04"]))


def test_a_stream_of_any_length_needs_the_memory_of_one_message():
    big = "x" * 100_000
    tracemalloc.start()
    made = (AgentMessage(str(n), "a", "b", big, "t") for n in range(300))
    stream = Serializer().serialize_stream(made)
    assert sum(len(m.content) for m in Serializer().deserialize_stream(stream)) == 30_000_000
    assert tracemalloc.get_traced_memory()[1] < 3_000_000
    tracemalloc.stop()
    # Neither is what a length claims reserved.
    head = b"CNMS\x01j" + (2**32 - 1).to_bytes(4, "big")
    with pytest.raises(MessageError, match="at most 67108864"):
        list(Serializer().deserialize_stream([head]))
    with pytest.raises(ValueError, match="max_bytes is 50"):
        list(Serializer(max_bytes=50).serialize_stream([MESSAGE]))


def test_many_threads_write_and_read_the_same_messages():
    expected = Serializer().serialize_batch([MESSAGE] * 50)
    wrong = []

    def work():
        for _ in range(50):
            data = Serializer().serialize_batch([MESSAGE] * 50)
            if data != expected or Serializer().deserialize_batch(data)[-1] != MESSAGE:
                wrong.append(data)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_collector_is_as_it_was():
    assert gc.isenabled()
    Codec().encode(FIELDS)
    with pytest.raises(TypeError):
        Codec().encode({"a": {1}})
    assert gc.isenabled()
    gc.disable()
    try:
        Codec().encode(FIELDS)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_messages_are_counted():
    before = _native.totals()
    Codec().decode_batch(Codec().encode_batch([FIELDS, FIELDS]))
    after = _native.totals()
    assert after["encoded"] - before["encoded"] == after["decoded"] - before["decoded"] == 2
    assert after["decoded_bytes"] > before["decoded_bytes"]
