"""Calls of CrewAI's tools under a policy; their schemas and results, computed once and bounded.

Importing this package imports neither CrewAI nor anything heavy.
"""

from crewai_native_tools._native import ResultCache, __build_info__
from crewai_native_tools.engine import ToolEngine, ToolExecutor
from crewai_native_tools.errors import (
    RunStopped,
    ToolCancelled,
    ToolRefused,
    ToolSkipped,
    ToolStopped,
    ToolTimeout,
)
from crewai_native_tools.execution import cancelled
from crewai_native_tools.plans import configure
from crewai_native_tools.policy import Budget, Policy, Rate, Retry, Size

__all__ = [
    "Budget",
    "Policy",
    "Rate",
    "ResultCache",
    "Retry",
    "RunStopped",
    "Size",
    "ToolCancelled",
    "ToolEngine",
    "ToolExecutor",
    "ToolRefused",
    "ToolSkipped",
    "ToolStopped",
    "ToolTimeout",
    "__build_info__",
    "cancelled",
    "configure",
]
