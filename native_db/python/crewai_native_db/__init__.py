"""Durable, small and quick files for CrewAI: states of flows, checkpoints, the replay log, locks.

Importing this package imports neither CrewAI nor anything heavy.
"""

import os

from crewai_native_db import _native
from crewai_native_db._native import (
    DamagedDatabaseError,
    DatabaseError,
    NewerFormatError,
    __build_info__,
)
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
