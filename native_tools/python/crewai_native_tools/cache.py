"""The results that CrewAI keeps of tool calls, within bounds.

What is different from CrewAI's dictionary, without any setting: the order of arguments does not
matter, a tool's name and its arguments do not run together, and what a caller does to a list, a
dict or a pydantic model that it got shows in no later answer. With settings, results go when they
are too old or when room is needed, those first that were not asked for longest.

One thing cannot be done here: that concurrent identical calls run once. CrewAI looks a result up,
runs the tool, and adds what it returned; when the tool fails it adds nothing and says nothing. A
second caller that waited here for the first would then wait for ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crewai_native_tools._native import ResultCache

if TYPE_CHECKING:
    from crewai_native_tools.options import Options


def result_cache(options: Options) -> ResultCache:
    """Return an empty cache for one ``CacheHandler``."""
    from crewai.utilities.string_utils import sanitize_tool_name
    from pydantic import BaseModel

    def policy(tool: str) -> tuple[float | None, int | None]:
        name = sanitize_tool_name(tool)
        ttl = options.cache_ttl.sanitized(sanitize_tool_name)
        size = options.cache_tool_max_bytes.sanitized(sanitize_tool_name)
        return ttl.named.get(name, ttl.default), size.named.get(name, size.default)

    return ResultCache(policy, max_bytes=options.cache_max_bytes, models=BaseModel)
