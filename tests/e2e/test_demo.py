"""The demo, run as its users run it, and what it says when a run shows nothing."""

import json
import subprocess
import sys

import pytest

from crewai_native.demo import report
from crewai_native.demo.__main__ import main
from crewai_native.demo.constitution import paragraphs
from crewai_native.demo.phases import PHASES
from crewai_native.demo.run import DemoError, Measurement, Process, Result, Trial


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    file = tmp_path_factory.mktemp("demo") / "found.json"
    ended = subprocess.run(
        [sys.executable, "-m", "crewai_native.demo", "--repetitions", "1", "--json", file],
        capture_output=True,
        text=True,
        check=False,
        cwd=file.parent,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout, json.loads(file.read_text())


@pytest.mark.slow
def test_memory_is_bound_and_called(finished):
    _, found = finished
    slot = next(slot for slot in found["status"]["slots"] if slot["slot"] == "memory.storage")
    assert (slot["state"], slot["provider"]) == ("bound", "crewai-native-memory")
    assert next(m for m in found["metrics"] if m["slot"] == "memory.storage")["calls"] > 100


@pytest.mark.slow
def test_every_phase_is_timed_compared_and_agrees(finished):
    _, found = finished
    measured = {measurement["name"]: measurement for measurement in found["measurements"]}
    assert set(measured) == {"open", "reopen", "reopen-warm", *(phase.name for phase in PHASES)}
    assert all(measurement["agree"] for measurement in measured.values())
    # Not vacuously: the recalls, the records and the answers are all in what is compared.
    assert measured["recall"]["compared"] == 60
    assert measured["browse"]["compared"] > 2 * len(paragraphs())
    assert measured["kickoff"]["compared"] == 2


@pytest.mark.slow
def test_the_accelerated_memory_gets_everything_right(finished):
    _, found = finished
    assert len(found["trials"]) >= 8
    for trial in found["trials"]:
        assert trial["right"]["accelerated"], trial


@pytest.mark.slow
def test_the_tables_say_so(finished):
    printed, _ = finished
    for text in ("crewai-native-memory", "texts recalled", "whole run", "What this does not show"):
        assert text in printed


def test_the_text_is_whole():
    places = {paragraph.heading for paragraph in paragraphs()}
    assert {"Preamble", "Article I, Section 8", "Article VII", "Amendment XXVII"} <= places
    assert len(paragraphs()) == 140
    bill_of_rights = [p for p in paragraphs() if "bill-of-rights" in p.categories]
    assert bill_of_rights[-1].scope == "/constitution/amendment-10"


def test_live_needs_a_key(monkeypatch, capsys):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert main(["--live"]) == 2
    assert capsys.readouterr().err == "demo: --live needs OPENAI_API_KEY in the environment\n"


@pytest.mark.parametrize("number", ["0", "-1", "x"])
def test_repetitions_are_a_positive_number(number, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--repetitions", number])
    assert ended.value.code == 2
    assert "--repetitions" in capsys.readouterr().err


def test_a_failing_process_is_an_error_that_names_it():
    with Process("stock", live=False) as process:
        with pytest.raises(DemoError, match=r"stock process failed at recall: .*no session"):
            process.do("recall", question="?")
        with pytest.raises(DemoError, match="stock process ended at start with status 1"):
            process.do("start")


def test_a_sound_run_has_no_problems():
    assert report.problems(_result()) == []


@pytest.mark.parametrize("process", ["status", "fresh_status"])
def test_stock_in_the_accelerated_run_is_a_problem(process):
    result = _result()
    (slot,) = getattr(result, process)["slots"]
    slot.update(state="stock", provider="stock", reason="switched off")
    assert report.problems(result) == ["memory.storage was not accelerated: switched off"]


def test_a_bound_slot_that_nobody_calls_is_a_problem():
    result = _result()
    result.metrics[0]["calls"] = 0
    (problem,) = report.problems(result)
    assert "never called" in problem


@pytest.mark.parametrize(
    "accelerated",
    [[{"Who?": ["a", "c"]}], [{"Who?": ["a"]}], [{"Who?": ["a", "b", "c"]}], [{}]],
)
def test_differing_answers_are_a_problem_and_are_shown(accelerated, capsys):
    result = _result()
    result.measurements[0].outputs["accelerated"] = accelerated
    assert len(report.problems(result)) == 1
    places = [place for place, _, _ in report.differences(result.measurements[0])]
    assert places
    assert all(place.startswith("[0]['Who?']") for place in places)


def test_a_wrong_trial_of_the_accelerated_run_is_a_problem_and_one_of_stock_is_not():
    result = _result()
    result.trials.append(Trial("keeps it", {"stock": False, "accelerated": True}, {}))
    assert report.problems(result) == []
    result.trials[0].right["accelerated"] = False
    result.trials[0].seen["accelerated"] = "lost it"
    assert report.problems(result) == ["the accelerated run got it wrong: keeps it: lost it"]


def _result():
    recall = Measurement("recall", "recall", "texts")
    for side in ("stock", "accelerated"):
        recall.add(side, 1.0, {"Who?": ["a", "b"]})
    slot = {
        "slot": "memory.storage",
        "state": "bound",
        "provider": "somebody",
        "version": "1",
        "how": "",
        "reason": "",
        "candidates": [],
    }
    return Result(
        crewai="1.15.30",
        live=False,
        status={"slots": [dict(slot)]},
        fresh_status={"slots": [dict(slot)]},
        metrics=[{"slot": "memory.storage", "calls": 3}],
        measurements=[recall],
    )
