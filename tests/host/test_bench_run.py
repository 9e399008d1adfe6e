"""A whole benchmark run, in real processes, with cases that do everything wrong that cases can."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from crewai_native import _discovery
from crewai_native.testing.distributions import Site

PLUGIN = """
import contextlib, os, subprocess, tempfile, threading
from crewai_native import hookimpl
from crewai_native.bench import Case, Measured, Unavailable

__build_info__ = {"version": "1.0", "profile": "debug"}

@hookimpl
def crewai_native_memory_storage(spec):
    return None

def sleepy(side):
    # What it says to take, not what it takes: the test knows the answer, whatever the machine does.
    return lambda: Measured({"stock": 0.030, "native": 0.010, "rival": 0.020}[side], [1, 2])

def where(side):
    return lambda: os.getpid()

def apart(results):
    return None if len(set(results.values())) == 2 else f"processes {results}"

def differing(side):
    return lambda: side

def noisy(side):
    def run():
        print('{"value": 0}')
        os.write(1, b"not an answer\\n")
        return 1
    return run

def raising(side):
    if side == "native":
        raise ValueError("no\\n such index")
    return lambda: 1

def aborting(side):
    if side == "stock":
        return lambda: 1
    return os.abort

def hanging(side):
    if side == "stock":
        return lambda: 1
    started = subprocess.Popen(["sleep", "1000"])
    with open(os.environ["ACME_PIDS"], "w") as file:
        file.write(f"{os.getpid()} {started.pid}")
    return threading.Event().wait

def late(side):
    calls = []
    def run():
        calls.append(1)
        if side == "native" and len(calls) > 5:
            raise RuntimeError("after a while")
        return Measured(0.001, 1)
    return run

def rivals(side):
    if side == "rival":
        raise Unavailable("pip install rival")
    return sleepy(side)

def approximate(side):
    return lambda: Measured(0.001, [1, 3] if side == "rival" else [1, 2])

def lonely(side):
    raise Unavailable(f"no {side} here")

@contextlib.contextmanager
def cleaned(side):
    mark = os.environ["ACME_MARK"] + side
    open(mark, "w").close()
    open(os.path.join(tempfile.mkdtemp(prefix="acme-"), "left"), "w").close()
    yield lambda: Measured(0.001, 1)
    os.unlink(mark)

def case(name, setup, **more):
    return Case(name=name, group="acme", slot="memory.storage", description=name, setup=setup, **more)

@hookimpl
def crewai_native_benchmarks():
    three = ("stock", "native", "rival")
    yield case("sleepy", sleepy, sides=three, target=2.5, share=0.2, parameters={"n": 3})
    yield case("missed", sleepy, target=3.5)
    yield case("cost", sleepy, sides=("native", "stock"), limit=0.025)
    yield case("alone", sleepy, sides=("native",), limit=0.005)
    yield case("isolated", where, sides=three, isolated=frozenset({"rival"}), check=apart)
    yield case("differing", differing)
    yield case("wrong", sleepy, sides=("native",), check=lambda results: "no such result")
    yield case("noisy", noisy)
    yield case("raising", raising)
    yield case("aborting", aborting)
    yield case("hanging", hanging, timeout=1.0)
    yield case("late", late)
    yield case("rivals", rivals, sides=three)
    yield case("approximate", approximate, sides=three)
    yield case("mistaken", differing, sides=three)
    yield case("lonely", lonely)
    yield case("cleaned", cleaned)
    yield case("last", sleepy)
"""

BAD = {
    "acme-no-case": "return [42]",
    "acme-twice": "return [case('a'), case('a')]",
    "acme-raising": "raise RuntimeError('acme cannot')",
    "acme-refused": "return [Case(name='a b', group='g', description='', setup=print)]",
    "acme-abort": "import os; os.abort()",
}
BAD_SOURCE = """
from crewai_native import hookimpl
from crewai_native.bench import Case

def case(name):
    return Case(name=name, group="bad", description="", setup=lambda side: print)

@hookimpl
def crewai_native_memory_storage(spec):
    return None

@hookimpl
def crewai_native_benchmarks():
    {body}
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Run every case of the plug-in once; gives the process, the report and the folder."""
    folder = tmp_path_factory.mktemp("bench")
    site = Site(folder / "site")
    site.add("acme", PLUGIN)
    for name, body in BAD.items():
        site.add(name, BAD_SOURCE.replace("{body}", body))
    path = os.environ.get("PYTHONPATH")
    installed = {offer.name for offers in _discovery.offers()[0].values() for offer in offers}
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(site.folder), *([path] if path else [])]),
        "CREWAI_NATIVE_DENY": ",".join(installed),
        "CREWAI_NATIVE_CACHE_DIR": str(folder / "cache"),
        "ACME_MARK": str(folder / "mark-"),
        "ACME_PIDS": str(folder / "pids"),
        "TMPDIR": str(folder / "temporary"),
        "COLUMNS": "120",
    }
    (folder / "temporary").mkdir()
    done = subprocess.run(
        [
            *[sys.executable, "-m", "crewai_native", "bench", "acme", "--seconds", "0.2"],
            *["--json", "report.json", "--chart", "chart.svg"],
        ],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (folder / "report.json").exists(), done.stderr
    return done, json.loads((folder / "report.json").read_text()), folder


@pytest.fixture(scope="module")
def results(ran):
    return {result["subject"]["id"]: result for result in ran[1]["results"]}


def test_every_case_is_reported_and_a_failure_is_the_exit_status(ran, results):
    done, _, folder = ran
    assert done.returncode == 1
    assert len(results) == 18
    assert "Traceback" not in done.stderr
    assert (folder / "chart.svg").read_text().startswith("<svg")


def test_ratios_are_medians_of_paired_rounds(results):
    found = results["acme.sleepy[n=3]"]
    assert found["outcome"] == "measured"
    assert [timing["side"] for timing in found["timings"]] == ["stock", "native", "rival"]
    assert [timing["median"] for timing in found["timings"]] == [0.030, 0.010, 0.020]
    native, rival = found["comparisons"]
    assert native["ratio"] == {"value": 3.0, "low": 3.0, "high": 3.0}
    assert rival["ratio"]["value"] == 1.5
    assert native["difference"]["value"] == pytest.approx(-0.020)
    assert len(found["timings"][0]["values"]) >= 6


def test_promises_are_checked(results):
    reached = {name: found["reached"] for name, found in results.items()}
    assert reached["acme.sleepy[n=3]"] is True
    assert reached["acme.missed"] is False
    assert reached["acme.cost"] is None  # native is the first side: nothing to compare it with
    assert reached["acme.alone"] is False
    assert reached["acme.isolated"] is None


def test_an_isolated_side_has_a_process_of_its_own(results):
    # The case's own check saw the process ids of three sides: two shared one.
    assert results["acme.isolated"]["outcome"] == "measured", results["acme.isolated"]["reason"]


def test_what_a_case_prints_is_no_answer(results):
    assert results["acme.noisy"]["outcome"] == "measured"


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("differing", "the results differ: native gave another result than stock"),
        ("wrong", "the result is wrong: no such result"),
        ("raising", "native: ValueError: no such index"),
        ("aborting", "native: open ended the process with SIGABRT"),
        ("hanging", "native: open did not end within 1 s"),
        ("late", "native: RuntimeError: after a while"),
    ],
)
def test_a_case_that_fails_says_which_side_and_why_and_costs_only_itself(results, case, reason):
    found = results[f"acme.{case}"]
    assert found["outcome"] == "failed"
    assert found["reason"].startswith(reason)
    assert found["timings"] == []


def test_a_case_is_measured_without_a_rival_whose_result_differs(results):
    found = results["acme.approximate"]
    assert found["outcome"] == "measured"
    assert found["unavailable"] == {"rival": "rival gave another result than stock"}
    assert [timing["side"] for timing in found["timings"]] == ["stock", "native"]


def test_a_native_result_that_differs_is_a_failure_whatever_rivals_give(results):
    assert results["acme.mistaken"]["outcome"] == "failed"
    assert "native, rival gave another result" in results["acme.mistaken"]["reason"]


def test_a_case_is_measured_without_a_rival_that_is_not_there(results):
    found = results["acme.rivals"]
    assert found["outcome"] == "measured"
    assert found["unavailable"] == {"rival": "pip install rival"}
    assert [timing["side"] for timing in found["timings"]] == ["stock", "native"]


def test_a_case_with_no_side_to_run_is_left_out(results):
    found = results["acme.lonely"]
    assert found["outcome"] == "skipped"
    assert found["reason"] == "stock: no stock here; native: no native here"


def test_what_a_case_set_up_is_cleaned_up(ran, results):
    assert results["acme.cleaned"]["outcome"] == "measured"
    assert list(ran[2].glob("mark-*")) == []
    assert list((ran[2] / "temporary").iterdir()) == []


def test_the_cases_after_a_failure_are_measured(results):
    assert results["acme.last"]["comparisons"][0]["ratio"]["value"] == pytest.approx(3.0)


def test_plugins_whose_cases_cannot_be_had_are_named(ran):
    _, report, _ = ran
    problems = "\n".join(report["problems"])
    for text in (
        "acme-no-case: its benchmarks: TypeError: crewai_native_benchmarks() gave 'int'",
        "acme-twice: its benchmarks: ValueError: crewai_native_benchmarks() gave two cases bad.a",
        "acme-raising: its benchmarks: RuntimeError: acme cannot",
        "acme-refused: its benchmarks: ValueError: case 'a b': name is 'a b'",
        "acme-abort: its benchmarks: cases ended the process with SIGABRT",
    ):
        assert text in problems


def test_a_debug_build_is_told_and_recorded(ran):
    done, report, _ = ran
    assert "acme is a debug build; its figures say nothing" in done.stderr
    assert report["environment"]["builds"]["acme"]["profile"] == "debug"


def test_what_hangs_is_ended_with_all_that_it_started(ran):
    worker, started = map(int, (ran[2] / "pids").read_text().split())
    for pid in (worker, started):
        assert not running(pid)
    assert running(os.getpid())  # the look itself works


def running(pid):
    done = subprocess.run(
        ["ps", "-o", "state=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return done.stdout.strip()[:1] not in {"", "Z"}


def test_an_interrupt_ends_the_workers_too(tmp_path):
    installed = {offer.name for offers in _discovery.offers()[0].values() for offer in offers}
    environment = {**os.environ, "CREWAI_NATIVE_DENY": ",".join(installed)}
    command = [sys.executable, "-m", "crewai_native", "bench", "host.import", "--seconds", "600"]
    with subprocess.Popen(
        command, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("[1/1] host.import")
        while not (workers := children(process.pid)):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == ""
    assert process.returncode == 130
    assert not any(running(pid) for pid in workers)


def children(pid):
    done = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False
    )
    return [int(line) for line in done.stdout.split()]
