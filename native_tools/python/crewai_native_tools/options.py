"""The settings of this wheel: ``[tool.crewai-native.tools]`` and ``CREWAI_NATIVE_TOOLS_*``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from crewai_native import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

_EVERY: Final = "*"
_MOST_BYTES: Final = 2**63 - 1
_MOST_SECONDS: Final = 10 * 366 * 86_400
_SECONDS: Final = f"seconds, above 0 and up to {_MOST_SECONDS}"
_BYTES: Final = "a whole number of bytes, above 0"

_Value = TypeVar("_Value", int, float)


@dataclasses.dataclass(frozen=True, slots=True)
class PerTool(Generic[_Value]):
    """A value for every tool, and others for some.

    Attributes:
        default: For the tools that are not named; None where there is no limit.
        named: By a tool's name, in whatever spelling: compared as CrewAI's ``sanitize_tool_name``
            writes it.
    """

    default: _Value | None = None
    named: Mapping[str, _Value] = dataclasses.field(default_factory=dict)

    def sanitized(self, sanitize: Callable[[str], str]) -> PerTool[_Value]:
        """Return the same with names as CrewAI writes them."""
        return PerTool(self.default, {sanitize(name): value for name, value in self.named.items()})


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """The options of ``tools``. Without any, results are kept as CrewAI keeps them.

    Attributes:
        cache_ttl: Seconds for which a tool's result is given again. For every tool (``300``), or
            by tool (``{search = 60, "*" = 300}``; in the environment ``search=60,*=300``).
        cache_tool_max_bytes: Bytes that one tool's results may take, per ``CacheHandler``; written
            like ``cache_ttl``.
        cache_max_bytes: Bytes that all results of one ``CacheHandler`` may take.
    """

    cache_ttl: PerTool[float] = dataclasses.field(default_factory=PerTool)
    cache_tool_max_bytes: PerTool[int] = dataclasses.field(default_factory=PerTool)
    cache_max_bytes: int | None = None


def read(options: Mapping[str, Any]) -> Options:
    """Check options.

    Raises:
        ConfigurationError: One is unknown or means nothing.
    """
    known = [field.name for field in dataclasses.fields(Options)]
    for name in options:
        if name not in known:
            raise ConfigurationError(f"tools has no option {name!r}; it has {', '.join(known)}")
    found: dict[str, Any] = {}
    if "cache_ttl" in options:
        found["cache_ttl"] = _per_tool("cache_ttl", options["cache_ttl"], _seconds, _SECONDS)
    if "cache_tool_max_bytes" in options:
        found["cache_tool_max_bytes"] = _per_tool(
            "cache_tool_max_bytes", options["cache_tool_max_bytes"], _bytes, _BYTES
        )
    if "cache_max_bytes" in options:
        value = options["cache_max_bytes"]
        if (number := _bytes(value)) is None:
            raise ConfigurationError(f"tools.cache_max_bytes is {value!r}; it accepts {_BYTES}")
        found["cache_max_bytes"] = number
    return Options(**found)


def _per_tool(
    option: str, value: Any, number: Callable[[Any], _Value | None], accepts: str
) -> PerTool[_Value]:
    entries = value
    if isinstance(value, str) and "=" in value:
        parts = [part.rpartition("=") for part in value.split(",") if part.strip()]
        entries = {name.strip(): text.strip() for name, _, text in parts}
    elif not isinstance(value, Mapping):
        entries = {_EVERY: value}
    found = {}
    for name, entry in entries.items():
        checked = number(entry)
        if checked is None or not name:
            raise ConfigurationError(
                f"tools.{option} is {value!r}; it accepts {accepts}; or a table of such by the "
                f'name of a tool, "{_EVERY}" for the others (in the environment: search=60,*=300)'
            )
        found[name] = checked
    return PerTool(found.pop(_EVERY, None), found)


def _seconds(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        seconds = float(value)
    except (ValueError, OverflowError):
        return None
    return seconds if math.isfinite(seconds) and 0 < seconds <= _MOST_SECONDS else None


def _bytes(value: Any) -> int | None:
    if isinstance(value, str):
        text = value.strip()
        # int() is slow with very many digits.
        digits = text.isascii() and text.isdigit() and len(text) <= len(str(_MOST_BYTES))
        value = int(text) if digits else None
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 < value <= _MOST_BYTES else None
