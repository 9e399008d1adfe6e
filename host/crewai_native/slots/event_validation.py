"""What pydantic makes of the values of CrewAI's most frequent events, where that is known beforehand.

A model call and a tool call are two events each. Their fields have plain types; of values of exactly
those types, validation returns the same values, and copies of lists and dictionaries. What is
anything else, or is missing, is left to pydantic. It belongs to ``tasks.executor``, as what is in
:mod:`.event_repairs` does.
"""

from __future__ import annotations

import datetime as dt
import enum
import types
import typing
from typing import TYPE_CHECKING, Any, Final

from crewai_native._errors import Declined
from crewai_native.slots._base import Repair, Target
from crewai_native.slots.kickoff_repairs import FRUGAL

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from crewai_native._bind import Binding
    from crewai_native.slots._base import Provider

_UNFIT: Final = object()
_SCALARS: Final = (str, int, float, bool, types.NoneType, dt.datetime)
_TEXT: Final = {str}
# What CrewAI's own validators of fields do comes to what the types of those fields say.
_KNOWN_VALIDATORS: Final = frozenset(
    {"_coerce_stop_sequences_to_str_list", "_coerce_non_string_to_none"}
)


def _texts(value: list[Any]) -> Any:
    return value.copy() if not value or set(map(type, value)) == _TEXT else _UNFIT


def _dictionary(value: dict[Any, Any]) -> Any:
    return value.copy() if not value or set(map(type, value)) == _TEXT else _UNFIT


def _dictionaries(value: list[Any]) -> Any:
    copies = []
    for item in value:
        if type(item) is not dict or (item and set(map(type, item)) != _TEXT):
            return _UNFIT
        copies.append(item.copy())
    return copies


# The types of containers that are known, and what copies one, or finds that pydantic has to look.
_CONTAINERS: Final[Mapping[Any, tuple[type, Callable[[Any], Any]]]] = {
    list[typing.Any]: (list, list.copy),
    list[str]: (list, _texts),
    dict[str, typing.Any]: (dict, _dictionary),
    list[dict[str, typing.Any]]: (list, _dictionaries),
}


class _Field:
    """What the values of a field may be.

    Attributes:
        kept: The types whose values are kept as they are; None for any.
        copied: For types of containers, what copies one.
    """

    __slots__ = ("copied", "kept")

    def __init__(self, annotation: Any) -> None:
        self.copied: dict[type, Callable[[Any], Any]] = {}
        kept: set[type] = set()
        union = typing.get_origin(annotation) in {typing.Union, types.UnionType}
        branches = typing.get_args(annotation) if union else (annotation,)
        for branch in branches:
            if branch in _CONTAINERS:
                container, copy = _CONTAINERS[branch]
                self.copied[container] = copy
            elif branch in _SCALARS or (isinstance(branch, type) and issubclass(branch, enum.Enum)):
                kept.add(branch)
        # Types that are not known here have no values that fit.
        self.kept = None if typing.Any in branches else frozenset(kept)


class _Fields:
    """What is known of a class of events.

    Raises:
        Declined: More than the types of its fields says what becomes of values.
    """

    def __init__(self, kind: Any) -> None:
        validators = kind.__pydantic_decorators__
        if (
            set(validators.field_validators) - _KNOWN_VALIDATORS
            or validators.model_validators
            or validators.root_validators
            or validators.validators
            or kind.__pydantic_post_init__
            or kind.__private_attributes__
            or set(kind.model_config) - {"arbitrary_types_allowed"}
            or any(
                field.metadata or field.alias or isinstance(field.default, list | dict | set)
                for field in kind.model_fields.values()
            )
        ):
            raise Declined(f"{kind.__name__} is validated in some other way")
        fields = kind.model_fields
        self._known = {name: _Field(field.annotation) for name, field in fields.items()}
        # Whoever says what type an event is of may say something else.
        self._known["type"].kept = frozenset()
        self._defaults = {name: field.default for name, field in fields.items()}
        self._made = [
            (name, field.default_factory) for name, field in fields.items() if field.default_factory
        ]
        self._required = frozenset(name for name, field in fields.items() if field.is_required())

    def fill(self, event: Any, given: dict[str, Any]) -> bool:
        """Give an event its values, or leave it as it is where pydantic has to look at them."""
        known = self._known
        if not self._required <= given.keys():
            return False
        fields = self._defaults.copy()
        for name, value in given.items():
            field = known.get(name)
            if field is None:
                return False
            kept, kind = field.kept, type(value)
            if kept is None or kind in kept:
                fields[name] = value
            elif (copy := field.copied.get(kind)) is None:
                return False
            else:
                fields[name] = copied = copy(value)
                if copied is _UNFIT:
                    return False
        for name, make in self._made:
            if name not in given:
                fields[name] = make()
        put = object.__setattr__
        put(event, "__dict__", fields)
        put(event, "__pydantic_fields_set__", set(given))
        put(event, "__pydantic_extra__", None)
        put(event, "__pydantic_private__", None)
        return True


def _without_validation(binding: Binding, _provider: Provider) -> None:
    from crewai.events.types import llm_events, tool_usage_events

    known = {
        kind: _Fields(kind)
        for kind in (
            llm_events.LLMCallStartedEvent,
            llm_events.LLMCallCompletedEvent,
            tool_usage_events.ToolUsageStartedEvent,
            tool_usage_events.ToolUsageFinishedEvent,
        )
    }

    def make(stock: Callable[..., None]) -> Callable[..., None]:
        def __init__(self: Any, **data: Any) -> None:  # noqa: N807 - it is one
            fields = known.get(type(self))
            # An event that has the agent itself says more about it.
            if (
                fields is None
                or data.get("agent") is not None
                or not fields.fill(self, _said(data))
            ):
                stock(self, **data)

        return __init__

    for kind in (llm_events.LLMEventBase, tool_usage_events.ToolUsageEvent):
        binding.stand_in(kind, "__init__", make)


def _said(data: dict[str, Any]) -> dict[str, Any]:
    """Say of the task and of the agent what the events say in their place."""
    said = data.copy()
    if task := data.get("from_task"):
        said["task_id"] = str(task.id)
        said["task_name"] = task.name or task.description
        said["from_task"] = None
    if agent := data.get("from_agent"):
        said["agent_id"] = str(agent.id)
        said["agent_role"] = agent.role
        said["from_agent"] = None
    return said


_LLM: Final = "crewai.events.types.llm_events"
_TOOL: Final = "crewai.events.types.tool_usage_events"

REPAIRS: Final = (
    Repair(
        name="events-without-validation",
        summary="each event of a model or a tool validates, field by field, what is right already",
        targets=(
            Target(f"{_LLM}:LLMEventBase.__init__", wrapped=True),
            Target(f"{_LLM}:LLMCallStartedEvent._coerce_stop_sequences_to_str_list", wrapped=True),
            Target(f"{_LLM}:LLMCallCompletedEvent._coerce_non_string_to_none", wrapped=True),
            Target(f"{_TOOL}:ToolUsageEvent.__init__", wrapped=True),
        ),
        feature=FRUGAL,
        bind=_without_validation,
    ),
)
