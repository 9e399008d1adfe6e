"""What this wheel offers to ``crewai-native``: calls, schemas and results of tools."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from crewai_native import hookimpl
from crewai_native.slots.tools_guard import EXACT_COUNT, STOPS_RUNS, WATCHES_MODELS
from crewai_native.slots.tools_mcp import MCP_CONNECTIONS
from crewai_native_tools._native import ResultCache, abandoned, totals

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from crewai_native.bench import Case
    from crewai_native.slots.tools_guard import ModelCall, ToolCall
    from crewai_native_tools.guard import NativeGuard
    from crewai_native_tools.kept import KeptResults
    from crewai_native_tools.options import Options
    from crewai_native_tools.schemas import NativeSchemas

# None where nothing is configured. What that means takes much of this package to say.
_in_force: Options | None = None
_guard: _Guard | None = None


class _Guard:
    """Serves ``tools.guard``; what it consists of is loaded by the first call."""

    made: NativeGuard | None = None

    def run(self, call: ToolCall, proceed: Callable[[], Any]) -> Any:
        return (self.made or self.make()).run(call, proceed)

    async def arun(self, call: ToolCall, proceed: Callable[[], Awaitable[Any]]) -> Any:
        return await (self.made or self.make()).arun(call, proceed)

    def before_model(self, call: ModelCall) -> Any:
        return (self.made or self.make()).before_model(call)

    def mcp_client(self, make: Callable[[], Any]) -> Any:
        from crewai_native_tools import mcp

        return mcp.CONNECTIONS.client(make)

    def mcp_run_ended(self, run: str) -> None:
        # What was never imported has no connections.
        if (mcp := sys.modules.get("crewai_native_tools.mcp")) is not None:
            mcp.CONNECTIONS.end_run(run)

    def make(self) -> NativeGuard:
        from crewai_native_tools.guard import NativeGuard

        # One for all threads, whichever of them comes first: it has the process's counts.
        made: NativeGuard = vars(self).setdefault("made", NativeGuard(options()))
        return made


@hookimpl
def crewai_native_configure(options: Mapping[str, Any]) -> None:
    """Takes the options of ``tools``: see :class:`~crewai_native_tools.options.Options`."""
    global _in_force  # noqa: PLW0603 - hooks of a module have no other place
    if not options:
        _in_force = None
        return
    from crewai_native_tools.options import read

    _in_force = read(options)


def options() -> Options:
    """Return the options in force."""
    if _in_force is not None:
        return _in_force
    from crewai_native_tools.options import Options

    return Options()


def guard() -> NativeGuard | None:
    """Return the guard of this process, or None where ``tools.guard`` is not bound to it."""
    return None if _guard is None else _guard.made or _guard.make()


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
    if _in_force is None:
        from pydantic import BaseModel

        return ResultCache(lambda _: (None, None), models=BaseModel)
    from crewai_native_tools.cache import result_cache

    return result_cache(_in_force)


@hookimpl
def crewai_native_tools_guard() -> _Guard:
    """The guard of this process."""
    global _guard  # noqa: PLW0603 - hooks of a module have no other place
    _guard = _Guard()
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
    made = None if _guard is None else _guard.made
    for stats in () if made is None else made.shared.stats().values():
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
