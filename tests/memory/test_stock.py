"""Beside CrewAI's own store: the same where that is right, and right where it is not.

Each defect of the stock store has a test that both run: strictly expected to fail for stock, so
that its repair upstream is noticed.
"""

# ruff: noqa: DTZ001, PT018, RUF043 - CrewAI's datetimes are naive
from __future__ import annotations

import asyncio
import logging
import random
import warnings
from datetime import datetime, timedelta

import numpy as np
import pytest

from crewai_native_memory import NativeStorage

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from crewai.memory.storage.lancedb_storage import LanceDBStorage

DAY = datetime(2026, 1, 10)


def stock_defect(why):
    """Runs a test with both stores; stock must fail it."""
    return pytest.mark.parametrize(
        "kind",
        [
            pytest.param("stock", marks=pytest.mark.xfail(strict=True, reason=why)),
            "native",
        ],
    )


@pytest.fixture
def opened(tmp_path):
    """Opens a store of a kind, always at the same place."""

    def open_store(kind):
        if kind == "native":
            return NativeStorage(tmp_path / "native")
        return LanceDBStorage(path=tmp_path / "lance", compact_every=0)

    return open_store


def ids(found):
    return sorted(item[0].id if isinstance(item, tuple) else item.id for item in found)


@pytest.fixture
def family(record):
    """One record per scope, the scope being its id; same age, same direction."""

    def make(*scopes, **fields):
        fields = {"embedding": [1.0, 0.0], "created_at": DAY, **fields}
        return [record(scope, scope=scope, **fields) for scope in scopes]

    return make


@stock_defect("L1: a scope is matched as a string prefix")
def test_a_scope_does_not_contain_its_namesakes(kind, opened, family):
    store = opened(kind)
    store.save(family("/crew/a", "/crew/a/x", "/crew/ab", "/crew/a-b"))
    inside = ["/crew/a", "/crew/a/x"]
    assert ids(store.search([1.0, 0.0], scope_prefix="/crew/a")) == inside
    assert ids(store.list_records("/crew/a")) == inside
    assert store.count("/crew/a") == 2
    assert store.get_scope_info("/crew/a").record_count == 2


@stock_defect("L2: reset deletes a byte range of scopes")
def test_reset_spares_other_scopes(kind, opened, family):
    store = opened(kind)
    store.save(family("/crew/research", "/crew/research-crew/x", "/crew/research.v2"))
    store.reset("/crew/research")
    assert ids(store.list_records()) == ["/crew/research-crew/x", "/crew/research.v2"]


@stock_defect("L3: delete by scope takes the root's own records with it")
def test_deleting_a_scope_spares_the_root(kind, opened, family):
    store = opened(kind)
    store.save(family("/", "/a"))
    assert store.delete(scope_prefix="/a") == 1
    assert ids(store.list_records()) == ["/"]


@stock_defect("L4: OR before AND: the age is ignored inside the scope")
def test_deleting_what_is_old_spares_what_is_new(kind, opened, family):
    store = opened(kind)
    store.save(family("/a/old", created_at=DAY - timedelta(days=9)))
    store.save(family("/a/new"))
    assert store.delete(scope_prefix="/a", older_than=DAY - timedelta(days=1)) == 1
    assert ids(store.list_records()) == ["/a/new"]


@stock_defect("L5: an empty list of ids means everything")
def test_deleting_no_ids_deletes_nothing(kind, opened, family):
    store = opened(kind)
    store.save(family("/a"))
    assert store.delete(record_ids=[]) == 0
    assert store.count() == 1


@stock_defect("L6: with ids, scope and age are ignored")
def test_deleting_ids_stays_inside_the_scope(kind, opened, family):
    store = opened(kind)
    store.save(family("/a", "/b"))
    assert store.delete(scope_prefix="/a", record_ids=["/a", "/b"]) == 1
    assert store.delete(record_ids=["/b"], older_than=DAY) == 0
    assert ids(store.list_records()) == ["/b"]


@stock_defect("L7: categories and metadata filter the three-fold result")
def test_a_filtered_search_finds_what_is_there(kind, opened, record):
    store = opened(kind)
    store.save([record(f"r{n}", embedding=[1.0, n / 1000]) for n in range(50)])
    store.save([record("it", categories=["c"], metadata={"k": 1}, embedding=[0.0, 1.0])])
    assert ids(store.search([1.0, 0.0], categories=["c"], limit=3)) == ["it"]
    assert ids(store.search([1.0, 0.0], metadata_filter={"k": 1}, limit=3)) == ["it"]


@stock_defect("L8: save adds a second row with the same id")
def test_an_id_is_unique(kind, opened, record):
    store = opened(kind)
    for content in ("first", "second"):
        store.save([record("r", content, embedding=[1.0])])
    assert store.count() == 1
    assert store.get_record("r").content == "second"


@stock_defect("L9: a handle does not see what another one wrote")
def test_handles_see_each_other(kind, opened, family):
    one, other = opened(kind), opened(kind)
    one.save(family("/a"))
    assert other.count() == 1
    other.save(family("/b"))
    assert one.count() == 2


@stock_defect("L10: search takes a scope without its slash literally")
def test_a_scope_has_one_spelling(kind, opened, family):
    store = opened(kind)
    store.save(family("/crew/a"))
    assert ids(store.search([1.0, 0.0], scope_prefix="crew/a")) == ["/crew/a"]
    assert store.list_categories("crew/a") == store.list_categories("/crew/a/")


@stock_defect("L11: a missing embedding is stored as zeros and found")
def test_a_record_without_embedding_is_listed_and_not_found(kind, opened, record):
    store = opened(kind)
    store.save([record("with", embedding=[1.0, 0.0]), record("without")])
    assert ids(store.list_records()) == ["with", "without"]
    assert ids(store.search([0.0, 0.0])) == ["with"]


@stock_defect("L12: scans stop at a fixed number of rows")
def test_nothing_is_counted_short(kind, opened, record, monkeypatch):
    # The limit is the default value of a parameter; 50,000 rows would show the same.
    if kind == "stock":
        scan = LanceDBStorage._scan_rows
        assert scan.__defaults__[1] == 50_000
        monkeypatch.setattr(scan, "__defaults__", (None, 50, None))
    store = opened(kind)
    store.save([record(f"r{n}", scope="/s", categories=["c"], embedding=[1.0]) for n in range(60)])
    assert store.count("/s") == 60
    assert store.list_categories() == {"c": 60}


@stock_defect("L13: an update deletes the old row before it adds the new one")
def test_an_update_that_fails_leaves_the_record(kind, opened, record, monkeypatch):
    store = opened(kind)
    store.save([record("r", "old", embedding=[1.0])])
    if kind == "stock":
        write = store._do_write

        def fail_to_add(op, *args, **kwargs):
            if op == "add":
                raise OSError("no space left")
            return write(op, *args, **kwargs)

        monkeypatch.setattr(store, "_do_write", fail_to_add)
        error = OSError
    else:
        error = ValueError
    with pytest.raises(error):
        store.update(record("r", "new").model_copy(update={"embedding": [float("nan")]}))
    assert store.get_record("r").content == "old"


@stock_defect("L14: the async methods run in the event loop's thread")
def test_async_methods_leave_the_loop(kind, opened, family, monkeypatch):
    store = opened(kind)
    store.save(family("/a"))
    import threading

    threads = []
    search = type(store).search

    def spy(self, *args, **kwargs):
        threads.append(threading.current_thread())
        return search(self, *args, **kwargs)

    monkeypatch.setattr(type(store), "search", spy)
    assert ids(asyncio.run(store.asearch([1.0, 0.0]))) == ["/a"]
    assert threads and threading.main_thread() not in threads


@stock_defect("L15: a store that cannot be opened counts as empty")
def test_damage_is_not_emptiness(kind, opened, family, tmp_path, caplog):
    store = opened(kind)
    store.save(family("/a"))
    if hasattr(store, "close"):
        store.close()
    caplog.set_level(logging.CRITICAL)
    for file in tmp_path.rglob("*"):
        if file.is_file() and not file.name.endswith(("-lock", "-queue")):
            file.write_bytes(b"\xff" * file.stat().st_size)
    damaged = opened(kind)
    with pytest.raises(Exception, match="memory.db"):
        damaged.count()


def test_where_stock_is_right_we_are_the_same(opened, record):
    """Unfiltered and scope-filtered search, listing, and every kind of description."""
    chance = random.Random(5)
    scopes = ["/", "/north", "/north/a", "/north/a/b", "/south", "/south/c"]
    vectors = np.random.default_rng(5).standard_normal((120, 24)).astype(np.float32)
    records = [
        record(
            f"r{n}",
            f"text {n}",
            scope=chance.choice(scopes),
            categories=chance.sample(["x", "y", "z"], chance.randrange(3)),
            metadata={"n": n, "deep": {"a": [1, None, "é"]}},
            importance=n / 120,
            created_at=DAY + timedelta(minutes=n),
            last_accessed=DAY + timedelta(hours=n),
            source=chance.choice([None, "me"]),
            private=chance.random() < 0.3,
            embedding=vectors[n].tolist(),
        )
        for n in range(120)
    ]
    stores = [opened("stock"), opened("native")]
    changed = records[3].model_copy(update={"content": "changed", "scope": "/south"})
    for store in stores:
        store.save(records)
        store.update(changed)
        assert store.delete(record_ids=["r5", "r6", "unknown"]) == 2
        assert store.delete(categories=["z"], metadata_filter={"n": 8}) <= 1
        store.touch_records([])
        store.reset("/north/a/b")
    stock, native = stores
    assert native.count() == stock.count()
    for scope in [None, *scopes, "/none"]:
        for query in vectors[:6] + 0.1:
            expected = stock.search(query.tolist(), scope_prefix=scope, limit=8)
            found = native.search(query.tolist(), scope_prefix=scope, limit=8)
            assert [r for r, _ in found] == [r for r, _ in expected]
            assert [s for _, s in found] == pytest.approx([s for _, s in expected], rel=1e-5)
        assert native.list_records(scope, 7, 3) == stock.list_records(scope, 7, 3)
        assert native.list_categories(scope) == stock.list_categories(scope)
        assert native.count(scope) == stock.count(scope)
        if scope is not None:
            assert native.get_scope_info(scope) == stock.get_scope_info(scope)
            assert native.list_scopes(scope) == stock.list_scopes(scope)
    for n in range(120):
        assert native.get_record(f"r{n}") == stock.get_record(f"r{n}")
