"""A record from a store is a MemoryRecord in every respect, whether its embedding was read or not."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import pytest
from crewai.memory.types import MemoryMatch, MemoryRecord

VECTOR = [0.5, -0.25, 3.0]


@pytest.fixture
def plain(record):
    return record(
        "r1", "text", scope="/s", categories=["b", "a"], metadata={"k": [1, None]}, source="me",
        private=True, importance=0.75, embedding=VECTOR,
    )  # fmt: skip


@pytest.fixture
def stored(storage, plain):
    storage.save([plain])
    return storage.get_record("r1")


def loaded(record):
    return "embedding" in record.__dict__


def test_the_embedding_is_made_when_it_is_read(stored):
    assert not loaded(stored)
    assert stored.embedding == VECTOR
    assert loaded(stored)
    assert stored.embedding is stored.embedding


def test_a_record_without_embedding_has_none(storage, record):
    storage.save([record("bare")])
    assert storage.get_record("bare").embedding is None


@pytest.mark.parametrize(
    "view",
    [
        lambda r: r.embedding,
        lambda r: r.model_dump(),
        lambda r: r.model_dump(mode="json"),
        lambda r: r.model_dump(include={"id", "embedding"}, exclude_unset=False),
        lambda r: r.model_dump_json(),
        dict,
        repr,
        str,
        lambda r: r.model_fields_set,
        lambda r: MemoryMatch(record=r, score=1.0).model_dump(),
        lambda r: MemoryMatch(record=r, score=1.0).record.embedding,
        lambda r: MemoryMatch(record=r, score=1.0).format(),
        lambda r: MemoryRecord.model_validate(r).embedding,
        lambda r: MemoryRecord(**dict(r)),
        lambda r: r.model_copy(update={"content": "new"}).embedding,
        lambda r: r.model_copy(update={"content": "new"}) == r,
        lambda r: r.model_copy(update={"embedding": [1.0]}).embedding,
        lambda r: hasattr(r, "nonsense"),
        lambda r: r != "r1",
    ],
)
def test_it_looks_like_the_record_that_was_saved(stored, plain, view):
    assert view(stored) == view(plain.model_copy(update={}) if view is not dict else plain) or (
        # A fresh MemoryRecord knows which fields it was given; a stored one has them all.
        view(stored) == set(MemoryRecord.model_fields)
    )


def test_equality_in_both_directions(stored, plain, storage):
    again = storage.get_record("r1")
    assert stored == again
    assert stored == plain
    assert plain == storage.get_record("r1")
    assert not loaded(storage.get_record("r1"))
    other = plain.model_copy(update={"embedding": [0.5, -0.25, 4.0]})
    assert stored != other
    assert other != stored
    with pytest.raises(TypeError):
        hash(stored)


@pytest.mark.parametrize(
    "copied",
    [
        copy.copy,
        copy.deepcopy,
        lambda r: r.model_copy(),
        lambda r: r.model_copy(deep=True),
        *(
            lambda r, protocol=protocol: pickle.loads(pickle.dumps(r, protocol))
            for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
        ),
    ],
)
@pytest.mark.parametrize("read_before", [False, True])
def test_copies_are_whole(stored, plain, copied, read_before):
    if read_before:
        assert stored.embedding == VECTOR
    twin = copied(stored)
    assert twin is not stored
    assert twin == plain
    assert twin.embedding == VECTOR


def test_a_deep_copy_shares_nothing_that_changes(stored):
    twin = copy.deepcopy(stored)
    twin.metadata["k"].append("more")
    twin.embedding.append(9.0)
    assert stored.metadata == {"k": [1, None]}
    assert stored.embedding == VECTOR


def test_a_pickle_loads_where_this_package_is_not(stored, tmp_path):
    data = tmp_path / "record.pickle"
    data.write_bytes(pickle.dumps(stored))
    assert b"crewai_native" not in data.read_bytes()


def test_fields_can_be_assigned(stored):
    stored.embedding = [7.0]
    stored.content = "other"
    assert (stored.embedding, stored.content) == ([7.0], "other")
    assert "embedding" in stored.model_fields_set


def test_an_updated_copy_is_saved_with_its_embedding(storage, stored):
    storage.update(stored.model_copy(update={"content": "better"}))
    again = storage.get_record("r1")
    assert (again.content, again.embedding) == ("better", VECTOR)
    assert [r.id for r, _ in storage.search(VECTOR)] == ["r1"]


def test_importing_the_package_imports_no_crewai():
    code = (
        "import sys, crewai_native_memory, crewai_native_memory.plugin;"
        "assert not {'crewai', 'pydantic', 'numpy', 'asyncio'} & set(sys.modules), sys.modules"
    )
    subprocess.run([sys.executable, "-I", "-c", code], check=True)
