"""A durable, exact memory store for CrewAI that processes share.

>>> from crewai_native_memory import NativeStorage
>>> storage = NativeStorage("./notes.db")

Importing this package imports neither CrewAI nor anything heavy.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from crewai_native_memory import _native
from crewai_native_memory._native import (
    DamagedStoreError,
    NewerFormatError,
    StoreError,
    __build_info__,
)

if TYPE_CHECKING:
    from crewai_native_memory.simple import MemoryStorage
    from crewai_native_memory.storage import NativeStorage

__all__ = [
    "DamagedStoreError",
    "MemoryStorage",
    "NativeStorage",
    "NewerFormatError",
    "StoreError",
    "__build_info__",
]

# Here, so that nobody has a store open without it: a child forked while a thread is inside SQLite
# would wait for that thread, which it does not have.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_native.before_fork, after_in_parent=_native.after_fork_in_parent)

_HOMES: Final = {"MemoryStorage": "simple", "NativeStorage": "storage"}


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
