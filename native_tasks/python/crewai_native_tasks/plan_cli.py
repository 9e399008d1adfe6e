"""``crewai-native plan``: looking at a project's agents and tasks before they cost anything."""

from __future__ import annotations

import enum
import json
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from crewai_native.cli import _console
from crewai_native_tasks.plan import Plan, PlanError, PlanTask

if TYPE_CHECKING:
    from collections.abc import Iterator

app = typer.Typer(help="Check agents.yaml and tasks.yaml, and draw the graph of tasks.")

# Where `crewai create` and its examples put them, seen from a project's folder.
_PLACES: Final = ("config", "src/*/config", "src/*/crews/*/config", "crews/*/config")


class Form(enum.StrEnum):
    """How a graph is drawn."""

    STEPS = "steps"
    MERMAID = "mermaid"
    DOT = "dot"
    JSON = "json"


Project = Annotated[Path, typer.Argument(metavar="[FOLDER]", help="The project's folder.")]
Agents = Annotated[Path | None, typer.Option(help="The file of agents, instead of a folder.")]
Tasks = Annotated[Path | None, typer.Option(help="The file of tasks, with --agents.")]
Process = Annotated[str, typer.Option(help="sequential or hierarchical, as in crew.py.")]


@app.command()
def check(
    folder: Project = Path(),
    agents: Agents = None,
    tasks: Tasks = None,
    process: Process = "sequential",
) -> None:
    """Say everything that is wrong with a project's agents and tasks.

    Exit status 1 when something is.
    """
    for plan, place in _plans(folder, agents, tasks, process):
        count = len(plan.tasks)
        typer.echo(f"{place}: {count} task{'' if count == 1 else 's'}, nothing wrong")


@app.command()
def show(
    folder: Project = Path(),
    agents: Agents = None,
    tasks: Tasks = None,
    process: Process = "sequential",
    form: Annotated[Form, typer.Option("--format", help="How to draw it.")] = Form.STEPS,
) -> None:
    """Draw which task waits for which."""
    draw = {Form.MERMAID: mermaid, Form.DOT: dot, Form.JSON: as_json}
    for plan, place in _plans(folder, agents, tasks, process):
        if form is Form.STEPS:
            typer.echo(f"{place} ({plan.process})")
            typer.echo(steps(plan, _console.stdout().width))
        else:
            typer.echo(draw[form](plan))


def steps(plan: Plan, width: int) -> str:
    """Return the tasks by the earliest step that each could run in, with what it waits for.

    A line for each task: a tree of a crew that runs in sequence is as deep as the crew is long.
    """
    step_of: dict[str, int] = {}
    for task in in_order(plan):
        step_of[task.name] = 1 + max((step_of[name] for name in task.after), default=0)
    margin = len(str(max(step_of.values(), default=0)))
    lines, last = [], 0
    for task in sorted(plan.tasks, key=lambda task: step_of[task.name]):
        step = step_of[task.name]
        agent = f" ({task.agent})" if task.agent else ""
        after = f", after {', '.join(task.after)}" if task.after else ""
        lines += textwrap.wrap(
            f"{task.name}{agent}{after}",
            width,
            initial_indent=f"{step if step != last else '':>{margin}}  ",
            subsequent_indent=" " * (margin + 6),
            break_on_hyphens=False,
        )
        last = step
    return "\n".join(lines)


def mermaid(plan: Plan) -> str:
    """Return the graph as a Mermaid flow chart."""
    lines = ["flowchart TD"]
    for number, task in enumerate(plan.tasks):
        label = task.name + (f"<br>{task.agent}" if task.agent else "")
        lines.append(f'    t{number}["{label.replace(chr(34), "#quot;")}"]')
    lines += [f"    t{first} --> t{then}" for first, then in _edges(plan)]
    return "\n".join(lines)


def dot(plan: Plan) -> str:
    """Return the graph in Graphviz's language."""
    lines = ["digraph plan {"]
    for number, task in enumerate(plan.tasks):
        label = task.name + (f"\n{task.agent}" if task.agent else "")
        # Of JSON's strings all that names can hold is the same in dot.
        lines.append(f"  t{number} [label={json.dumps(label, ensure_ascii=False)}];")
    lines += [f"  t{first} -> t{then};" for first, then in _edges(plan)]
    return "\n".join([*lines, "}"])


def as_json(plan: Plan) -> str:
    """Return the graph as JSON."""
    tasks: list[dict[str, Any]] = [
        {"name": task.name, "agent": task.agent, "after": list(task.after)} for task in plan.tasks
    ]
    return json.dumps({"process": plan.process, "tasks": tasks}, indent=2)


def in_order(plan: Plan) -> list[PlanTask]:
    """Return the tasks, each after those that it waits for."""
    from crewai_native_tasks._native import Schedule

    schedule = Schedule(plan.order, concurrency=1)
    found = []
    while (number := schedule.take()) is not None:
        found.append(plan.tasks[number])
        schedule.finish(number, True)
    return found


def _edges(plan: Plan) -> Iterator[tuple[int, int]]:
    for then, own in enumerate(plan.order):
        for first in own:
            yield first, then


def _plans(
    folder: Path, agents: Path | None, tasks: Path | None, process: str
) -> list[tuple[Plan, Path]]:
    """Return the plans that were asked for; where one has problems, print all and exit."""
    found, problems = [], []
    for own_agents, own_tasks in _files(folder, agents, tasks):
        try:
            plan = Plan.from_yaml(own_agents, own_tasks, process=process)
        except PlanError as error:
            problems += error.problems
        else:
            found.append((plan, own_tasks))
    for problem in problems:
        sys.stdout.write(f"{problem}\n")
    if problems:
        raise typer.Exit(1)
    return found


def _files(folder: Path, agents: Path | None, tasks: Path | None) -> list[tuple[Path, Path]]:
    if (agents is None) != (tasks is None):
        raise typer.BadParameter("--agents and --tasks go together")
    if agents is not None and tasks is not None:
        return [(agents, tasks)]
    places = [folder, *(place for pattern in _PLACES for place in sorted(folder.glob(pattern)))]
    found = [
        (place / "agents.yaml", place / "tasks.yaml")
        for place in places
        if (place / "tasks.yaml").is_file()
    ]
    if not found:
        looked = ", ".join(_PLACES)
        raise typer.BadParameter(f"there is no tasks.yaml in {folder}, nor in its {looked}")
    return found
