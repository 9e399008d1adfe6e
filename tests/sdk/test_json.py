"""JSON, compared with Python's own module."""

from __future__ import annotations

import collections
import enum
import json
import math
import sys
import typing

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

# What a JSON document can hold: text without lone surrogates, finite floats.
TEXT = st.text(st.characters(exclude_categories=("Cs",)))
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(2**200), max_value=2**200)
    | st.integers(min_value=2**63 - 2, max_value=2**63 + 2)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(TEXT, inner),
    max_leaves=30,
)


def dumps(value, **options):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), **options)


def same(left, right):
    """Equal, and of equal types all the way down: 1, 1.0 and True differ, and 0.0 and -0.0."""
    return repr(left) == repr(right)


@settings(max_examples=500)
@given(VALUES)
@example([-0.0, 0.1, 1e16, 1e-5, 5e-324, 1.7976931348623157e308, 123456789012345680.0])
@example([562949953421312.25, 2**-24, 9.5367431640625e-07, 1e-4, 9.999999999999999e-05, -1e-5])
@example([2**63, -(2**63), -(2**63) - 1, 2**64])
@example({'a\u2028\x7f\x00\x1f"\\\b\f\n\r\t/': "\U0001f600"})
def test_writes_what_json_writes_and_reads_it_back(sdk, value):
    text = dumps(value)
    assert sdk.to_json(value) == text
    assert sdk.to_canonical_json(value) == dumps(value, sort_keys=True)
    assert same(sdk.from_json(text), json.loads(text))


@settings(max_examples=200)
@given(VALUES, st.booleans(), st.sampled_from([None, 1, "\t", "\r\n "]))
def test_reads_every_style_of_writing(sdk, value, ascii_only, indent):
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    assert same(sdk.from_json(text), json.loads(text))


def reference(text):
    """`json.loads`, without what it accepts and no JSON text should hold; `None` if refused."""

    def refuse(constant):
        raise ValueError(constant)

    def finite(digits):
        number = float(digits)
        if math.isinf(number):
            raise ValueError(digits)
        return number

    try:
        value = json.loads(text, parse_constant=refuse, parse_float=finite)
        repr(value).encode()
        dumps(value).encode()
    except (ValueError, RecursionError):
        return None
    return [value]


@settings(max_examples=2000)
@given(
    st.text(st.sampled_from(list('[]{}:,"\\ \n-+.0123eEtrufalsn/bdD8\x00é😀')), max_size=20)
    | st.text(max_size=10)
)
@example("")
@example("-0")
@example("-")
@example("01")
@example("1.")
@example(".5")
@example("1e5")
@example("1e999")
@example("-1E+2")
@example("+1")
@example("[1,]")
@example('{"a":1,}')
@example('{"a":1,"b":2,"a":3}')
@example('"\\ud83d\\ude00"')
@example('"\\ud83d"')
@example('"\\ude00\\ud83d"')
@example('"\\ud83d\\n"')
@example('"\\ud83d\\ud83d\\ude00"')
@example('"\\u+123"')
@example('"\\u12é"')
@example('"\\x"')
@example('"\\')
@example('"\t"')
@example("NaN")
@example("-Infinity")
@example("nul")
@example("nulll")
@example("1 2")
@example("\ufeff1")
@example("\u00a01")
@example("{1:2}")
@example("{'a':1}")
def test_accepts_and_refuses_what_json_does(sdk, text):
    expected = reference(text)
    if expected is None:
        with pytest.raises(json.JSONDecodeError):
            sdk.from_json(text)
    else:
        assert same([sdk.from_json(text)], expected)


@given(VALUES, st.data())
def test_a_damaged_document_is_read_as_json_reads_it(sdk, value, data):
    text = dumps(value)
    at = data.draw(st.integers(0, len(text)))
    cut = data.draw(st.integers(0, 3))
    damaged = (
        text[:at]
        + data.draw(st.sampled_from(["", '"', "\\", "]", "}", ",", "1"]))
        + text[at + cut :]
    )
    expected = reference(damaged)
    if expected is None:
        with pytest.raises(json.JSONDecodeError):
            sdk.from_json(damaged)
    else:
        assert same([sdk.from_json(damaged)], expected)


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [("", 1, 1), ('{"é":\n  tru}', 2, 3), ('["😀",,]', 1, 6), ("[1", 1, 3), ('"abc', 1, 1)],
)
def test_a_syntax_error_has_its_place(sdk, text, line, column):
    with pytest.raises(json.JSONDecodeError) as caught:
        sdk.from_json(text)
    assert (caught.value.lineno, caught.value.colno) == (line, column)
    with pytest.raises(json.JSONDecodeError) as stock:
        json.loads(text)
    assert (stock.value.lineno, stock.value.colno) == (line, column)


class Color(enum.IntEnum):
    RED = 3


class Name(enum.StrEnum):
    ANN = "ann"


class Loud(str):
    __slots__ = ()

    def __str__(self):
        return "LOUD"


class Odd(float):
    def __repr__(self):
        return "odd"


class Deceptive(int):
    def __repr__(self):
        return "7"

    def __int__(self):
        return 8

    __index__ = __int__


class Point(typing.NamedTuple):
    x: int
    y: int


class Computed(dict):
    def items(self):
        return [("computed", 1)]


@pytest.mark.parametrize(
    "value",
    [
        Color.RED,
        Name.ANN,
        Loud("quiet"),
        Odd(1.5),
        Deceptive(2),
        Deceptive(2**100),
        Computed(a=1),
        collections.OrderedDict(b=1, a=2),
        collections.defaultdict(int, a=1),
        collections.Counter("aab"),
        Point(1, 2),
        {Loud("key"): 1, Name.ANN: 2},
    ],
    ids=lambda value: type(value).__name__,
)
def test_subclasses_are_taken_as_json_takes_them(sdk, value):
    assert sdk.to_json(value) == dumps(value)
    assert sdk.to_canonical_json(value) == dumps(value, sort_keys=True)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ({1}, TypeError, r"^\$: set is not JSON; expected dict, list, tuple, str, int, float"),
        ({"a": [0, 1, 2, {"b": b""}]}, TypeError, r"^\$\.a\[3\]\.b: bytes is not JSON"),
        ({"a key": {"": 1j}}, TypeError, r'^\$\["a key"\]\[""\]: complex is not JSON'),
        ({"a": {1: 2}}, TypeError, r"^\$\.a: a key is of type int; the keys of a JSON object are"),
        ({None: 2}, TypeError, r"^\$: a key is of type NoneType"),
        ([math.nan], ValueError, r"^\$\[0\]: nan is not JSON"),
        ((1, -math.inf), ValueError, r"^\$\[1\]: infinity is not JSON"),
        ({"a": "\ud800"}, ValueError, r"^\$\.a: a str with a lone surrogate"),
        ({"\ud800": 1}, ValueError, r"^\$: a str with a lone surrogate"),
        ({"\ud800": {1}}, ValueError, r"^\$: a str with a lone surrogate"),
        ([collections.deque()], TypeError, r"^\$\[0\]: collections.deque is not JSON"),
    ],
    ids=repr,
)
def test_what_is_not_json_is_refused_by_its_place(sdk, value, error, message):
    for write in (sdk.to_json, sdk.to_canonical_json):
        with pytest.raises(error, match=message) as caught:
            write(value)
        assert type(caught.value) is error


def test_depth_is_limited_in_both_directions(sdk):
    deepest = []
    for _ in range(sdk.MAX_DEPTH - 1):
        deepest = [deepest]
    text = sdk.to_json(deepest)
    assert text == "[" * sdk.MAX_DEPTH + "]" * sdk.MAX_DEPTH
    assert sdk.from_json(text) == deepest
    with pytest.raises(ValueError, match=r"^\$\[0\].* \.\.\. .*: nested deeper than"):
        sdk.to_json([deepest])
    with pytest.raises(json.JSONDecodeError, match="Nested deeper than"):
        sdk.from_json(f"[{text}]")
    with pytest.raises(json.JSONDecodeError, match="Nested deeper than"):
        sdk.from_json('{"a":' * 1_000_000)


def test_a_value_that_contains_itself_is_refused(sdk):
    loop: dict[str, object] = {}
    loop["again"] = [loop]
    with pytest.raises(ValueError, match="containing itself"):
        sdk.to_json(loop)


def test_integers_beyond_pythons_limit_of_digits(sdk):
    limit = sys.get_int_max_str_digits()
    text = "9" * limit
    assert sdk.to_json(sdk.from_json(text)) == text
    with pytest.raises(ValueError, match="digits"):
        sdk.from_json(text + "9")
    with pytest.raises(ValueError, match="digits") as caught:
        sdk.to_json([10 ** (limit + 1)])
    assert caught.value.__notes__ == ["while writing $[0] as JSON"]


def test_a_dict_that_changes_while_it_is_written(sdk):
    outer: dict[str, object] = {}

    class Saboteur(dict):
        def items(self):
            outer.clear()
            outer.update({str(number): number for number in range(1000)})
            return [("a", 1)]

    outer.update(first=Saboteur(), second=2)
    assert sdk.to_json(outer) == '{"first":{"a":1},"second":2}'


def test_a_list_that_changes_while_it_is_written(sdk):
    class Saboteur(dict):
        def items(self):
            values.clear()
            return []

    values: list[object] = [Saboteur(), 1, 2, 3]
    assert sdk.to_json(values) == "[{}]"


@pytest.mark.parametrize("items", [None, [1], [(1, 2, 3)], ["ab"]])
def test_a_dict_whose_items_are_none(sdk, items):
    class Broken(dict):
        def items(self):
            return items

    with pytest.raises((TypeError, ValueError)):
        sdk.to_json({"a": Broken(b=1)})


def test_what_a_subclass_raises_comes_back_with_the_place(sdk):
    class Failing(dict):
        def items(self):
            raise LookupError("no items today")

    with pytest.raises(LookupError, match="no items today") as caught:
        sdk.to_json({"a": [Failing(b=1)]})
    assert caught.value.__notes__ == ["while writing $.a[0] as JSON"]


@pytest.mark.parametrize(
    ("left", "right"), [(1, 1.0), (1, True), (0, False), (1, "1"), (None, "null"), (0.0, -0.0)]
)
def test_canonical_text_tells_types_apart(sdk, left, right):
    assert sdk.to_canonical_json({"a": left}) != sdk.to_canonical_json({"a": right})


@settings(max_examples=50)
@given(st.dictionaries(TEXT, VALUES, max_size=5), st.randoms())
def test_canonical_text_does_not_know_the_order_of_keys(sdk, value, random):
    items = list(value.items())
    random.shuffle(items)
    assert sdk.to_canonical_json(dict(items)) == sdk.to_canonical_json(value)
