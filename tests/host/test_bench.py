"""The parts of the benchmark framework: cases, statistics, reports, charts."""

from __future__ import annotations

import contextlib
import math
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from crewai_native import ConfigurationError, _numbers
from crewai_native.bench import Case, Measured, Unavailable, _chart, _results, _stats, _worker
from crewai_native.bench._results import Comparison, Outcome, Report, Result, Subject, Timing
from crewai_native.bench._runner import Bench
from crewai_native.bench._stats import Estimate
from crewai_native.cli import _bench


def case(**changes):
    fields = {"name": "a", "group": "g", "description": "d", "setup": lambda side: lambda: side}
    return Case(**{**fields, **changes})


# --- cases ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "With Spaces"),
        ("group", "x[y]"),
        ("sides", ()),
        ("sides", ("stock", "stock")),
        ("isolated", frozenset({"rival"})),
        ("share", 1.5),
        ("share", float("nan")),
        ("target", 0),
        ("limit", -1.0),
        ("limit", float("nan")),
        ("timeout", 0),
        ("unit", "ms"),
    ],
)
def test_a_case_that_means_nothing_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field if field != "sides" else "sides"):
        case(**{field: value})


def test_the_name_in_full_holds_the_parameters_in_order():
    assert case(parameters={"n": 10, "dim": 3}).id == "g.a[dim=3,n=10]"
    assert case().id == "g.a"


# --- statistics -----------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=60))
def test_the_interval_holds_the_median_and_lies_within_the_range(values):
    found = _stats.median(values)
    assert min(values) <= found.low <= found.value <= found.high <= max(values)


@pytest.mark.parametrize("count", [*range(6, 40), 100, 300])
def test_the_interval_covers_the_median_with_95_percent_and_no_wider_than_needed(count):
    found = _stats.median(list(range(count)))
    left_out = int(found.low)
    assert found.high == count - 1 - left_out

    def coverage(left_out):
        return 1 - 2 * sum(math.comb(count, k) for k in range(left_out + 1)) / 2**count

    assert coverage(left_out) >= 0.95
    assert coverage(left_out + 1) < 0.95


def test_too_few_values_give_their_range():
    assert _stats.median([3.0, 1.0, 2.0]) == Estimate(2.0, 1.0, 3.0)
    assert _stats.median([3.0]) == Estimate(3.0, 3.0, 3.0)


def test_quartiles():
    assert _stats.quartiles([5.0]) == (5.0, 5.0, 5.0)
    assert _stats.quartiles([4.0, 1.0, 3.0, 2.0, 5.0]) == (2.0, 3.0, 4.0)


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "0"), (1.2345, "1.23"), (999.9, "1000"), (123456.0, "123000"), (-0.01234, "-0.0123")],
)
def test_numbers_are_short_and_without_exponents(value, said):
    assert _numbers.digits(value) == said


@pytest.mark.parametrize(
    ("value", "unit", "said"),
    [
        (0.0123, "s", "12.3 ms"),
        (12.3, "s", "12.3 s"),
        (1e-10, "s", "0.1 ns"),
        (0, "s", "0 ns"),
        (1_220_000, "B", "1.22 MB"),
        (-2e9, "B", "-2 GB"),
        (12, "B", "12 B"),
        (1.0712, "x", "1.07x"),
        (0.5, "x", "0.5x"),
    ],
)
def test_amounts_have_a_unit_that_fits(value, unit, said):
    assert _numbers.amount(value, unit) == said


def test_what_is_no_time_is_shown_in_its_own_unit():
    timing = Timing("native", 1.0712, 1.05, 1.09, 1, [1.0712])
    assert _bench._spread(timing, "x") == "1.07 ± 0.02x"
    timing = Timing("native", 1_220_000, 1_200_000, 1_240_000, 1, [1_220_000])
    assert _bench._spread(timing, "B") == "1.22 ± 0.02 MB"


# --- the worker -----------------------------------------------------------------------------------


@pytest.fixture
def worker(monkeypatch):
    def worker(*cases):
        monkeypatch.setattr(_worker, "_cases", lambda plugin: iter(cases))
        return _worker.Worker("acme.plugin")

    return worker


def test_a_plain_callable_and_a_context_manager_are_set_up_alike(worker):
    events = []

    @contextlib.contextmanager
    def managed(side):
        events.append(f"enter {side}")
        yield lambda: events.append("run")
        events.append(f"exit {side}")

    found = worker(case(setup=managed))
    found.answer({"op": "open", "case": "g.a", "side": "native"})
    assert events == ["enter native", "run"]
    assert found.answer({"op": "time", "case": "g.a", "side": "native", "loops": 3})["value"] > 0
    assert events == ["enter native", *["run"] * 4]
    found.answer({"op": "close"})
    assert events[-1] == "exit native"


def test_fresh_work_is_set_up_for_every_run(worker):
    alive = []

    @contextlib.contextmanager
    def managed(side):
        alive.append(side)
        used = []

        def run():
            assert not used, "a second run on one set-up"
            used.append(True)

        yield run
        alive.remove(side)

    found = worker(case(setup=managed, fresh=True))
    found.answer({"op": "open", "case": "g.a", "side": "native"})
    assert found.answer({"op": "calibrate", "case": "g.a", "side": "native"}) == {"loops": 1}
    for _ in range(3):
        found.answer({"op": "time", "case": "g.a", "side": "native", "loops": 1})
        assert alive == []


def test_a_quick_function_runs_many_times_a_batch(worker):
    found = worker(case(setup=lambda side: lambda: None))
    found.answer({"op": "open", "case": "g.a", "side": "native"})
    loops = found.answer({"op": "calibrate", "case": "g.a", "side": "native"})["loops"]
    assert loops >= 10_000


def test_a_run_that_times_itself_is_believed_and_runs_once_a_round(worker):
    found = worker(case(setup=lambda side: lambda: Measured(2.5, result=[side]), check=None))
    assert found.answer({"op": "open", "case": "g.a", "side": "x"}) == {"result": None}
    assert found.answer({"op": "calibrate", "case": "g.a", "side": "x"}) == {"loops": 1}
    timed = found.answer({"op": "time", "case": "g.a", "side": "x", "loops": 1})
    assert timed == {"value": 2.5}


def test_what_is_compared_is_what_a_self_timed_run_says_it_found(worker):
    found = worker(case(setup=lambda side: lambda: Measured(2.5, result=[side])))
    assert found.answer({"op": "open", "case": "g.a", "side": "x"}) == {"result": ["x"]}


def test_results_are_observed_before_they_are_compared(worker):
    found = worker(
        case(setup=lambda side: lambda: {1, 2}, observe=sorted),
        case(name="b", setup=lambda side: lambda: {1, 2}),
    )
    assert found.answer({"op": "open", "case": "g.a", "side": "x"}) == {"result": [1, 2]}
    with pytest.raises(TypeError, match="set observe"):
        found.answer({"op": "open", "case": "g.b", "side": "x"})


def test_a_side_that_cannot_run_here_says_what_it_needs(worker):
    def setup(side):
        raise Unavailable("pip install rival")

    found = worker(case(setup=setup))
    answer = found.answer({"op": "open", "case": "g.a", "side": "x"})
    assert answer == {"unavailable": "pip install rival"}


def test_a_setup_that_gives_nothing_to_run_is_told_what_it_may_give(worker):
    found = worker(case(setup=lambda side: 42))
    with pytest.raises(TypeError, match=r"setup\('x'\) gave 'int'; it accepts a callable"):
        found.answer({"op": "open", "case": "g.a", "side": "x"})


# --- choosing -------------------------------------------------------------------------------------


def subject(name="memory.search[n=10]", **changes):
    group, _, _ = name.partition(".")
    fields = {
        "id": name,
        "plugin": "acme.plugin",
        "group": group,
        "slot": f"{group}.storage",
        "description": "what it does",
        "parameters": {},
        "sides": ["stock", "native"],
        "isolated": [],
        "fresh": False,
        "compared": True,
        "share": None,
        "target": None,
        "limit": None,
        "unit": "s",
        "timeout": 1.0,
    }
    return Subject(**{**fields, **changes})


@pytest.fixture
def bench():
    found = Bench.__new__(Bench)
    found.report = Report({"builds": {}})
    found.subjects = [
        subject("memory.search[n=10]", sides=["stock", "native", "rival"], target=5.0),
        subject("memory.search[n=20]"),
        subject("memory.save"),
        subject("host.import", slot="", sides=["bare", "native"], limit=1.0),
    ]
    return found


@pytest.mark.parametrize(
    ("patterns", "chosen"),
    [
        ([], [0, 1, 2, 3]),
        (["memory"], [0, 1, 2]),
        (["memory.storage"], [0, 1, 2]),
        (["memory.search"], [0, 1]),
        (["memory.search[n=20]"], [1]),
        (["*.s*"], [0, 1, 2]),
        (["memory.search[n=?0]"], [0, 1]),
        (["host", "memory.save", "host.import"], [3, 2]),
    ],
)
def test_cases_are_chosen_by_group_slot_or_pattern(bench, patterns, chosen):
    assert bench.select(patterns) == [bench.subjects[index] for index in chosen]


def test_a_pattern_that_fits_nothing_names_the_groups(bench):
    with pytest.raises(ConfigurationError, match=r"'memori'.*host, memory"):
        bench.select(["memory", "memori"])


def test_two_sides_can_be_compared_alone(bench):
    [only] = bench.select([], ["native", "rival"])
    assert (only.sides, only.target) == (["native", "rival"], None)
    kept = bench.select(["memory"], ["stock", "native"])
    assert [found.target for found in kept] == [5.0, None, None]
    with pytest.raises(ConfigurationError, match=r"--compare: .*bare, native, rival, stock"):
        bench.select([], ["stock", "lancedb"])


# --- reports and charts ---------------------------------------------------------------------------


def report(*ratios):
    found = Report(
        {
            "crewai_native": "0.1.0",
            "crewai": "1.15.30",
            "python": "3.11",
            "machine": "x86_64",
            "cpus": 2,
            "builds": {},
        }
    )
    for index, (low, value, high) in enumerate(ratios):
        found.results.append(
            Result(
                subject(f"memory.case{index}", target=2.0, share=0.1),
                timings=[
                    Timing("stock", value, value * 0.9, value * 1.2, 1, [value]),
                    Timing("native", 1.0, 0.9, 1.2, 1, [1.0]),
                ],
                comparisons=[
                    Comparison(
                        "native",
                        "stock",
                        Estimate(value, low, high),
                        Estimate(1 - value, 1 - high, 1 - low),
                    )
                ],
                reached=value >= 2.0,
            )
        )
    return found


def test_a_report_read_back_has_the_same_ratios(tmp_path):
    path = tmp_path / "report.json"
    found = report((1.5, 2.0, 2.5), (0.8, 0.9, 1.0))
    path.write_text(found.dumps())
    assert _results.ratios(path) == {
        "memory.case0": found.results[0].comparisons[0],
        "memory.case1": found.results[1].comparisons[0],
    }


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"schema": 1}', '{"schema": 99}'])
def test_what_is_no_report_is_named(tmp_path, text):
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=r"report\.json"):
        _results.ratios(path)


def printed(table, width=100):
    console = Console(width=width, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_ratios_of_two_runs_are_compared_by_their_intervals(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    before.write_text(report((1.9, 2.0, 2.1), (4.0, 5.0, 6.0), (1, 1, 1)).dumps())
    after.write_text(report((2.9, 3.0, 3.1), (3.5, 4.5, 5.5)).dumps())
    options = {"list_only": False, "seconds": 1.0, "to_json": None, "chart": None}
    assert _bench.bench([], compare=(str(before), str(after)), **options) == 0
    said = capsys.readouterr().out
    assert "+50.0%" in said
    assert "-10.0% (within the intervals)" in said
    assert "only in one" in said


def test_the_table_says_what_was_reached_missed_failed_and_left_out():
    found = report((1.5, 2.0, 2.5), (0.8, 0.9, 1.0))
    found.results.append(Result(subject("memory.bad"), Outcome.FAILED, "the results differ: x"))
    found.results[0].unavailable["rival"] = "pip install rival"
    found.results[1].subject = subject("memory.case1", compared=False, target=2.0)
    said = printed(_bench._table("memory", found.results))
    for text in (
        *("2x", "[1.5, 2.5]", "≥ 2x", "reached", "missed", "0.9x", "10% of a run"),
        *("no rival: pip install rival", "results not compared", "failed: the results differ: x"),
    ):
        assert text in said, text


def test_a_cost_is_shown_as_a_difference():
    found = report((0.5, 0.5, 0.5))
    found.results[0].subject = subject("host.import", sides=["stock", "native"], limit=0.6)
    found.results[0].reached = True
    said = printed(_bench._table("host", found.results))
    assert "+500 ms" in said
    assert "≤ 600 ms" in said


def texts(svg):
    root = ET.fromstring(svg)
    return root, [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]


def test_the_chart_is_svg_with_a_bar_for_each_ratio():
    found = report((1.5, 2.0, 2.5), (0.8, 0.9, 1.0), (900.0, 1000.0, 1100.0))
    found.results[0].subject = subject('memory.<&>[x="y"]', target=2.0)
    root, said = texts(_chart.svg(found))
    bars = [e for e in root.iter("{http://www.w3.org/2000/svg}rect") if e.get("rx")]
    assert len(bars) == 3
    assert 'memory.<&>[x="y"]: native / stock' in said
    assert "2x [1.5, 2.5]" in said
    widths = [float(bar.get("width")) for bar in bars]
    assert widths[2] > widths[0] > widths[1] > 0
    width = float(root.get("width"))
    assert all(
        float(b.get("x")) >= 0 and float(b.get("x")) + w <= width
        for b, w in zip(bars, widths, strict=True)
    )


def test_a_chart_without_ratios_says_so():
    empty = report()
    costs = report((1, 2, 3))
    costs.results[0].subject = subject("host.import", limit=1.0)
    for found in (empty, costs):
        assert "no ratios were measured" in texts(_chart.svg(found))[1]


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=5))
def test_a_chart_holds_ratios_of_any_size(values):
    _, said = texts(_chart.svg(report(*((v * 0.9, v, v * 1.1) for v in values))))
    assert any(text.startswith(f"{_numbers.digits(values[0])}x") for text in said)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_no_run_measures_what_makes_no_ratio(value):
    with pytest.raises(ValueError, match="the Measured value is"):
        Measured(value)
