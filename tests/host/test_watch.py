"""Counting, falling back, comparing and giving up."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import threading

import pytest

from crewai_native import _watch
from crewai_native._watch import FAILURES_BEFORE_REVERTING, Watch


class PanicException(BaseException):
    """As PyO3 derives its own."""


@pytest.fixture
def watch():
    return Watch("test")


class TestMeter:
    def test_calls_and_errors_are_counted(self, watch):
        @watch.meter
        def divide(a, b):
            """Divide."""
            return a / b

        assert divide(1, b=2) == 0.5
        with pytest.raises(ZeroDivisionError):
            divide(1, 0)
        metrics = watch.metrics()
        assert (metrics.slot, metrics.calls, metrics.errors, metrics.fallbacks) == ("test", 2, 1, 0)
        assert divide.__doc__ == "Divide."

    def test_coroutine_functions_stay_such(self, watch):
        @watch.meter
        async def wait(fail):
            await asyncio.sleep(0)
            if fail:
                raise KeyError
            return 1

        assert asyncio.run(wait(False)) == 1
        with pytest.raises(KeyError):
            asyncio.run(wait(True))
        assert (watch.metrics().calls, watch.metrics().errors) == (2, 1)

    def test_without_calls_there_is_no_duration(self, watch):
        assert math.isnan(watch.metrics().p50)
        assert math.isnan(watch.metrics().p99)

    @pytest.mark.parametrize("exponent", range(3, 12))
    def test_quantiles_are_right_to_an_eighth(self, exponent, monkeypatch):
        durations = [10**exponent] * 98 + [10 ** (exponent + 1)] * 2
        readings = iter([reading for duration in durations for reading in (0, duration)])
        monkeypatch.setattr(_watch.time, "perf_counter_ns", lambda: next(readings))
        watch = Watch("test")
        function = watch.meter(lambda: None)
        for _ in durations:
            function()
        metrics = watch.metrics()
        assert metrics.p50 == pytest.approx(10**exponent * 1e-9, rel=0.125)
        assert metrics.p99 == pytest.approx(10 ** (exponent + 1) * 1e-9, rel=0.125)

    def test_a_call_that_took_no_time_at_all_counts(self, watch, monkeypatch):
        monkeypatch.setattr(_watch.time, "perf_counter_ns", lambda: 0)
        function = Watch.meter(watch, lambda: None)
        function()
        assert watch.metrics().calls == 1
        assert watch.metrics().p50 < 1e-8

    def test_threads_that_have_ended_still_count(self, watch):
        function = watch.meter(lambda: None)

        def work():
            for _ in range(100):
                function()

        for _ in range(3):
            threads = [threading.Thread(target=work) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            gc.collect()
        assert watch.metrics().calls == 2400
        assert watch.metrics().calls == 2400  # asking does not change it

    def test_asking_while_others_count(self, watch):
        function = watch.meter(lambda: None)
        seen = []
        stop = threading.Event()

        def ask():
            while not stop.is_set():
                seen.append(watch.metrics().calls)

        asking = threading.Thread(target=ask)
        asking.start()
        threads = [
            threading.Thread(target=lambda: [function() for _ in range(500)]) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stop.set()
        asking.join()
        assert watch.metrics().calls == 4000
        assert max(seen) <= 4000


class TestGuard:
    def test_stock_answers_what_native_fails_at(self, watch, caplog):
        def native(value):
            raise RuntimeError("native is at a loss")

        guarded = watch.guard(native, lambda value: value * 2)
        assert guarded(21) == 42
        metrics = watch.metrics()
        assert (metrics.calls, metrics.errors, metrics.fallbacks) == (1, 1, 1)
        assert "native is at a loss" in caplog.text

    def test_so_it_does_after_a_panic(self, watch):
        def native():
            raise PanicException("index out of bounds")

        assert watch.guard(native, lambda: "stock")() == "stock"

    @pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
    def test_what_concerns_the_whole_program_passes(self, watch, error):
        def native():
            raise error

        with pytest.raises(error):
            watch.guard(native, lambda: "stock")()

    def test_where_stock_fails_too_the_error_is_its_own(self, watch):
        def native():
            raise RuntimeError

        def stock():
            raise KeyError("the user's mistake")

        guarded = watch.guard(native, stock)
        for _ in range(2 * FAILURES_BEFORE_REVERTING):
            with pytest.raises(KeyError):
                guarded()
        assert watch.reverted is None

    def test_failures_in_a_row_revert_the_slot(self, watch, caplog):
        good = False
        calls = []

        def native():
            calls.append(1)
            if not good:
                raise RuntimeError("broken")
            return "native"

        guarded = watch.guard(native, lambda: "stock")
        for _ in range(FAILURES_BEFORE_REVERTING - 1):
            assert guarded() == "stock"
        good = True
        assert guarded() == "native"  # which ends the row
        good = False
        for _ in range(FAILURES_BEFORE_REVERTING + 3):
            assert guarded() == "stock"
        assert watch.reverted == "5 failures in a row, the last: RuntimeError('broken')"
        assert len(calls) == 2 * FAILURES_BEFORE_REVERTING
        assert "test is CrewAI's own again" in caplog.text

    def test_verify_mode_reverts_on_a_difference_and_says_which(self, caplog):
        watch = Watch("test", verify=1.0)
        guarded = watch.guard(lambda n: n if n < 3 else -n, lambda n: n)
        with caplog.at_level(logging.ERROR):
            assert [guarded(n) for n in range(5)] == [0, 1, 2, 3, 4]
        assert watch.reverted == "its result differs from CrewAI's: -3 is not 3"
        assert "-3 is not 3" in caplog.text

    def test_verify_mode_compares_about_its_share(self):
        compared = []
        watch = Watch("test", verify=0.1)
        guarded = watch.guard(lambda: 1, lambda: compared.append(1) or 1)
        for _ in range(2000):
            guarded()
        assert 100 <= len(compared) <= 320

    def test_once_it_is_closed_stock_answers(self, watch):
        guarded = watch.guard(lambda: "native", lambda: "stock")
        assert guarded() == "native"
        watch.close()
        assert guarded() == "stock"
        assert watch.reverted is None
