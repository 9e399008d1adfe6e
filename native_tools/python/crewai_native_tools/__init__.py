"""Schemas and results of CrewAI's tools, computed once and kept within bounds.

Importing this package imports neither CrewAI nor anything heavy.
"""

from crewai_native_tools._native import ResultCache, __build_info__

__all__ = ["ResultCache", "__build_info__"]
