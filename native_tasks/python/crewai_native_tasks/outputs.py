"""What kickoffs return, as JSON and back: CrewAI's outputs, pydantic models, and JSON itself.

Nothing is executed or unpickled: models are those that are named or that the program has imported.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from crewai_native import CrewAINativeError
from crewai_native_tasks.batch_target import is_a

if TYPE_CHECKING:
    from collections.abc import Mapping


class UnreadableError(CrewAINativeError):
    """An output that cannot be made again from its JSON."""


class UnknownModelError(UnreadableError):
    """An output is of a model that this program has not imported."""


def plain(output: Any, models: Mapping[str, type]) -> dict[str, Any]:
    """Return an output as JSON can hold it.

    Args:
        output: What a kickoff returned.
        models: Models that may occur, by name, beside those of imported modules.

    Raises:
        TypeError: It is nothing that has a way back.
    """
    if is_a(output, "crewai.crews.crew_output", "CrewOutput"):
        # The declared type of these fields is BaseModel, so a dump of the output has them empty.
        found = [*(task.pydantic for task in output.tasks_output), output.pydantic]
        without: dict[str, Any] = {"pydantic": True, "tasks_output": {"__all__": {"pydantic"}}}
        return {
            "crew": output.model_dump(mode="json", exclude=without),
            "models": [None if model is None else plain(model, models) for model in found],
        }
    if is_a(output, "pydantic", "BaseModel"):
        content = {"model": name_of(type(output)), "fields": _fields(output)}
        try:
            same = json.dumps(_fields(_model(content, models))) == json.dumps(content["fields"])
        except UnreadableError as error:
            raise TypeError(f"what is kept has a way back; this is {error}") from error
        if not same:
            raise TypeError(f"what is kept has a way back; {output!r} would come back as another")
        return content
    if json.loads(json.dumps(output)) != output:
        raise TypeError(f"what is kept are CrewAI's outputs, models and JSON; this is {output!r}")
    return {"json": output}


def restored(content: Mapping[str, Any], models: Mapping[str, type]) -> Any:
    """Return the output that :func:`plain` was given.

    Args:
        content: What it returned.
        models: Models that may occur, by name, beside those of imported modules.

    Raises:
        UnknownModelError: It has one that is neither.
        UnreadableError: A model does not accept what one of its name has been.
    """
    if "json" in content:
        return content["json"]
    if "model" in content:
        return _model(content, models)
    from crewai.crews.crew_output import CrewOutput

    found = [_model(model, models) if model else None for model in content["models"]]
    output = CrewOutput.model_validate(dict(content["crew"]))
    *of_tasks, output.pydantic = found
    for task, model in zip(output.tasks_output, of_tasks, strict=True):
        task.pydantic = model
    return output


def _model(content: Mapping[str, Any], models: Mapping[str, type]) -> Any:
    from pydantic import BaseModel

    name = content["model"]
    found: Any = models.get(name)
    if found is None:
        module, _, path = name.partition(":")
        found = sys.modules.get(module)
        for part in path.split("."):
            found = getattr(found, part, None)
    if not (isinstance(found, type) and issubclass(found, BaseModel)):
        raise UnknownModelError(
            f"a {name.replace(':', '.')}, which is no model that this program has imported; "
            "import its module before"
        )
    text = json.dumps(content["fields"])
    try:
        return found.model_validate_json(text, by_alias=False, by_name=True)
    except Exception as error:  # whatever its validators raise
        raise UnreadableError(
            f"a {name.replace(':', '.')} that does not come back: {error}"
        ) from error


def _fields(model: Any) -> Any:
    """Return a model's fields by their own names, which all models accept, without computed ones."""
    return model.model_dump(mode="json", by_alias=False, round_trip=True)


def usage(fields: Any) -> Any:
    """Return ``UsageMetrics`` from their fields; None for None."""
    if fields is None:
        return None
    from crewai.types.usage_metrics import UsageMetrics

    return UsageMetrics.model_validate(fields)


def name_of(model: type) -> str:
    """Return the name by which a model is found again."""
    return f"{model.__module__}:{model.__qualname__}"
