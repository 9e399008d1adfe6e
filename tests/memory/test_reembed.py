"""Changing a store's embedder: while it is used, and after every kind of interruption."""

from __future__ import annotations

import logging
import math
import os
import signal
import subprocess
import threading

import pytest
from crewai.memory.storage.backend import EmbeddingDimensionMismatchError
from crewai.memory.types import MemoryRecord

from crewai_native_memory import NativeStorage, embedders
from crewai_native_memory.reembed import load_embedder, reembed


def wide(texts):
    """Three dimensions, one for each of the first bytes."""
    return [[float(byte) + 1 for byte in text.encode()[:3].ljust(3)] for text in texts]


def fill(storage, count, **fields):
    storage.save(
        [
            MemoryRecord(
                id=f"r{number:04}",
                content=f"{number:04} text",
                embedding=[1.0, float(number)],
                scope=f"/s/{number % 3}",
                **fields,
            )
            for number in range(count)
        ]
    )


def assert_embedded(storage):
    records = storage.list_records(limit=10**6)
    assert [r.embedding for r in records] == wide([r.content for r in records])
    assert storage.stats().dimension == 3
    assert storage.check() == []
    best = records[len(records) // 2]
    assert storage.search(wide([best.content])[0], limit=1)[0][1] == pytest.approx(1)


def test_every_vector_is_exchanged(storage):
    fill(storage, 250)
    storage.save([MemoryRecord(id="r-no-vector", content="zzz"), MemoryRecord(id="b", content=" ")])
    other = NativeStorage(storage.path)
    assert len(other.search([1.0, 1.0], limit=5)) == 5  # has the old vectors in memory
    assert reembed(storage, wide) == 251
    assert storage.get_record("b").embedding is None
    assert storage.get_record("r-no-vector").embedding == wide(["zzz"])[0]
    storage.delete(record_ids=["b"])
    assert_embedded(storage)
    assert_embedded(other)
    assert storage.note("embedder") == embedders.identity(wide)
    with pytest.raises(EmbeddingDimensionMismatchError):
        other.search([1.0, 1.0])
    with pytest.raises(EmbeddingDimensionMismatchError):
        fill(other, 1)


def test_the_old_vectors_serve_until_all_new_ones_are_there(storage):
    fill(storage, 150)

    def observing(texts):
        assert len(storage.search([1.0, 1.0], limit=5)) == 5
        assert storage.stats().dimension == 2
        return wide(texts)

    assert reembed(storage, observing) == 150
    assert_embedded(storage)


def test_what_changes_meanwhile_is_included(storage):
    fill(storage, 300)
    calls = iter(range(1000))

    def changing(texts):
        if next(calls) == 1:
            storage.save([MemoryRecord(id="r0000", content="new text", embedding=[1.0, 0.0])])
            storage.save([MemoryRecord(id="new", content="brand new", embedding=[1.0, 0.0])])
            storage.delete(record_ids=["r0001", "r0299"])
        return wide(texts)

    reembed(storage, changing)
    assert storage.get_record("r0000").embedding == wide(["new text"])[0]
    assert storage.get_record("new").embedding == wide(["brand new"])[0]
    assert storage.count() == 299
    assert_embedded(storage)


def test_it_resumes_after_a_failure_of_the_embedder(storage):
    fill(storage, 450)
    embedder = Flaky(fails_at=3)
    with pytest.raises(ConnectionError, match="down"):
        reembed(storage, embedder)
    assert storage.stats().dimension == 2
    assert reembed(storage, embedder) == 250
    assert sorted(embedder.texts) == [f"{number:04} text" for number in range(450)]
    assert_embedded(storage)


class Flaky:
    def __init__(self, fails_at):
        self._calls = [fails_at]
        self.texts = []

    def __call__(self, texts):
        self._calls[0] -= 1
        if self._calls[0] == 0:
            raise ConnectionError("down")
        self.texts.extend(texts)
        return wide(texts)


def test_another_embedder_begins_anew(storage):
    fill(storage, 150)
    with pytest.raises(ConnectionError, match="down"):
        reembed(storage, Flaky(fails_at=2))
    assert reembed(storage, wide) == 150
    assert_embedded(storage)


def test_vectors_of_two_exchanges_at_once_are_not_mixed(storage):
    fill(storage, 250)
    calls = iter(range(1000))

    def overtaken(texts):
        if next(calls) == 1:
            with pytest.raises(ConnectionError, match="down"):
                reembed(NativeStorage(storage.path), Flaky(fails_at=2))
        return [[1.0, 0.0, 0.0] for _ in texts]

    with pytest.raises(ValueError, match=r"another exchange of embeddings, for Flaky#.*overtaken"):
        reembed(storage, overtaken)
    assert storage.stats().dimension == 2
    other = Flaky(fails_at=0)
    assert reembed(storage, other) == 150  # goes on where it was, undisturbed
    assert storage.note("embedder") == embedders.identity(other)
    assert_embedded(storage)


def test_an_exchange_that_was_finished_elsewhere_is_told(storage):
    fill(storage, 150)
    calls = iter(range(1000))

    def overtaken(texts):
        if next(calls) == 0:
            reembed(NativeStorage(storage.path), wide)
        return [[1.0, 0.0, 0.0] for _ in texts]

    with pytest.raises(ValueError, match=r"no exchange of embeddings for .*overtaken"):
        reembed(storage, overtaken)
    assert_embedded(storage)


def test_it_resumes_after_being_killed(storage, script):
    fill(storage, 350)
    code = """
import os, signal, sys
from crewai_native_memory import NativeStorage
from crewai_native_memory.reembed import reembed
def embedder(texts, left=[3]):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return [[float(byte) + 1 for byte in text.encode()[:3].ljust(3)] for text in texts]
class Named:
    __call__ = staticmethod(embedder)
Named.__module__, Named.__qualname__ = "m", "Named"
reembed(NativeStorage(sys.argv[1]), Named())
"""
    killed = subprocess.run(script(code, storage.path), check=False)
    assert killed.returncode == -signal.SIGKILL
    assert storage.check() == []

    class Named:
        def __call__(self, texts):
            return wide(texts)

    Named.__module__, Named.__qualname__ = "m", "Named"
    assert reembed(storage, Named()) == 150
    assert_embedded(storage)


def test_searches_in_other_threads_see_one_or_the_other(storage):
    fill(storage, 200)
    stop = threading.Event()
    unexpected = []
    seen = set()

    def search():
        other = NativeStorage(storage.path)
        while not stop.is_set():
            for query in ([1.0, 1.0], [1.0, 1.0, 1.0]):
                try:
                    seen.add((len(query), len(other.search(query, limit=3))))
                except EmbeddingDimensionMismatchError:
                    pass
                except Exception as error:  # noqa: BLE001 - told below
                    unexpected.append(error)
                    return

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    reembed(storage, wide)
    stop.set()
    for thread in threads:
        thread.join()
    assert unexpected == []
    assert seen <= {(2, 3), (3, 3)}


@pytest.mark.parametrize("dimensions", [2, 3])
def test_sealed_vectors_are_exchanged_too(storage, dimensions):
    fill(storage, 3000)
    storage.optimize()
    assert storage.search([1.0, 17.0], limit=1)[0][0].id == "r0017"

    def turned(texts):
        return [[float(text[:4]), 5000.0, 0.0][:dimensions] for text in texts]

    reembed(storage, turned)
    for prepare in (lambda: None, storage.optimize, storage.close):
        prepare()
        (query,) = turned(["0017 text"])
        assert storage.search(query, limit=1) == [(storage.get_record("r0017"), 1.0)]
        assert storage.search(query, limit=1)[0][0].embedding == query
    assert storage.check() == []


def test_an_empty_store_is_no_obstacle(storage):
    assert reembed(storage, wide) == 0
    assert not os.path.exists(storage.path)  # noqa: PTH110


def test_vectors_of_different_length_change_nothing(storage):
    fill(storage, 3)
    lengths = iter([[1.0], [1.0], [1.0, 2.0]])
    with pytest.raises(ValueError, match="vectors of 1 and of 2 dimensions"):
        reembed(storage, lambda texts: [next(lengths) for _ in texts])
    assert storage.get_record("r0000").embedding == [1.0, 0.0]
    assert storage.check() == []
    reembed(storage, wide)
    assert_embedded(storage)


def test_a_vector_that_is_none_is_named(storage):
    fill(storage, 3)
    vectors = {"0000 text": [1.0], "0001 text": [math.nan], "0002 text": [1.0]}
    with pytest.raises(
        ValueError, match=r'^the embedder .*"0001 text".* component 0 is NaN'
    ) as told:
        reembed(storage, lambda texts: [vectors[text] for text in texts])
    assert "query" not in str(told.value)
    assert storage.get_record("r0001").embedding is not None


def test_a_store_remembers_its_embedder_and_tells_of_another(storage, caplog):
    storage.made_by(wide)
    storage.made_by(wide)
    assert storage.note("embedder") == embedders.identity(wide)
    with caplog.at_level(logging.WARNING):
        NativeStorage(storage.path).made_by(Flaky(fails_at=0))
    assert "crewai-native memory reembed" in caplog.text
    storage.reset()
    assert storage.note("embedder") is None


def backwards(texts):
    return [vector[::-1] for vector in wide(texts)]


def test_a_program_that_goes_on_after_an_exchange_is_told_once(storage, caplog):
    caplog.set_level(logging.WARNING)
    for _ in range(2):
        storage.made_by(wide)
        fill(storage, 3)
    assert caplog.messages == []
    reembed(NativeStorage(storage.path), backwards)  # of the same dimension
    for _ in range(3):
        storage.made_by(wide)
    (told,) = caplog.messages
    assert embedders.identity(backwards) in told
    assert f"new ones by {embedders.identity(wide)}" in told
    reembed(NativeStorage(storage.path), wide)
    storage.made_by(wide)
    reembed(NativeStorage(storage.path), backwards)
    storage.made_by(backwards)
    assert len(caplog.messages) == 1
    NativeStorage(storage.path).reset()
    storage.made_by(wide)
    assert storage.note("embedder") == embedders.identity(wide)
    assert len(caplog.messages) == 1


def test_an_embedder_that_counts_its_calls_is_one_embedder(storage, caplog):
    class Counting:
        def __init__(self):
            self.model = "m"
            self.calls = 0
            self.loaded = False

        def __call__(self, texts):
            self.calls += 1
            self.loaded = True
            return wide(texts)

    caplog.set_level(logging.WARNING)
    for _ in range(2):
        embedder = Counting()
        for _ in range(2):
            storage.made_by(embedder)
            embedder(["text"])
    used = Counting()
    used(["text"])
    storage.made_by(used)
    assert caplog.messages == []


def test_a_name_of_the_former_form_is_replaced_without_a_warning(storage, caplog):
    caplog.set_level(logging.WARNING)
    storage.set_note("embedder", "wide#0123456789ab")
    storage.made_by(wide)
    assert caplog.messages == []
    assert storage.note("embedder") == embedders.identity(wide)
    storage.set_note("embedder", "widely#0123456789ab")
    storage.made_by(wide)
    assert len(caplog.messages) == 1


def test_embedders_are_described_in_three_ways(monkeypatch):
    assert load_embedder("math:sqrt")(4) == 2
    for bad, message in {
        "math:nothing": "math:nothing",
        "math:pi": "is no function",
        "{bad": "not JSON",
        "nobody": "Unknown provider",
    }.items():
        with pytest.raises(ValueError, match=message):
            load_embedder(bad)
