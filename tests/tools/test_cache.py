"""tools.cache: results come back equal, unaliased and in bounds, whatever they are."""

from __future__ import annotations

import collections
import contextlib
import gc
import json
import os
import random
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from pydantic import BaseModel, ConfigDict, PrivateAttr

from crewai_native_tools import ResultCache
from crewai_native_tools._native import totals
from crewai_native_tools.cache import result_cache
from crewai_native_tools.options import Options, PerTool

pytestmark = pytest.mark.matrix


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def make(*, ttl=None, tool_bytes=None, max_bytes=None, clock=None):
    return ResultCache(
        lambda tool: (ttl, tool_bytes), max_bytes=max_bytes, models=BaseModel, clock=clock
    )


def weight_of(key, value):
    """What an entry weighs: asked of a cache that holds nothing else."""
    alone = make()
    alone.add("t", key, value)
    return alone.stats()["bytes"]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([0, 0.0, 1, 1.0, True, "1", "", 10**30, 10**30 + 1]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text('a"\\{:é', max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)
ARGUMENTS = st.dictionaries(st.text("ab", max_size=2), JSON, max_size=4)


def shuffled(value, source):
    if isinstance(value, dict):
        items = [(key, shuffled(item, source)) for key, item in value.items()]
        source.shuffle(items)
        return dict(items)
    return [shuffled(item, source) for item in value] if isinstance(value, list) else value


class TestKeys:
    @given(ARGUMENTS, st.randoms(use_true_random=False), st.booleans(), st.sampled_from([None, 1]))
    def test_the_order_of_arguments_does_not_matter(self, arguments, source, ascii_only, indent):
        cache = make()
        cache.add("t", json.dumps(arguments, ensure_ascii=ascii_only), "found")
        again = json.dumps(shuffled(arguments, source), ensure_ascii=ascii_only, indent=indent)
        assert cache.read("t", again) == "found"

    @settings(max_examples=300)
    @given(ARGUMENTS, ARGUMENTS)
    def test_other_arguments_are_other_calls(self, one, other):
        def exact(value):
            return json.dumps(value, sort_keys=True)  # tells 1, 1.0, true and "1" apart

        cache = make()
        cache.add("t", json.dumps(one), "found")
        assert (cache.read("t", json.dumps(other)) == "found") == (exact(one) == exact(other))

    @given(st.text(max_size=30), st.text(max_size=30))
    def test_any_text_is_a_key_of_its_own(self, one, other):
        cache = make()
        cache.add("t", one, "found")
        assert cache.read("t", one) == "found"
        if not one.startswith("{"):
            assert (cache.read("t", other) == "found") == (one == other)

    def test_tools_do_not_share(self):
        cache = make()
        cache.add("a-b", "c", 1)
        assert cache.read("a", "b-c") is None
        assert cache.read("a-b", "c") == 1

    def test_texts_that_are_no_unicode_are_misses(self):
        cache = make()
        cache.add("t", "\ud800", "x")
        cache.add("\ud800", "{}", "x")
        assert cache.read("t", "\ud800") is cache.read("\ud800", "{}") is None
        assert len(cache) == 0

    @pytest.mark.parametrize("wrong", [None, 1, b"{}", {}])
    def test_what_is_no_text_is_refused(self, wrong):
        with pytest.raises(TypeError, match="'input'"):
            make().read("t", wrong)


class Report(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True, extra="allow")
    title: str
    rows: list[dict] = []
    owner: object = None
    _inner: object = PrivateAttr(None)

    @classmethod
    def of(cls, title, owner, more, inner):
        report = cls(title=title, owner=owner, more=more)
        report._inner = inner
        return report


class List(list):
    """A list with a mind of its own."""


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=4)
        | st.tuples(inner, inner)
        | st.sets(st.integers(), max_size=4)
        | st.frozensets(st.text(max_size=3), max_size=4)
        | st.binary(max_size=4).map(bytearray)
        | st.builds(Report.of, st.text(max_size=3), inner, inner, inner)
    ),
    max_leaves=15,
)


def spoil(value, seen=()):
    """Change everything in a value that can be changed."""
    if id(value) in seen:
        return
    seen = (*seen, id(value))
    if isinstance(value, dict):
        children = list(value.values())
    elif isinstance(value, list | tuple):
        children = list(value)
    elif isinstance(value, BaseModel):
        children = [*vars(value).values(), *value.model_extra.values(), value._inner]
        value.title = "spoilt"
    else:
        children = []
    for child in children:
        spoil(child, seen)
    if isinstance(value, list | bytearray):
        value[:] = value[:0]
    elif isinstance(value, dict | set):
        value.clear()


def types_of(value):
    if isinstance(value, dict):
        return {key: types_of(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value), [types_of(item) for item in value]
    if isinstance(value, BaseModel):
        return type(value), types_of(vars(value)), types_of(value.model_extra)
    return type(value)


class TestResults:
    @settings(max_examples=200)
    @given(PLAIN.filter(lambda value: value is not None))
    def test_they_come_back_equal_and_unaliased(self, value):
        import copy

        expected = copy.deepcopy(value)
        cache = make()
        cache.add("t", "{}", value)
        spoil(value)
        for _ in range(3):
            found = cache.read("t", "{}")
            assert found == expected
            assert types_of(found) == types_of(expected)
            spoil(found)

    def test_none_is_no_result_and_ends_an_older_one(self):
        cache = make()
        cache.add("t", "{}", "old")
        cache.add("t", "{}", None)
        assert cache.read("t", "{}") is None

    def test_what_contains_itself_does_so_in_the_copy(self):
        cache = make()
        loop = [1]
        loop.append((loop, {"loop": loop}))
        cache.add("t", "{}", loop)
        found = cache.read("t", "{}")
        assert found is not loop
        assert found[1][0] is found
        assert found[1][1]["loop"] is found

    def test_what_is_shared_inside_stays_shared_and_is_copied_once(self):
        part = ([],)
        for _ in range(60):
            part = (part, part)
        cache = make()
        cache.add("t", "{}", part)
        found = cache.read("t", "{}")
        assert found[0] is found[1]

    @pytest.mark.parametrize("make_one", [object, lambda: List([1]), threading.Lock, lambda: sys])
    def test_other_objects_come_back_themselves(self, make_one):
        value = make_one()
        cache = make()
        cache.add("t", "{}", value)
        cache.add("t", "inside", {"deep": [value]})
        assert cache.read("t", "{}") is value
        assert cache.read("t", "inside")["deep"][0] is value

    def test_what_is_nested_too_deeply_is_not_kept(self):
        value = []
        for _ in range(100_000):
            value = [value]
        cache = make()
        cache.add("t", "{}", "old")
        cache.add("t", "{}", value)
        assert cache.read("t", "{}") is None
        assert cache.stats()["refusals"] == 1
        while value:
            value = value.pop()

    def test_what_fails_at_being_copied_is_not_kept(self):
        class Stubborn(Report):
            def __copy__(self):
                raise RuntimeError("no copies")

        class Shapeless:
            def __sizeof__(self):
                raise ValueError("no size")

        class Impostor(Report):
            def __copy__(self):
                return {}

        cache = make()
        for value in (Stubborn(title="x"), [Shapeless()], Impostor(title="x")):
            cache.add("t", "{}", value)
            assert cache.read("t", "{}") is None
        assert cache.stats()["refusals"] == 3

    def test_ctrl_c_while_copying_is_raised(self):
        class Interrupted(Report):
            def __copy__(self):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            make().add("t", "{}", Interrupted(title="x"))

    def test_code_of_results_may_use_the_cache(self):
        cache = make(max_bytes=weight_of("{}", "x" * 2000))
        seen = []

        class Key:
            def __hash__(self):
                return 1

            def __eq__(self, other):
                seen.append(cache.read("t", "nothing"))
                return self is other

        class Last:
            def __del__(self):
                cache.add("t", "from the destructor", "x")
                seen.append(len(cache))

        cache.add("t", "1", {Key(): [1], Key(): [2]})
        assert len(cache.read("t", "1")) == 2
        cache.add("t", "2", Last())
        cache.add("t", "{}", "x" * 2000)
        cache.clear()
        gc.collect()
        assert seen


class Bounded(RuleBasedStateMachine):
    """Against a list of entries in the order of their use."""

    keys = st.sampled_from(["a", "b", "c", "d", "e"])
    tools = st.sampled_from(["t", "u"])

    @initialize(
        ttl=st.none() | st.sampled_from([1.0, 5.0]),
        own=st.none() | st.integers(200, 2500),
        common=st.none() | st.integers(200, 3500),
    )
    def start(self, ttl, own, common):
        self.ttl, self.own, self.common = ttl, own, common
        self.clock = Clock()
        self.cache = make(ttl=ttl, tool_bytes=own, max_bytes=common, clock=self.clock)
        self.kept = collections.OrderedDict()  # least recently used first
        self.expected = dict.fromkeys(["hits", "misses", "evictions", "expirations", "refusals"], 0)

    def weight(self, tool=None):
        return sum(e[1] for (t, _), e in self.kept.items() if tool in {None, t})

    def expire(self, only=None):
        for key, (_, _, added) in list(self.kept.items()):
            if self.ttl is not None and self.clock.now - added >= self.ttl and only in {None, key}:
                del self.kept[key]
                self.expected["expirations"] += 1

    @rule(tool=tools, key=keys, size=st.integers(0, 1500))
    def add(self, tool, key, size):
        value = "x" * size
        weight = weight_of(key, value)
        self.cache.add(tool, key, value)
        self.kept.pop((tool, key), None)
        self.expire()
        if any(bound is not None and weight > bound for bound in (self.own, self.common)):
            self.expected["refusals"] += 1
            return
        for bound, owner in ((self.own, tool), (self.common, None)):
            while bound is not None and self.weight(owner) + weight > bound:
                oldest = next(k for k in self.kept if owner in {None, k[0]})
                del self.kept[oldest]
                self.expected["evictions"] += 1
        self.kept[tool, key] = (value, weight, self.clock.now)

    @rule(tool=tools, key=keys)
    def read(self, tool, key):
        self.expire((tool, key))
        entry = self.kept.get((tool, key))
        assert self.cache.read(tool, key) == (entry and entry[0])
        if entry is None:
            self.expected["misses"] += 1
        else:
            self.kept.move_to_end((tool, key))
            self.expected["hits"] += 1

    @rule(seconds=st.sampled_from([0.5, 1.0, 4.0]))
    def wait(self, seconds):
        self.clock.now += seconds

    @rule()
    def clear(self):
        self.cache.clear()
        self.kept.clear()

    @invariant()
    def counts_agree(self):
        if hasattr(self, "cache"):
            stats = self.cache.stats()
            assert stats["entries"] == len(self.cache) == len(self.kept)
            assert stats["bytes"] == self.weight()
            assert {name: stats[name] for name in self.expected} == self.expected


TestBounded = Bounded.TestCase
TestBounded.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_very_many_stay_within_the_weight_given():
    limit = 5_000_000
    cache = make(max_bytes=limit)
    for number in range(50_000):
        cache.add("t", f'{{"n": {number}}}', "result")
    stats = cache.stats()
    assert stats["bytes"] <= limit
    assert stats["entries"] + stats["evictions"] == 50_000
    assert cache.read("t", '{"n": 49999}') == "result"
    assert cache.read("t", '{"n": 0}') is None


def test_threads_get_what_was_added_for_their_key():
    cache = make(max_bytes=50_000)
    start = threading.Barrier(8)

    def work(seed):
        source = random.Random(seed)
        start.wait()
        for _ in range(2000):
            key = str(source.randrange(300))
            found = cache.read("t", key)
            assert found is None or found == [key, {"of": key}]
            cache.add("t", key, [key, {"of": key}])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    stats = cache.stats()
    assert stats["hits"] + stats["misses"] == 16_000
    assert 0 < stats["bytes"] <= 50_000


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_amid_use_leaves_both_sides_whole():
    cache = make(max_bytes=50_000)
    stop = threading.Event()

    def work():
        while not stop.is_set():
            cache.add("t", str(random.randrange(300)), ["x"])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            child = os.fork()
            if child == 0:
                status = 1
                with contextlib.suppress(BaseException):
                    cache.add("t", "child", "here")
                    status = 0 if cache.read("t", "child") == "here" else 2
                os._exit(status)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert cache.read("t", "child") is None


def test_a_result_that_refers_to_the_cache_keeps_neither_alive():
    class Result:
        pass

    cache, result = make(), Result()
    result.cache = cache
    cache.add("t", "{}", result)
    gone = weakref.ref(cache), weakref.ref(result)
    del cache, result
    gc.collect()
    assert [reference() for reference in gone] == [None, None]


def test_totals_are_the_sums_over_all_caches():
    before = totals()
    one, other = make(), make()
    one.add("t", "{}", "x")
    other.add("t", "{}", "y")
    one.read("t", "{}")
    other.read("t", "none")
    change = {name: count - before[name] for name, count in totals().items()}
    assert (change["hits"], change["misses"], change["entries"]) == (1, 1, 2)
    assert change["bytes"] == one.stats()["bytes"] + other.stats()["bytes"]
    del one, other
    change = {name: count - before[name] for name, count in totals().items()}
    assert (change["hits"], change["entries"], change["bytes"]) == (1, 0, 0)


def test_a_tools_policy_is_found_in_any_spelling():
    options = Options(
        cache_tool_max_bytes=PerTool(10_000, {"Search The Web": 500}),
        cache_max_bytes=20_000,
    )
    cache = result_cache(options)
    for tool in ("search_the_web", "Search The Web", "other"):
        cache.add(tool, "{}", "x" * 1000)
    assert cache.read("search_the_web", "{}") is cache.read("Search The Web", "{}") is None
    assert cache.read("other", "{}") == "x" * 1000
    assert cache.stats()["refusals"] == 2
