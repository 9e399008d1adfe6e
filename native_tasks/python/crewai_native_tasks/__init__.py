"""Many crews at once, graphs of tasks, cancellation and a fast executor.

Importing this package imports neither CrewAI nor anything heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from crewai_native_tasks._native import Cancelled, __build_info__

if TYPE_CHECKING:
    from crewai_native_tasks.control import CancelScope, LeftBehind, RunHandle, cancel_scope, start
    from crewai_native_tasks.graph import parallel

__all__ = [
    "CancelScope",
    "Cancelled",
    "LeftBehind",
    "RunHandle",
    "__build_info__",
    "cancel_scope",
    "parallel",
    "start",
]

_HOMES: Final = {
    "CancelScope": "control",
    "LeftBehind": "control",
    "RunHandle": "control",
    "cancel_scope": "control",
    "parallel": "graph",
    "start": "control",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
