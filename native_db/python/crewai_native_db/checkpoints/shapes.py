"""How the fields of events are written as JSON without asking pydantic each time.

A field has a *shape*: the values of it have one form in JSON, the one that pydantic gives them for
what the field is declared to be. Values of no shape are pydantic's: of a model, of a class with a
serializer of its own, of a declaration under which values are converted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

from crewai_native_db.checkpoints.classes import once

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import BaseModel

Shape: TypeAlias = "str | tuple[Any, ...]"

# What fits no value: of models, and of what is converted on the way, perhaps.
_MODEL: Final = ("either",)
_UNKNOWN: Final = ("either", _MODEL)
_ANY: Final = {"type": "any"}
_NAMES: Final = {
    "any": "any",
    "none": "null",
    "str": "text",
    "int": "int",
    "float": "float",
    "bool": "bool",
    "datetime": "time",
}
# What validates, and is dumped as what is inside.
_WRAPPERS: Final = ("default", "function-before", "function-after", "function-wrap")
# What a choice before the right one may take for itself, and convert.
_CONVERTED: Final = frozenset({"int", "float", "bool", "time"})


@once
def plan(kind: type[BaseModel]) -> list[tuple[str, Shape]] | None:
    """Return the shapes of the fields of a class, or None if pydantic has to dump its objects.

    The schema that pydantic has compiled a class to says how it is dumped, all of it.
    """
    schema: Any = kind.__pydantic_core_schema__
    if not isinstance(schema, dict):
        return None
    known: dict[str, Any] = {}
    if schema["type"] == "definitions":
        known = {said["ref"]: said for said in schema["definitions"]}
        schema = schema["schema"]
    schema = _unwrapped(schema)
    # Any other setting may be one of how values are dumped.
    if schema["type"] != "model" or schema.get("config", {}).keys() - {"title"}:
        return None
    fields = _unwrapped(schema["schema"])
    if (
        "serialization" in schema
        or schema.get("root_model")
        or fields["type"] != "model-fields"
        or fields.keys() - {"type", "fields", "model_name", "computed_fields"}
        or fields.get("computed_fields")
    ):
        return None
    return [(name, _of_field(said, known)) for name, said in fields["fields"].items()]


def _unwrapped(schema: Any) -> Any:
    while schema["type"] in _WRAPPERS and "serialization" not in schema:
        schema = schema["schema"]
    return schema


def _of_field(said: dict[str, Any], known: dict[str, Any]) -> Shape:
    if "serialization_exclude_if" in said:
        return _UNKNOWN
    return "nothing" if said.get("serialization_exclude") else _of(said["schema"], known)


def _of(schema: dict[str, Any], known: dict[str, Any]) -> Shape:
    schema = _unwrapped(schema)
    if "serialization" in schema:
        return _UNKNOWN
    kind = schema["type"]
    if kind in _NAMES:
        return _NAMES[kind]
    make = _MAKERS.get(kind)
    return _UNKNOWN if make is None else make(schema, known)


def _nullable(schema: dict[str, Any], known: dict[str, Any]) -> Shape:
    return "either", "null", _of(schema["schema"], known)


def _literal(schema: dict[str, Any], _: dict[str, Any]) -> Shape:
    return "text" if all(type(value) is str for value in schema["expected"]) else _UNKNOWN


def _enum(schema: dict[str, Any], _: dict[str, Any]) -> Shape:
    members = [(member, member.value) for member in schema["members"]]
    return ("member", *members) if all(type(text) is str for _, text in members) else _UNKNOWN


def _list(schema: dict[str, Any], known: dict[str, Any]) -> Shape:
    return "list", _of(schema.get("items_schema", _ANY), known)


def _dict(schema: dict[str, Any], known: dict[str, Any]) -> Shape:
    if _of(schema.get("keys_schema", _ANY), known) not in ("any", "text"):
        return _UNKNOWN
    return "dict", _of(schema.get("values_schema", _ANY), known)


def _union(schema: dict[str, Any], known: dict[str, Any]) -> Shape:
    choices = schema["choices"]
    shapes = [_of(c[0] if isinstance(c, tuple) else c, known) for c in choices]
    return _UNKNOWN if any(map(_is_doubtful, shapes)) else ("either", *shapes)


def _reference(schema: dict[str, Any], known: dict[str, Any]) -> Shape:
    name = schema["schema_ref"]
    # Without itself: what refers to itself has no shape.
    rest = {other: said for other, said in known.items() if other != name}
    return _of(known[name], rest) if name in known else _UNKNOWN


_MAKERS: Final[dict[str, Callable[[dict[str, Any], dict[str, Any]], Shape]]] = {
    "nullable": _nullable,
    "literal": _literal,
    "enum": _enum,
    "model": lambda _schema, _known: _MODEL,
    "list": _list,
    "dict": _dict,
    "union": _union,
    "definition-ref": _reference,
}


def _is_doubtful(choice: Shape) -> bool:
    if isinstance(choice, str):
        return choice in _CONVERTED
    return choice[0] == "member" or choice == _UNKNOWN or any(map(_is_doubtful, choice[1:]))
