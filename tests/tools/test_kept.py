"""Results of tools that outlive the process."""

from __future__ import annotations

import enum
import subprocess
import sys
import threading
from collections import OrderedDict

import pytest
from crewai.utilities.string_utils import sanitize_tool_name
from hypothesis import given
from hypothesis import strategies as st

from crewai_native import ConfigurationError
from crewai_native_tools import ResultCache, kept, plugin
from crewai_native_tools.cache import result_cache
from crewai_native_tools.kept import KeptResults, Store, exact_json
from crewai_native_tools.options import Options, read

Database = pytest.importorskip("crewai_native_db").Database


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def make(path, clock, *, ttl=None, most=None, max_bytes=None):
    return KeptResults(
        ResultCache(lambda tool: (ttl, most), max_bytes=max_bytes),
        Store(Database(path, synchronous="normal"), clock),
        lambda name: (name.startswith("kept"), ttl, most),
        max_bytes,
        sanitize_tool_name,
    )


@pytest.fixture
def file(tmp_path):
    return tmp_path / "results.db"


def test_a_result_is_found_by_another_handler_whatever_the_order_of_arguments(file, clock):
    make(file, clock).add("kept one", '{"a": 1, "b": [2]}', {"rows": [1, 2.5, None]})
    other = make(file, clock)
    assert other.read("kept_one", '{"b": [2], "a": 1}') == {"rows": [1, 2.5, None]}
    assert other.read("kept_one", '{"b": [2], "a": 1.0}') is None
    assert other.read("kept_two", '{"a": 1, "b": [2]}') is None


def test_other_tools_stay_in_memory(file, clock):
    first, other = make(file, clock), make(file, clock)
    first.add("plain", "{}", "x")
    assert first.read("plain", "{}") == "x"
    assert other.read("plain", "{}") is None


class Colour(enum.StrEnum):
    RED = "red"


@pytest.mark.parametrize(
    "value",
    [
        *((1, 2), {1: 2}, float("inf"), object(), b"x", [{(1,): 2}]),
        # Equal to what would come back, and something else to the agent that reads it.
        *(Colour.RED, [Colour.RED], OrderedDict(a=1), {Colour.RED: 1}, {"a": [(1,)]}),
    ],
)
def test_what_has_no_exact_json_stays_in_memory(file, clock, value):
    first, other = make(file, clock), make(file, clock)
    first.add("kept", "{}", "older")
    first.add("kept", "{}", value)
    assert first.read("kept", "{}") == value
    # The older one is wrong by now.
    assert other.read("kept", "{}") is None
    first.add("kept", "{}", "newer")
    assert first.read("kept", "{}") == other.read("kept", "{}") == "newer"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.tuples(inner)
            | st.dictionaries(st.text(max_size=2) | st.integers(), inner, max_size=3)
        ),
    )
)
def test_json_is_exact_or_there_is_none(value):
    import json

    text = exact_json(value)
    assert text is None or repr(json.loads(text)) == repr(value)


def test_times_to_live_count_from_when_a_result_was_added(file, clock):
    make(file, clock, ttl=10).add("kept", "{}", "x")
    clock.now += 9
    assert make(file, clock, ttl=10).read("kept", "{}") == "x"
    clock.now += 2
    assert make(file, clock, ttl=10).read("kept", "{}") is None
    assert make(file, clock).read("kept", "{}") == "x"
    # Room that old ones take is given back when a new one comes.
    make(file, clock, ttl=10).add("kept", '{"n": 1}', "y")
    assert make(file, clock).read("kept", "{}") is None


def test_those_that_were_not_asked_for_longest_go_first(file, clock):
    cache = make(file, clock, most=1000)
    for n in range(5):
        cache.add("kept", f'{{"n": {n}}}', "x" * 180)
        clock.now += 100
    assert cache.read("kept", '{"n": 0}') is not None
    cache.add("kept", '{"n": 9}', "x" * 180)
    there = [n for n in (*range(5), 9) if cache.read("kept", f'{{"n": {n}}}') is not None]
    assert there == [0, 2, 3, 4, 9]
    cache.add("kept", '{"n": 10}', "x" * 2000)
    assert cache.read("kept", '{"n": 10}') is None


def test_all_tools_together_are_bounded(file, clock):
    cache = make(file, clock, max_bytes=1000)
    for n in range(300):
        cache.add(f"kept {n % 3}", f'{{"n": {n}}}', "x" * 100)
        clock.now += 1
    database = Database(file)
    (held,) = database.query("SELECT sum(bytes) AS bytes, count(*) AS count FROM results")
    (weighed,) = database.query("SELECT sum(bytes) AS bytes FROM weights")
    assert held["bytes"] == weighed["bytes"]
    assert 800 < held["bytes"] <= 1000


def test_threads_and_processes_share_it(file, clock):
    caches = [make(file, clock) for _ in range(4)]

    def add(cache, first):
        for n in range(first, 100, 4):
            cache.add("kept", f'{{"n": {n}}}', n)

    threads = [threading.Thread(target=add, args=(cache, n)) for n, cache in enumerate(caches)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    program = (
        "import sys\n"
        "from crewai_native_tools.kept import Store\n"
        "from crewai_native_db import Database\n"
        "store = Store(Database(sys.argv[1]))\n"
        "print([store.get('kept', '{\"n\":%d}' % n, ttl=None) for n in range(100)])\n"
    )
    seen = subprocess.run(
        [sys.executable, "-c", program, file], check=True, capture_output=True, text=True
    )
    assert seen.stdout.strip() == str([str(n) for n in range(100)])


def test_what_became_of_lookups_is_counted(file, clock):
    def count():
        return {
            name: value
            for name, value in plugin.crewai_native_metrics().items()
            if name.startswith("tools.cache.file.")
        }

    before = count()
    cache = make(file, clock, most=300)
    for n in range(3):
        cache.add("kept", f'{{"n": {n}}}', "x" * 100)
        clock.now += 1
    assert [cache.read("kept", f'{{"n": {n}}}') is None for n in range(3)] == [True, False, False]
    assert {name: value - before[name] for name, value in count().items()} == {
        "tools.cache.file.hits": 2,
        "tools.cache.file.misses": 1,
        "tools.cache.file.evictions": 1,
    }


def test_texts_that_are_no_unicode_are_not_found(file, clock):
    cache = make(file, clock)
    cache.add("kept", "\ud800", "x")
    assert cache.read("kept", "\ud800") is None


def test_it_is_there_where_a_setting_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(kept, "_default", Store(Database(tmp_path / "r.db")))
    options = read({"cache_persist": {"Look Up": True}, "cache_ttl": 60})
    result_cache(options).add("look_up", "{}", "x")
    assert result_cache(options).read("Look Up", "{}") == "x"
    assert isinstance(result_cache(Options()), ResultCache)
    assert isinstance(result_cache(read({"cache_persist": False})), ResultCache)


def test_without_the_database_wheel_the_setting_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "crewai_native_db", None)
    with pytest.raises(ConfigurationError, match="cache_persist needs crewai-native-db"):
        result_cache(read({"cache_persist": True}))
