"""States of flows as JSON text: tolerant as CrewAI's own persistence is, or strict."""

from __future__ import annotations

import json
import math
from datetime import date
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel

from crewai_native_db import _native

if TYPE_CHECKING:
    from collections.abc import Callable

_EXACT: Final = (bool, int, type(None))


def encode(state: Any, *, strict: bool = False) -> str:
    """The JSON text of a state.

    It is byte for byte what CrewAI's ``SQLiteFlowPersistence`` writes: sets and tuples become
    lists, dates ISO text, and what JSON has no form for becomes ``str(value)``.

    Args:
        state: A dict or a pydantic model.
        strict: Refuse what would come back as something else.

    Raises:
        ValueError: The state is neither a dict nor a model; or, when strict, holds a value that
            would not come back. The message says where, as in ``$.steps[3]``.
    """
    if isinstance(state, BaseModel):
        content = _dump(state)
    elif isinstance(state, dict):
        content = state
    else:
        raise ValueError(  # noqa: TRY004 - as CrewAI's own persistence does
            f"state_data must be either a Pydantic BaseModel or dict, got {type(state)}"
        )
    if strict:
        if isinstance(state, BaseModel):
            _check_model(state, content)
        else:
            _check(content, "$")
    return dumps(content, default=_tolerate)


def dumps(value: Any, *, default: Callable[[Any], Any] | None = None, **options: Any) -> str:
    """The text of ``json.dumps(value, **options)``, for options that say what to do with objects.

    Values without objects in them, and those for which ``default`` is all that is needed, are written
    in native code.
    """
    text = _native.dumps(value, default)
    return json.dumps(value, default=default, **options) if text is None else text


def _dump(model: BaseModel) -> Any:
    try:
        return model.model_dump(mode="json")
    except Exception:  # noqa: BLE001 - a field without a JSON form, reported by whatever means
        return model.model_dump(mode="python")


def _tolerate(value: Any) -> Any:
    # No model is one of these, and whether something is a model takes longest to say.
    if isinstance(value, (set, tuple)):
        return list(value)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, BaseModel):
        return _dump(value)
    return str(value)


def _check(value: Any, where: str) -> None:
    kind = type(value)
    if kind in _EXACT:
        return
    if kind is str:
        _check_text(value, where)
    elif kind is float:
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value!r}, for which JSON has no number")
    elif kind is list:
        for index, item in enumerate(value):
            _check(item, f"{where}[{index}]")
    elif kind is dict:
        for key, item in value.items():
            if type(key) is not str:
                raise ValueError(
                    f"{where} has the key {key!r} of type {type(key).__name__!r}; a strict state "
                    "has keys of type str"
                )
            _check_text(key, f"a key of {where}")
            _check(item, f"{where}.{key}")
    else:
        raise ValueError(
            f"{where} is of type {kind.__name__!r} and would not come back as such; a strict "
            "state holds dict, list, str, int, float, bool and None"
        )


def _check_text(value: str, where: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        # Two halves of a pair, each a character in Python, come back as the one they encode.
        raise ValueError(f"{where} is {value!r}, which is half of a character") from None


def _check_model(model: BaseModel, content: Any) -> None:
    name = type(model).__name__
    _check(content, "$")
    back = type(model).model_validate(content)
    if back != model:
        fields = [
            field
            for field in type(model).model_fields
            if getattr(back, field, None) != getattr(model, field, None)
        ]
        raise ValueError(
            f"{name} would not come back as it is: {', '.join(fields) or 'an undeclared field'} "
            "changes on the way through JSON; a strict state survives model_dump(mode='json')"
        )
