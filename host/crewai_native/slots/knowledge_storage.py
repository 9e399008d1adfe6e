"""``knowledge.storage``: where CrewAI's knowledge keeps its passages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

from crewai_native.slots._base import Slot, Target

if TYPE_CHECKING:
    from crewai_native._bind import Binding
    from crewai_native.slots._base import Provider

PROTOCOL: Final = ("search", "asearch", "save", "asave", "reset", "areset")
"""The methods of ``BaseKnowledgeStorage``
(``crewai/knowledge/storage/base_knowledge_storage.py``)."""


class KnowledgeStorage(Slot):
    """Serves every ``Knowledge`` that was not given a storage instance of its own."""

    name: ClassVar = "knowledge.storage"
    summary: ClassVar = "passages of Knowledge"
    how: ClassVar = "set_knowledge_storage_factory"
    keeps_data: ClassVar = True
    targets: ClassVar = (
        Target("crewai.knowledge.storage.factory:set_knowledge_storage_factory", ("factory",)),
        Target(
            "crewai.knowledge.storage.factory:resolve_knowledge_storage",
            ("embedder", "collection_name"),
        ),
        Target("crewai.knowledge.storage.factory:_factory"),
        Target("crewai.knowledge.storage.base_knowledge_storage:BaseKnowledgeStorage"),
    )

    def bind(self, binding: Binding, provider: Provider) -> None:
        """Put the provider behind CrewAI's knowledge storage factory.

        A factory that the application set keeps its say: what it declines comes to the provider.
        So does a class that it put in the place of CrewAI's, which CrewAI takes where a factory
        declines.
        """
        from crewai.knowledge import knowledge
        from crewai.knowledge.storage import factory
        from crewai.knowledge.storage.base_knowledge_storage import BaseKnowledgeStorage

        application = factory._factory  # noqa: SLF001 - CrewAI has no getter for it
        call = provider.call
        stock = knowledge.KnowledgeStorage

        def native_factory(embedder: Any, collection_name: str | None) -> Any:
            if application is not None:
                storage = application(embedder, collection_name)
                if storage is not None:
                    return storage
            if knowledge.KnowledgeStorage is not stock:
                return None
            storage = call(embedder=embedder, collection_name=collection_name)
            if storage is None:
                return None
            # Not only its methods: it becomes a field that pydantic checks for the class.
            if not isinstance(storage, BaseKnowledgeStorage):
                raise provider.wrong_type(storage, "a BaseKnowledgeStorage, or None")
            binding.meter_methods(type(storage), PROTOCOL)
            return storage

        binding.replace(factory, "_factory", native_factory)
        if application is not None:
            binding.notes.append("after the application's own factory")


SLOT: Final = KnowledgeStorage()
