"""Searching by words: the simple store, and what it and hybrid search stand on."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import sqlite3
import subprocess

import pytest
from crewai.memory.types import MemoryRecord
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crewai_native_memory import MemoryStorage, NativeStorage

NOON = dt.datetime(2026, 1, 1, 12)  # noqa: DTZ001 - CrewAI's datetimes are naive UTC


@pytest.fixture
def simple(tmp_path):
    return MemoryStorage(tmp_path / "simple.db")


def contents(found):
    return [one["content"] if isinstance(one, dict) else one[0].content for one in found]


# --- the simple store -------------------------------------------------------------------------


def test_what_was_saved_is_found_by_its_words(simple):
    key = simple.save("The kick-off is on Monday", {"project": "apollo", "n": [1, None]})
    simple.save("Bananas are yellow")
    (found,) = simple.search("When is the KICK OFF?", limit=1)
    assert found["id"] == key
    assert found["content"] == "The kick-off is on Monday"
    assert found["metadata"] == {"project": "apollo", "n": [1, None]}
    assert 0 < found["score"] <= 1
    assert len(simple) == 2
    assert simple.delete(key) == 1
    assert simple.search("kick-off") == []
    simple.reset()
    assert len(simple) == 0


def test_rarer_and_more_words_rank_higher(simple):
    for text in ("tea", "tea cake", "tea and a rare samovar", "coffee"):
        simple.save(text)
    found = simple.search("rare tea", limit=10)
    assert contents(found)[0] == "tea and a rare samovar"
    assert set(contents(found)) == {"tea", "tea cake", "tea and a rare samovar"}
    scores = [one["score"] for one in found]
    assert scores == sorted(scores, reverse=True)
    threshold = scores[0]
    assert len(simple.search("rare tea", limit=10, score_threshold=threshold)) == 1


@pytest.mark.parametrize("query", ["", "  ", "?!", '"', "NOT", "a* NEAR(b", "col:x", "ü" * 999])
def test_a_query_is_text_and_never_syntax(simple, query):
    simple.save("some text")
    assert simple.search(query) == []


def test_it_needs_no_crewai(script, tmp_path):
    code = """
import sys
class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"crewai", "crewai_core", "pydantic", "numpy"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Nowhere())
from crewai_native_memory import MemoryStorage
storage = MemoryStorage()
storage.save("a text", {"k": 1})
print(storage.search("text")[0]["metadata"], storage.path)
"""
    env = os.environ | {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path)}
    out = subprocess.run(script(code), check=True, env=env, capture_output=True, text=True).stdout
    assert out.split() == ["{'k':", "1}", str(tmp_path / "crewai-native" / "simple.db")]


def test_an_embedder_finds_what_is_meant(tmp_path):
    meanings = {"big dog": [1.0, 0.0], "large hound": [0.9, 0.1], "tax law": [0.0, 1.0]}
    storage = MemoryStorage(tmp_path / "a.db", embedder=lambda texts: [meanings[t] for t in texts])
    storage.save("large hound")
    storage.save("tax law")
    assert contents(storage.search("big dog", limit=1)) == ["large hound"]
    assert contents(storage.search("", limit=1)) == []


def test_an_embedder_makes_no_result_shorter_than_asked_for(tmp_path):
    storage = MemoryStorage(tmp_path / "a.db", embedder=lambda texts: [[1.0] for _ in texts])
    for number in range(120):
        storage.save(f"text {number}")
    found = storage.search("text", limit=110)
    assert len({one["id"] for one in found}) == 110


def test_an_embedder_of_another_dimension_is_named(tmp_path):
    MemoryStorage(tmp_path / "a.db", embedder=lambda texts: [[1.0] for _ in texts]).save("text")
    other = MemoryStorage(tmp_path / "a.db", embedder=lambda texts: [[1.0, 2.0] for _ in texts])
    for use in (other.save, other.search):
        with pytest.raises(
            ValueError, match=r"a\.db holds vectors of 1 .*lambda.* gave 2; .*reembed"
        ):
            use("text")


def test_metadata_must_be_json(simple):
    with pytest.raises(ValueError, match="metadata must be JSON"):
        simple.save("text", {"when": NOON})
    assert len(simple) == 0


def test_processes_share_it(simple, script):
    simple.save("from here")
    assert contents(simple.search("here")) == ["from here"]  # so that the index exists
    code = """
import sys
from crewai_native_memory import MemoryStorage
MemoryStorage(sys.argv[1]).save("from there")
"""
    subprocess.run(script(code, simple.path), check=True)
    assert set(contents(simple.search("from"))) == {"from here", "from there"}


# --- the index follows every change -----------------------------------------------------------

WORDS = ["ant", "bee", "cat", "dog", "東京", "커피"]
CHANGES = st.lists(
    st.one_of(
        st.tuples(
            st.just("save"),
            st.integers(0, 5),
            st.lists(st.sampled_from(WORDS), min_size=1, max_size=3),
        ),
        st.tuples(st.just("delete"), st.integers(0, 5), st.just([])),
        st.tuples(st.just("touch"), st.integers(0, 5), st.just([])),
        st.tuples(st.just("reset"), st.just(0), st.just([])),
        st.tuples(st.just("search"), st.just(0), st.just([])),
    ),
    max_size=25,
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(changes=CHANGES)
def test_text_search_sees_every_change(tmp_path_factory, changes):
    storage = NativeStorage(tmp_path_factory.mktemp("text") / "a.db")
    model = {}
    for change, number, words in [*changes, ("search", 0, [])]:
        key = f"r{number}"
        if change == "save":
            model[key] = words
            storage.save([MemoryRecord(id=key, content=" ".join(words))])
        elif change == "delete":
            model.pop(key, None)
            storage.delete(record_ids=[key])
        elif change == "touch":
            storage.touch_records([key])
        elif change == "reset":
            model.clear()
            storage.reset()
        else:
            for word in WORDS:
                found = {record.id for record, _ in storage.search_text(word, limit=100)}
                assert found == {key for key, words in model.items() if word in words}
    assert storage.check() == []
    storage.close()


def test_words_are_found_in_scripts_without_spaces(storage):
    texts = {
        "ja": "東京の天気は晴れ、iPhone15の在庫あり",
        "zh": "用户喜欢喝乌龙茶",
        "ko": "서울에서 회의를 했다",
        "en": "The weather in Tokyo (東京都) is fine",
        "far": "東の空、西の京",
    }
    storage.save([MemoryRecord(id=key, content=text) for key, text in texts.items()])

    def found(query):
        return [record.id for record, _ in storage.search_text(query)]

    for query, ids in {
        "東京": {"ja", "en"},
        "東京の天気を教えて": {"ja", "en"},
        "茶": {"zh"},
        "乌龙": {"zh"},
        "서울": {"ko"},
        "iphone15の在庫": {"ja"},
        "weather 晴れ": {"ja", "en"},
        "京都": {"en"},
        "龙乌": set(),
    }.items():
        assert set(found(query)) == ids, query
    # Who has more of what is asked for comes first.
    assert found("東京の天気を教えて")[0] == "ja"
    storage.save([MemoryRecord(id="zh", content="用户改喝咖啡")])
    assert (found("乌龙"), found("咖啡")) == ([], ["zh"])
    assert storage.check() == []


def test_an_index_of_texts_as_they_are_is_made_anew(storage):
    storage.save(
        [MemoryRecord(id=str(n), content=text) for n, text in enumerate(["東京都", "a b"])]
    )
    storage.close()
    with contextlib.closing(sqlite3.connect(storage.path)) as file, file:
        file.executescript("""
            CREATE VIRTUAL TABLE record_text USING fts5 (
                content, content = 'records', content_rowid = 'record'
            );
            CREATE TRIGGER record_text_insert AFTER INSERT ON records BEGIN
                INSERT INTO record_text (rowid, content) VALUES (new.record, new.content);
            END;
            INSERT INTO record_text (record_text) VALUES ('rebuild');
        """)
    storage.save([MemoryRecord(id="2", content="京都")])
    assert [r.id for r, _ in storage.search_text("東京")] == ["0"]
    storage.save([MemoryRecord(id="3", content="東京")])
    assert {r.id for r, _ in storage.search_text("東京")} == {"0", "3"}
    assert storage.check() == []
    with contextlib.closing(sqlite3.connect(storage.path)) as file:
        names = {name for (name,) in file.execute("SELECT name FROM sqlite_schema")}
    assert not {name for name in names if name.startswith("record_text")}


def test_conditions_apply_before_the_ranking(storage):
    records = [
        MemoryRecord(
            id=f"r{number:03}",
            content="needle " * (number % 7 + 1),
            scope=f"/user/{number % 20}",
            categories=["odd"] if number % 2 else [],
            metadata={"n": number},
            created_at=NOON + dt.timedelta(minutes=number),
            source="ann" if number % 3 else "bob",
            private=number % 4 == 0,
        )
        for number in range(200)
    ]
    storage.save(records)
    cases = {
        "scope": ({"scope_prefix": "/user/1"}, lambda r: r.scope == "/user/1"),
        "categories": ({"categories": ["odd"]}, lambda r: "odd" in r.categories),
        "metadata": ({"metadata_filter": {"n": 77}}, lambda r: r.metadata["n"] == 77),
        "from": (
            {"created_from": NOON + dt.timedelta(minutes=150)},
            lambda r: r.created_at >= NOON + dt.timedelta(minutes=150),
        ),
        "before": (
            {"created_before": NOON + dt.timedelta(minutes=5)},
            lambda r: r.created_at < NOON + dt.timedelta(minutes=5),
        ),
        "sources": ({"sources": ["bob"]}, lambda r: r.source == "bob"),
        "private": (
            {"source": "ann", "include_private": False},
            lambda r: not r.private or r.source == "ann",
        ),
    }
    for name, (conditions, wanted) in cases.items():
        found = storage.search_text("needle", limit=1000, **conditions)
        assert {r.id for r, _ in found} == {r.id for r in records if wanted(r)}, name
        assert [r.id for r, _ in storage.search_text("needle", limit=2, **conditions)] == [
            r.id for r, _ in found[:2]
        ]
        order = [(-score, r.id) for r, score in found]
        assert order == sorted(order)


def test_hybrid_search_merges_both_rankings(storage):
    storage.save(
        [
            MemoryRecord(id="both", content="needle", embedding=[1.0, 0.0]),
            MemoryRecord(id="words", content="needle needle", embedding=[-1.0, 0.0]),
            MemoryRecord(id="similar", content="nothing", embedding=[0.9, 0.1]),
            MemoryRecord(id="neither", content="nothing", embedding=[-1.0, 0.1]),
            MemoryRecord(id="no vector", content="a needle"),
        ]
    )
    found = storage.search_hybrid("needle", [1.0, 0.0], limit=10)
    assert found[0][0].id == "both"
    assert {record.id for record, _ in found[1:4]} == {"words", "similar", "no vector"}
    assert storage.search_hybrid("needle", [1.0, 0.0], limit=0) == []
    assert [r.id for r, _ in storage.search_hybrid("", [1.0, 0.0], limit=1)] == ["both"]
    by_rank = {r.id: score for r, score in storage.search_hybrid("needle", [1.0, 0.0])}
    words = [r.id for r, _ in storage.search_text("needle")]
    similar = [r.id for r, _ in storage.search([1.0, 0.0])]
    for key, score in by_rank.items():
        expected = sum(
            1 / (61 + ranking.index(key)) for ranking in (words, similar) if key in ranking
        )
        assert score == pytest.approx(expected)


def test_metadata_of_hybrid_results_is_whole(storage):
    storage.save([MemoryRecord(id="a", content="needle", metadata={"k": [1]}, embedding=[1.0])])
    ((record, _),) = storage.search_hybrid("needle", [1.0])
    assert json.dumps(record.metadata) == '{"k": [1]}'
