"""What this wheel offers to ``crewai-native``: schemas and results of tools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crewai_native import hookimpl
from crewai_native_tools import options as _options
from crewai_native_tools._native import totals

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from crewai_native.bench import Case
    from crewai_native_tools import ResultCache
    from crewai_native_tools.schemas import NativeSchemas

_in_force = _options.Options()


@hookimpl
def crewai_native_configure(options: Mapping[str, Any]) -> None:
    """Takes the options of ``tools``: see :class:`~crewai_native_tools.options.Options`."""
    global _in_force  # noqa: PLW0603 - hooks of a module have no other place
    _in_force = _options.read(options)


@hookimpl
def crewai_native_features() -> dict[str, set[str]]:
    """What can be required."""
    return {
        "tools.cache": {"bounded", "expiring", "unaliased"},
        "tools.schemas": {"exact"},
    }


@hookimpl
def crewai_native_tools_cache() -> ResultCache:
    """An empty cache for one ``CacheHandler``."""
    from crewai_native_tools.cache import result_cache

    return result_cache(_in_force)


@hookimpl
def crewai_native_tools_schemas() -> NativeSchemas:
    """Names, schemas and descriptions of tools."""
    from crewai_native_tools.schemas import NativeSchemas

    return NativeSchemas()


@hookimpl
def crewai_native_metrics() -> dict[str, float]:
    """What all caches of the process have done, and what they hold."""
    return {f"tools.cache.{name}": count for name, count in totals().items()}


@hookimpl
def crewai_native_benchmarks() -> Iterator[Case]:
    """``crewai-native bench tools``."""
    from crewai_native_tools import benchmarks

    return benchmarks.cases()
