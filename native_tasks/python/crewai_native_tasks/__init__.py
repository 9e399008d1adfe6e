"""Many crews at once, graphs of tasks, cancellation and a fast executor.

Importing this package imports neither CrewAI nor anything heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from crewai_native_tasks._native import Cancelled, __build_info__

if TYPE_CHECKING:
    from crewai_native.slots.tasks_batch import BatchItem, ItemState
    from crewai_native_tasks.batch import BatchResult, aimap_crew, amap_crew, imap_crew, map_crew
    from crewai_native_tasks.batch_run import AsyncBatchRun, BatchRun
    from crewai_native_tasks.control import CancelScope, LeftBehind, RunHandle, cancel_scope, start
    from crewai_native_tasks.graph import parallel
    from crewai_native_tasks.journal import JournalError
    from crewai_native_tasks.plan import Plan, PlanError, PlanTask
    from crewai_native_tasks.plan_run import PlanRun
    from crewai_native_tasks.plan_yaml import Problem

__all__ = [
    "AsyncBatchRun",
    "BatchItem",
    "BatchResult",
    "BatchRun",
    "CancelScope",
    "Cancelled",
    "ItemState",
    "JournalError",
    "LeftBehind",
    "Plan",
    "PlanError",
    "PlanRun",
    "PlanTask",
    "Problem",
    "RunHandle",
    "__build_info__",
    "aimap_crew",
    "amap_crew",
    "cancel_scope",
    "imap_crew",
    "map_crew",
    "parallel",
    "start",
]

_HOMES: Final = {
    "AsyncBatchRun": "crewai_native_tasks.batch_run",
    "BatchItem": "crewai_native.slots.tasks_batch",
    "BatchResult": "crewai_native_tasks.batch",
    "BatchRun": "crewai_native_tasks.batch_run",
    "CancelScope": "crewai_native_tasks.control",
    "ItemState": "crewai_native.slots.tasks_batch",
    "JournalError": "crewai_native_tasks.journal",
    "LeftBehind": "crewai_native_tasks.control",
    "Plan": "crewai_native_tasks.plan",
    "PlanError": "crewai_native_tasks.plan",
    "PlanRun": "crewai_native_tasks.plan_run",
    "PlanTask": "crewai_native_tasks.plan",
    "Problem": "crewai_native_tasks.plan_yaml",
    "RunHandle": "crewai_native_tasks.control",
    "aimap_crew": "crewai_native_tasks.batch",
    "amap_crew": "crewai_native_tasks.batch",
    "cancel_scope": "crewai_native_tasks.control",
    "imap_crew": "crewai_native_tasks.batch",
    "map_crew": "crewai_native_tasks.batch",
    "parallel": "crewai_native_tasks.graph",
    "start": "crewai_native_tasks.control",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
