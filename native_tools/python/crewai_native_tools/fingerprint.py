"""What a pydantic model's JSON schema depends on, so that it is known when to generate it anew.

pydantic generates a JSON schema from the core schema that it built with the class, and from what
it reads then: names, docstrings and configurations of the classes in it, and defaults. A
:class:`Fingerprint` records all of that. A model whose schema depends on anything else, such as a
user's own function, has none.

A fingerprint outlives no class: it holds weak references to classes, and otherwise only plain
data, which cannot refer to a class.
"""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import marshal
import pathlib
import uuid
import weakref
from typing import Any, Final

_PLAIN: Final = frozenset({type(None), bool, int, float, str, bytes, complex})
_IMMUTABLE: Final = _PLAIN | {
    dt.date,
    dt.datetime,
    dt.time,
    dt.timedelta,
    decimal.Decimal,
    pathlib.PosixPath,
    pathlib.WindowsPath,
    uuid.UUID,
}
_IMMUTABLE_NODES: Final = frozenset({"config", "members", "expected", "function"})
"""Keys of core schemas under which lies nothing that a JSON schema could change by."""
_NAMED_NODES: Final = frozenset({"fields", "choices", "arguments_schema", "computed_fields"})
"""Keys of core schemas under which a dict, if there is one, has keys of the user's."""
_MOST_NODES: Final = 100_000


class Impure(Exception):  # noqa: N818 - a finding, not an error
    """The schema depends on something that no fingerprint can record."""


class Fingerprint:
    """The state of a model that its JSON schema was generated from.

    Args:
        model: A pydantic model class.

    Raises:
        Impure: The model's JSON schema depends on what cannot be recorded.
    """

    __slots__ = ("_build", "_classes", "_values")

    def __init__(self, model: Any) -> None:
        self._build: str = _build_of(model.__pydantic_core_schema__)
        walk = _Walk()
        walk.cls(model)
        walk.node(model.__pydantic_core_schema__)
        self._classes = list(walk.classes.values())
        self._values = walk.values

    def holds(self, model: Any) -> bool:
        """Whether the model would give the same JSON schema now."""
        try:
            # Building a core schema makes its reference anew, and ours keeps that one's identity
            # from being given to another.
            if _build_of(model.__pydantic_core_schema__) is not self._build:
                return False
        except Impure:
            return False
        for reference, name, doc, config in self._classes:
            cls = reference()
            if (
                cls is None
                or cls.__name__ != name
                or cls.__doc__ != doc
                or _config_of(cls) != config
            ):
                return False
        return all(_plain(v) == text for v, text in self._values)


def _plain(value: Any) -> bytes:
    # Version 2 says nothing of how often an object is referred to, which changes by itself.
    return marshal.dumps(value, 2)


def _build_of(core: Any) -> str:
    """Return the string that belongs to one building of a core schema."""
    while type(core) is dict:
        build = core.get("ref") or core.get("schema_ref")
        if type(build) is str:
            return build
        core = core.get("schema")
    # Not built yet: pydantic has put something in its place that builds it at first use.
    raise Impure


def _config_of(cls: type) -> dict[str, Any]:
    config = getattr(cls, "model_config", None)
    if config is None:
        config = getattr(cls, "__pydantic_config__", {})
    if type(config) is not dict:
        raise Impure
    return config


class _Walk:
    """Collects what a core schema's JSON schema depends on."""

    def __init__(self) -> None:
        self.classes: dict[type, tuple[weakref.ref[type], str, str | None, dict[str, Any]]] = {}
        self.values: list[tuple[Any, bytes]] = []
        self._nodes = 0

    def cls(self, cls: Any) -> None:
        if not isinstance(cls, type) or cls in self.classes:
            return
        config = _config_of(cls)
        # Functions that make titles, and extra entries that anyone may change.
        if any(type(value) not in _PLAIN for value in config.values()):
            raise Impure
        name, doc = cls.__name__, cls.__doc__
        if type(name) is not str or (doc is not None and type(doc) is not str):
            raise Impure
        self.classes[cls] = (weakref.ref(cls), name, doc, dict(config))

    def node(self, node: Any) -> None:
        self._nodes += 1
        if self._nodes > _MOST_NODES:
            raise Impure
        if type(node) in {list, tuple}:
            for item in node:
                self.node(item)
        elif type(node) is dict:
            for key, value in node.items():
                self._entry(key, value)

    def _entry(self, key: str, value: Any) -> None:
        if key == "cls":
            self.cls(value)
        elif key == "default":
            self._value(value)
        elif key == "metadata":
            self._metadata(value)
        elif key == "serialization":
            # A default is written by the field's serializer, which may be the user's function.
            if "function" in value:
                _check_is_pydantics(value["function"])
            self.node(value.get("schema"))
        elif key in _NAMED_NODES and type(value) is dict:
            for child in value.values():
                self.node(child)
        elif key not in _IMMUTABLE_NODES:
            self.node(value)

    def _metadata(self, metadata: dict[str, Any]) -> None:
        for key, value in metadata.items():
            if key in {"pydantic_js_functions", "pydantic_js_annotation_functions"}:
                for function in value:
                    _check_is_pydantics(function)
            elif key == "pydantic_js_extra":
                self._value(value)
            elif key == "pydantic_js_input_core_schema":
                self.node(value)
            elif callable(value):
                raise Impure

    def _value(self, value: Any) -> None:
        """Record data that the JSON schema contains."""
        if type(value) in _IMMUTABLE:
            return
        if isinstance(value, enum.Enum):
            self.cls(type(value))
            self._value(value.value)
            return
        try:
            self.values.append((value, _plain(value)))
        except ValueError:
            raise Impure from None


def _check_is_pydantics(function: Any) -> None:
    """Accept pydantic's own code, unless it answers with an object that the user holds."""
    owner = getattr(function, "__self__", None)
    module = getattr(function, "__module__", None)
    if not isinstance(module, str) or module.partition(".")[0] != "pydantic":
        raise Impure
    if owner is not None and not isinstance(owner, type):
        raise Impure
