"""The store against a reference that is too simple to be wrong."""

# ruff: noqa: A001, DTZ001, PLR0917, PLR1714 - CrewAI's datetimes are naive
from __future__ import annotations

import math
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from crewai.memory.types import MemoryRecord
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from crewai_native_memory import NativeStorage

DIMENSION = 4
EPOCH = datetime(2026, 1, 1)


class Reference:
    """Everything in a dict, every question answered by looking at every record."""

    def __init__(self, metric="l2"):
        self.metric = metric
        self.records = {}

    @staticmethod
    def path(scope):
        return "/" + "/".join(part for part in scope.split("/") if part)

    def inside(self, record, scope):
        path, above = self.path(record.scope), self.path(scope or "/")
        return above == "/" or path == above or path.startswith(above + "/")

    def matching(self, scope=None, categories=None, metadata=None, before=None):
        return [
            record
            for record in self.records.values()
            if self.inside(record, scope)
            and (categories is None or set(categories) & set(record.categories))
            and (metadata is None or all(record.metadata.get(k) == v for k, v in metadata.items()))
            and (before is None or record.created_at < before)
        ]

    def save(self, records):
        for record in records:
            self.records[record.id] = record

    def touch(self, ids, now):
        for id in set(ids) & self.records.keys():
            self.records[id] = self.records[id].model_copy(update={"last_accessed": now})

    def delete(self, ids=None, **conditions):
        doomed = [r.id for r in self.matching(**conditions) if ids is None or r.id in ids]
        for id in doomed:
            del self.records[id]
        return len(doomed)

    def score(self, query, embedding):
        q, x = (np.asarray(v, dtype=np.float32).astype(np.float64) for v in (query, embedding))
        if self.metric == "l2":
            return 1 / (1 + float(np.sum((q - x) ** 2)))
        if self.metric == "dot":
            return float(q @ x)
        norms = float(np.linalg.norm(q) * np.linalg.norm(x))
        return float(q @ x) / norms if norms else 0.0

    def search(self, query, limit, min_score, **conditions):
        scored = [
            (record.id, self.score(query, record.embedding))
            for record in self.matching(**conditions)
            if record.embedding is not None
        ]
        ranked = sorted(scored, key=lambda pair: (-pair[1], pair[0]))
        return [pair for pair in ranked if pair[1] >= min_score][:limit]

    def list(self, scope, limit, offset):
        saved = list(self.records)  # a replaced record keeps its place
        found = sorted(
            self.matching(scope),
            key=lambda r: (r.created_at, saved.index(r.id)),
            reverse=True,
        )
        return [record.id for record in found][offset:][:limit]

    def children(self, scope):
        above = self.path(scope).rstrip("/")
        paths = (self.path(r.scope) for r in self.matching(scope))
        below = (p for p in paths if p not in (above, "/"))
        return sorted({above + "/" + p[len(above) + 1 :].split("/")[0] for p in below})

    def categories(self, scope):
        counts = {}
        for record in self.matching(scope):
            for name in set(record.categories):
                counts[name] = counts.get(name, 0) + 1
        return counts


# Few values, so that records collide, and scopes that only components keep apart.
ids = st.sampled_from([f"r{n}" for n in range(12)])
scopes = st.sampled_from(
    ["/", "", "/a", "a", "/a/", "/a/b", "/a//b", "/ab", "/a-b", "/a.b", "/a/b/c", "/A", "/%", "/_"]
)
names = st.sampled_from(["x", "y", "é", "'", '"'])
values = st.sampled_from([1, 1.0, True, False, None, "1", [1, {"k": 2}], {"k": [None]}])
keys = st.sampled_from(["p", "q", "NaN"])
metadata = st.dictionaries(keys, values, max_size=2)
# Small integers make exact ties between different vectors.
component = st.one_of(st.integers(-2, 2), st.floats(-1e3, 1e3, width=32))
vectors = st.lists(component, min_size=DIMENSION, max_size=DIMENSION)
moments = st.integers(0, 5).map(lambda days: EPOCH + timedelta(days=days, microseconds=days))


@st.composite
def records(draw):
    created = draw(moments)
    aware = draw(st.booleans())
    return MemoryRecord(
        id=draw(ids),
        content=draw(st.text(max_size=3)),
        scope=draw(scopes),
        categories=draw(st.lists(names, max_size=3)),
        metadata=draw(metadata),
        importance=draw(st.floats(0, 1)),
        created_at=created.replace(tzinfo=UTC) if aware else created,
        last_accessed=created,
        source=draw(st.none() | names),
        private=draw(st.booleans()),
        embedding=draw(st.none() | vectors),
    )


def naive(record):
    moment = record.created_at
    return record.model_copy(update={"created_at": moment.replace(tzinfo=None)})


class StoreMachine(RuleBasedStateMachine):
    """Two handles do at random what the reference does as well; one reopens now and then."""

    metric = "l2"

    def __init__(self):
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        place = Path(self.directory.name) / "memory.db"
        self.handles = [NativeStorage(place, metric=self.metric) for _ in range(2)]
        self.reference = Reference(self.metric)

    def teardown(self):
        for handle in self.handles:
            handle.close()
        self.directory.cleanup()

    def handle(self, number):
        return self.handles[number]

    which = st.integers(0, 1)
    optional_scope = st.none() | scopes
    optional_names = st.none() | st.lists(names, min_size=1, max_size=2)
    optional_metadata = st.none() | st.dictionaries(keys, values, min_size=1, max_size=2)

    @initialize(batch=st.lists(records(), min_size=1, max_size=8))
    def begin(self, batch):
        self.save(0, batch)

    @rule(which=which, batch=st.lists(records(), max_size=6))
    def save(self, which, batch):
        self.handle(which).save(batch)
        self.reference.save([naive(record) for record in batch])

    @rule(which=which, record=records())
    def update(self, which, record):
        self.handle(which).update(record)
        self.reference.save([naive(record)])

    @rule(which=which, touched=st.lists(ids, max_size=4))
    def touch(self, which, touched):
        self.handle(which).touch_records(touched)
        for id in set(touched) & self.reference.records.keys():
            now = self.handle(which).get_record(id).last_accessed
            assert abs(datetime.now(UTC).replace(tzinfo=None) - now) < timedelta(minutes=1)
            self.reference.touch([id], now)

    @rule(
        which=which,
        doomed=st.none() | st.lists(ids, min_size=1, max_size=4),
        scope=optional_scope,
        categories=optional_names,
        metadata=optional_metadata,
        before=st.none() | moments,
    )
    def delete(self, which, doomed, scope, categories, metadata, before):
        deleted = self.handle(which).delete(
            scope_prefix=scope,
            categories=categories,
            record_ids=doomed,
            older_than=before,
            metadata_filter=metadata,
        )
        expected = self.reference.delete(
            doomed, scope=scope, categories=categories, metadata=metadata, before=before
        )
        assert deleted == expected

    @rule(which=which, scope=scopes)
    def reset(self, which, scope):
        self.handle(which).reset(scope)
        self.reference.delete(scope=scope)

    @rule(which=which)
    def optimize_and_reopen(self, which):
        self.handle(which).optimize()
        for handle in self.handles:
            handle.close()

    @rule(
        which=which,
        query=vectors,
        limit=st.integers(1, 15),
        scope=optional_scope,
        categories=optional_names,
        metadata=optional_metadata,
    )
    def search(self, which, query, limit, scope, categories, metadata):
        floor = -math.inf if self.metric == "dot" else 0.0
        found = self.handle(which).search(
            query, scope, categories, metadata, limit=limit, min_score=floor
        )
        expected = self.reference.search(
            query, limit, floor, scope=scope, categories=categories, metadata=metadata
        )
        assert len(found) == len(expected)
        scores = [score for _, score in found]
        assert scores == sorted(scores, reverse=True)
        assert scores == pytest.approx([s for _, s in expected], rel=1e-9, abs=1e-9)
        for (record, score), (id, _) in zip(found, expected, strict=True):
            stored = self.reference.records[record.id]
            assert record == stored_form(stored)
            # Where the two orders differ, the scores differ by rounding alone.
            if record.id != id:
                other = self.reference.score(query, self.reference.records[id].embedding)
                assert score == pytest.approx(other, rel=1e-12, abs=1e-12)

    @rule(which=which, scope=optional_scope, limit=st.integers(0, 15), offset=st.integers(0, 5))
    def list(self, which, scope, limit, offset):
        found = self.handle(which).list_records(scope, limit, offset)
        assert [record.id for record in found] == self.reference.list(scope, limit, offset)

    @rule(which=which, scope=scopes)
    def describe(self, which, scope):
        store, reference = self.handle(which), self.reference
        inside = reference.matching(scope)
        info = store.get_scope_info(scope)
        dates = [record.created_at for record in inside]
        assert info.path == reference.path(scope)
        assert info.record_count == store.count(scope) == len(inside)
        assert info.categories == sorted(reference.categories(scope))
        assert info.oldest_record == min(dates, default=None)
        assert info.newest_record == max(dates, default=None)
        assert info.child_scopes == store.list_scopes(scope) == reference.children(scope)
        assert store.list_categories(scope) == reference.categories(scope)

    @invariant()
    def same_records(self):
        store, reference = self.handle(0), self.reference
        assert store.count() == len(reference.records)
        for id, record in reference.records.items():
            assert store.get_record(id) == stored_form(record)


def stored_form(record):
    """A record as a store gives it back: one spelling of the scope, float32 components."""
    embedding = record.embedding
    if embedding is not None:
        embedding = [float(np.float32(x)) for x in embedding]
    return record.model_copy(update={"scope": Reference.path(record.scope), "embedding": embedding})


class CosineMachine(StoreMachine):
    metric = "cosine"


class DotMachine(StoreMachine):
    metric = "dot"


limits = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestL2 = StoreMachine.TestCase
TestL2.settings = limits
TestCosine = CosineMachine.TestCase
TestCosine.settings = settings(limits, max_examples=15)
TestDot = DotMachine.TestCase
TestDot.settings = settings(limits, max_examples=15)
