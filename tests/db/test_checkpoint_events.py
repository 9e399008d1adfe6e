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
from crewai.state.event_record import EventRecord
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


class TestEdges:
    def test_a_segment_that_could_not_be_written_is_found_again(self):
        record, events = EventRecord(), _native.Events(plan)
        for name in "ab":
            record.add(BaseEvent(type="x", event_id=name))
        first = events.edges(record.nodes, 0)
        assert events.edges(record.nodes, 0) == first
        assert [json.loads(name) for name, _ in first[0]] == ["a", "b"]
        assert json.loads(first[1]) == []
        events.settle()
        record.add(BaseEvent(type="x", event_id="c", parent_event_id="a", previous_event_id="b"))
        found = events.edges(record.nodes, 2)
        assert events.edges(record.nodes, 2) == found
        new, grown = found
        ((name, edges),) = new
        assert json.loads(name) == "c"
        assert json.loads(edges) == dict(record.nodes["c"].edges)
        assert json.loads(grown) == [["a", "child", 0, ["c"]], ["b", "next", 0, ["c"]]]
        events.settle()
        record.add(BaseEvent(type="x", event_id="d", parent_event_id="a"))
        assert json.loads(events.edges(record.nodes, 3)[1]) == [["a", "child", 1, ["d"]]]


def test_a_plan_without_sense_is_refused():
    for said in ("thing", ("list",), ("tree", "any")):
        events = _native.Events(lambda _, said=said: [("type", said)])
        with pytest.raises(ValueError, match="is no shape"):
            events.text(BaseEvent(type="x"))
