"""``crewai-native db``, and what the plug-in says of itself."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from crewai.flow.async_feedback.types import PendingFeedbackContext
from crewai.flow.persistence.sqlite import SQLiteFlowPersistence
from typer.testing import CliRunner

from crewai_native import ConfigurationError
from crewai_native_db import cli, exports, options, plugin, replay
from crewai_native_db.checkpoints import places
from crewai_native_db.persistence import NativeFlowPersistence


@pytest.fixture
def saved(crewai_home):
    store = NativeFlowPersistence()
    for n in range(10):
        store.save_state("f", f"m{n}", {"n": n, "ö": "\ud800"})
        store.save_state("g", "m", {"n": -n})
    context = PendingFeedbackContext("g", "m.G", "asked", {}, "really?")
    store.save_pending_feedback("g", context, {"n": 99})
    return store


def run(*arguments):
    return CliRunner().invoke(cli.app, list(map(str, arguments)))


def test_stats_and_check(saved):
    done = run("stats", "--json")
    found = json.loads(done.stdout)["flow states"]
    assert (found["flows"], found["states"], found["pending"]) == (2, 21, 1)
    assert found["path"] == str(saved._store.path)
    assert found["file_bytes"] > 0
    assert "21" in run("stats").stdout
    assert run("check").exit_code == 0


def test_prune_and_vacuum(saved):
    done = run("prune", "--keep", 2)
    assert done.exit_code == 0, done.output
    assert "states dropped" in done.stdout
    assert saved.load_state("f")["n"] == 9
    assert len(saved._store.history("f", 100)) <= 4
    assert run("vacuum").exit_code == 0
    assert run("check").exit_code == 0
    assert run("prune").exit_code == 2
    assert run("prune", "--older-than", 0).exit_code == 0
    assert saved._store.flows() == ["g"]


def test_export_as_lines(saved, tmp_path):
    out = tmp_path / "states.jsonl"
    assert run("export", out).exit_code == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(x["flow"], x["method"], x["state"]["n"]) for x in lines if x["flow"] == "f"] == [
        ("f", f"m{n}", n) for n in range(10)
    ]
    assert len(lines) == 21
    assert run("export", "--flow", "f").stdout.count("\n") == 10
    again = run("export", out)
    assert again.exit_code == 1
    assert len(out.read_text().splitlines()) == 21


def test_an_export_for_stock_is_what_stock_would_have_stored(saved, tmp_path):
    out = tmp_path / "stock.db"
    assert run("export", out, "--stock").exit_code == 0
    stock = SQLiteFlowPersistence(str(out))
    for flow in ("f", "g"):
        assert stock.load_state(flow) == saved.load_state(flow)
    assert stock.load_pending_feedback("g") == saved.load_pending_feedback("g")
    back = NativeFlowPersistence(str(tmp_path / "back.db"), import_from=str(out))
    assert back.load_state("f") == saved.load_state("f")
    assert run("export", out, "--stock").exit_code == 1
    assert run("export", "--stock").exit_code == 2


class Full:
    """A file on a disk that is full from the second text on."""

    def __init__(self, file):
        self._file, self._left = file, 1

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.close()

    def write(self, text):
        self._left -= 1
        if self._left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._file.write(text)


@pytest.mark.parametrize("stock", [False, True])
def test_an_export_that_fails_leaves_nothing_behind(saved, tmp_path, monkeypatch, stock):
    place = tmp_path / "exports" / "out"
    options = ["--stock"] if stock else []
    with monkeypatch.context() as patch:
        if stock:
            failing = exports._TABLES + "CREATE TABLE flow_states (id);"
            patch.setattr(exports, "_TABLES", failing)
        else:
            opened = Path.open
            patch.setattr(Path, "open", lambda *args, **named: Full(opened(*args, **named)))
        done = run("export", place, *options)
    assert done.exit_code == 1
    assert done.stderr.startswith("crewai-native: error: ")
    assert str(place) in done.stderr.replace("\n", "")
    assert list(place.parent.iterdir()) == []
    assert run("export", place, *options).exit_code == 0
    assert list(place.parent.iterdir()) == [place]


def test_an_export_of_checkpoints_of_which_one_has_no_data_names_it(tmp_path):
    location = places.Files(tmp_path / "saved")
    name, outline = "20260101T000000_aaaaaaaa", '{"crewai_native":{"format":1,"data":"x","id":"y"}}'
    location.publish("20250101T000000_aaaaaaaa", None, "main", "{}")
    location.publish(name, None, "main", outline)
    done = run("export", tmp_path / "out" / "whole", "--checkpoints", tmp_path / "saved")
    assert done.exit_code == 1
    assert f"main/{name}_p-none.json is the outline" in done.stderr.replace("\n", "")
    assert list((tmp_path / "out").iterdir()) == []
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    done = run("export", tmp_path / "out" / "whole", "--checkpoints", nothing)
    assert done.stdout.startswith("0 checkpoints written")


def test_what_cannot_be_read_is_told_and_fails(saved):
    saved.close()
    Path(saved.db_path).write_text("Dear diary")
    for command in ("stats", "check", "vacuum"):
        assert run(command).exit_code == 1
    states, log = plugin.crewai_native_health()
    assert states.health == "error"
    assert saved.db_path in states.detail
    assert log.health == "ok"


@pytest.mark.parametrize(
    "command",
    [
        *(
            (name, option)
            for name in ("stats", "check", "vacuum")
            for option in ("--store", "--replay", "--checkpoints")
        ),
        ("prune", "--keep", 1, "--store"),
        ("prune", "--keep-runs", 1, "--replay"),
        ("prune", "--checkpoints"),
        ("export", "--store"),
        ("export", "out", "--checkpoints"),
    ],
    ids=lambda command: " ".join(map(str, command)),
)
def test_what_is_named_and_not_there_is_an_error_that_names_it(
    crewai_home, tmp_path, monkeypatch, command
):
    monkeypatch.chdir(tmp_path)
    done = run(*command, "nosuch.db")
    assert done.exit_code == 1
    assert "nosuch.db: there is no such" in done.stderr
    assert not list(tmp_path.glob("nosuch*"))
    assert not Path("out").exists()


def test_what_is_not_there_yet_by_default_is_no_error(crewai_home):
    for command in (["stats"], ["check"], ["vacuum"], ["export"], ["prune", "--keep", "1"]):
        assert run(*command).exit_code == 0


def test_checkpoints_are_not_looked_for_in_any_file(tmp_path):
    (tmp_path / "notes").write_text("Dear diary")
    done = run("check", "--checkpoints", tmp_path / "notes")
    assert done.exit_code == 1
    assert "this is neither" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    "option",
    [
        ("--keep", 0),
        ("--keep", 2**32),
        ("--keep-runs", 0),
        ("--keep-runs", 99999999999),
        ("--older-than", "inf"),
        ("--older-than", "nan"),
        ("--older-than", "1e30"),
        ("--older-than", -1),
    ],
    ids=str,
)
def test_a_number_that_cannot_be_computed_with_is_a_wrong_use(saved, option):
    done = run("prune", *option)
    assert done.exit_code == 2
    assert option[0] in done.stderr


def test_the_largest_numbers_drop_nothing(saved):
    done = run(
        *("prune", "--keep", 2**32 - 1, "--keep-runs", 2**32 - 1, "--older-than", 100_000_000)
    )
    assert done.exit_code == 0, done.output
    assert "0 states dropped" in done.stdout


def test_health_and_metrics_of_what_is_there(saved):
    states, _ = plugin.crewai_native_health()
    assert states.health == "ok"
    assert "21 states" in states.detail
    assert plugin.crewai_native_metrics()["db.flow.writes"] >= 21


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"synchronous": "normal"}, {"synchronous": "normal"}),
        ({"keep": "5", "keep_runs": 7}, {"keep": 5, "keep_runs": 7}),
        ({"strict": "1"}, {"strict": True}),
        ({"strict": False}, {"strict": False}),
    ],
)
def test_options_are_read_from_files_and_from_the_environment(given, expected):
    assert options.check(given) == expected


@pytest.mark.parametrize(
    "given",
    [
        {"synchronous": "off"},
        {"keep": 0},
        {"keep": True},
        {"strict": "maybe"},
        {"path": ""},
        {"x": 1},
    ],
)
def test_an_option_that_means_nothing_is_an_error(given):
    with pytest.raises(ConfigurationError, match=next(iter(given))):
        plugin.crewai_native_configure(given)


def test_the_plugin_hands_out_what_is_configured(tmp_path, crewai_home, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    plugin.crewai_native_configure({"path": "~/f.db", "keep": 3, "keep_runs": 2})
    try:
        store = plugin.crewai_native_flow_persistence()
        assert (store.db_path, store.keep) == (str(tmp_path / "f.db"), 3)
        log = plugin.crewai_native_replay_store()
        assert isinstance(log, replay.ReplayStore)
        assert log._keep == 2
    finally:
        plugin.crewai_native_configure({})


def test_importing_the_package_imports_neither_crewai_nor_pydantic():
    code = "import sys, crewai_native_db, crewai_native_db.plugin; print('crewai' in sys.modules, 'pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"]
