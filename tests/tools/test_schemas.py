"""tools.schemas: to the byte what CrewAI answers, whatever the model and however it changes."""

# ruff: noqa: PYI061, RUF005, TC003 - pydantic reads the annotations; the odd ones are meant
from __future__ import annotations

import difflib
import enum
import gc
import json
import sys
import types
import unicodedata
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, Union
from uuid import UUID

import pytest
from crewai.tools import structured_tool
from crewai.tools.tool_usage import ToolUsage
from crewai.utilities import pydantic_schema_utils, string_utils
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    RootModel,
    WithJsonSchema,
    create_model,
    field_serializer,
    field_validator,
    model_validator,
)
from typing_extensions import TypedDict

from crewai_native_tools._native import closest
from crewai_native_tools.schemas import NativeSchemas

stock_description = pydantic_schema_utils.generate_model_description
stock_name = string_utils.sanitize_tool_name
if not hasattr(structured_tool, "format_description_for_llm"):
    pytest.skip("CrewAI before 1.15 describes tools otherwise", allow_module_level=True)
stock_block = structured_tool.format_description_for_llm
pytestmark = pytest.mark.matrix


@pytest.fixture(scope="module")
def schemas():
    return NativeSchemas()


def text(value):
    return json.dumps(value, ensure_ascii=False)


def check(schemas, model):
    """Ask for everything, twice: the first answer is computed, the second is kept."""
    for _ in range(2):
        for strip in (True, False):
            mine = schemas.generate_model_description(model, strip_null_types=strip)
            assert text(mine) == text(stock_description(model, strip_null_types=strip))
        block = schemas.format_description_for_llm("My Tool", model, "Does things.")
        assert block == stock_block("My Tool", model, "Does things.")
        assert named(lambda: schemas.argument_names(model)) == named(
            lambda: model.model_json_schema()["properties"]
        )


def named(names):
    try:
        return list(names())
    except Exception as error:  # noqa: BLE001 - whatever pydantic fails with
        return type(error)


class Colour(enum.Enum):
    """Of a thing."""

    RED = "red"
    BLUE = 2


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Leaf(BaseModel):
    """A leaf."""

    size: int = 1
    colour: Colour = Colour.RED


class Tree(BaseModel):
    value: int
    children: list[Tree] = []
    by_name: dict[str, Tree] | None = None


class Left(BaseModel):
    kind: Literal["left"] = "left"
    leaf: Leaf


class Right(BaseModel):
    kind: Literal["right"] = "right"
    tree: Tree | None = None


@dataclass
class Point:
    """A point."""

    x: float
    y: float = 0.0


class Options(TypedDict, total=False):
    metadata: int
    default: str
    cls: list[str]


class Everything(BaseModel):
    """Field names that are keys of core schemas, too."""

    metadata: str = Field(description='It\'s "100%".', examples=["a"])
    default: int | None = 3
    cls: list[Leaf] = Field(default_factory=list, max_length=3)
    fields: dict[str, Point] = {}
    serialization: Options = {}
    ref: Annotated[Left | Right, Field(discriminator="kind")]
    choices: Level = Level.LOW
    when: datetime | date | None = None
    path: Path = Path("x")
    id: UUID | Decimal | None = None
    pair: tuple[int, str] = (1, "a")
    free: Any = None


class Serialised(BaseModel):
    number: int = 3

    @field_serializer("number")
    def write(self, number):
        return f"<{number}>"


class Validated(BaseModel):
    x: int = Field(alias="theX", gt=3)

    @field_validator("x", mode="before")
    @classmethod
    def before(cls, value):
        return value

    @model_validator(mode="wrap")
    @classmethod
    def around(cls, value, handler):
        return handler(value)


class Titled(BaseModel):
    model_config = ConfigDict(title="A Title", extra="forbid", json_schema_extra={"x": [1]})
    number: int = Field(1, json_schema_extra={"y": {"z": 1}})


class Written(BaseModel):
    number: Annotated[int, WithJsonSchema({"type": "integer", "format": "mine"})] = 1


class Pointed(BaseModel):
    at: Point = Point(1)


class Numbers(RootModel[list[int]]):
    pass


KEPT = [Leaf, Tree, Left, Right, Everything, Validated, Numbers]
NOT_KEPT = [Serialised, Titled, Written, Pointed]


@pytest.mark.parametrize("model", KEPT + NOT_KEPT, ids=lambda model: model.__name__)
def test_models_of_every_kind(schemas, model):
    check(schemas, model)


@pytest.mark.parametrize("model", KEPT + NOT_KEPT, ids=lambda model: model.__name__)
def test_which_are_generated_once(model):
    schemas, asked = NativeSchemas(), []
    schemas._generate = lambda model, **options: asked.append(1) or stock_description(model)
    for _ in range(3):
        schemas.generate_model_description(model)
        schemas.format_description_for_llm("name", model, "about")
    assert len(asked) == (1 if model in KEPT else 6)


def test_names_of_arguments_are_those_after_a_change():
    schemas = NativeSchemas()
    model = create_model("Changing", x=(int, 1))
    assert list(schemas.argument_names(model)) == ["x"]
    model.__pydantic_fields__["y"] = Field(2)
    model.__annotations__["y"] = int
    model.__pydantic_fields__["x"].alias = model.__pydantic_fields__["x"].serialization_alias = "z"
    model.__pydantic_fields__["x"].validation_alias = "z"
    model.model_rebuild(force=True)
    assert list(schemas.argument_names(model)) == list(model.model_json_schema()["properties"])
    assert "z" in schemas.argument_names(model)


LEAVES = st.sampled_from(
    [int, str, float, bool, bytes, Any, Colour, Level, Leaf, Tree, Point, Options, datetime, Path]
    + [Literal["a", 1, None], Annotated[int, Field(ge=1, le=9)], Annotated[str, "note"]]
)
TYPES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        inner.map(lambda t: list[t]),
        inner.map(lambda t: Optional[t]),  # noqa: UP045 - made of a value
        inner.map(lambda t: dict[str, t]),
        st.tuples(inner, inner).map(lambda ts: Union[ts]),  # noqa: UP007 - made of values
        st.tuples(inner, inner).map(lambda ts: tuple[ts]),
        st.dictionaries(st.sampled_from(["a", "ref", "cls"]), inner, min_size=1).map(
            lambda fields: create_model("Inner", **{n: (t, ...) for n, t in fields.items()})
        ),
    ),
    max_leaves=5,
)
DEFAULTS = st.one_of(
    st.just(...), st.none(), st.integers(), st.text(), st.lists(st.integers(), max_size=3)
)
NAMES = st.sampled_from(
    ["a", "metadata_", "type", "anyOf", "title", "default", "$defs", "properties"]
)
MODELS = st.builds(
    lambda name, doc, fields: create_model(
        name or "M",
        __doc__=doc,
        **{
            f"f{number}": (kind, Field(default, description=about, alias=alias))
            for number, (kind, default, about, alias) in enumerate(fields)
        },
    ),
    st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=20),
    st.none() | st.text(max_size=20),
    st.lists(
        st.tuples(TYPES, DEFAULTS, st.none() | st.text(max_size=9), st.none() | NAMES), max_size=4
    ),
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(model=MODELS)
def test_any_model(schemas, model):
    try:
        expected = stock_description(model)
    except Exception as error:  # noqa: BLE001 - whatever CrewAI fails with
        with pytest.raises(type(error)):
            schemas.generate_model_description(model)
        return
    assert text(schemas.generate_model_description(model)) == text(expected)
    check(schemas, model)


def test_every_answer_is_a_structure_of_its_own(schemas):
    first = schemas.generate_model_description(Everything)
    whole = text(first)

    def spoil(node):
        for child in list(node.values() if isinstance(node, dict) else node):
            if isinstance(child, dict | list):
                spoil(child)
        node.clear()

    spoil(first)
    assert text(schemas.generate_model_description(Everything)) == whole


class TestChanges:
    """Each test changes a model whose schema is known already."""

    @pytest.fixture
    def model(self, schemas):
        inner = create_model("Inner", __doc__="Inside.", a=(int, 1), l=(list[int], [1]))
        model = create_model("Outer", __doc__="Outside.", x=(int, ...), inner=(inner, ...))
        check(schemas, model)
        model.inner_model = inner
        return model

    def test_rebuilt_with_another_field(self, schemas, model):
        before = text(schemas.generate_model_description(model))
        model.__pydantic_fields__["x"].description = "new"
        model.model_rebuild(force=True)
        assert text(schemas.generate_model_description(model)) != before
        check(schemas, model)

    def test_rebuilt_again_and_again(self, schemas, model):
        # The memory of the old core schema is free for the new one: an address tells nothing.
        for number in range(50):
            model.__pydantic_fields__["x"].description = str(number)
            model.model_rebuild(force=True)
            mine = schemas.generate_model_description(model)
            assert mine["json_schema"]["schema"]["properties"]["x"]["description"] == str(number)

    def test_a_recursive_one_rebuilt(self, schemas):
        class Node(BaseModel):
            next: Node | None = None

        Node.model_rebuild()
        check(schemas, Node)
        for number in range(20):
            Node.__pydantic_fields__["next"].description = str(number)
            Node.model_rebuild(force=True)
            check(schemas, Node)

    @pytest.mark.parametrize("which", ["outer", "inner"])
    @pytest.mark.parametrize("what", ["__doc__", "__name__", "title"])
    def test_named_or_described_anew(self, schemas, model, which, what):
        changed = model if which == "outer" else model.inner_model
        before = text(stock_description(model))
        if what == "title":
            changed.model_config["title"] = "Renamed"
        else:
            setattr(changed, what, "Renamed")
        assert text(stock_description(model)) != before
        check(schemas, model)

    def test_a_default_changed_in_place(self, schemas, model):
        before = text(stock_description(model))
        model.inner_model.__pydantic_fields__["l"].default.append(2)
        assert text(stock_description(model)) != before
        check(schemas, model)

    def test_extra_entries_changed_in_place(self, schemas):
        extra = {"y": 1}
        model = create_model("Extra", x=(int, Field(json_schema_extra=extra)))
        check(schemas, model)
        extra["y"] = 2
        assert '"y": 2' in text(stock_description(model))
        check(schemas, model)

    def test_a_written_schema_changed_in_place(self, schemas):
        written = {"type": "integer"}
        model = create_model("Hand", x=(Annotated[int, WithJsonSchema(written)], ...))
        check(schemas, model)
        written["format"] = "other"
        assert "other" in text(model.model_json_schema())
        check(schemas, model)

    def test_a_function_that_answers_differently_each_time(self, schemas):
        answers = iter(range(1000))
        extra = ConfigDict(json_schema_extra=lambda schema: schema.update(n=next(answers)))
        model = create_model("Moody", __config__=extra, x=(int, ...))
        seen = {text(schemas.generate_model_description(model)) for _ in range(5)}
        assert len(seen) == 5

    def test_a_model_that_makes_its_own_schema(self, schemas, model):
        model.model_json_schema = classmethod(lambda cls, **_: {"type": "object", "mine": True})
        assert schemas.generate_model_description(model)["json_schema"]["schema"]["mine"]
        check(schemas, model)
        del model.model_json_schema
        check(schemas, model)

    def test_completed_later(self, schemas):
        class Early(BaseModel):
            later: Later

        with pytest.raises(Exception, match="not fully defined"):
            schemas.generate_model_description(Early)

        class Later(BaseModel):
            x: int

        Early.model_rebuild(_types_namespace={"Later": Later})
        check(schemas, Early)


def test_nothing_keeps_a_model_alive(schemas):
    def use():
        class Inner(BaseModel):
            tags: list[str] = ["a"]

        class Recursive(BaseModel):
            inner: Inner
            again: list[Recursive] = []

        Recursive.model_rebuild(_types_namespace={"Inner": Inner, "Recursive": Recursive})
        check(schemas, Recursive)
        return weakref.ref(Inner), weakref.ref(Recursive)

    kept = len(schemas._known)
    references = use()
    gc.collect()
    assert [reference() for reference in references] == [None, None]
    assert len(schemas._known) <= kept


def test_threads_get_structures_of_their_own(schemas):
    def work(number):
        description = schemas.generate_model_description(Everything)
        description["json_schema"]["schema"]["properties"].popitem()
        return text(schemas.generate_model_description(Everything))

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(work, range(40))) == {text(stock_description(Everything))}


def outcome(function, *args):
    try:
        return function(*args)
    except Exception as error:  # noqa: BLE001 - what CrewAI raises is what is wanted
        return repr(error)


class Name(str):
    """Equal to everything, to a cache that looks no further."""

    __slots__ = ()

    def __eq__(self, other):
        return True

    __hash__ = str.__hash__


@pytest.mark.parametrize(
    "name",
    ["plain", "With Spaces", "camelCase", "HTTPServer2Go", "Ünïcödé ﬁ ½ Ⅷ", "a'b\"c", "", "___"]
    + ["x" * 64, "x" * 65, "aB" * 4000, "日本語", "\ud800x", None, 3, b"x", Name("HTTPServer")],
)
@pytest.mark.parametrize("max_length", [64, 10, 9, 3, 0, -1, 64.0, True])
def test_names(schemas, name, max_length):
    for _ in range(2):
        mine = outcome(schemas.sanitize_tool_name, name, max_length)
        assert mine == outcome(stock_name, name, max_length)


def test_every_character(schemas):
    known = [
        char
        for char in map(chr, range(sys.maxunicode + 1))
        if unicodedata.category(char) not in {"Cn", "Co"}
    ]
    for start in range(0, len(known), 128):
        name = "".join(f"aB{char}" for char in known[start : start + 128])
        assert schemas.sanitize_tool_name(name, 1000) == stock_name(name, 1000)


@given(st.text(max_size=100), st.integers(-5, 100))
def test_any_name(schemas, name, max_length):
    for _ in range(2):
        assert schemas.sanitize_tool_name(name, max_length) == stock_name(name, max_length)


@given(
    st.text(max_size=30),
    st.text(max_size=60)
    | st.sampled_from(
        [
            "Tool Name: a\nTool Arguments: {}\nTool Description: real",
            "Tool Name: x",
            "Tool Description: y",
        ]
    ),
    st.sampled_from([None, Leaf, Tree]),
)
def test_any_block(schemas, name, description, model):
    mine = schemas.format_description_for_llm(name, model, description)
    assert mine == stock_block(name, model, description)


SIMILAR = st.text("ab_c", max_size=12)


@settings(max_examples=300)
@given(st.lists(SIMILAR, max_size=6), SIMILAR, st.sampled_from([0.0, 0.5, 0.85]))
@example(["ab", "ba"], "", 0.0)
def test_the_closest_name_is_difflibs(names, wanted, above):
    ratios = [difflib.SequenceMatcher(None, name, wanted).ratio() for name in names]
    best = max(ratios, default=0.0)
    expected = ratios.index(best) if best > above else None
    assert closest(names, wanted, above) == expected


@settings(max_examples=300)
@given(st.text("abcdefgh_", max_size=64), st.text("abcdefgh_", max_size=64))
def test_long_ratios_are_difflibs_to_the_last_bit(a, b):
    ratio = difflib.SequenceMatcher(None, a, b).ratio()
    assert closest([a], b, ratio) is None
    if ratio:
        assert closest([a], b, ratio * (1 - 2**-52)) == 0


@settings(max_examples=200)
@given(st.lists(st.text("abAB _-", max_size=10), min_size=1, max_size=6), st.data())
def test_the_tool_that_is_meant(schemas, names, data):
    near = data.draw(st.sampled_from(names)) + data.draw(st.text("ab_", max_size=2))
    tools = [types.SimpleNamespace(name=name) for name in names]
    usage = types.SimpleNamespace(tools=tools, task=None, agent=None, tools_description="")
    try:
        expected = ToolUsage._select_tool(usage, near)
    except Exception:  # noqa: BLE001 - CrewAI raises Exception itself
        expected = None
    assert schemas.select_tool(tools, near) is expected


def test_names_too_long_for_difflibs_plain_measure_are_refused():
    with pytest.raises(ValueError, match="200 characters; it accepts fewer than 200"):
        closest(["a"], "a" * 200, 0.5)


def test_the_interpreters_own_unicode_decides(schemas):
    # Letters that Unicode 16 made compatible with A to Z: whatever this Python knows.
    name = "\U0001ccd6\U0001ccd7"
    assert (
        schemas.sanitize_tool_name(name)
        == unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    )
