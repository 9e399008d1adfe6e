"""The results that CrewAI keeps of tool calls, within bounds.

What is different from CrewAI's dictionary, without any setting: the order of arguments does not
matter, a tool's name and its arguments do not run together, and what a caller does to a list, a
dict or a pydantic model that it got shows in no later answer. With settings, results go when they
are too old or when room is needed, those first that were not asked for longest, and outlive the
process: see :mod:`~crewai_native_tools.kept`.

That concurrent identical calls run once cannot be done here. CrewAI looks a result up, runs the
tool, and adds what it returned; when the tool fails it adds nothing and says nothing, so a second
caller that waited here for the first would wait for ever. The guard sees how a call ends, and does
it: see :mod:`~crewai_native_tools.flights`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crewai_native_tools._native import ResultCache

if TYPE_CHECKING:
    from crewai_native_tools.kept import KeptResults
    from crewai_native_tools.options import Options


def result_cache(options: Options) -> ResultCache | KeptResults:
    """Return an empty cache for one ``CacheHandler``.

    Raises:
        ConfigurationError: Results are to outlive the process, and ``crewai-native-db`` is not
            installed.
    """
    from crewai.utilities.string_utils import sanitize_tool_name
    from pydantic import BaseModel

    ttl = options.cache_ttl.sanitized(sanitize_tool_name)
    size = options.cache_tool_max_bytes.sanitized(sanitize_tool_name)

    def policy(tool: str) -> tuple[float | None, int | None]:
        name = sanitize_tool_name(tool)
        return ttl.of(name), size.of(name)

    memory = ResultCache(policy, max_bytes=options.cache_max_bytes, models=BaseModel)
    persists = options.cache_persist.sanitized(sanitize_tool_name)
    if not persists.default and not any(persists.named.values()):
        return memory
    from crewai_native_tools.kept import KeptResults, default_store

    return KeptResults(
        memory,
        default_store(),
        lambda name: (bool(persists.of(name)), ttl.of(name), size.of(name)),
        options.cache_max_bytes,
        sanitize_tool_name,
    )
