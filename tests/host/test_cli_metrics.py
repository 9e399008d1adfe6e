"""What the metrics say: counts and quantiles against known durations, and their export."""

from __future__ import annotations

import asyncio
import math
import threading
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from crewai_native import _otel, _record, _watch
from crewai_native._watch import Watch

# A bucket is a quarter of a power of two wide: its middle is off by half of that at most.
CLOSE = 0.126


class Clock:
    """A clock in nanoseconds that the metered function moves itself."""

    def __init__(self):
        self.now = 10**9

    def perf_counter_ns(self):
        return self.now


def metered(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(
        _watch, "time", types.SimpleNamespace(perf_counter_ns=clock.perf_counter_ns)
    )
    watch = Watch("memory.storage")

    def work(nanoseconds):
        clock.now += nanoseconds

    return watch, watch.meter(work), clock


@given(durations=st.lists(st.integers(4, 10**13), min_size=1, max_size=200))
def test_quantiles_are_the_nearest_rank_of_the_known_durations(durations):
    with pytest.MonkeyPatch.context() as monkeypatch:
        watch, work, _ = metered(monkeypatch)
        for duration in durations:
            work(duration)
        found = watch.metrics()
    assert found.calls == len(durations)
    for share, value in ((0.5, found.p50), (0.99, found.p99)):
        known = sorted(durations)[math.ceil(share * len(durations)) - 1] * 1e-9
        assert value == pytest.approx(known, rel=CLOSE)


def test_a_hundred_calls_with_two_slow_ones(monkeypatch):
    watch, work, _ = metered(monkeypatch)
    for duration in [1_000_000] * 98 + [1_000_000_000] * 2:
        work(duration)
    found = watch.metrics()
    assert found.p50 == pytest.approx(1e-3, rel=CLOSE)
    assert found.p99 == pytest.approx(1.0, rel=CLOSE)


def test_a_coroutine_is_timed_until_it_ends(monkeypatch):
    watch, _, clock = metered(monkeypatch)

    async def work():
        clock.now += 400
        await asyncio.sleep(0)
        clock.now += 600
        return 7

    assert asyncio.run(watch.meter(work)()) == 7
    assert watch.metrics().p50 == pytest.approx(1e-6, rel=CLOSE)


def test_errors_are_counted_and_timed_as_calls_are(monkeypatch):
    watch, _, clock = metered(monkeypatch)

    def fail():
        clock.now += 1_000
        raise KeyError("x")

    fail = watch.meter(fail)
    for _ in range(3):
        with pytest.raises(KeyError):
            fail()
    found = watch.metrics()
    assert (found.calls, found.errors, found.fallbacks) == (3, 3, 0)
    assert found.p99 == pytest.approx(1e-6, rel=CLOSE)


def test_before_the_first_call_there_are_no_quantiles():
    found = Watch("locks").metrics()
    assert found.calls == 0
    assert math.isnan(found.p50)
    assert math.isnan(found.p99)


def test_no_call_of_any_thread_is_lost():
    watch = Watch("locks")
    work = watch.meter(lambda: None)
    start = threading.Barrier(8)

    def loop():
        start.wait()
        for _ in range(1_000):
            work()

    for _ in range(3):
        threads = [threading.Thread(target=loop) for _ in range(8)]
        for thread in threads:
            thread.start()
        watch.metrics()  # while they run
        for thread in threads:
            thread.join()
    assert watch.metrics().calls == 24_000


class FakeHost:
    def __init__(self, *watches, plugins=()):
        self._watches = watches
        self._plugins = plugins

    def metrics(self):
        return [watch.metrics() for watch in self._watches]

    def plugins(self):
        return list(self._plugins)


def test_opentelemetry_gets_what_the_slots_did(monkeypatch):
    monkeypatch.delenv("OTEL_SDK_DISABLED", raising=False)
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    monkeypatch.setattr("opentelemetry.metrics.get_meter", provider.get_meter)
    watch, work, _ = metered(monkeypatch)
    idle = Watch("locks")
    host = FakeHost(watch, idle)
    _otel.export(host)
    _otel.export(host)  # again at the next activation: no second set of instruments
    for duration in [1_000_000] * 98 + [1_000_000_000] * 2:
        work(duration)
    data = reader.get_metrics_data()
    provider.shutdown()
    [resource] = data.resource_metrics
    [scope] = resource.scope_metrics
    assert scope.scope.name == "crewai_native"
    found = {
        (metric.name, point.attributes["crewai_native.slot"]): (point.value, metric.unit)
        for metric in scope.metrics
        for point in metric.data.data_points
    }
    assert found[("crewai_native.slot.calls", "memory.storage")] == (100, "{call}")
    assert found[("crewai_native.slot.errors", "memory.storage")] == (0, "{call}")
    assert found[("crewai_native.slot.calls", "locks")] == (0, "{call}")
    median, unit = found[("crewai_native.slot.duration.p50", "memory.storage")]
    assert (median, unit) == (pytest.approx(1e-3, rel=CLOSE), "s")
    # A slot that was not called has no latency, rather than one that is not a number.
    assert ("crewai_native.slot.duration.p50", "locks") not in found


def test_a_snapshot_is_json_whatever_a_plugin_says():
    def plugin(name, call):
        return types.SimpleNamespace(distribution=name, call=call)

    def fail(*_):
        raise RuntimeError("broken")

    host = FakeHost(
        Watch("locks"),
        plugins=[
            plugin("acme-good", lambda *_: {"hits": 3}),
            plugin("acme-bad", fail),
            plugin("acme-odd", lambda *_: {"hits": "many"}),
        ],
    )
    found = _record.snapshot(host)
    assert found["slots"] == [
        {"slot": "locks", "calls": 0, "errors": 0, "fallbacks": 0, "p50": None, "p99": None}
    ]
    assert found["plugins"]["acme-good"] == {"hits": 3.0}
    assert found["plugins"]["acme-bad"] == {"error": "RuntimeError: broken"}
    assert "many" in found["plugins"]["acme-odd"]["error"]
