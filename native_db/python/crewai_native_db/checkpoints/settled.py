"""Whether an agent's executor is still as it was when it was dumped.

To compare takes a small part of the time of copying its state and dumping it. In doubt it is not.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Final

from pydantic import BaseModel

_SCALARS: Final = (str, int, float, bool, type(None))
# Where CrewAI takes the fields from that exist for checkpoints only.
_PRIVATE: Final = (
    "_completed_methods",
    "_method_outputs",
    "_method_execution_counts",
    "_state",
)
# Its own value for every checkpoint.
_PASSING: Final = "execution_context"


class _Unknown:
    """Stands for a value of which it cannot be said whether it has changed."""


_UNKNOWN: Final = _Unknown()


def freeze(executor: Any) -> dict[str, Any]:
    """Return a copy of everything that is dumped of an executor; taken before it is dumped."""
    return {name: _freeze(getattr(executor, name)) for name in _names(executor.__class__)}


def is_settled(executor: Any, frozen: dict[str, Any]) -> bool:
    """Whether an executor is as it was when it was frozen."""
    return all(_is_same(getattr(executor, name), then) for name, then in frozen.items())


@functools.cache
def _names(kind: type[BaseModel]) -> tuple[str, ...]:
    dumped = (name for name, field in kind.model_fields.items() if not field.exclude)
    return (*(n for n in dumped if n != _PASSING and not n.startswith("checkpoint_")), *_PRIVATE)


def _freeze(value: Any) -> Any:
    kind = type(value)
    if kind in _SCALARS:
        return value
    if kind is list or kind is tuple:
        return [_freeze(item) for item in value]
    if kind is dict:
        return {name: _freeze(item) for name, item in value.items()}
    if kind is set:
        return frozenset(value) if all(isinstance(item, str) for item in value) else _UNKNOWN
    if isinstance(value, BaseModel) or dataclasses.is_dataclass(value):
        return {name: _freeze(item) for name, item in vars(value).items()}
    return _UNKNOWN


def _is_same(value: Any, then: Any) -> bool:
    kind = type(value)
    if kind in _SCALARS:
        return kind is type(then) and bool(value == then)
    if kind is list or kind is tuple:
        return type(then) is list and len(then) == len(value) and all(map(_is_same, value, then))
    if kind is set:
        return bool(value == then)
    if kind is dict:
        fields = value
    elif isinstance(value, BaseModel) or dataclasses.is_dataclass(value):
        fields = vars(value)
    else:
        return False
    return (
        type(then) is dict
        and fields.keys() == then.keys()
        and all(_is_same(inside, then[name]) for name, inside in fields.items())
    )
