"""``knowledge.storage``: what CrewAI's ``Knowledge`` may rely on in its storage."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from crewai_native.testing import HashEmbedder
from crewai_native.testing.contract.rules import SlotContract

if TYPE_CHECKING:
    from collections.abc import Callable

TEXTS = ["The cat sat on the mat.", "Interest rates rose in March.", "Whales are mammals."]


class TestKnowledgeStorage(SlotContract):
    """Runs on the storage of a ``Knowledge`` that was given none."""

    slot: ClassVar = "knowledge.storage"
    stock_defects: ClassVar = {
        "test_a_process_that_used_it_can_fork": "Chroma hangs in a forked child",
    }

    @staticmethod
    def exercise() -> Any:
        """Save a passage and find it."""
        from crewai.knowledge.knowledge import Knowledge

        knowledge = Knowledge(
            collection_name=f"c{uuid.uuid4().hex}", sources=[], embedder=HashEmbedder(64).config()
        )
        knowledge.storage.save([TEXTS[0]])
        found = knowledge.storage.search(["cat on a mat"], limit=2, score_threshold=0.0)
        return [passage["content"] for passage in found]

    @pytest.fixture
    def open_storage(self, provider: str) -> Callable[[str], Any]:
        """Return a function that opens a collection."""
        from crewai.knowledge.knowledge import Knowledge

        embedder = HashEmbedder(64).config()

        def open_storage(collection: str) -> Any:
            return Knowledge(collection_name=collection, sources=[], embedder=embedder).storage

        return open_storage

    def test_the_best_passage_comes_first(self, open_storage: Callable[[str], Any]) -> None:
        """As dictionaries, with the text and a score."""
        storage = open_storage("animals")
        storage.save(list(TEXTS))
        found = storage.search(["cat on a mat"], limit=2, score_threshold=0.0)
        assert found[0]["content"] == TEXTS[0]
        assert len(found) <= 2
        scores = [passage["score"] for passage in found]
        assert scores == sorted(scores, reverse=True)

    def test_saving_the_same_text_again_adds_nothing(
        self, open_storage: Callable[[str], Any]
    ) -> None:
        """CrewAI ingests a crew's sources several times per kickoff."""
        storage = open_storage("animals")
        for _ in range(3):
            storage.save(list(TEXTS))
        found = storage.search(["whales mammals"], limit=10, score_threshold=0.0)
        assert sorted(passage["content"] for passage in found) == sorted(TEXTS)

    def test_collections_do_not_see_each_other(self, open_storage: Callable[[str], Any]) -> None:
        """And resetting one leaves the other."""
        first, second = open_storage("first"), open_storage("second")
        first.save([TEXTS[0]])
        second.save([TEXTS[1]])
        found = first.search(["rates"], limit=10, score_threshold=0.0)
        assert [passage["content"] for passage in found] == [TEXTS[0]]
        first.reset()
        found = second.search(["rates"], limit=10, score_threshold=0.0)
        assert [passage["content"] for passage in found] == [TEXTS[1]]

    @pytest.mark.stock_defect("the asynchronous methods want a client that CrewAI never makes")
    def test_the_asynchronous_methods_do_the_same(self, open_storage: Callable[[str], Any]) -> None:
        """On an event loop."""
        storage = open_storage("animals")

        async def work() -> Any:
            await storage.asave(list(TEXTS))
            return await storage.asearch(["interest rates"], limit=1, score_threshold=0.0)

        assert asyncio.run(work())[0]["content"] == TEXTS[1]
