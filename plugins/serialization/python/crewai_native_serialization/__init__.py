"""Events and messages, encoded once and fast.

Importing this package imports neither CrewAI nor anything heavy.
"""

from crewai_native_serialization._native import __build_info__

__all__ = ["__build_info__"]
