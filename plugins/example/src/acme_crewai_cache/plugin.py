"""What this distribution offers to crewai-native: the slot ``tools.cache``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from acme_crewai_cache.cache import BoundedCache
from crewai_native import ConfigurationError, hookimpl

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crewai_native.health import Check

DEFAULT_SIZE = 10_000
_size = DEFAULT_SIZE


@hookimpl
def crewai_native_configure(options: Mapping[str, Any]) -> None:
    """Take ``cache_size``; other options of the component are for other plug-ins."""
    global _size  # noqa: PLW0603 - a plug-in is a module, and this is its one setting
    value = options.get("cache_size", DEFAULT_SIZE)
    try:
        size = int(value)  # the environment has texts
    except (TypeError, ValueError):
        size = 0
    if size < 1:
        raise ConfigurationError(f"tools.cache_size is {value!r}; it accepts 1 and more")
    _size = size


@hookimpl
def crewai_native_features() -> dict[str, list[str]]:
    """Say what the cache can be required to be."""
    return {"tools.cache": ["bounded"]}


@hookimpl
def crewai_native_tools_cache() -> BoundedCache:
    """Return the cache for one ``CacheHandler``; what the hook does not need it need not take."""
    return BoundedCache(_size)


@hookimpl
def crewai_native_health() -> list[Check]:
    """Check that a result comes back."""
    from crewai_native.health import Check, Health

    cache = BoundedCache(1)
    cache.add("tool", "{}", "result")
    sound = cache.read("tool", "{}") == "result"
    return [
        Check(
            "tool cache",
            Health.OK if sound else Health.ERROR,
            f"keeps {_size} results for each crew" if sound else "loses results",
        )
    ]
