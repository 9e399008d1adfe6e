"""A bounded cache of tool results for CrewAI, wired in by crewai-native."""

from acme_crewai_cache.cache import BoundedCache

__all__ = ["BoundedCache"]
