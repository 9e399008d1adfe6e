"""Which classes are described by the same JSON schema.

CrewAI makes a class for the arguments of every tool that has none of its own, by the signature of
``_run``: ten agents that use one kind of tool have ten of them, each a millisecond to describe.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

if TYPE_CHECKING:
    from collections.abc import Hashable

_SAID: Final = {"annotation", "default", "description"}
_PLAIN: Final = (str, int, float, bool, type(None), type(PydanticUndefined))
# By these a class has a say in its schema.
_HOOKS: Final = (
    "model_json_schema",
    "__get_pydantic_json_schema__",
    "__get_pydantic_core_schema__",
    "__class_getitem__",
)


def likeness(kind: Hashable) -> Hashable:
    """Return what is equal for classes with the same schema. In doubt it is the class."""
    if not isinstance(kind, type) or not issubclass(kind, BaseModel):
        return kind
    decorators = kind.__pydantic_decorators__
    if (
        kind.__bases__ != (BaseModel,)
        or not kind.__pydantic_complete__
        or kind.model_config
        or any(hook in vars(kind) for hook in _HOOKS)
        or any(getattr(decorators, field.name) for field in dataclasses.fields(decorators))
    ):
        return kind
    fields = []
    for name, field in kind.model_fields.items():
        default = field.default
        if (
            field._attributes_set.keys() - _SAID  # noqa: SLF001 - what was said of it, all of it
            or field.metadata
            or type(default) not in _PLAIN
        ):
            return kind
        # Types that are equal may be written in another order, as those of a union.
        said = name, field.annotation, repr(field.annotation), field.description
        fields.append((*said, type(default), repr(default)))
    found = kind.__name__, kind.__doc__, tuple(fields)
    try:
        hash(found)
    except TypeError:
        return kind
    return found
