"""The settings of this wheel: ``[tool.crewai-native.tools]`` and ``CREWAI_NATIVE_TOOLS_*``."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Callable, Mapping
from typing import Any, Final, Generic, NamedTuple, TypeVar

from crewai_native import ConfigurationError
from crewai_native_tools import policy
from crewai_native_tools.policy import Layers, Policy

_EVERY: Final = "*"
_MOST_BYTES: Final = 2**63 - 1
_MOST_SECONDS: Final = 10 * 366 * 86_400
_SECONDS: Final = f"seconds, above 0 and up to {_MOST_SECONDS}"
_BYTES: Final = "a whole number of bytes, above 0"

_SWITCH: Final = "true or false"

_Value = TypeVar("_Value", int, float, bool)


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

    def of(self, name: str) -> _Value | None:
        """Return the value for a tool, whose name is written as the names here are."""
        return self.named.get(name, self.default)


class Options(NamedTuple):
    """The options of ``tools``. Without any, results are kept as CrewAI keeps them.

    Attributes:
        cache_ttl: Seconds for which a tool's result is given again. For every tool (``300``), or
            by tool (``{search = 60, "*" = 300}``; in the environment ``search=60,*=300``).
        cache_tool_max_bytes: Bytes that one tool's results may take, per ``CacheHandler``; written
            like ``cache_ttl``.
        cache_max_bytes: Bytes that all results of one ``CacheHandler`` may take.
        cache_persist: Whether a tool's results outlive the process; written like ``cache_ttl``.
            Takes ``crewai-native-db``.
        layers: What is said about calls. Every field of a
            :class:`~crewai_native_tools.policy.Policy` is an option that is written like
            ``cache_ttl``, but for the budgets, which are for no tool. ``agents`` and ``crews`` are
            tables of policies by role and by name.
        max_threads: Threads on which calls may run whose callers can leave before they end.
        isolation_workers: Processes in which tools with ``isolation = "process"`` run at the same
            time; by default as many as there are processors, but four at least.
        prices: What a million tokens cost, in and out, by the name of a model.
    """

    cache_ttl: PerTool[float] = PerTool()
    cache_tool_max_bytes: PerTool[int] = PerTool()
    cache_max_bytes: int | None = None
    cache_persist: PerTool[bool] = PerTool()
    layers: Layers = Layers()
    max_threads: int = 128
    isolation_workers: int | None = None
    prices: Mapping[str, tuple[float, float]] = types.MappingProxyType({})


_KNOWN: Final = (
    "cache_ttl",
    "cache_tool_max_bytes",
    "cache_max_bytes",
    "cache_persist",
    *policy.FIELDS,
    "agents",
    "crews",
    "max_threads",
    "isolation_workers",
    "prices",
)


def read(options: Mapping[str, Any]) -> Options:
    """Check options.

    Raises:
        ConfigurationError: One is unknown or means nothing.
    """
    for name in options:
        if name not in _KNOWN:
            raise ConfigurationError(f"tools has no option {name!r}; it has {', '.join(_KNOWN)}")
    found: dict[str, Any] = {}
    for name, kind, accepts in _BY_TOOL:
        if name in options:
            found[name] = _per_tool(name, options[name], kind, accepts)
    if "cache_max_bytes" in options:
        value = options["cache_max_bytes"]
        if (number := _bytes(value)) is None:
            raise ConfigurationError(f"tools.cache_max_bytes is {value!r}; it accepts {_BYTES}")
        found["cache_max_bytes"] = number
    for name in {"max_threads", "isolation_workers"} & options.keys():
        value = options[name]
        if (number := _bytes(value)) is None:
            raise ConfigurationError(
                f"tools.{name} is {value!r}; it accepts a whole number above 0"
            )
        found[name] = number
    if "prices" in options:
        found["prices"] = _prices(options["prices"])
    return Options(layers=_layers(options), **found)


def _layers(options: Mapping[str, Any]) -> Layers:
    default: dict[str, Any] = {}
    tools: dict[str, dict[str, Any]] = {}
    for field in policy.FIELDS:
        if field not in options:
            continue
        value = options[field]
        if field in policy.NOT_FOR_A_TOOL:
            default[field] = _field(f"tools.{field}", field, value)
            continue
        for name, entry in _entries(value).items():
            checked = _field(f"tools.{field}", field, entry, by_tool=True)
            if name == _EVERY:
                default[field] = checked
            elif name:
                tools.setdefault(name, {})[field] = checked
            else:
                raise ConfigurationError(f"tools.{field} is {value!r}; a tool has a name")
    return Layers(
        default=Policy(**default),
        tools={name: Policy(**fields) for name, fields in tools.items()},
        agents=_by_name("agents", options.get("agents", {})),
        crews=_by_name("crews", options.get("crews", {})),
    )


def _field(where: str, field: str, value: Any, *, by_tool: bool = False) -> Any:
    try:
        return policy.parse(field, value)
    except ValueError as error:
        tables = (
            f'; or a table of such by the name of a tool, "{_EVERY}" for the others (in the '
            "environment: search=…,*=…)"
        )
        raise ConfigurationError(f"{where} is {error}{tables if by_tool else ''}") from None


def _by_name(option: str, value: Any) -> dict[str, Policy]:
    if not isinstance(value, Mapping) or not all(
        isinstance(entry, Mapping) for entry in value.values()
    ):
        raise ConfigurationError(
            f"tools.{option} is {value!r}; it accepts a table of tables, by name, with any of "
            f"{', '.join(policy.FIELDS)}"
        )
    found = {}
    for name, fields in value.items():
        for field in fields:
            if field not in policy.FIELDS:
                raise ConfigurationError(
                    f"tools.{option}.{name} has no option {field!r}; it has "
                    f"{', '.join(policy.FIELDS)}"
                )
        found[name] = Policy(
            **{
                field: _field(f"tools.{option}.{name}.{field}", field, entry)
                for field, entry in fields.items()
            }
        )
    return found


def _prices(value: Any) -> dict[str, tuple[float, float]]:
    found = {}
    for model, pair in value.items() if isinstance(value, Mapping) else [("", None)]:
        numbers = [_price(price) for price in pair] if isinstance(pair, list | tuple) else []
        if len(numbers) != 2 or None in numbers:  # noqa: PLR2004 - in and out
            raise ConfigurationError(
                f"tools.prices is {value!r}; it accepts a table by the name of a model of what a "
                "million tokens cost, in and out, such as {gpt-4o = [2.5, 10]}"
            )
        found[model] = (numbers[0], numbers[1])
    return found  # type: ignore[return-value]


def _price(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value < math.inf else None


def _entries(value: Any) -> Mapping[str, Any]:
    """Return values by the name of a tool, :data:`_EVERY` for those that are not named."""
    if isinstance(value, str) and "=" in value:
        parts = [part.rpartition("=") for part in value.split(",") if part.strip()]
        return {name.strip(): text.strip() for name, _, text in parts}
    return value if isinstance(value, Mapping) else {_EVERY: value}


def _per_tool(
    option: str, value: Any, number: Callable[[Any], _Value | None], accepts: str
) -> PerTool[_Value]:
    found = {}
    for name, entry in _entries(value).items():
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


def _switch(value: Any) -> bool | None:
    if isinstance(value, str):
        return {"true": True, "1": True, "false": False, "0": False}.get(value.strip().lower())
    return value if isinstance(value, bool) else None


def _bytes(value: Any) -> int | None:
    if isinstance(value, str):
        text = value.strip()
        # int() is slow with very many digits.
        digits = text.isascii() and text.isdigit() and len(text) <= len(str(_MOST_BYTES))
        value = int(text) if digits else None
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 < value <= _MOST_BYTES else None


_BY_TOOL: Final[tuple[tuple[str, Callable[[Any], Any], str], ...]] = (
    ("cache_ttl", _seconds, _SECONDS),
    ("cache_tool_max_bytes", _bytes, _BYTES),
    ("cache_persist", _switch, _SWITCH),
)
