"""CrewAI's own ``Memory`` on the native store, through the slot's hook."""

# ruff: noqa: DTZ001 - CrewAI's datetimes are naive
from __future__ import annotations

import hashlib
from datetime import datetime

import numpy as np
import pytest
from crewai.memory.storage.factory import set_memory_storage_factory
from crewai.memory.unified_memory import Memory

from crewai_native_memory import NativeStorage, plugin


def embed(texts):
    """Deterministic unit vectors; texts that share words are near one another."""
    vectors = np.zeros((len(texts), 64))
    for row, text in enumerate(texts):
        for word in text.lower().split():
            seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big")
            vectors[row] += np.random.default_rng(seed).standard_normal(64)
        vectors[row] /= np.linalg.norm(vectors[row]) or 1
    return vectors.tolist()


@pytest.fixture(autouse=True)
def native_factory():
    set_memory_storage_factory(plugin.crewai_native_memory_storage)
    yield
    set_memory_storage_factory(None)


def memory(**options):
    return Memory(embedder=embed, llm="none", **options)


def remember(memory, content, **fields):
    fields = {"scope": "/notes", "categories": ["c"], "importance": 0.5, "metadata": {}, **fields}
    return memory.remember(content, **fields)


@pytest.mark.filterwarnings("ignore")
def test_remember_recall_update_forget(crewai_home):
    crew, agent = memory(), memory()
    assert isinstance(crew._storage, NativeStorage)
    assert crew._storage.path == str(crewai_home / "native" / "memory.db")
    sky = remember(crew, "the sky is blue", scope="/notes/sky")
    sea = remember(crew, "the sea is deep", scope="/notes/sea")
    assert crew.recall("the sky is blue", depth="shallow")[0].record.id == sky.id

    # Another Memory on the same store, as a crew's agents have them, sees it all.
    best = agent.recall("how deep is the sea", scope="/notes", limit=1, depth="shallow")[0]
    assert best.record.id == sea.id
    assert best.record.last_accessed >= sea.last_accessed
    assert agent.list_scopes("/notes") == ["/notes/sea", "/notes/sky"]
    assert agent.info("/").record_count == 2
    assert "/notes/sky (1 records)" in agent.tree()

    changed = agent.update(sky.id, content="the sky is grey")
    assert crew.recall("grey sky", depth="shallow", limit=1)[0].record.content == changed.content
    assert crew.forget(record_ids=[sky.id]) == 1
    assert [r.id for r in agent.list_records()] == [sea.id]
    agent.reset()
    assert crew.recall("anything", depth="shallow") == []
    crew.close()
    agent.close()


@pytest.mark.filterwarnings("ignore")
def test_tenants_are_apart():
    one, ten = memory(root_scope="/user/1"), memory(root_scope="/user/10")
    remember(one, "one likes tea", scope="/")
    remember(ten, "ten likes tea", scope="/")
    assert {m.record.content for m in one.recall("tea", depth="shallow")} == {"one likes tea"}
    assert one.forget() == 1
    assert ten.info().record_count == 1
    assert ten.forget(older_than=datetime(2000, 1, 1)) == 0
    one.close()
    ten.close()


@pytest.mark.filterwarnings("ignore")
def test_a_memory_on_the_default_spec_still_dumps():
    crew = memory()
    assert crew.model_dump(mode="json", exclude={"embedder"})["storage"] == "lancedb"
    crew.close()


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ("lancedb", "{home}/native/memory.db"),
        ("native", "{home}/native/memory.db"),
        ("native:{tmp}/x", "{tmp}/x/native/memory.db"),
        ("native:{tmp}/x.db", "{tmp}/x.db"),
        ("{tmp}/lance", "{tmp}/lance/native/memory.db"),
        ("qdrant-edge", None),
    ],
)
def test_storage_specs(spec, path, tmp_path, crewai_home):
    places = {"tmp": tmp_path, "home": crewai_home}
    storage = plugin.crewai_native_memory_storage(spec.format(**places))
    assert (storage and storage.path) == (path and path.format(**places))


def test_options(tmp_path):
    from crewai_native import ConfigurationError

    configure = plugin.crewai_native_configure
    try:
        configure({"metric": "cosine", "path": str(tmp_path / "chosen.db")})
        storage = plugin.crewai_native_memory_storage("lancedb")
        assert (storage.path, storage._metric) == (str(tmp_path / "chosen.db"), "cosine")
        (check,) = plugin.crewai_native_health()
        assert (check.health, check.detail) == ("ok", f"0 records in {storage.path}")
        (tmp_path / "chosen.db").write_bytes(b"")
        (check,) = plugin.crewai_native_health()
        assert check.health == "error"
        for wrong in ({"metric": "taxi"}, {"path": 7}, {"colour": "red"}):
            with pytest.raises(ConfigurationError):
                configure(wrong)
    finally:
        configure({})
