"""The benchmark's cases: every side does the same and gives the same. Nothing is timed here."""

from __future__ import annotations

import contextlib

import pytest

from crewai_native.bench import Measured, Unavailable
from crewai_native_memory import benchmarks, plugin

CASES = list(benchmarks.cases({"bench_records": "60", "bench_dimensions": "8"}))


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_all_sides_give_the_same(case):
    results = {}
    for side in case.sides:
        with contextlib.suppress(Unavailable):
            run = case.setup(side)
            for _ in range(1 if case.fresh else 3):
                result = run()
            result = result.result if isinstance(result, Measured) else result
            results[side] = case.observe(result) if case.observe else result
    assert {"stock", "native"} <= set(results)
    assert case.check(results) is None


def test_sizes_are_chosen_by_options():
    plugin.crewai_native_configure(
        options={"bench_records": "1k,2k", "bench_dimensions": [4], "bench_data": "uniform"}
    )
    try:
        found = {case.id for case in plugin.crewai_native_benchmarks()}
    finally:
        plugin.crewai_native_configure(options={})
    assert len(found) == 2 * len(CASES)
    assert "memory.search[data=uniform,dim=4,n=2000]" in found


@pytest.mark.parametrize(
    ("option", "value"),
    [("bench_records", "many"), ("bench_records", "0"), ("bench_data", "real")],
)
def test_sizes_that_mean_nothing_are_named(option, value):
    with pytest.raises(ValueError, match=f"memory.{option} accepts"):
        list(benchmarks.cases({option: value}))


def test_vectors_have_unit_length():
    import numpy as np

    for data in ("clustered", "topics", "uniform"):
        records, queries = benchmarks.Corpus(100, 16, data).vectors()
        assert records.shape == (100, 16)
        assert queries.shape == (64, 16)
        assert np.allclose(np.linalg.norm(records, axis=1), 1, atol=1e-5)
