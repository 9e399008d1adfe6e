"""What the objects of a class are made of, so that it can be told whether they are as they were.

What is dumped of an object follows from its fields and from theirs, unless its class says how: then
it is known for CrewAI's own classes only. In doubt an object is taken for another one.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import pathlib
import types
import uuid
from typing import TYPE_CHECKING, Any, Final

from crewai.utilities.constants import NOT_SPECIFIED
from pydantic import BaseModel

from crewai_native_db.checkpoints.classes import once

if TYPE_CHECKING:
    from collections.abc import Iterator

# The field of which only the name or the id is dumped; the inside is large, and leads back.
REFERRED: Final = ("crew",)
_CONSTANT: Final = (
    str,
    int,
    float,
    bytes,
    enum.Enum,
    type,
    types.GenericAlias,
    types.FunctionType,
    types.BuiltinFunctionType,
    dt.date,
    dt.time,
    dt.timedelta,
    decimal.Decimal,
    uuid.UUID,
    pathlib.PurePath,
    type(NOT_SPECIFIED),
)


def classify(kind: type) -> tuple[tuple[str, ...], bool] | bool | None:
    """Return what the objects of a class are made of, as ``_native.Watch`` has it.

    Returns:
        Their fields, and whether they may have more than the class; True if they never change; or
        None if it cannot be told.
    """
    if issubclass(kind, _CONSTANT):
        return True
    if issubclass(kind, BaseModel):
        if not is_transparent(kind):
            return None
        return fields_of(kind), kind.model_config.get("extra") == "allow"
    # One with slots has nothing in a dict.
    if dataclasses.is_dataclass(kind) and not any("__slots__" in vars(c) for c in kind.__mro__):
        return tuple(field.name for field in dataclasses.fields(kind)), False
    return None


@once
def fields_of(kind: type[BaseModel]) -> tuple[str, ...]:
    """The fields of a model that are dumped and that it takes a look inside to compare."""
    fields = kind.model_fields.items()
    return tuple(name for name, field in fields if not field.exclude and name not in REFERRED)


@once
def is_transparent(kind: type[BaseModel]) -> bool:
    """Whether what is dumped of a model follows from its fields."""
    return all(
        getattr(function, "__module__", "").partition(".")[0] == "crewai"
        for function in _serializers(kind)
    )


def _serializers(kind: type[BaseModel]) -> Iterator[Any]:
    decorators = kind.__pydantic_decorators__
    for found in (
        decorators.field_serializers,
        decorators.model_serializers,
        decorators.computed_fields,
    ):
        for decorator in found.values():
            wrapped = decorator.func
            yield getattr(wrapped, "fget", None) or getattr(wrapped, "__func__", wrapped)
    for field in kind.model_fields.values():
        for said in field.metadata:
            function = getattr(said, "func", None)
            # A serializer of an annotation; a validator changes nothing any more.
            if function is not None and "Serializer" in type(said).__name__:
                yield getattr(function, "__func__", function)
