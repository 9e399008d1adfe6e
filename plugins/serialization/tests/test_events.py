"""Events: what CrewAI's own function answers, for whatever it is given."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import importlib
import inspect
import json
import math
import pkgutil
import sys
import threading
import types
import typing
import uuid
from collections import OrderedDict, defaultdict, namedtuple
from typing import Annotated, Any, Literal
from unittest.mock import MagicMock, Mock

import pydantic
import pytest
from crewai.utilities.serialization import to_serializable as stock
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    computed_field,
    field_serializer,
    model_serializer,
)

from crewai_native_serialization import to_serializable


def outcome(function, *arguments, **options):
    try:
        return "value", function(*arguments, **options)
    except Exception as error:  # noqa: BLE001 - compared
        return "error", type(error), str(error)


def alike(left, right):
    """Equal and of the same types all the way down; NaN equals itself."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return list(left) == list(right) and all(alike(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(alike, left, right))
    if isinstance(left, float) and math.isnan(left):
        return math.isnan(right)
    return bool(left == right)


def check(value, **options):
    expected, found = outcome(stock, value, **options), outcome(to_serializable, value, **options)
    assert alike(found, expected), (found, expected)
    if found[0] == "value":
        assert containers(found[1]).isdisjoint(containers(value)), (
            "a container of the result is the caller's"
        )


def containers(value, seen=None):
    """The identities of the containers in plain data."""
    seen = set() if seen is None else seen
    if type(value) in (dict, list) and id(value) not in seen:
        seen.add(id(value))
        for item in value.values() if type(value) is dict else value:
            containers(item, seen)
    return seen


# --- every event of CrewAI ----------------------------------------------------------------------


def event_classes():
    import crewai.events
    from crewai.events.base_events import BaseEvent

    for module in pkgutil.walk_packages(crewai.events.__path__, "crewai.events."):
        importlib.import_module(module.name)
    found, queue = {}, [BaseEvent]
    while queue:
        cls = queue.pop()
        if found.setdefault(cls.__name__, cls) is cls and cls.__module__.startswith("crewai."):
            queue += cls.__subclasses__()
    return found


def example(kind, depth=0):  # noqa: C901, PLR0911 - one line for each kind
    """Something that a field of this type accepts."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return example(arguments[0], depth)
    if origin is Literal:
        return arguments[0]
    if origin in (typing.Union, types.UnionType):
        return example(next(a for a in arguments if a is not type(None)), depth)
    if origin in (list, set, tuple, typing.Sequence):
        return [example(arguments[0], depth + 1)] if arguments else ["item"]
    if origin is dict:
        return {example(arguments[0]): example(arguments[1], depth + 1)}
    if isinstance(kind, type):
        if issubclass(kind, enum.Enum):
            return next(iter(kind))
        if inspect.isabstract(kind):
            return None
        if issubclass(kind, BaseModel):
            return build(kind, depth + 1)
        for known, value in {
            bool: True,
            str: "text",
            int: 3,
            float: 0.5,
            dict: {"key": [1, {"deep": None}]},
            list: ["item"],
            set: {"item"},
            dt.datetime: dt.datetime(2026, 1, 2, tzinfo=dt.UTC),
            uuid.UUID: uuid.UUID(int=7),
        }.items():
            if issubclass(kind, known):
                return value
    return {"any": [1, "two", dt.date(2026, 1, 1), uuid.UUID(int=1), ("t",), {"s"}]}


def build(cls, depth=0):
    fields = {}
    for name, field in cls.model_fields.items():
        if name in ("from_task", "from_agent"):
            continue
        if field.is_required() or (depth == 0 and name != "source_type"):
            fields[field.alias or name] = example(field.annotation, depth)
    try:
        return cls(**fields)
    except (pydantic.ValidationError, AttributeError, TypeError):
        # Some check what they hold. Their JSON is made of the same stuff.
        return cls.model_construct(**fields)


EVENTS = event_classes()


def test_the_events_are_found():
    assert len(EVENTS) > 90


@pytest.mark.parametrize("name", sorted(EVENTS))
def test_every_event(name):
    cls = EVENTS[name]
    event = build(cls)
    check(event)
    check(event, exclude={"timestamp", "event_id", "messages"})
    check(event, max_depth=0)
    check(event, max_depth=2)
    check({"event": event, "more": [event]})
    bare = cls.model_construct(**{n: example(f.annotation) for n, f in cls.model_fields.items()})
    check(bare)


def test_events_with_the_runs_own_objects():
    from crewai import Agent, Task

    from crewai_native.testing import ScriptedLLM

    agent = Agent(role="r", goal="g", backstory="b", llm=ScriptedLLM())
    task = Task(description="d", expected_output="e", agent=agent)
    event = EVENTS["TaskStartedEvent"](task=task, context="c")
    for value in (agent, task, event, {"agent": agent}):
        check(value)
        check(value, exclude={"llm", "agent"})


# --- anything else ------------------------------------------------------------------------------


class Color(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


class Name(enum.StrEnum):
    ANNE = "anne"


class Text(str):
    __slots__ = ()

    def __str__(self):
        return "another text"


class Number(int):
    pass


class Plain:
    def __repr__(self):
        return "<plain>"


class Refusing:
    def __repr__(self):
        raise RuntimeError("no repr")

    __str__ = __repr__


class OddRepr:
    def __repr__(self):
        return Text("odd")


class RefusingClass:
    @property
    def __class__(self):
        raise ValueError("no class")


class Lying:
    """Says that it is of another class."""

    def __init__(self, cls):
        self.cls = cls

    @property
    def __class__(self):
        return self.cls

    def __repr__(self):
        return f"<as {self.cls.__name__}>"


class Inner(BaseModel):
    when: dt.datetime = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    ident: uuid.UUID = uuid.UUID(int=5)


class Sub(Inner):
    more: int = 1


class Rich(BaseModel):
    model_config = ConfigDict(extra="allow", arbitrary_types_allowed=True)
    name: str = Field("n", alias="theName")
    secret: str = Field("s", exclude=True)
    inner: Inner = Sub()
    data: Any = None
    raw: bytes = b"raw"
    kind: Color = Color.RED
    _private: int = 3

    @computed_field
    @property
    def doubled(self) -> str:
        return self.name * 2

    @field_serializer("kind")
    def _kind(self, kind):
        return kind.name.lower()


class Custom(BaseModel):
    value: Any = None

    @model_serializer
    def _all(self):
        return {"custom": self.value, 3: [self.value]}


class Failing(BaseModel):
    """Cannot be dumped, so that what it holds is taken."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    value: Any = None
    other: int = 3

    @model_serializer
    def _all(self):
        raise ValueError("not today")


class Hopeless(Failing):
    def __getattribute__(self, name):
        if name == "__dict__":
            raise RuntimeError("nothing to see")
        return super().__getattribute__(name)


class Root(pydantic.RootModel[list[int]]):
    pass


@dataclasses.dataclass
class Record:
    name: Any = "n"
    parts: Any = dataclasses.field(default_factory=list)
    kind: typing.ClassVar[str] = "class"
    late: dataclasses.InitVar[int] = 3


@pydantic.dataclasses.dataclass
class Checked:
    number: int = 3


@dataclasses.dataclass(slots=True, frozen=True)
class Slotted:
    value: Any = None


Point = namedtuple("Point", "x y")  # noqa: PYI024 - the plainest kind


class Items(dict):
    """A dict with entries of its own."""

    def items(self):
        return [["listed", 1], ("paired", [2])]


class BadItems(dict):
    def items(self):
        return [(1, 2, 3)]


class Walked(list):
    def __iter__(self):
        return iter(["walked", {"k": 1}])


class Group(tuple):  # noqa: SLOT001
    pass


def function():
    pass


class Meta(type):
    @property
    def __name__(cls):
        return Text("meta")


class Loop(list, metaclass=Meta):
    pass


def looped(value, link):
    link(value)
    return value


LEAVES = [
    None,
    True,
    False,
    0,
    -1,
    2**70,
    1.5,
    float("inf"),
    float("nan"),
    -0.0,
    "",
    "text",
    "Ünï 🜂",
    "\ud800",
    Text("t"),
    Number(3),
    Level.LOW,
    Name.ANNE,
    Color.RED,
    b"bytes",
    bytearray(b"b"),
    memoryview(b"m"),
    dt.datetime(2026, 1, 1, 1, 2, 3, 4, dt.UTC),
    dt.date(2026, 1, 1),
    dt.time(1, 2),
    dt.timedelta(1),
    uuid.UUID(int=1),
    decimal.Decimal("1.10"),
    1 + 2j,
    range(3),
    ...,
    NotImplemented,
    ValueError("oh", 3),
    KeyError("k"),
    Plain(),
    OddRepr(),
    Plain,
    Record,
    BaseModel,
    function,
    len,
    "x".join,
    lambda: 1,
    json,
    int,
    list[int],
    int | None,
    Mock,
]
AWKWARD = [
    Refusing(),
    RefusingClass(),
    *(Lying(cls) for cls in (str, int, uuid.UUID, dt.date, list, dict, type, Record, BaseModel)),
    Mock(spec=str),
    Mock(spec=Record()),
    Mock(spec=Rich()),
    BadItems(),
    Failing.model_construct(value=Refusing()),
    Hopeless.model_construct(),
    Refusing,
]
KEYS = [
    "key",
    "k",
    "name",
    "",
    1,
    True,
    None,
    2.5,
    Text("text key"),
    Level.LOW,
    Name.ANNE,
    Color.RED,
    b"key",
    ("a", 1),
    uuid.UUID(int=2),
    dt.date(2026, 1, 1),
    frozenset({1}),
    Plain,
    OddRepr(),
]

hashable = st.sampled_from(KEYS)


def nested(children):
    return st.one_of(
        st.lists(children, max_size=4),
        st.lists(children, max_size=4).map(tuple),
        st.dictionaries(hashable, children, max_size=4),
        st.sets(hashable, max_size=4),
        st.frozensets(hashable, max_size=3),
        children.map(lambda c: Rich(theName="m", data=c, extra_field=c)),
        children.map(lambda c: Custom(value=c)),
        children.map(lambda c: Failing(value=c)),
        children.map(lambda c: Record(name=c, parts=[c])),
        children.map(Slotted),
        children.map(lambda c: Point(c, 1)),
        children.map(lambda c: Walked([c])),
        children.map(lambda c: Group([c, c])),
        children.map(lambda c: Items(a=c)),
        children.map(lambda c: OrderedDict(a=c, name=c)),
        children.map(lambda c: defaultdict(list, a=c)),
        children.map(lambda c: types.MappingProxyType({"a": c})),
        children.map(lambda c: looped([c], lambda v: v.append(v))),
        children.map(lambda c: looped({"k": c}, lambda v: v.update(self=[v, (v,)]))),
        children.map(lambda c: looped(Record(name=c), lambda v: v.parts.append(v))),
        children.map(lambda c: looped(Loop([c]), lambda v: v.append(v))),
        children.map(lambda c: looped(Failing(value=c), lambda v: setattr(v, "value", [v]))),
        children.map(lambda c: [c, c, {"twice": c}]),
    )


leaves = st.one_of(
    st.sampled_from(LEAVES),
    st.text(),
    st.integers(),
    st.floats(),
    st.datetimes(),
    st.binary(max_size=5),
    st.builds(Checked),
    st.builds(Root, st.lists(st.integers(), max_size=3)),
)
anything = st.recursive(leaves, nested, max_leaves=12)
# By number: hypothesis shows what it draws from.
awkward = st.builds(lambda number: AWKWARD[number], st.integers(0, len(AWKWARD) - 1))
hostile = st.recursive(leaves | awkward, nested, max_leaves=12)
options = st.fixed_dictionaries(
    {},
    optional={
        "exclude": st.sampled_from(
            [
                None,
                set(),
                {"name", "k"},
                {"data"},
                frozenset({"a", 1}),
                ["key"],
                {"value", "extra_field"},
            ]
        ),
        "max_depth": st.sampled_from([-1, 0, 1, 2, 3, 5, 9, True, 2.5, 2**80]),
    },
)


# By number: pytest looks into what it is given.
@pytest.mark.parametrize("number", range(len(LEAVES) + len(AWKWARD)))
def test_single_values(number):
    value = (LEAVES + AWKWARD)[number]
    check(value)
    check([value, {"k": value}, (value,)])
    check(Rich(data=value))
    check(Failing.model_construct(value=value))


@settings(max_examples=200, deadline=None)
@given(anything, options)
def test_anything(value, chosen):
    check(value, **chosen)


@settings(max_examples=150, deadline=None)
@given(hostile, options)
def test_anything_that_resists(value, chosen):
    check(value, **chosen)


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_depth": None},
        {"max_depth": "5"},
        {"exclude": 5},
        {"_ancestors": 5},
        {"unknown": 1},
    ],
    ids=str,
)
def test_senseless_arguments_raise(arguments):
    with pytest.raises(TypeError):
        stock({"a": 1}, **arguments)
    with pytest.raises(TypeError):
        to_serializable({"a": 1}, **arguments)


def test_the_inner_arguments_mean_what_they_do():
    value = {"a": [1]}
    check(value, _current_depth=4)
    check(value, _current_depth=7, max_depth=0)
    check(value, _ancestors={id(value)})
    check(value, _ancestors={id(value["a"]), 3})


def test_an_interrupt_goes_through():
    class Interrupting(BaseModel):
        def model_dump(self, **_):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        to_serializable([Interrupting()])


def test_what_changes_while_it_is_read():  # noqa: C901 - one function for each way
    class Growing:
        def __init__(self, grow):
            self.grow = grow

        def __repr__(self):
            self.grow()
            return "grown"

    def dicts():
        value = {}
        value["a"] = Growing(lambda: value.__setitem__(len(value), 1))
        value["b"] = 2
        return value

    def replacing():
        value = {}
        value["a"] = Growing(lambda: value.update(b=3))
        value["b"] = 2
        return value

    def exchanging():
        value = {"a": 1}
        value["b"] = Growing(lambda: (value.pop("c"), value.update(d=1)))
        value["c"] = 2
        return value

    def moved():
        value = {"a": 1, "b": [], "c": {}}
        value["d"] = Growing(lambda: value.update(e=(value.pop("e"), [3])))
        value["e"] = 2
        value["f"] = {"g": Growing(lambda: value.update(h=value.pop("h")))}
        value["h"] = {}
        value["i"] = None
        return value

    def behind():
        value = {"a": 1, 2: 3}
        value["b"] = Growing(lambda: value.update({"c": [4], 2: value.pop(2)}))
        value["c"] = 2
        return {"in": value, "out": 1}

    def emptied():
        value = {}
        value["a"] = Growing(value.clear)
        return value

    def sets():
        value = set()
        value.add(Growing(lambda: value.add(len(value))))
        return value

    def lists():
        value = []
        value += [Growing(lambda: value.append(1) if len(value) < 5 else None), 2]
        return value

    def shrinking():
        value = []
        value += [Growing(value.clear), 2, 3]
        return value

    for make in (dicts, replacing, exchanging, moved, behind, emptied, sets, lists, shrinking):
        assert alike(outcome(to_serializable, make()), outcome(stock, make())), make.__name__


def test_depth_without_limit_ends_in_an_error_at_worst():
    value = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(RecursionError):
        to_serializable(value, max_depth=0)
    # The default limit leaves the rest to `repr`, which has the same trouble with it.
    assert outcome(to_serializable, value)[:2] == outcome(stock, value)[:2]

    def deep(levels):
        return "end" if levels == 0 else {"down": [deep(levels - 1)]}

    check(deep(100), max_depth=0)
    # In a thread with a stack as small as macOS makes them.
    before = threading.stack_size(512 * 1024)
    results = []
    try:
        thread = threading.Thread(
            target=lambda: results.append(outcome(to_serializable, value, max_depth=0))
        )
        thread.start()
        thread.join()
    finally:
        threading.stack_size(before)
    assert results[0][:2] == ("error", RecursionError)


def test_a_history_shares_nothing_between_turns():
    history = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    first, second = to_serializable(history), to_serializable(history)
    first[0]["content"][0]["text"] = "redacted"
    first[0]["more"] = 1
    assert second == to_serializable(history) == stock(history)
    # Changed in place, as callers do: the next turn shows it.
    history[0]["content"][0]["text"] = "ho"
    history[0]["role"] = "system"
    assert to_serializable(history) == stock(history)


def test_no_text_of_a_history_is_made_again():
    history = []
    for turn in range(20):
        text = f"what {turn} gave " * 1000
        history += [
            {"role": "assistant", "content": None, "tool_call_id": f"c{turn}"},
            {"role": "tool", "content": [{"type": "text", "text": text}], "name": f"look{turn}"},
        ]
        given = to_serializable(history)
        assert given == stock(history)
        for before, after in zip(history, given, strict=True):
            assert after is not before
            for key, value in before.items():
                assert after[key] is value or isinstance(value, list)
        (before,), (after,) = history[-1]["content"], given[-1]["content"]
        assert after is not before
        assert after["text"] is text


def test_nothing_leaks():
    value = [
        {"role": "user", "content": "x"},
        Rich(data=[1]),
        Record(),
        Failing(value={1: (2,)}),
        {1},
    ]
    to_serializable(value)
    marker = object()
    value.append({"k": marker, marker: 1})
    before = sys.getrefcount(marker), sys.getrefcount(value), sys.getrefcount(None)
    for _ in range(200):
        to_serializable(value)
        to_serializable(value, exclude={"k"})
    after = sys.getrefcount(marker), sys.getrefcount(value), sys.getrefcount(None)
    assert after[:2] == before[:2]
    assert abs(after[2] - before[2]) < 100
    tracked = MagicMock()
    check(tracked)
