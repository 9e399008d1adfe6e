"""The text of states: what ``json.dumps`` makes of them."""

from __future__ import annotations

import enum
import json
from collections import OrderedDict, UserDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crewai_native_db import _native
from crewai_native_db.encoding import dumps


class Word(str):  # noqa: SLOT000 - as plain subclasses are
    def __str__(self):
        return "another word"

    def __iter__(self):
        raise AssertionError("Python's own encoder does not ask")


class Level(enum.IntEnum):
    HIGH = 3

    def __repr__(self):
        return "high"


class Colour(str, enum.Enum):  # noqa: UP042 - the one that CrewAI has
    RED = "red"


class Amount(float):
    def __repr__(self):
        return "much"


class Calls(dict):
    def items(self):
        return [("called", True)]


class Steps(list):
    def __iter__(self):
        return iter(["stepped"])


class Known:
    def __init__(self, made):
        self.made = made


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.text()
    | st.text(st.characters(codec="ascii"), min_size=30)
    | st.sampled_from([Word("w\n"), Level.HIGH, Colour.RED, Amount(1.5)]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text() | st.just(Word("key")), inner, max_size=4)
    ),
    max_leaves=30,
)
# What only Python's encoder can write, or nobody.
LEFT = st.sampled_from(
    [
        2**63,
        -(10**30),
        "\ud800",
        {1: 2},
        {None: 1},
        {"\udc00": 1},
        {1, 2},
        b"bytes",
        object(),
        Calls(a=1),
        Steps([1]),
        OrderedDict(a=1),
        UserDict(a=1),
    ]
)


@given(value=PLAIN)
@settings(max_examples=300, deadline=None)
def test_plain_values_are_written_natively_as_python_writes_them(value):
    assert _native.dumps(value) == json.dumps(value)
    finite = json.loads(json.dumps(value), parse_constant=lambda _: None)
    assert _native.dumps_compact(value) == json.dumps(finite, separators=(",", ":")).encode()


@given(value=PLAIN, left=LEFT)
@settings(max_examples=100, deadline=None)
def test_what_python_may_write_otherwise_is_left_to_it(value, left):
    for whole in ([value, left], {"a": {"b": left}, "c": value}, (left,)):
        assert _native.dumps(whole) is None
        assert _native.dumps_compact(whole) is None
        assert dumps(whole, default=repr) == json.dumps(whole, default=repr)


# Objects that only ``default`` knows what to do with, and what it may make of them.
MADE = st.sampled_from(
    ["text", 5, None, [1, "two"], {"a": [1.5]}, {1: 2}, OrderedDict(a=1), 2**70, "\ud800"]
)
KNOWN = st.builds(Known, MADE)
MIXED = st.recursive(
    PLAIN | KNOWN,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(), inner, max_size=4)
    ),
    max_leaves=20,
)


def _made(value):
    return value.made


@given(value=MIXED)
@settings(max_examples=300, deadline=None)
def test_objects_are_written_as_what_default_makes_of_them(value):
    assert dumps(value, default=_made) == json.dumps(value, default=_made)


def test_default_is_asked_once_for_an_object_among_plain_values():
    asked = []
    known = Known("text")
    text = _native.dumps({"a": [1, known], "b": {"c": known}}, lambda v: asked.append(v) or "x")
    assert text == '{"a": [1, "x"], "b": {"c": "x"}}'
    assert asked == [known, known]


def test_what_default_raises_is_raised():
    def refuse(value):
        raise LookupError(f"not {value.made}")

    with pytest.raises(LookupError, match="not text"):
        dumps({"a": Known("text")}, default=refuse)


def test_default_may_change_what_it_was_called_from():
    whole: dict[str, object] = {"a": Known(1), "b": [Known(2), 3], "c": 4}

    def change(value):
        whole[f"new {value.made}"] = 5
        whole.pop("c", None)
        return value.made

    assert _native.dumps(whole, change) == '{"a": 1, "b": [2, 3], "c": 4}'


def test_an_object_that_stands_for_itself_is_left_to_python():
    with pytest.raises(ValueError, match="Circular"):
        dumps([Known(1)], default=lambda value: value)


def test_the_numbers_of_python_are_its_own():
    odd = [float("nan"), float("inf"), -float("inf"), -0.0, 1e16, 1e-5, 5e-324, 1e300, 1e15]
    assert _native.dumps(odd) == json.dumps(odd)


def test_circles_and_depths_are_left_to_python():
    circle: list[object] = []
    circle += [circle, circle, {"again": circle}]
    assert _native.dumps(circle) is None
    with pytest.raises(ValueError, match="Circular"):
        dumps(circle)
    deep: object = 1
    for _ in range(300):
        deep = [deep]
    assert _native.dumps(deep) is None
    assert dumps(deep) == json.dumps(deep)
