"""knowledge.storage, flow.persistence and locks: behind CrewAI's official factories."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from crewai.flow.flow import Flow, start
from crewai.flow.persistence import FlowPersistence, persist
from crewai.flow.persistence import factory as flow_factory
from crewai.knowledge.knowledge import Knowledge
from crewai.knowledge.storage import factory as knowledge_factory
from crewai.knowledge.storage.base_knowledge_storage import BaseKnowledgeStorage
from crewai.knowledge.storage.knowledge_storage import KnowledgeStorage as StockKnowledgeStorage
from crewai_core import lock_store
from pydantic import Field

from crewai_native._errors import Declined, ProviderError, Shadowed


class Shelf(BaseKnowledgeStorage):
    """Finds every passage that was saved."""

    passages: list[str] = Field(default_factory=list)

    def search(self, query, limit=5, metadata_filter=None, score_threshold=0.6):
        return [{"content": passage} for passage in self.passages]

    async def asearch(self, query, limit=5, metadata_filter=None, score_threshold=0.6):
        return self.search(query)

    def save(self, documents):
        self.passages.extend(documents)

    async def asave(self, documents):
        self.save(documents)

    def reset(self):
        self.passages.clear()

    async def areset(self):
        self.reset()


class TestKnowledge:
    def test_the_provider_serves_a_knowledge_without_storage(self, serve):
        asked = []

        def hook(embedder, collection_name):
            asked.append((embedder, collection_name))
            return Shelf()

        binding = serve("knowledge.storage", hook)
        knowledge = Knowledge(collection_name="town", sources=[], embedder=None)
        knowledge.storage.save(["the mill", "the bridge"])
        assert knowledge.query(["where?"]) == [{"content": "the mill"}, {"content": "the bridge"}]
        assert asked == [(None, "town")]
        assert binding.watch.metrics().calls == 2

    def test_an_instance_of_the_application_is_left_alone(self, serve):
        serve("knowledge.storage", lambda embedder, collection_name: Shelf())
        mine = Shelf()
        assert Knowledge(collection_name="town", sources=[], storage=mine).storage is mine

    def test_what_the_provider_declines_is_crewais(self, serve):
        serve("knowledge.storage", lambda embedder, collection_name: None)
        storage = Knowledge(collection_name="town", sources=[]).storage
        assert type(storage) is StockKnowledgeStorage

    def test_the_applications_factory_is_asked_first(self, serve, monkeypatch):
        mine = Shelf()
        monkeypatch.setattr(
            knowledge_factory, "_factory", lambda embedder, name: mine if name == "mine" else None
        )
        binding = serve("knowledge.storage", lambda embedder, collection_name: Shelf())
        assert Knowledge(collection_name="mine", sources=[]).storage is mine
        theirs = Knowledge(collection_name="other", sources=[]).storage
        assert isinstance(theirs, Shelf)
        assert theirs is not mine
        assert binding.notes == ["after the application's own factory"]

    def test_a_class_in_the_place_of_crewais_keeps_its_say(self, serve, monkeypatch):
        class Mine(Shelf):
            def __init__(self, **_):
                super().__init__()

        serve("knowledge.storage", lambda embedder, collection_name: Shelf())
        monkeypatch.setattr("crewai.knowledge.knowledge.KnowledgeStorage", Mine)
        assert type(Knowledge(collection_name="town", sources=[]).storage) is Mine
        monkeypatch.undo()
        assert type(Knowledge(collection_name="town", sources=[]).storage) is Shelf

    def test_a_wrong_type_names_the_distribution(self, serve):
        serve("knowledge.storage", lambda embedder, collection_name: {"a": 1})
        with pytest.raises(ProviderError, match=r"fake-dist 1\.2 returned 'dict'.*BaseKnowledgeSt"):
            Knowledge(collection_name="town", sources=[])


_saved: dict[str, list[tuple[str, dict[str, Any]]]] = {}


class ShelfPersistence(FlowPersistence):
    persistence_type: str = "ShelfPersistence"

    def init_db(self):
        pass

    def save_state(self, flow_uuid, method_name, state_data):
        state = state_data if isinstance(state_data, dict) else state_data.model_dump()
        _saved.setdefault(flow_uuid, []).append((method_name, dict(state)))

    def load_state(self, flow_uuid):
        states = _saved.get(flow_uuid)
        return states[-1][1] if states else None


def counting_flow() -> type[Flow]:
    # Defined in a function: @persist asks for its persistence when the class is decorated.
    @persist()
    class Counting(Flow):
        @start()
        def count(self):
            self.state["count"] = self.state.get("count", 0) + 1
            return self.state["count"]

    return Counting


class TestFlowPersistence:
    def test_persist_saves_to_the_provider_and_restores_from_it(self, serve):
        _saved.clear()
        binding = serve("flow.persistence", ShelfPersistence)
        flow_class = counting_flow()
        flow = flow_class()
        assert flow.kickoff() == 1
        again = flow_class()
        assert again.kickoff(inputs={"id": flow.state["id"]}) == 2
        assert [method for method, _ in _saved[flow.state["id"]]] == ["count", "count"]
        metrics = binding.watch.metrics()
        assert metrics.calls >= 3
        assert metrics.errors == 0

    def test_the_applications_factory_shadows_the_provider(self, serve, monkeypatch):
        monkeypatch.setattr(flow_factory, "_factory", ShelfPersistence)
        with pytest.raises(Shadowed, match="the application set its own"):
            serve("flow.persistence", ShelfPersistence)

    @pytest.mark.parametrize("wrong", [None, "a database"])
    def test_a_wrong_type_names_the_distribution(self, serve, wrong):
        serve("flow.persistence", lambda: wrong)
        with pytest.raises(ProviderError, match=r"fake-dist 1\.2 returned .* a FlowPersistence"):
            counting_flow()

    def test_a_class_that_could_not_be_restored_is_refused(self, serve):
        class Nameless(ShelfPersistence):
            pass

        serve("flow.persistence", Nameless)
        with pytest.raises(
            ProviderError, match=r"fake-dist.*persistence_type is 'ShelfPersistence'"
        ):
            counting_flow()


class Lock:
    def __init__(self, log, name, timeout):
        self.log, self.name, self.timeout = log, name, timeout

    def __enter__(self):
        if self.timeout == 0:
            raise TimeoutError(self.name)
        self.log.append(("enter", self.name, self.timeout))

    def __exit__(self, kind, error, traceback):
        self.log.append(("exit", self.name, kind))
        return False


class TestLocks:
    def test_the_provider_holds_the_lock_around_the_block(self, serve):
        log = []
        binding = serve("locks", lambda name, timeout: Lock(log, name, timeout))
        with lock_store.lock("sqlite:a", timeout=7):
            log.append("inside")
        assert log == [("enter", "sqlite:a", 7), "inside", ("exit", "sqlite:a", None)]
        with pytest.raises(KeyError), lock_store.lock("sqlite:a"):
            raise KeyError("from the block")
        assert log[-1] == ("exit", "sqlite:a", KeyError)
        with pytest.raises(TimeoutError), lock_store.lock("sqlite:a", timeout=0):
            pytest.fail("the lock was not taken")
        metrics = binding.watch.metrics()
        assert (metrics.calls, metrics.errors) == (3, 1)

    def test_a_generator_based_lock_will_do(self, serve):
        log = []

        @contextlib.contextmanager
        def hook(name, timeout):
            log.append(name)
            yield

        serve("locks", hook)
        with lock_store.lock("sqlite:a"):
            assert log == ["sqlite:a"]

    def test_the_applications_backend_shadows_the_provider(self, serve, monkeypatch):
        monkeypatch.setattr(lock_store, "_backend", lambda name, timeout: contextlib.nullcontext())
        with pytest.raises(Shadowed, match="the application set its own lock backend"):
            serve("locks", lambda name, timeout: contextlib.nullcontext())

    def test_locks_across_machines_are_not_replaced_unasked(self, serve, monkeypatch):
        monkeypatch.setattr(lock_store, "_redis_available", lambda: True)
        log = []

        def hook(name, timeout):
            return Lock(log, name, timeout)

        with pytest.raises(Declined, match=r'REDIS_URL.*"locks" = "fake-dist"'):
            serve("locks", hook)
        for options in ({"chosen": True}, {"features": ("distributed",)}):
            binding = serve("locks", hook, **options)
            with lock_store.lock("sqlite:a"):
                pass
            binding.undo()
        assert len(log) == 4

    def test_a_wrong_type_names_the_distribution(self, serve):
        serve("locks", lambda name, timeout: 5)
        with (
            pytest.raises(ProviderError, match=r"fake-dist 1\.2 returned 'int'.*context manager"),
            lock_store.lock("a"),
        ):
            pytest.fail("there is no lock")
