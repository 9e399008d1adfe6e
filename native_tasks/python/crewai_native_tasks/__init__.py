"""Many crews at once, graphs of tasks, cancellation and a fast executor.

Importing this package imports neither CrewAI nor anything heavy.
"""

from crewai_native_tasks._native import __build_info__

__all__ = ["__build_info__"]
