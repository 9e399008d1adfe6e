"""The contracts of every slot, for every provider that is installed here and for stock."""

from crewai_native.testing.contract.test_memory_storage import TestMemoryStorage

__all__ = ["TestMemoryStorage"]
