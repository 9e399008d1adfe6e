"""Events as text: that they are what pydantic makes of them, whatever is in them."""

from __future__ import annotations

import datetime as dt
import enum
import importlib
import json
import pkgutil
from typing import Annotated, Any, Literal

import pytest
from crewai.events import types
from crewai.events.base_events import BaseEvent
from crewai.events.types.flow_events import FlowFinishedEvent
from crewai.events.types.llm_events import (
    LLMCallCompletedEvent,
    LLMCallStartedEvent,
    LLMCallType,
)
from crewai.events.types.tool_usage_events import ToolUsageStartedEvent
from crewai.state.event_record import EventNode, EventRecord
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, computed_field, create_model

from crewai_native_db import _native
from crewai_native_db.checkpoints.likeness import likeness
from crewai_native_db.checkpoints.shapes import plan

for _module in pkgutil.iter_modules(types.__path__):
    importlib.import_module(f"{types.__name__}.{_module.name}")


def _below(kind):
    for other in kind.__subclasses__():
        if other.__module__.startswith("crewai."):
            yield other
            yield from _below(other)


KINDS = sorted({BaseEvent, *_below(BaseEvent)}, key=lambda kind: kind.__name__)
UTC = dt.UTC


class Colour(enum.StrEnum):
    RED = "red"


class Odd(str):
    __slots__ = ()


class Inner(BaseModel):
    x: int = 1


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec=None))
    | st.sampled_from(["", "a", "é", "\u2028", "\x00", '"\\', "😀"])
)
times = st.datetimes(timezones=st.sampled_from([None, UTC, dt.timezone(dt.timedelta(hours=2))]))
odd = st.sampled_from(
    [
        b"bytes",
        Colour.RED,
        Odd("odd"),
        (1, 2),
        {1},
        {1: "int"},
        {None: 0},
        Inner(),
        dt.date(2026, 1, 2),
        dt.timedelta(1),
        len,
        Inner,
    ]
)
values = st.recursive(
    scalars | times | odd,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)
likely = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


def agree(event, events=None):
    """Whether an event has a text, which is then what pydantic makes of it."""
    found = (events or _native.Events(plan)).text(event)
    if found is None:
        return False
    text, left = found
    options = {"exclude": set(left), "warnings": False, "fallback": str}
    dump = event.__pydantic_serializer__.to_python(event, mode="json", **options)
    # As text, because 1 == 1.0 == True.
    assert json.dumps(json.loads(text)) == json.dumps(dump)
    return not left


class TestTexts:
    @given(st.sampled_from(KINDS), st.data())
    def test_every_class_with_any_values(self, kind, data):
        fields = {
            name: data.draw(likely if data.draw(st.booleans()) else values, label=name)
            for name in kind.model_fields
            if data.draw(st.integers(0, 4)) == 0
        }
        event = kind.model_construct(**dict.fromkeys(kind.model_fields) | fields)
        event.timestamp = data.draw(times)
        agree(event)

    @given(st.data())
    def test_every_kind_of_declaration_with_any_values(self, data):
        event = Declared.model_construct(
            **dict.fromkeys(Declared.model_fields)
            | {
                name: data.draw(values, label=name)
                for name in Declared.model_fields
                if data.draw(st.integers(0, 6)) == 0
            }
        )
        agree(event)

    def test_what_runs_are_full_of_is_written_here(self):
        written = {kind for kind in KINDS if plan(kind) is not None}
        assert len(written) > len(KINDS) * 0.9
        call = {"call_id": "c", "model": "m", "from_cache": False}
        messages = [{"role": "user", "content": "é", "tool_calls": [{"n": 1, "x": 0.5}]}]
        for event in (
            LLMCallStartedEvent(**call, messages=messages),
            LLMCallCompletedEvent(
                **call, messages=messages, response=messages, call_type=LLMCallType.LLM_CALL
            ),
            ToolUsageStartedEvent(tool_name="t", tool_args={"q": 1}, agent_key="k"),
            FlowFinishedEvent(flow_name="f", result="r", state={"id": "1", "n": [1.5]}),
        ):
            assert agree(event), event

    def test_values_that_only_pydantic_knows(self):
        class Special(BaseEvent):
            value: Any = None

        events = _native.Events(plan)
        assert agree(Special(type="special", value=[{"a": [1, None]}]), events)
        for value in (float("nan"), "\ud800", {1: 2}, 2**70, Odd("x"), (1,), Inner(), b"x"):
            assert not agree(Special(type="special", value=value), events)
        deep: Any = []
        for _ in range(100):
            deep = [deep]
        assert not agree(Special(type="special", value=deep), events)

    def test_classes_that_only_pydantic_knows(self):
        class Computed(BaseEvent):
            @computed_field
            @property
            def more(self) -> int:
                return 1

        class Open(BaseEvent):
            model_config = ConfigDict(extra="allow")

        class Settings(BaseEvent):
            model_config = ConfigDict(ser_json_inf_nan="strings")

        for kind in (Computed, Open, Settings):
            assert plan(kind) is None
            assert _native.Events(plan).text(kind(type="x")) is None

    def test_a_field_that_the_class_does_not_have(self):
        event = BaseEvent(type="x")
        vars(event)["more"] = 1
        assert not agree(event)
        del vars(event)["more"], vars(event)["type"]
        assert not agree(event)


DEFINITIONS = [
    (str, ...),
    (int, ...),
    (int, 1),
    (bool, True),
    (float, 1.0),
    (int | str, ...),
    (str | int, ...),
    (str, Field(description="d")),
    (str, Field(max_length=3)),
    (str, Field(alias="x")),
    (str, Field(json_schema_extra={"x": 1})),
    (list[int], Field(default_factory=list)),
    (Annotated[int, Field(gt=1)], ...),
    (list[Annotated[int, Field(gt=1)]], ...),
    (list[Annotated[int, Field(gt=2)]], ...),
    (Inner, ...),
    (Literal[1], 1),
    (Literal["1"], "1"),
]


class Declared(BaseEvent):
    """One field of each kind of declaration."""

    truth: bool = True
    number: int = 1
    real: float = 1.0
    either: int | float | str = 1
    maybe: float | None = None
    word: Literal["a", "b"] = "a"
    choice: Literal[1, "b"] = 1
    colour: Colour = Colour.RED
    rows: list[dict[str, Any]] | str | None = None
    reals: list[float]
    table: dict[str, float]
    counted: dict[int, str]
    inner: Inner | str | None = None
    inners: list[Inner]
    at: dt.datetime | None = None
    day: dt.date | None = None
    upper: Annotated[str, PlainSerializer(str.upper)] = ""
    hidden: Any = Field(default=None, exclude=True)
    named: str = Field(default="", serialization_alias="otherName")
    pair: tuple[int, ...] = ()
    both: dict[str, Any] | list[str] | None = None


class TestLikeness:
    def test_classes_that_are_described_alike(self):
        made = [create_model("Args", q=(str, ...), n=(int, 1)) for _ in range(2)]
        assert likeness(made[0]) == likeness(made[1])
        assert made[0].model_json_schema() == made[1].model_json_schema()

    @given(st.lists(st.sampled_from(DEFINITIONS), min_size=1, max_size=3), st.data())
    def test_nothing_is_alike_that_is_described_otherwise(self, fields, data):
        others = data.draw(st.lists(st.sampled_from(DEFINITIONS), min_size=1, max_size=3))
        one, other = (
            create_model(name, __doc__=doc, **dict(zip("abc", of, strict=False)))
            for of in (fields, others)
            for name, doc in [
                (
                    data.draw(st.sampled_from(["A", "A", "B"])),
                    data.draw(st.sampled_from([None, None, "x"])),
                )
            ]
        )
        if likeness(one) == likeness(other):
            assert json.dumps(one.model_json_schema()) == json.dumps(other.model_json_schema())

    def test_a_class_with_a_say_in_its_schema_is_like_itself_alone(self):
        class Titled(BaseModel):
            model_config = ConfigDict(title="x")

        class Hooked(BaseModel):
            @classmethod
            def __get_pydantic_json_schema__(cls, schema, handler):
                return handler(schema) | {"x": 1}

        class Below(Inner):
            pass

        for kind in (Titled, Hooked, Below, None):
            assert likeness(kind) is kind


def nothing(event, left):
    raise AssertionError(f"{event!r} is written without help, but for {left}")


def fail(*_):
    raise OverflowError


class TestSegments:
    def segment(self, record, events, known, rest=nothing):
        count = events.wire(record.nodes, known)
        new = [node.event for node in list(record.nodes.values())[known:]]
        assert count == len(new)
        return json.loads(events.segment(new, rest))

    def test_events_are_in_it_once_with_what_connects_them(self):
        record, events = EventRecord(), _native.Events(plan)
        for name in "ab":
            record.add(BaseEvent(type="x", event_id=name))
        found = self.segment(record, events, 0)
        assert [(name, parts) for name, _, parts, _ in found["nodes"]] == [("a", {}), ("b", {})]
        assert found["nodes"][0][1] == record.nodes["a"].event.model_dump(mode="json")
        assert found["edges"] == []
        record.add(BaseEvent(type="x", event_id="c", parent_event_id="a", previous_event_id="b"))
        found = self.segment(record, events, 2)
        ((name, _, _, edges),) = found["nodes"]
        assert (name, edges) == ("c", dict(record.nodes["c"].edges))
        assert found["edges"] == [["a", "child", 0, ["c"]], ["b", "next", 0, ["c"]]]
        record.add(BaseEvent(type="x", event_id="d", parent_event_id="a"))
        assert self.segment(record, events, 3)["edges"] == [["a", "child", 1, ["d"]]]

    def test_one_that_could_not_be_written_is_found_again(self):
        record, events = EventRecord(), _native.Events(plan)
        record.add(BaseEvent(type="x", event_id="a"))
        self.segment(record, events, 0)
        record.add(BaseEvent(type="x", event_id="b", parent_event_id="a"))
        event = record.nodes["b"].event
        event.source_type = {1}
        with pytest.raises(OverflowError):
            self.segment(record, events, 1, fail)
        # What was found is found once.
        with pytest.raises(ValueError, match="of 1 events the connections of 0"):
            events.segment([event], fail)
        asked = []

        def rest(*of):
            asked.append(of)
            return None, b'{"source_type":7}'

        found = self.segment(record, events, 1, rest)
        assert asked == [(event, ["source_type"])]
        ((name, body, parts, _),) = found["nodes"]
        assert (name, parts, found["edges"]) == (
            "b",
            {"source_type": 7},
            [["a", "child", 0, ["b"]]],
        )
        assert "source_type" not in body

    def test_a_text_instead_of_the_one_that_lacks_fields(self):
        record, events = EventRecord(), _native.Events(lambda _: None)
        record.add(BaseEvent(type="x", event_id="a"))
        found = self.segment(record, events, 0, lambda _, left: (b'"x"', b"[%d]" % (left is None)))
        assert found["nodes"] == [["a", "x", [1], {}]]

    def test_what_is_known_to_belong_into_a_field_is_not_asked_for(self):
        handler, other = Inner(), Inner()

        def event(name, callbacks, kind=LLMCallStartedEvent):
            made = kind.model_construct(type="x", event_id=name, call_id="c")
            made.timestamp = dt.datetime(2026, 1, 2, tzinfo=UTC)
            made.callbacks = callbacks
            return made

        class Below(LLMCallStartedEvent):
            pass

        events = _native.Events(plan)
        events.refer(LLMCallStartedEvent, "callbacks", [handler], many=True, text=b"[3]")
        events.refer(LLMCallStartedEvent, "callbacks", [other], many=False, text=b"4")
        asked = {}

        def rest(event, left):
            asked[event.event_id] = left
            return None, b"{}"

        record = EventRecord()
        for made in (
            event("known", [handler]),
            event("one", other),
            event("no list", handler),
            event("a list", [other]),
            event("more", [handler, handler]),
            event("another class", [handler], Below),
        ):
            record.nodes[made.event_id] = EventNode.model_construct(event=made, edges={})
        found = self.segment(record, events, 0, rest)
        parts = {name: parts for name, _, parts, _ in found["nodes"] if parts}
        assert parts == {"known": {"callbacks": [3]}, "one": {"callbacks": 4}}
        assert list(asked) == ["no list", "a list", "more", "another class"]
        assert all(left == ["callbacks"] for left in asked.values())


def test_a_plan_without_sense_is_refused():
    for said in ("thing", ("list",), ("tree", "any")):
        events = _native.Events(lambda _, said=said: [("type", said)])
        with pytest.raises(ValueError, match="is no shape"):
            events.text(BaseEvent(type="x"))
