"""What this wheel offers to ``crewai-native``: calls, schemas and results of tools."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from crewai_native import hookimpl
from crewai_native.slots.tools_guard import EXACT_COUNT, STOPS_RUNS, WATCHES_MODELS
from crewai_native.slots.tools_mcp import MCP_CONNECTIONS
from crewai_native_tools import options as _options
from crewai_native_tools._native import abandoned, totals

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from crewai_native.bench import Case
    from crewai_native_tools import ResultCache
    from crewai_native_tools.guard import NativeGuard
    from crewai_native_tools.kept import KeptResults
    from crewai_native_tools.schemas import NativeSchemas

_in_force = _options.Options()
_guard: NativeGuard | None = None


@hookimpl
def crewai_native_configure(options: Mapping[str, Any]) -> None:
    """Takes the options of ``tools``: see :class:`~crewai_native_tools.options.Options`."""
    global _in_force  # noqa: PLW0603 - hooks of a module have no other place
    _in_force = _options.read(options)


def options() -> _options.Options:
    """Return the options in force."""
    return _in_force


def guard() -> NativeGuard | None:
    """Return the guard of this process, or None where ``tools.guard`` is not bound to it."""
    return _guard


@hookimpl
def crewai_native_features() -> dict[str, set[str]]:
    """What can be required."""
    return {
        "tools.cache": {"bounded", "expiring", "persistent", "unaliased"},
        "tools.guard": {
            EXACT_COUNT,
            MCP_CONNECTIONS,
            STOPS_RUNS,
            WATCHES_MODELS,
            "deadlines",
            "idempotent",
            "isolated",
            "limits",
            "loops",
        },
        "tools.schemas": {"arguments", "exact"},
    }


@hookimpl
def crewai_native_tools_cache() -> ResultCache | KeptResults:
    """An empty cache for one ``CacheHandler``."""
    from crewai_native_tools.cache import result_cache

    return result_cache(_in_force)


@hookimpl
def crewai_native_tools_guard() -> NativeGuard:
    """The guard of this process."""
    global _guard  # noqa: PLW0603 - hooks of a module have no other place
    from crewai_native_tools.guard import NativeGuard

    _guard = NativeGuard(_in_force)
    return _guard


@hookimpl
def crewai_native_tools_schemas() -> NativeSchemas:
    """Names, schemas and descriptions of tools."""
    from crewai_native_tools.schemas import NativeSchemas

    return NativeSchemas()


@hookimpl
def crewai_native_metrics() -> dict[str, float]:
    """What all caches of the process have done and hold, and what became of guarded calls."""
    found: dict[str, float] = {f"tools.cache.{name}": n for name, n in totals().items()}
    # What was never imported has looked nothing up.
    if (kept := sys.modules.get("crewai_native_tools.kept")) is not None:
        found |= {f"tools.cache.file.{name}": n for name, n in kept.counts.items()}
    found["tools.guard.abandoned"] = abandoned()
    for stats in () if _guard is None else _guard.shared.stats().values():
        for name, count in stats.items():
            key = f"tools.guard.{name}"
            together = max if name == "longest" else float.__add__
            found[key] = together(found.get(key, 0.0), float(count))
    return found


@hookimpl
def crewai_native_unconfigure() -> None:
    """The slots are unbound: nothing counts calls any more."""
    global _guard  # noqa: PLW0603 - hooks of a module have no other place
    _guard = None


@hookimpl
def crewai_native_benchmarks() -> Iterator[Case]:
    """``crewai-native bench tools``."""
    from crewai_native_tools import benchmarks

    return benchmarks.cases()
