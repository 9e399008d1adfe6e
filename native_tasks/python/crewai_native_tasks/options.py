"""The settings of this wheel: ``[tool.crewai-native.tasks]`` and ``CREWAI_NATIVE_TASKS_*``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from crewai_native import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_SWITCHES: Final = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


class Options(NamedTuple):
    """The options of ``tasks``. Without any, crews and flows do what they do without this wheel.

    Attributes:
        flows: Whether the user's own flows run on the native executor too; agents and CrewAI's
            internal flows always do.
        for_each_concurrency: Kickoffs at a time for ``Crew.kickoff_for_each`` and its twins; None
            leaves them to CrewAI's own code, which runs the first one by one.
        batch_slots: Kickoffs at a time of all batches together.
        requests_per_minute: Requests to models that all processes together make in a minute.
        tokens_per_minute: Tokens that they use in a minute, as far as models report them.
        limits_path: The file through which processes share these counts; in CrewAI's storage
            directory by default.
        graph: Whether the tasks of a crew run side by side as their contexts allow.
        graph_concurrency: How many tasks of one crew do so at a time.
        graph_agents: What a task does whose agent is at work on another: ``wait``, or run on a
            ``copy`` of it.
    """

    flows: bool = False
    for_each_concurrency: int | None = None
    batch_slots: int = 256
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    limits_path: Path | None = None
    graph: bool = False
    graph_concurrency: int = 16
    graph_agents: Literal["wait", "copy"] = "wait"


def read(options: Mapping[str, Any]) -> Options:
    """Check options.

    Raises:
        ConfigurationError: One is unknown or means nothing.
    """
    known = Options._fields
    # The engine of crewai-native-celery serves this component too, and checks its own.
    options = {n: value for n, value in options.items() if not n.startswith("celery_")}
    for name in options:
        if name not in known:
            raise ConfigurationError(f"tasks has no option {name!r}; it has {', '.join(known)}")
    return Options(**{name: _READERS[name](name, value) for name, value in options.items()})


def _switch(name: str, value: Any) -> bool:
    found = value if isinstance(value, bool) else _SWITCHES.get(str(value).strip().lower())
    if found is None:
        raise ConfigurationError(f"tasks.{name} is {value!r}; it accepts true or false")
    return found


def _number(name: str, value: Any) -> int:
    found = value
    if isinstance(value, str):
        digits = value.strip()
        found = int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 16 else None  # noqa: PLR2004
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise ConfigurationError(f"tasks.{name} is {value!r}; it accepts a whole number above 0")
    return found


def _path(name: str, value: Any) -> Path:
    if not isinstance(value, str | Path) or not str(value).strip():
        raise ConfigurationError(f"tasks.{name} is {value!r}; it accepts a path")
    return Path(value).expanduser()


def _one_of(*accepted: str) -> Callable[[str, Any], str]:
    def read(name: str, value: Any) -> str:
        if value not in accepted:
            raise ConfigurationError(
                f"tasks.{name} is {value!r}; it accepts {' or '.join(accepted)}"
            )
        return str(value)

    return read


# How each option is read: from its name and the value as written.
_READERS: Final[dict[str, Callable[[str, Any], Any]]] = {
    "flows": _switch,
    "for_each_concurrency": _number,
    "batch_slots": _number,
    "requests_per_minute": _number,
    "tokens_per_minute": _number,
    "limits_path": _path,
    "graph": _switch,
    "graph_concurrency": _number,
    "graph_agents": _one_of("wait", "copy"),
}
