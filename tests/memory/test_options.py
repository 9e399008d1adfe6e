"""Options of a store: what they change, and what they leave alone."""

from __future__ import annotations

import math
import pickle
import time

import numpy as np
import pytest

from crewai_native import ConfigurationError
from crewai_native_memory import NativeStorage, _native, plugin

ROWS, DIMENSION = 9000, 24
RANDOM = np.random.default_rng(11)


def clustered(count):
    """Vectors around 40 centres, which are the same in every call."""
    centres = np.random.default_rng(5).standard_normal((40, DIMENSION))
    made = centres[RANDOM.integers(0, 40, count)] + RANDOM.standard_normal((count, DIMENSION)) / 3
    return made.astype(np.float32)


def uniform(count):
    return RANDOM.standard_normal((count, DIMENSION)).astype(np.float32)


def fill(store, vectors, start=0):
    batch = _native.Batch()
    for n, vector in enumerate(vectors, start):
        batch.add(
            f"r{n}", "text", f"/s/{n % 5}", [], "{}", 0.5, n, n, None, False, vector
        )  # fmt: skip
    store.save(batch)


def search(store, query, limit=10, **conditions):
    rows = store.search(query, limit=limit, min_score=-math.inf, **conditions)
    return [rows.take(at)[0] for at in range(len(rows))]


def grouped(store):
    """Searches until the rows are in groups."""
    deadline = time.monotonic() + 60
    while not store.grouped() and time.monotonic() < deadline:
        search(store, [0.0] * DIMENSION)
        time.sleep(0.01)
    return store.grouped()


@pytest.mark.parametrize(
    ("data", "metric"),
    [(clustered, "l2"), (clustered, "cosine"), (clustered, "dot"), (uniform, "l2")],
)
def test_an_approximate_search_finds_nearly_all(tmp_path, data, metric):
    exact = _native.Store(tmp_path / "memory.db", metric)
    fill(exact, data(ROWS))
    exact.optimize()
    near = _native.Store(tmp_path / "memory.db", metric, approximate_from=0)
    # Until the groups are there, the search is exact, and so is that of another handle always.
    first = data(1)[0]
    assert search(near, first) == search(exact, first)
    assert grouped(near) == ROWS
    found = 0
    for query in data(60):
        expected = search(exact, query)
        found += len(set(expected) & set(search(near, query)))
        assert search(near, query, scope="/s/2") == search(exact, query, scope="/s/2")
        assert search(near, query, limit=33) == search(exact, query, limit=33)
    assert found >= 588
    # What came since, and what went, is seen at once.
    first *= 4  # so that it is the best for inner products, too
    fill(near, [first], ROWS)
    assert search(near, first)[0] == f"r{ROWS}"
    near.delete(record_ids=[f"r{ROWS}"])
    assert f"r{ROWS}" not in search(near, first)
    near.delete(record_ids=[f"r{n}" for n in range(ROWS - 20)])
    assert search(near, first, limit=20) == search(exact, first, limit=20)
    assert len(search(near, first, limit=20)) == 20


def test_a_store_below_the_threshold_is_searched_exactly(tmp_path):
    store = _native.Store(tmp_path / "memory.db", "l2", approximate_from=ROWS + 1)
    fill(store, clustered(ROWS))
    store.optimize()
    search(store, [0.0] * DIMENSION)
    assert store.grouped() == 0
    fill(store, clustered(1), ROWS)
    assert grouped(store) == ROWS


def test_options_of_a_handle(tmp_path):
    storage = NativeStorage(tmp_path / "memory.db", approximate=5, synchronous="full")
    copy = pickle.loads(pickle.dumps(storage))
    assert copy.path == storage.path
    assert (copy._approximate, copy._synchronous) == (5, "full")
    for wrong in (-1, "yes", 2.0, None):
        with pytest.raises(ValueError, match="approximate must be a bool or a number"):
            NativeStorage(tmp_path / "memory.db", approximate=wrong)
    with pytest.raises(ValueError, match="'normal' or 'full'"):
        NativeStorage(tmp_path / "memory.db", synchronous="off")


@pytest.mark.parametrize(
    ("given", "understood"),
    [("true", True), ("0", False), (True, True), (5000, 5000), ("5000", 5000), (False, False)],
)
def test_the_plugin_takes_them_from_the_configuration(given, understood):
    try:
        plugin.crewai_native_configure({"approximate": given, "synchronous": "full"})
        storage = plugin.open_store(None)
        assert (storage._approximate, storage._synchronous) == (understood, "full")
        # Who requires exact results does not get this store.
        exact = "exact" in plugin.crewai_native_features()["memory.storage"]
        assert exact == (understood is False)
    finally:
        plugin.crewai_native_configure({})
    assert plugin.open_store(None)._approximate is False


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"approximate": "some"}, "memory.approximate must be one of .* or a number of records"),
        ({"approximate": -1}, "memory.approximate"),
        ({"synchronous": "off"}, "memory.synchronous must be one of normal, full; got 'off'"),
    ],
)
def test_the_plugin_refuses_what_means_nothing(options, message):
    with pytest.raises(ConfigurationError, match=message):
        plugin.crewai_native_configure(options)
