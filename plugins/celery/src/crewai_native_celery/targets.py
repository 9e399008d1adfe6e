"""What a batch runs, by a name that workers understand: an import path, or a project's YAML."""

from __future__ import annotations

import functools
import importlib
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from crewai_native_celery.errors import TargetError

if TYPE_CHECKING:
    from collections.abc import Callable

    from crewai_native_tasks.batch_target import Target

ACCEPTED: Final = (
    "a function, a flow's class or a crew's class (CrewBase) of a module that workers can import; the "
    "import path of one, or of a crew, as 'package.module:name'; or the path of a folder with "
    "agents.yaml and tasks.yaml"
)
_PATH: Final = re.compile(r"[\w.]+:[\w.]+")


def named(target: Any) -> dict[str, Any]:
    """Return what names a target to workers, as JSON.

    Raises:
        TargetError: It cannot be named, or is not there.
        PlanError: The YAML of the project has mistakes.
    """
    if isinstance(target, str) and _PATH.fullmatch(target):
        _imported(target)  # a name that is mistyped should be an error here, not on every worker
        return {"path": target}
    if isinstance(target, str | os.PathLike):
        return {"project": _project(Path(target))}
    module, name = getattr(target, "__module__", None), getattr(target, "__qualname__", None)
    if module is None or name is None or not callable(target):
        raise TargetError(f"engine celery runs {ACCEPTED}; this is a {type(target).__name__}")
    path = f"{module}:{name}"
    if module == "__main__" or "<" in name or _found(sys.modules.get(module), name) is not target:
        raise TargetError(f"engine celery runs {ACCEPTED}; {path} cannot be imported elsewhere")
    return {"path": path}


def target_of(name: dict[str, Any]) -> Target:
    """Return how to run what was named."""
    from crewai_native_tasks.batch_target import target_of as runs

    if "project" in name:
        return runs(functools.partial(_crew_of, name["project"]))
    return runs(_imported(name["path"]))


def _imported(path: str) -> Any:
    module, _, name = path.partition(":")
    try:
        found = _found(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # it is there, and lacks something itself
        raise TargetError(f"there is no module {error.name}, which {path!r} is in") from error
    if found is None:
        raise TargetError(f"module {module} has no {name}")
    return found


def _found(module: Any, name: str) -> Any:
    for part in name.split("."):
        module = getattr(module, part, None)
    return module


def _project(folder: Path) -> dict[str, Any]:
    """Return what the files of a project say, so that workers need not have them."""
    from crewai_native_tasks import plan_yaml
    from crewai_native_tasks.plan import OF_AGENTS, OF_TASKS, Plan, PlanError

    agents, tasks = folder / "agents.yaml", folder / "tasks.yaml"
    if not tasks.is_file():
        raise TargetError(f"engine celery runs {ACCEPTED}; there is no {tasks}")
    Plan.from_yaml(agents, tasks)
    problems: list[plan_yaml.Problem] = []
    found: dict[str, Any] = {}
    for what, file, needs in (
        ("agents", agents, OF_AGENTS),
        ("tasks", tasks, (*OF_TASKS, "agent")),
    ):
        entries = plan_yaml.read(file, needs, problems)
        found[what] = {e.name: {key: f.value for key, f in e.fields.items()} for e in entries}
        problems += [
            plan_yaml.Problem(
                entry.file,
                entry.line_of(field),
                f"{field} of {entry.name!r} names code; name the class of the crew instead",
            )
            for entry in entries
            for field in sorted(_OF_CODE.intersection(entry.fields))
        ]
    if problems:
        raise PlanError(problems)
    return found


# What CrewAI takes from the functions of a crew's class, which YAML alone does not have.
_OF_CODE: Final = frozenset({"callback", "callbacks", "output_json", "output_pydantic", "tools"})


def _crew_of(project: dict[str, Any]) -> Any:
    from crewai import Agent, Crew, Task

    make: Callable[..., Any] = Agent
    agents = {name: make(**fields) for name, fields in project["agents"].items()}
    tasks: dict[str, Any] = {}
    for name, fields in project["tasks"].items():
        own = {"name": name, **fields}
        if "agent" in own:
            own["agent"] = agents[own["agent"]]
        if own.get("context"):
            own["context"] = [tasks[other] for other in own["context"]]
        tasks[name] = Task(**own)
    return Crew(agents=list(agents.values()), tasks=list(tasks.values()))
