"""Durable, small and quick files for CrewAI: states of flows, checkpoints, the replay log, locks.

Importing this package imports neither CrewAI nor anything heavy.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from crewai_native_db import _native
from crewai_native_db._native import (
    DamagedDatabaseError,
    DatabaseError,
    NewerFormatError,
    __build_info__,
)

if TYPE_CHECKING:
    from crewai_native_db.database import Database

__all__ = [
    "DamagedDatabaseError",
    "Database",
    "DatabaseError",
    "NewerFormatError",
    "__build_info__",
]

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_native.before_fork,
        after_in_parent=_native.after_fork_in_parent,
        after_in_child=_native.after_fork_in_child,
    )


def __getattr__(name: str) -> Any:
    if name != "Database":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from crewai_native_db.database import Database

    return Database
