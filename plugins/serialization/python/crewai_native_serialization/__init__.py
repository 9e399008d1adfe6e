"""Events and messages, encoded once and fast.

Importing this package imports neither CrewAI nor anything heavy.
"""

from crewai_native_serialization._native import __build_info__, to_serializable

__all__ = ["__build_info__", "to_serializable"]
