"""A durable, exact memory store for CrewAI that processes share.

>>> from crewai_native_memory import NativeStorage
>>> storage = NativeStorage("./notes.db")

Importing this package imports neither CrewAI nor anything heavy.
"""

from crewai_native_memory._native import (
    DamagedStoreError,
    NewerFormatError,
    StoreError,
    __build_info__,
)
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
