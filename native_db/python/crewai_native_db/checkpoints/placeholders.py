"""What stands in a checkpoint for values that have no JSON form: functions, clients, locks.

CrewAI fails on the first one of them. Here a function or class becomes the path under which it can
be imported, and anything else its type, and the checkpoint says which.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any, Final

from crewai.agents.agent_builder.base_agent import BaseAgent
from crewai.task import Task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

MARK: Final = "crewai_native"
_GUARDRAILS: Final = ("guardrail", "guardrails")


class Placeholders:
    """Makes placeholders, and remembers which.

    Attributes:
        named: The paths of what can be imported again.
        lost: What cannot: ``module.Type`` of a value, or the name of a local function.
    """

    def __init__(self) -> None:
        self.named: set[str] = set()
        self.lost: set[str] = set()
        self._seen: dict[int, str | None] = {}

    def __call__(self, value: Any) -> str:
        """Return the placeholder of a value, as pydantic's ``fallback`` does."""
        path = path_of(value)
        self._seen[id(value)] = path
        if path is not None:
            self.named.add(path)
            return path
        name = _name(value)
        self.lost.add(name)
        return f"<{name}>"

    def guardrails(self, owner: Any) -> dict[str, Any]:
        """Return the guardrails of a task or agent by field, where there are functions.

        CrewAI leaves those out of a checkpoint. Each becomes ``{"path": …}``, or nothing if it
        cannot be imported; a description remains a text.
        """
        fields: dict[str, Any] = {}
        for field in _GUARDRAILS:
            value = getattr(owner, field, None)
            many = isinstance(value, list | tuple)
            items = list(value) if isinstance(value, list | tuple) else [value]
            if any(map(callable, items)):
                kept = [one for item in items if (one := self._guardrail(item)) is not None]
                fields[field] = kept if many else next(iter(kept), None)
        return {field: kept for field, kept in fields.items() if kept}

    def _guardrail(self, value: Any) -> Any:
        if not callable(value):
            return value
        path = path_of(value)
        if path is None:
            self.lost.add(_name(value))
            return None
        self.named.add(path)
        return {"path": path}

    def mark_tool(self, tool: Any, dump: dict[str, Any]) -> dict[str, Any]:
        """Have a tool that has placeholders restored by :class:`RestoredTool`."""
        replaced = {
            field: self._seen[id(value)]
            for field, value in vars(tool).items()
            if id(value) in self._seen
        }
        self._seen.clear()
        if not replaced:
            return dump
        kind = f"{RestoredTool.__module__}.{RestoredTool.__qualname__}"
        said = {"tool_type": dump["tool_type"], "fields": replaced}
        return {**dump, "tool_type": kind, MARK: said}


class RestoredTool:
    """Where CrewAI looks for the class of a tool that had values without a JSON form."""

    @classmethod
    def model_validate(cls, dump: dict[str, Any]) -> Any:
        """Return the tool, an instance of the class that it had.

        Raises:
            ValueError: A function of it cannot be imported any more.
        """
        from crewai.tools.base_tool import _resolve_tool_dict

        data = dict(dump)
        said = data.pop(MARK)
        data["tool_type"] = said["tool_type"]
        for field, path in said["fields"].items():
            if path is not None:
                data[field] = resolve(path)
            elif field == "func":
                data[field] = _missing(str(data.get("name")), str(data[field]))
            else:
                # The class's default, or its complaint that there is none.
                del data[field]
        return _resolve_tool_dict(data)


def path_of(value: Any) -> str | None:
    """Return ``module:qualname`` if that leads to the value, or to the tool made of it."""
    module, qualname = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(qualname, str):
        return None
    found: Any = sys.modules.get(module)
    for name in qualname.split("."):
        found = getattr(found, name, None)
    # The decorator for tools leaves a tool where the function was.
    if found is value or getattr(found, "func", None) is value:
        return f"{module}:{qualname}"
    return None


def resolve(path: str) -> Any:
    """Return what :func:`path_of` named.

    Raises:
        ValueError: It is not there any more.
    """
    module, _, qualname = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for name in qualname.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"the checkpoint refers to {path!r}, which cannot be imported: {error}"
        ) from error
    return getattr(found, "func", found)


def restore_guardrails(entities: Iterable[Any], said: dict[str, Any]) -> None:
    """Give tasks and agents the guardrails that :meth:`Placeholders.guardrails` named.

    Raises:
        ValueError: One cannot be imported any more.
    """
    for owner in _owners(entities):
        for field, kept in said.get(str(owner.id), {}).items():
            many = isinstance(kept, list)
            found = [
                resolve(item["path"]) if isinstance(item, dict) else item
                for item in (kept if many else [kept])
            ]
            setattr(owner, field, found if many else found[0])
        if isinstance(owner, Task) and str(owner.id) in said:
            # As CrewAI does when a task is made.
            owner.ensure_guardrail_is_callable()
            owner.ensure_guardrails_is_list_of_callables()


def _owners(entities: Iterable[Any]) -> Iterator[Any]:
    for entity in entities:
        if isinstance(entity, BaseAgent):
            yield entity
        for task in getattr(entity, "tasks", None) or ():
            yield task
            if task.agent is not None:
                yield task.agent
        yield from getattr(entity, "agents", None) or ()


def _name(value: Any) -> str:
    owner = value if callable(value) and hasattr(value, "__qualname__") else type(value)
    return f"{owner.__module__}.{owner.__qualname__}"


def _missing(tool: str, name: str) -> Callable[..., Any]:
    def not_restored(*_: Any, **__: Any) -> Any:
        raise RuntimeError(
            f"the function of the tool {tool!r} is not in the checkpoint that this run was "
            f"restored from: {name} cannot be imported. Define it at the top of a module, or "
            "give the restored agent its tool again."
        )

    return not_restored
