"""What a batch runs: a crew or a flow, a new one for every attempt."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

from crewai_native_tasks.batch_flow import Flows
from crewai_native_tasks.batch_usage import count_copy, count_shared, counting
from crewai_native_tasks.control import scope_of_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ACCEPTED: Final = (
    "a Crew or a class of one (CrewBase), a Flow or its class, or a function without arguments that "
    "returns a new one of either"
)
# What a kickoff fills in, of a crew's agents and of its tasks.
_FILLED_IN: Final = {
    "agents": ("role", "goal", "backstory"),
    "tasks": ("description", "expected_output", "output_file"),
}


class Target(Protocol):
    """Kicks off."""

    def kickoff(self, inputs: Mapping[str, Any] | None) -> tuple[Any, Any]:
        """Return the output, and the usage of tokens or None."""

    def key(self) -> str:
        """Return what tells this target from others, the same in every process."""


def target_of(target: Any, **kickoff: Any) -> Target:
    """Return how to run a target.

    Args:
        target: What :data:`ACCEPTED` says.
        **kickoff: Further arguments of the kickoff.

    Raises:
        TypeError: It is something else.
    """
    if is_a(target, "crewai.crew", "Crew"):
        return _Fresh(lambda: copy_of(target), f"crew {target.key}", kickoff)
    if is_a(target, "crewai.flow.runtime", "Flow"):
        return _Fresh(Flows(target), _name_of(type(target)), kickoff)
    if callable(target):
        return _Fresh(lambda: _made(target), _name_of(target), kickoff)
    raise TypeError(f"a batch runs {ACCEPTED}; this is a {type(target).__name__}")


def _made(function: Callable[[], Any]) -> Any:
    made = function()
    if not hasattr(made, "kickoff"):
        made = crew_of(made)
    if is_a(made, "crewai.crew", "Crew"):
        count_shared(made)
    return made


def crew_of(target: Any) -> Any:
    """Return the crew of a CrewBase class, of an instance of it or of a method; others as they are.

    CrewAI makes the agents and tasks of such an instance once. Crews that it makes share them, so each
    kickoff has to have a copy.
    """
    owner = getattr(target, "__self__", None)
    if getattr(target, "is_crew_class", False):
        instance = target() if isinstance(target, type) else target
        return instance.crew()
    if getattr(type(owner), "is_crew_class", False):
        made = target()
        return made if is_a(made, "crewai.crew", "Crew") else target
    return target


def is_a(value: Any, module: str, name: str) -> bool:
    """Return whether something is an instance of a class, without importing that for the question."""
    kind = getattr(sys.modules.get(module), name, None)
    return kind is not None and isinstance(value, kind)


def copy_of(crew: Any) -> Any:
    """Return a copy of a crew that counts its tokens for itself.

    CrewAI's has the inputs of an earlier kickoff of the crew filled in.
    """
    made = crew.copy()
    made.stream = False
    for parts, fields in _FILLED_IN.items():
        for new, part in zip(getattr(made, parts), getattr(crew, parts), strict=True):
            for field in fields:
                if (declared := getattr(part, f"_original_{field}", None)) is not None:
                    setattr(new, field, declared)
    count_copy(made)
    return made


def copied(inputs: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return a copy of inputs in depth, but for what cannot be copied, such as a lock."""
    if not isinstance(inputs, Mapping):
        return inputs
    return {key: _copied(value) for key, value in inputs.items()}


def _copied(value: Any) -> Any:
    try:
        return copy.deepcopy(value)
    except Exception:  # noqa: BLE001 - whatever its own methods raise
        return value


# Agents and tasks by id, with the kickoff that is at them. Without a lock, which a fork might find held.
_busy: Final[dict[int, object]] = {}
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_busy.clear)


@contextlib.contextmanager
def _alone(made: Any, name: str) -> Iterator[None]:
    """Keep a crew's agents and tasks from other kickoffs, which would mix up their prompts.

    Raises:
        RuntimeError: Another kickoff is at one of them.
    """
    me, mine = object(), []
    try:
        for part in _parts(made):
            if _busy.setdefault(id(part), me) is not me:
                what = getattr(part, "role", None) or part.description
                raise RuntimeError(
                    f"{name} returned a crew that shares {what!r} with one that runs; give the batch "
                    "the crew itself, of which each kickoff gets a copy"
                )
            mine.append(id(part))
        yield
    finally:
        for key in mine:
            _busy.pop(key, None)


def _parts(made: Any) -> Iterator[Any]:
    if is_a(made, "crewai.crew", "Crew"):
        yield from made.tasks
        # Others than CrewAI's own agents may well be made for several crews at once.
        yield from (agent for agent in made.agents if is_a(agent, "crewai.agent.core", "Agent"))


class _Fresh:
    def __init__(self, make: Callable[[], Any], name: str, kickoff: Mapping[str, Any]) -> None:
        self._make = make
        self._name = name
        self._kickoff = kickoff

    def kickoff(self, inputs: Mapping[str, Any] | None) -> tuple[Any, Any]:
        made = self._make()
        if not hasattr(made, "kickoff"):
            raise TypeError(f"a batch runs {ACCEPTED}; {self._name} returned {made!r}")
        # Making one takes a while, in which the batch may have been cancelled.
        if (scope := scope_of_run.get()) is not None:
            scope.check()
        # None, and what CrewAI refuses, is for CrewAI to say.
        given = dict(inputs) if isinstance(inputs, Mapping) else inputs
        with _alone(made, self._name), counting():
            output = made.kickoff(inputs=given, **self._kickoff)
        return output, made.usage_metrics

    def key(self) -> str:
        return hashlib.sha256(self._name.encode()).hexdigest()


def _name_of(target: Any) -> str:
    kind = target if hasattr(target, "__qualname__") else type(target)
    return f"{kind.__module__}.{kind.__qualname__}"
