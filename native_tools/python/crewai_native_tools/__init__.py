"""Calls of CrewAI's tools under a policy; their schemas and results, computed once and bounded.

Importing this package imports neither CrewAI nor anything heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from crewai_native_tools._native import ResultCache, __build_info__

if TYPE_CHECKING:
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
    from crewai_native_tools.plans import cancel, configure
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
    "cancel",
    "cancelled",
    "configure",
]

_HOMES: Final = {
    "Budget": "policy",
    "Policy": "policy",
    "Rate": "policy",
    "Retry": "policy",
    "RunStopped": "errors",
    "Size": "policy",
    "ToolCancelled": "errors",
    "ToolEngine": "engine",
    "ToolExecutor": "engine",
    "ToolRefused": "errors",
    "ToolSkipped": "errors",
    "ToolStopped": "errors",
    "ToolTimeout": "errors",
    "cancel": "plans",
    "cancelled": "execution",
    "configure": "plans",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
