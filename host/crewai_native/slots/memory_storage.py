"""``memory.storage``: where CrewAI's memory keeps its records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

from crewai_native.slots._base import Slot, Target
from crewai_native.slots.memory_repairs import REPAIRS

if TYPE_CHECKING:
    from crewai_native._bind import Binding
    from crewai_native.slots._base import Provider

PROTOCOL: Final = (
    "save",
    "search",
    "delete",
    "update",
    "get_record",
    "list_records",
    "get_scope_info",
    "list_scopes",
    "list_categories",
    "count",
    "reset",
    "asave",
    "asearch",
    "adelete",
)
"""The methods of CrewAI's ``StorageBackend`` (``crewai/memory/storage/backend.py``)."""


class MemoryStorage(Slot):
    """Serves every ``Memory`` that was not given a storage instance of its own."""

    name: ClassVar = "memory.storage"
    summary: ClassVar = "records and vectors of Memory"
    how: ClassVar = "set_memory_storage_factory"
    keeps_data: ClassVar = True
    targets: ClassVar = (
        Target("crewai.memory.storage.factory:set_memory_storage_factory", ("factory",)),
        Target("crewai.memory.storage.factory:resolve_memory_storage", ("spec",)),
        Target("crewai.memory.storage.factory:_factory"),
    )
    repairs: ClassVar = REPAIRS

    def bind(self, binding: Binding, provider: Provider) -> None:
        """Put the provider behind CrewAI's memory storage factory.

        A factory that the application set keeps its say: what it declines comes to the provider.
        """
        from crewai.memory.storage import factory

        application = factory._factory  # noqa: SLF001 - CrewAI has no getter for it
        call = provider.call
        metered: set[type] = set()

        def native_factory(spec: str) -> Any:
            if application is not None and (storage := application(spec)) is not None:
                return storage
            storage = call(spec=spec)
            if storage is None:
                return None
            if type(storage) not in metered:
                provider.require(storage, PROTOCOL, "a StorageBackend, or None")
                binding.meter_methods(type(storage), PROTOCOL)
                metered.add(type(storage))
            return storage

        binding.replace(factory, "_factory", native_factory)
        if application is not None:
            binding.notes.append("after the application's own factory")


SLOT: Final = MemoryStorage()
