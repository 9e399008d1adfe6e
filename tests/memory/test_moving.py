"""Records come over from CrewAI's other stores, and go back, whole and once."""

from __future__ import annotations

import datetime as dt
import json
import logging
import math
import os
import random
import shutil
import signal
import subprocess
import tracemalloc
from pathlib import Path
from unittest import mock

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from crewai.memory.storage.lancedb_storage import LanceDBStorage
from crewai.memory.types import MemoryRecord
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crewai_native_memory import NativeStorage, exports, imports, plugin, sources

NOON = dt.datetime(2026, 1, 1, 12)  # noqa: DTZ001 - CrewAI's datetimes are naive UTC
DIMENSIONS = 4


def make(number, **fields):
    rng = random.Random(number)
    defaults = {
        "id": f"r{number}",
        "content": f"text {number} · ü",
        "scope": f"/s/{number % 3}",
        "categories": ["a", "b"][: number % 3],
        "metadata": {"n": number, "nested": {"list": [1, None, "x"]}},
        "importance": 0.25,
        "created_at": NOON + dt.timedelta(seconds=number, microseconds=123456),
        "last_accessed": NOON + dt.timedelta(days=1),
        "embedding": [rng.uniform(-1, 1) for _ in range(DIMENSIONS)],
        "source": "ann" if number % 2 else None,
        "private": number % 5 == 0,
    }
    return MemoryRecord(**(defaults | fields))


def as_data(record):
    embedding = record.embedding
    # The stores keep float32.
    rounded = None if embedding is None else np.asarray(embedding, np.float32).tolist()
    return record.model_dump() | {"embedding": rounded}


def everything(storage):
    return {record.id: as_data(record) for record in storage.list_records(limit=10**6)}


def tree(directory):
    return {
        path.relative_to(directory): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def lance(crewai_home):
    """CrewAI's own store at its default place."""
    return LanceDBStorage(compact_every=0)


@pytest.fixture
def native(crewai_home):
    """A handle on the native store at the default place, as CrewAI gets it."""

    def open_():
        return plugin.crewai_native_memory_storage(spec="lancedb")

    return open_


# --- first use --------------------------------------------------------------------------------


def test_the_first_use_brings_the_records_of_crewais_store(lance, native, crewai_home):
    records = [make(number) for number in range(2500)]
    lance.save(records)
    before = tree(crewai_home / "memory")
    storage = native()
    assert not Path(storage.path).exists()  # making a handle touches nothing
    assert storage.count() == len(records)
    assert everything(storage) == {record.id: as_data(record) for record in records}
    assert tree(crewai_home / "memory") == before


def test_it_happens_once(lance, native):
    lance.save([make(1), make(2)])
    storage = native()
    storage.delete(record_ids=["r1"])
    lance.save([make(3)])
    assert set(everything(storage)) == {"r2"}
    assert set(everything(native())) == {"r2"}
    storage.reset()
    assert everything(native()) == {}


def test_every_operation_comes_after_it(lance, native, crewai_home, tmp_path):
    lance.save([make(1)])
    operations = {
        "save": lambda storage: storage.save([make(2)]),
        "get_record": lambda storage: storage.get_record("r1"),
        "search": lambda storage: storage.search([1.0] * DIMENSIONS),
        "search_text": lambda storage: storage.search_text("text"),
        "delete": lambda storage: storage.delete(record_ids=["nobody"]),
        "touch_records": lambda storage: storage.touch_records(["r1"]),
        "stats": lambda storage: storage.stats(),
        "backup": lambda storage: storage.backup(tmp_path / "copy.db"),
    }
    for operation in operations.values():
        storage = native()
        operation(storage)
        assert NativeStorage(storage.path).get_record("r1") is not None
        storage.close()
        shutil.rmtree(Path(storage.path).parent)
        imports._settled.clear()


def test_a_store_that_is_in_use_already_gets_nothing(lance, native):
    lance.save([make(1)])
    NativeStorage().save([make(2)])
    assert set(everything(native())) == {"r2"}


def test_nothing_is_imported_where_it_is_switched_off(lance, native, monkeypatch):
    lance.save([make(1)])
    plugin.crewai_native_configure(options={"import": "false"})
    try:
        assert native().count() == 0
    finally:
        plugin.crewai_native_configure(options={})


def test_lancedb_is_not_loaded_where_there_is_nothing_to_import(script, crewai_home):
    code = """
import sys
from crewai_native_memory import plugin
storage = plugin.crewai_native_memory_storage(spec="lancedb")
assert storage.count() == 0
storage.search([1.0])
assert not {"lancedb", "pyarrow", "qdrant_edge"} & set(sys.modules)
"""
    subprocess.run(script(code), check=True, env=os.environ | {"CREWAI_NATIVE": "0"})


def test_an_import_killed_half_way_is_finished_by_the_next_use(lance, native, script, crewai_home):
    records = [make(number) for number in range(3000)]
    lance.save(records)
    code = """
import os, signal
from crewai_native_memory import plugin, storage
save = storage.NativeStorage.save
def save_and_die(self, records):
    save(self, records)
    os.kill(os.getpid(), signal.SIGKILL)
storage.NativeStorage.save = save_and_die
plugin.crewai_native_memory_storage(spec="lancedb").count()
"""
    killed = subprocess.run(script(code), check=False, env=os.environ | {"CREWAI_NATIVE": "0"})
    assert killed.returncode == -signal.SIGKILL
    assert 0 < NativeStorage().count() < len(records)
    assert set(everything(native())) == {record.id for record in records}


def test_processes_that_start_together_import_once(lance, script, crewai_home):
    lance.save([make(number) for number in range(1500)])
    code = """
import logging, sys
logging.basicConfig(level=logging.INFO)
from crewai_native_memory import plugin
assert plugin.crewai_native_memory_storage(spec="lancedb").count() == 1500
"""
    env = os.environ | {"CREWAI_NATIVE": "0"}
    running = [
        subprocess.Popen(script(code), env=env, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    logs = [process.communicate(timeout=120)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], logs
    assert sum(log.count("imported 1500 of 1500 records") for log in logs) == 1


def test_a_store_that_cannot_be_read_is_told(crewai_home, native):
    table = crewai_home / "memory" / "memories.lance" / "data"
    table.mkdir(parents=True)
    (table / "x.lance").write_bytes(b"no table")
    with pytest.raises(sources.MoveError, match="cannot read LanceDB table"):
        native().count()
    assert native()._first is not None  # and tried again


# --- what the other stores hold ---------------------------------------------------------------


def test_of_rows_with_one_id_the_newest_is_the_record(lance, native):
    lance.save([make(1, content="old", last_accessed=NOON)])
    lance.save([make(1, content="new", last_accessed=NOON + dt.timedelta(hours=1))])
    lance.save([make(1, content="older", last_accessed=NOON - dt.timedelta(hours=1)), make(2)])
    storage = native()
    assert storage.get_record("r1").content == "new"
    assert storage.count() == 2
    report = imports.bring(storage, sources.open_source(sources.default_directory()))
    assert (report.records, report.imported, report.duplicates) == (2, 0, 2)


def test_zeros_stand_for_no_embedding(lance, native):
    lance.save([make(1), make(2, embedding=None)])
    storage = native()
    assert storage.get_record("r2").embedding is None
    assert [record.id for record, _ in storage.search([1.0] * DIMENSIONS)] == ["r1"]


def test_datetimes_with_a_zone_become_naive_utc(lance, native):
    zone = dt.timezone(dt.timedelta(hours=2))
    lance.save([make(1, created_at=NOON.replace(tzinfo=zone))])
    assert native().get_record("r1").created_at == NOON - dt.timedelta(hours=2)


def test_qdrant_edge_is_imported_too(crewai_home, native, script):
    from crewai.memory.storage.qdrant_edge_storage import QdrantEdgeStorage

    records = [make(number, embedding=[0.6, 0.8, 0, 0]) for number in range(300)]
    records.append(make(300, embedding=None))
    # One flushed to the central shard, one left behind by a process that died.
    flushed = QdrantEdgeStorage()
    flushed.save(records[:200])
    flushed.close()
    dying = QdrantEdgeStorage()
    dying.save(records[200:])
    before = tree(crewai_home / "memory")
    assert everything(native()) == {record.id: as_data(record) for record in records}
    assert tree(crewai_home / "memory") == before
    dying._closed = True  # its atexit handler would merge the shards into what pytest removes


def test_a_store_whose_library_is_gone_stays_behind(crewai_home, native, monkeypatch, caplog):
    from crewai.memory.storage.qdrant_edge_storage import QdrantEdgeStorage

    stock = QdrantEdgeStorage()
    stock.save([make(1)])
    stock.close()
    with monkeypatch.context() as patched:
        patched.setattr(imports, "find_spec", lambda name: None)
        with caplog.at_level(logging.WARNING, "crewai_native_memory"):
            assert native().count() == 0
            native().save([make(2)])
    assert len(caplog.messages) == 1
    assert "qdrant_edge is not installed" in caplog.text
    imports._settled.clear()
    assert set(everything(native())) == {"r2"}  # as it is in use


def test_vectors_of_qdrant_edge_take_the_room_of_float32(crewai_home):
    from crewai.memory.storage.qdrant_edge_storage import QdrantEdgeStorage

    count, dimensions = 300, 1536
    stock = QdrantEdgeStorage()
    stock.save([make(number, embedding=[0.5] * dimensions) for number in range(count)])
    source = sources.find(crewai_home / "memory")
    tracemalloc.start()
    try:
        found, batches = source.open()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found == sum(map(len, batches)) == count
    assert held < 2 * count * dimensions * 4
    stock._closed = True  # its atexit handler would merge the shards into what pytest removes


# --- a reset ----------------------------------------------------------------------------------


@pytest.mark.parametrize("everything_of_it", [None, "", "/"])
def test_a_reset_of_all_erases_what_was_imported_as_well(
    lance, native, crewai_home, everything_of_it
):
    secret = "nobody else may read this"
    lance.save([make(1, content=secret)])
    lance.save([make(2)])
    storage = native()
    storage.reset("/s/1")
    storage.delete()
    assert len(lance.list_records()) == 2  # only what deletes all for good reaches it
    storage.reset(everything_of_it)
    assert not (crewai_home / "memory" / "memories.lance").exists()
    assert LanceDBStorage().list_records() == []
    storage.close()
    left = b"".join((crewai_home / path).read_bytes() for path in tree(crewai_home))
    assert secret.encode() not in left
    # What is put there later was never ours.
    LanceDBStorage().save([make(3)])
    native().reset()
    assert native().count() == 0
    assert [record.id for record in LanceDBStorage().list_records()] == ["r3"]


def test_a_reset_erases_nothing_that_was_not_imported(lance, native, crewai_home, tmp_path):
    NativeStorage().save([make(1)])
    lance.save([make(2)])
    native().reset()
    elsewhere = tmp_path / "elsewhere"
    LanceDBStorage(path=elsewhere).save([make(3)])
    imports.bring(NativeStorage(), sources.LanceSource(elsewhere))
    native().reset()
    assert [record.id for record in lance.list_records()] == ["r2"]
    assert [record.id for record in LanceDBStorage(path=elsewhere).list_records()] == ["r3"]


def test_a_reset_without_the_slot_leaves_crewais_store(lance, native):
    lance.save([make(1)])
    native().count()
    NativeStorage().reset()
    assert len(lance.list_records()) == 1


def test_a_reset_that_cannot_erase_what_was_imported_says_so(lance, native, monkeypatch):
    lance.save([make(1)])
    storage = native()
    assert storage.count() == 1

    def refuse(_source):
        raise PermissionError("not yours")

    with monkeypatch.context() as patched:
        patched.setattr(sources.LanceSource, "erase", refuse)
        with pytest.raises(
            sources.MoveError, match=r"has been reset, but .*memories\.lance.*not yours"
        ):
            storage.reset()
    assert storage.count() == 0
    storage.reset()
    assert LanceDBStorage().list_records() == []


def test_a_reset_erases_qdrants_shards_as_well(crewai_home, native):
    from crewai.memory.storage.qdrant_edge_storage import QdrantEdgeStorage

    flushed = QdrantEdgeStorage()
    flushed.save([make(1)])
    flushed.close()
    dying = QdrantEdgeStorage()
    dying.save([make(2)])
    storage = native()
    assert storage.count() == 2
    storage.reset()
    assert list((crewai_home / "memory" / "qdrant-edge").iterdir()) == []
    dying._closed = True


# --- rows that hold no record -----------------------------------------------------------------

COLUMNS = {
    "id": pa.string(),
    "content": pa.string(),
    "scope": pa.string(),
    "categories_str": pa.string(),
    "metadata_str": pa.string(),
    "importance": pa.float32(),
    "created_at": pa.string(),
    "last_accessed": pa.string(),
    "source": pa.string(),
    "private": pa.bool_(),
    "vector": pa.list_(pa.float32(), DIMENSIONS),
}


def row(number, **fields):
    defaults = {
        "id": f"r{number}",
        "content": f"text {number}",
        "scope": "/s",
        "categories_str": "[]",
        "metadata_str": "{}",
        "importance": 0.5,
        "created_at": NOON.isoformat(),
        "last_accessed": NOON.isoformat(),
        "source": "",
        "private": False,
        "vector": [1.0 + number, 0.0, 0.0, 0.0],
    }
    return defaults | fields


def table(directory, rows, without=(), **types):
    """A table as CrewAI's, made past it."""
    kept = {name: type_ for name, type_ in (COLUMNS | types).items() if name not in without}
    data = pa.Table.from_pylist(rows, schema=pa.schema(kept))
    # LanceDB looks at vectors that it can tell by their name.
    names = [name.replace("vector", "numbers") for name in kept]
    made = lancedb.connect(str(directory)).create_table(
        "memories", data.rename_columns(names), on_bad_vectors="null"
    )
    if "vector" in kept:
        made.alter_columns({"path": "numbers", "rename": "vector"})
    return sources.LanceSource(directory)


def test_an_importance_that_crewai_takes_and_cannot_read_does_not_stop_the_import(lance, native):
    lance.save([make(1), make(2)])
    # What `Memory.update(id, importance=5)` hands to its store.
    lance.update(make(3).model_copy(update={"importance": 5}))
    lance.update(make(4).model_copy(update={"importance": -1}))
    storage = native()
    assert storage.count() == 4
    assert [storage.get_record(f"r{n}").importance for n in (1, 3, 4)] == [0.25, 1.0, 0.0]
    assert json.loads(storage.note("import"))["state"] == "done"


@pytest.mark.parametrize(
    "column",
    [
        *("scope", "categories_str", "metadata_str", "importance"),
        *("last_accessed", "source", "private", "vector"),
    ],
)
@pytest.mark.parametrize("kind", ["missing", "null"])
def test_what_a_row_lacks_is_what_crewai_takes_it_for(tmp_path, column, kind):
    without = [column] if kind == "missing" else []
    source = table(tmp_path, [row(0) | {column: None}], without)
    storage = NativeStorage(tmp_path / "a.db")
    before = dt.datetime.now(dt.UTC).replace(tzinfo=None)
    report = imports.bring(storage, source)
    assert (report.imported, report.left, report.bare) == (1, {}, 0)
    record = as_data(storage.get_record("r0"))
    stands = {"scope": "/", "importance": 0.5, "embedding": None}
    expected = as_data(make(0, content="text 0", scope="/s", metadata={}, importance=0.5)) | {
        "created_at": NOON,
        "last_accessed": NOON,
        "embedding": [1.0, 0.0, 0.0, 0.0],
        "private": False,
    }
    field = {"vector": "embedding"}.get(column, column.removesuffix("_str"))
    if column == "last_accessed":
        assert record[field] >= before
        expected[field] = record[field]
    else:
        expected[field] = stands.get(field, expected[field])
    assert record == expected


UNREADABLE = {
    "created_at": ("", "created_at: Invalid isoformat string"),
    "last_accessed": ("yesterday", "last_accessed: Invalid isoformat string"),
    "metadata_str": ("{bad", "metadata: Expecting property name"),
    "categories_str": ('{"a": 1}', "categories: Input should be a valid list"),
}


@pytest.mark.parametrize("column", UNREADABLE)
def test_a_row_that_cannot_be_read_stays_behind_and_is_named(crewai_home, native, column, caplog):
    value, reason = UNREADABLE[column]
    place = crewai_home / "memory"
    table(place, [row(0), row(1) | {column: value}, row(2)])
    before = tree(place)
    with caplog.at_level(logging.INFO, "crewai_native_memory"):
        storage = native()
        assert set(everything(storage)) == {"r0", "r2"}
    assert json.loads(storage.note("import")) == {
        "state": "done",
        "source": f"LanceDB table {place / 'memories.lance'}",
        "left": 1,
    }
    warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warned) == 2
    assert warned[0].startswith(f"record 'r1' stays behind in LanceDB table {place}")
    assert reason in warned[0]
    assert "imported 2 of 3 records" in warned[1]
    assert f"1 cannot be read and stay behind there: 'r1' ({reason}" in warned[1]
    assert tree(place) == before
    storage.save([make(3)])  # and the memory can be used
    assert native().count() == 3


def test_a_record_that_cannot_be_stored_stays_behind_alone(lance, native):
    # CrewAI's JSON holds half a surrogate pair, and no text does.
    lance.save([make(1), make(2, metadata={"half": "\ud83d"}), make(3, categories=["\ud83d"])])
    assert set(everything(native())) == {"r1"}


def test_qdrant_points_that_cannot_be_read_stay_behind(crewai_home, native, monkeypatch):
    from crewai.memory.storage.qdrant_edge_storage import QdrantEdgeStorage

    vector = [0.6, 0.8, 0, 0]
    stock = QdrantEdgeStorage()
    records = [make(1, embedding=vector), make(2, embedding=vector), make(3, embedding=vector)]
    point = QdrantEdgeStorage._record_to_point

    def odd(self, record):
        made = point(self, record)
        payload = dict(made.payload)
        if record.id == "r2":
            payload["created_at"] = "yesterday"
        if record.id == "r3":
            payload |= {"importance": 5, "source": None}
            del payload["scope"], payload["categories"]
        return type(made)(id=made.id, vector=made.vector, payload=payload)

    monkeypatch.setattr(QdrantEdgeStorage, "_record_to_point", odd)
    stock.save(records)
    stock.close()
    storage = native()
    assert {r.id: r.importance for r in storage.list_records()} == {"r1": 0.25, "r3": 1.0}
    assert json.loads(storage.note("import"))["left"] == 1


def test_no_table_of_crewais_is_told(tmp_path):
    source = table(tmp_path, [row(0)], without=["content"])
    with pytest.raises(sources.MoveError, match="is none of CrewAI's: it has no column 'content'"):
        imports.bring(NativeStorage(tmp_path / "a.db"), source)


def test_vectors_of_another_length_than_the_stores_are_told(tmp_path):
    storage = NativeStorage(tmp_path / "a.db")
    storage.save([MemoryRecord(id="mine", content="x", embedding=[1.0, 2.0])])
    with pytest.raises(sources.MoveError, match="4-dimensional vectors to 2-dimensional ones"):
        imports.bring(storage, table(tmp_path, [row(0)]))


VECTORS = [[1.0, 0, 0, 0], None, [3.0, 0, 0, 0], [0.0, 0, 0, 0], [5.0, 0, 0, 6.0]]


@pytest.mark.parametrize(
    "column",
    [
        pa.list_(pa.float32(), DIMENSIONS),
        pa.list_(pa.float16(), DIMENSIONS),
        pa.list_(pa.float64(), DIMENSIONS),
        pa.list_(pa.float32()),
        pa.large_list(pa.float64()),
    ],
    ids=str,
)
def test_rows_without_a_vector_leave_the_others_theirs(tmp_path, column):
    rows = [row(n, vector=vector) for n, vector in enumerate(VECTORS)]
    storage = NativeStorage(tmp_path / "a.db")
    imports.bring(storage, table(tmp_path, rows, vector=column))
    found = [storage.get_record(f"r{n}").embedding for n in range(len(rows))]
    assert found == [vector if vector and any(vector) else None for vector in VECTORS]


def test_vectors_that_are_none_are_left_out_and_counted(tmp_path):
    vectors = [[1.0, 2.0], [math.nan, 1.0], [1e39, 1.0], [1.0], [3.0, 4.0]]
    rows = [row(n, vector=vector) for n, vector in enumerate(vectors)]
    storage = NativeStorage(tmp_path / "a.db")
    report = imports.bring(storage, table(tmp_path, rows, vector=pa.list_(pa.float64())))
    found = [storage.get_record(f"r{n}").embedding for n in range(5)]
    assert found == [[1.0, 2.0], None, None, None, [3.0, 4.0]]
    assert (report.imported, report.bare, report.left) == (5, 3, {})
    assert "3 of them without their vector" in str(report)


def test_a_place_that_holds_nothing_is_told(tmp_path):
    with pytest.raises(sources.MoveError, match=r"expected a \.jsonl file, a directory"):
        sources.open_source(tmp_path)


# --- exporting --------------------------------------------------------------------------------

RECORDS = st.builds(
    make,
    st.integers(0, 40),
    content=st.text(min_size=1),
    metadata=st.dictionaries(
        st.text(),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
            lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner),
            max_leaves=4,
        ),
        max_size=3,
    ),
    importance=st.floats(0, 1),
    source=st.none() | st.text(),
    embedding=st.none()
    | st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=4, max_size=4),
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(records=st.lists(RECORDS, max_size=8))
def test_json_lines_bring_everything_back(tmp_path_factory, records):
    directory = tmp_path_factory.mktemp("move")
    storage = NativeStorage(directory / "a.db")
    storage.save(records)
    path = directory / "records.jsonl"
    assert exports.export_json_lines(storage, path) == storage.count()
    copy = NativeStorage(directory / "b.db")
    imports.bring(copy, sources.open_source(path))
    ours, theirs = (s.list_records(limit=100) for s in (storage, copy))
    assert [(r.id, r.embedding) for r in ours] == [(r.id, r.embedding) for r in theirs]
    assert ours == theirs


def test_lancedb_gets_everything_back(tmp_path):
    storage = NativeStorage(tmp_path / "a.db")
    storage.save([make(number) for number in range(1200)])
    assert exports.export_lance(storage, tmp_path / "lance") == 1200
    stock = LanceDBStorage(path=tmp_path / "lance", compact_every=0)
    assert everything(stock) == everything(storage)
    with pytest.raises(sources.MoveError, match="holds a store already"):
        exports.export_lance(storage, tmp_path / "lance")
    assert list(tmp_path.glob(".crewai-native-*")) == []


def test_json_lines_are_read_strictly(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps({"format": "crewai-native-memory", "version": 2}) + "\n")
    with pytest.raises(sources.MoveError, match="this release reads crewai-native-memory up to 1"):
        imports.bring(NativeStorage(tmp_path / "a.db"), sources.open_source(path))
    path.write_text('{"id": "1", "content": "fine"}\n{"id": "2"}\n')
    with pytest.raises(sources.MoveError, match="line 2: 'content'"):
        imports.bring(NativeStorage(tmp_path / "a.db"), sources.open_source(path))


def test_an_export_overwrites_nothing(tmp_path):
    (tmp_path / "records.jsonl").write_text("mine")
    with pytest.raises(FileExistsError):
        exports.export_json_lines(NativeStorage(tmp_path / "a.db"), tmp_path / "records.jsonl")
    assert (tmp_path / "records.jsonl").read_text() == "mine"


def test_json_lines_keep_numbers_that_are_not_finite(tmp_path):
    numbers = {"x": math.nan, "deep": [{"y": math.inf}, -math.inf]}
    storage = NativeStorage(tmp_path / "a.db")
    storage.save([make(1, metadata=numbers)])
    exports.export_json_lines(storage, tmp_path / "records.jsonl")
    copy = NativeStorage(tmp_path / "b.db")
    imports.bring(copy, sources.open_source(tmp_path / "records.jsonl"))
    # NaN equals nothing; its text does.
    assert repr(copy.get_record("r1").metadata) == repr(numbers)


def test_an_importance_out_of_bounds_comes_back_from_either_export(tmp_path):
    storage = NativeStorage(tmp_path / "a.db")
    storage.save([make(1), make(2).model_copy(update={"importance": 5})])
    exports.export_json_lines(storage, tmp_path / "records.jsonl")
    exports.export_lance(storage, tmp_path / "lance")
    for number, place in enumerate(("records.jsonl", "lance")):
        copy = NativeStorage(tmp_path / f"{number}.db")
        imports.bring(copy, sources.open_source(tmp_path / place))
        assert [copy.get_record(f"r{n}").importance for n in (1, 2)] == [0.25, 1.0]
    assert LanceDBStorage(path=tmp_path / "lance", compact_every=0).get_record("r2") is not None


def test_a_line_that_cannot_be_stored_is_named(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text('{"id": "1", "content": "fine"}\n{"id": "2", "content": "\\ud83d"}\n')
    with pytest.raises(sources.MoveError, match=r"records\.jsonl, .*2.*: .*surrogate"):
        imports.bring(NativeStorage(tmp_path / "a.db"), sources.open_source(path))


def test_lancedb_gets_the_stores_dimension_wherever_its_first_vector_is(tmp_path):
    storage = NativeStorage(tmp_path / "a.db")
    storage.save([make(number, embedding=None) for number in range(1001)] + [make(5000)])
    assert exports.export_lance(storage, tmp_path / "new" / "lance") == 1002
    stock = LanceDBStorage(path=tmp_path / "new" / "lance", compact_every=0)
    assert stock._vector_dim == DIMENSIONS
    assert [record.id for record, _ in stock.search(make(5000).embedding, limit=1)] == ["r5000"]


def test_an_export_that_fails_leaves_nothing(tmp_path, monkeypatch):
    storage = NativeStorage(tmp_path / "a.db")
    storage.save([make(number) for number in range(3)])
    before = sorted(tmp_path.iterdir())

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(LanceDBStorage, "save", fail)
        patch.setattr(exports, "_line", fail)
        for export, name in (
            (exports.export_lance, "lance"),
            (exports.export_json_lines, "records.jsonl"),
        ):
            with pytest.raises(OSError, match="No space"):
                export(storage, tmp_path / name)
    assert sorted(tmp_path.iterdir()) == before
    with monkeypatch.context() as patch:
        fails = RuntimeError("lance error: LanceError(IO): No space left on device")
        patch.setattr(LanceDBStorage, "save", mock.Mock(side_effect=fails))
        with pytest.raises(sources.MoveError, match=r"cannot write .*lance: .*No space"):
            exports.export_lance(storage, tmp_path / "lance")
    assert sorted(tmp_path.iterdir()) == before
    assert exports.export_lance(storage, tmp_path / "lance") == 3
    assert exports.export_json_lines(storage, tmp_path / "records.jsonl") == 3


@pytest.mark.parametrize("name", ["o.json", "o.csv", "o.db", "o.SQLITE"])
def test_a_directory_that_is_named_like_a_file_is_refused(tmp_path, name):
    storage = NativeStorage(tmp_path / "a.db")
    with pytest.raises(sources.MoveError, match=r"expected a file that ends in \.jsonl, or a dir"):
        exports.export_lance(storage, tmp_path / name)
    (tmp_path / name).mkdir()
    assert exports.export_lance(storage, tmp_path / name) == 0  # it is one
