"""``serialization.events``: the same structures as CrewAI's ``to_serializable``, whatever it gets."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import json
import uuid
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel

import crewai_native
from crewai_native.testing.contract.rules import SlotContract


class _Color(enum.Enum):
    RED = "red"


class _Model(BaseModel):
    name: str = "n"
    when: dt.datetime = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    inner: dict[str, Any] = {"k": [1, None]}


class _Plain:
    def __repr__(self) -> str:
        return "<plain>"


def _deep(levels: int) -> Any:
    value: Any = "end"
    for _ in range(levels):
        value = {"down": [value]}
    return value


def _cycle() -> Any:
    value: dict[str, Any] = {"k": 1}
    value["self"] = value
    return value


VALUES = {
    "scalars": [None, True, 0, -1, 2**70, 1.5, "text", "Ünï 🜂", ""],
    "floats": [float("inf"), float("-inf")],
    "bytes": b"bytes",
    "times": [dt.datetime(2026, 1, 1, 1, 2, 3, 4, dt.UTC), dt.date(2026, 1, 1), dt.time(1, 2)],
    "identifiers": [uuid.UUID(int=1), decimal.Decimal("1.10"), _Color.RED],
    "containers": {"tuple": (1, 2), "set": {1}, "frozenset": frozenset({"a"}), "list": [[]]},
    "keys": {1: "int", None: "none", False: "bool", ("a", 1): "tuple", _Color.RED: "enum"},
    "model": _Model(),
    "models": {"one": _Model(), "more": [_Model(name="m")]},
    "object": [_Plain(), _Plain],
    "deep": _deep(8),
    "cycle": _cycle(),
    "messages": [{"role": "user", "content": "hello"}, {"role": "tool", "content": None}],
}


class TestSerializationEvents(SlotContract):
    """Compares with what stock CrewAI answers."""

    slot: ClassVar = "serialization.events"

    @staticmethod
    def exercise() -> Any:
        """Serialise a value of each kind that JSON can tell."""
        from crewai.utilities.serialization import to_serializable

        return [to_serializable(VALUES[kind]) for kind in ("model", "containers", "deep")]

    @pytest.mark.parametrize("kind", VALUES)
    @pytest.mark.parametrize("options", [{}, {"max_depth": 2}, {"exclude": {"k", "name"}}], ids=str)
    def test_the_result_is_crewais(self, provider: str, kind: str, options: Any) -> None:
        """Equal, of the same types, and JSON."""
        from crewai.utilities import serialization

        native = serialization.to_serializable(VALUES[kind], **options)
        crewai_native.deactivate()
        stock = serialization.to_serializable(VALUES[kind], **options)
        assert native == stock
        assert json.dumps(native) == json.dumps(stock)

    def test_nothing_is_shared_with_what_was_given(self, provider: str) -> None:
        """The run goes on and changes its objects; a recorded event must not follow."""
        from crewai.utilities.serialization import to_serializable

        value = {"list": [1]}
        result = to_serializable(value)
        value["list"].append(2)
        assert result == {"list": [1]}
