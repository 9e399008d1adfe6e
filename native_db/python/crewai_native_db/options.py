"""The options of ``[tool.crewai-native.db]`` and ``CREWAI_NATIVE_DB_<OPTION>``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from crewai_native import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_LEVELS: Final = ("full", "normal")
_SWITCH: Final = {"1": True, "true": True, "0": False, "false": False}


def check(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as values of their types; what the environment says is text.

    Raises:
        ConfigurationError: An option is unknown or means nothing.
    """
    checked = {}
    for name, value in options.items():
        if name not in _CHECKS:
            raise ConfigurationError(
                f"db has no option {name!r}; it has {', '.join(sorted(_CHECKS))}"
            )
        read, accepts = _CHECKS[name]
        found = read(value)
        if found is None:
            raise ConfigurationError(f"db.{name} must be {accepts}; got {value!r}")
        checked[name] = found
    return checked


def _level(value: Any) -> str | None:
    return value if value in _LEVELS else None


def _count(value: Any) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    return value if type(value) is int and 1 <= value < 2**32 else None


def _switch(value: Any) -> bool | None:
    return value if isinstance(value, bool) else _SWITCH.get(str(value).lower())


def _path(value: Any) -> str | None:
    if not isinstance(value, str | os.PathLike) or not value:
        return None
    return os.path.expanduser(os.fspath(value))  # noqa: PTH111 - it goes to Rust as text


_CHECKS: Final[dict[str, tuple[Callable[[Any], Any], str]]] = {
    "synchronous": (_level, f"one of {', '.join(_LEVELS)}"),
    "keep": (_count, "a number of states, from 1"),
    "keep_runs": (_count, "a number of runs, from 1"),
    "strict": (_switch, "true or false"),
    "strict_checkpoints": (_switch, "true or false"),
    "path": (_path, "the path of a file"),
}
