"""What the commands print, for a status that is given: no CrewAI takes part."""

from __future__ import annotations

import functools
import json
import re
import types

import pytest
from typer.testing import CliRunner

from crewai_native import (
    Candidate,
    SlotStatus,
    State,
    Status,
    __version__,
    _discovery,
    _targets,
    slots,
)
from crewai_native.cli import _app, _survey
from crewai_native.slots import SLOT_NAMES
from crewai_native.slots._base import Target

AMBIGUOUS = (
    "ambiguous: 2 third-party candidates, taken by name; choose with "
    '[tool.crewai-native.slots] "memory.storage" = "…"'
)
LONG = "its import ended the process with SIGILL at /a/very/long/path/" + "x" * 90


def candidate(slot, distribution, state, reason):
    found = Candidate(slot, distribution, "1.2.3", "acme.plugin:factory", "/site-packages")
    found.passed("discover", "entry point")
    if state is State.BOUND:
        found.passed("bind", "set_memory_storage_factory")
        found.state, found.reason = state, reason
    else:
        found.failed("first-import", state, reason)
    return found


@pytest.fixture
def status(monkeypatch):
    slots = [
        SlotStatus(
            name, "something", State.STOCK, "stock", "1.15.30", "", "no accelerator installed"
        )
        for name in SLOT_NAMES
    ]
    slots[0] = SlotStatus(
        "memory.storage",
        "records",
        State.BOUND,
        "acme-memory",
        "1.2.3",
        "set_memory_storage_factory",
        AMBIGUOUS,
        [
            candidate("memory.storage", "acme-memory", State.BOUND, AMBIGUOUS),
            candidate("memory.storage", "acme-other", State.BROKEN, LONG),
        ],
    )
    found = Status(
        active=True,
        reason="to look at it",
        crewai="1.15.30",
        slots=slots,
        strangers=[candidate("coffee.machine", "acme-coffee", State.INCOMPATIBLE, "no such slot")],
        warnings=["acme-coffee 1.2.3: no such slot"],
    )
    monkeypatch.setattr(_survey, "status", lambda: found)
    return found


@pytest.fixture
def invoke(monkeypatch):
    def invoke(*arguments, width=80):
        monkeypatch.setenv("COLUMNS", str(width))
        return CliRunner().invoke(_app.app, arguments)

    return invoke


def unfolded(text):
    """What a table says, whatever lines it was broken into: the cells of each column, joined."""
    return re.sub(r"\s", "", text)


def columns_of(text):
    """The text of each column of a table, joined over its lines."""
    lines = text.splitlines()
    # A column starts where no line has anything in the two places before it.
    width = max(map(len, lines))
    padded = [line.ljust(width) for line in lines if not set(line) <= {"─", " "}]
    gaps = [all(line[i] == " " for line in padded[:]) for i in range(width)]
    columns, start = [], None
    for i in range(width + 1):
        blank = i == width or gaps[i]
        if not blank and start is None:
            start = i
        elif blank and start is not None:
            columns.append(unfolded("".join(line[start:i] for line in padded)))
            start = None
    return columns


@pytest.mark.parametrize("width", [80, 120, 160])
def test_tables_fit_and_cut_nothing(status, invoke, width):
    result = invoke("list", "--all", width=width)
    assert result.exit_code == 0
    table = result.stdout[: result.stdout.index("crewai-native 0")]
    assert max(map(len, result.stdout.splitlines())) <= width
    for text in (AMBIGUOUS, LONG, "set_memory_storage_factory", "acme-memory", "acme-coffee"):
        assert any(unfolded(text) in column for column in columns_of(table)), text
    for slot in status.slots:
        assert slot.slot in table
    assert "…" not in table.replace('"…"', "")


def test_a_width_of_zero_is_one_that_nobody_knows(status, invoke):
    for command in (("list",), ("status",), ("explain", "memory.storage")):
        assert invoke(*command, width=0).stdout == invoke(*command, width=80).stdout != ""


def test_what_is_no_terminal_gets_no_colours(status, invoke):
    for command in (("list",), ("list", "--all"), ("status",), ("explain", "memory.storage")):
        assert "\x1b" not in invoke(*command).stdout


def test_list_as_json_is_the_status(status, invoke):
    expected = json.loads(json.dumps(status.as_json()))
    assert json.loads(invoke("list", "--all", "--json").stdout) == expected
    for slot in expected["slots"]:
        del slot["candidates"]
    assert json.loads(invoke("list", "--json").stdout) == expected


def test_status_names_who_serves_and_who_should(status, invoke):
    said = invoke("status", width=400).stdout.splitlines()
    assert said[0] == f"crewai-native {__version__}, CrewAI 1.15.30: 1 of 15 slots are bound"
    assert "bound memory.storage: acme-memory 1.2.3" in said
    assert f"broken memory.storage: acme-other: {LONG}" in said
    assert json.loads(invoke("status", "--json").stdout) == json.loads(json.dumps(status.as_json()))


def test_status_says_why_nothing_is_active(status, invoke):
    status.active, status.reason, status.crewai = False, "switched off (CREWAI_NATIVE)", ""
    assert (
        invoke("status", width=200)
        .stdout.splitlines()[0]
        .endswith("CrewAI is not installed: not active, switched off (CREWAI_NATIVE)")
    )


def test_explain_tells_each_step_of_each_candidate(status, invoke):
    said = invoke("explain", "memory.storage", width=200).stdout
    assert "crewai_native_memory_storage()" in said
    stopped = re.search(r"first-import\s+stopped\s+(.*)", said)
    assert stopped
    assert stopped[1].strip() == LONG
    assert len(re.findall(r"discover\s+passed", said)) == 2
    found = json.loads(invoke("explain", "memory.storage", "--json").stdout)
    assert found["hook"] == "crewai_native_memory_storage"
    assert [c["distribution"] for c in found["status"]["candidates"]] == [
        "acme-memory",
        "acme-other",
    ]
    assert [s["name"] for s in found["status"]["candidates"][1]["steps"]] == [
        "discover",
        "first-import",
    ]


def test_version_and_help(invoke):
    assert invoke("--version").stdout == f"crewai-native {__version__}\n"
    assert invoke().stdout == invoke("--help").stdout
    listed = re.findall(r"^  ([a-z]+)  ", invoke("--help").stdout, flags=re.MULTILINE)
    assert set(listed) >= {"list", "explain", "status", "doctor", "metrics", "bench", "run"}
    assert "..." not in invoke("--help").stdout.partition("Commands:")[2]


@pytest.fixture
def one_target(monkeypatch, tmp_path):
    """One slot that stands in for one function, and a file of fingerprints that knows nothing."""
    target = Target("textwrap:dedent", wrapped=True)
    official = Target("textwrap:fill", ("text", "width", "kwargs"))
    slot = types.SimpleNamespace(targets=(target, official), repairs=())
    path = tmp_path / "fingerprints.json"
    path.write_text("{}")
    monkeypatch.setattr(slots, "SLOT_NAMES", ("tools.guard",))
    monkeypatch.setattr(slots, "load", lambda name: slot)
    monkeypatch.setattr(_discovery, "crewai_version", lambda: "1.99")
    monkeypatch.setattr(_targets, "FINGERPRINTS", path)
    _targets._known.cache_clear()
    yield path
    _targets._known.cache_clear()


def test_fingerprints_are_unknown_until_they_are_recorded(one_target, invoke):
    unknown = invoke("fingerprints")
    assert unknown.exit_code == 1
    assert "not tested" in unknown.stdout
    assert "0 of 1 targets are known" in unknown.stdout
    refreshed = invoke("fingerprints", "--refresh", "--json")
    assert refreshed.exit_code == 0
    [target] = json.loads(refreshed.stdout)["targets"]
    assert target["path"] == "textwrap:dedent"
    assert target["known"] == ["1.99"]
    assert json.loads(one_target.read_text()) == {
        "textwrap:dedent": {target["fingerprint"]: ["1.99"]}
    }
    assert "1 of 1 targets are known" in invoke("fingerprints").stdout


def test_fingerprints_that_cannot_be_written_are_one_line(one_target, capsys):
    one_target.unlink()
    one_target.mkdir()
    _targets._known.cache_clear()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(_targets, "_known", functools.cache(dict))
        assert str(one_target) in error_of(capsys, "fingerprints", "--refresh")


def error_of(capsys, *arguments):
    """Run the whole command line and return the one line of its error."""
    with pytest.raises(SystemExit) as stop:
        _app.main(arguments)
    said = capsys.readouterr()
    assert stop.value.code == 2
    assert said.out == ""
    assert said.err.startswith("crewai-native: error: ")
    assert said.err.count("\n") == 1
    return said.err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["lsit"], ["'lsit'", "'list'"]),
        (["list", "--jsn"], ["--jsn"]),
        (["explain"], ["SLOT"]),
        (["explain", "memory.store"], ["'memory.store'", "did you mean memory.storage?"]),
        (["bench", "--seconds", "0"], ["--seconds"]),
        (["bench", "--chart", "chart.png"], ["--chart", "'chart.png'", ".svg"]),
        (["bench", "--json", "/no/such/folder/x.json"], ["--json", "/no/such/folder"]),
        (["bench", "--compare", "a.json", "b.json"], ["a.json"]),
        (["metrics"], ["run --metrics FILE", "crewai_native.metrics()"]),
        (["metrics", "/no/such/file"], ["/no/such/file"]),
        (["run", "--slot", "memory.storage", "--", "true"], ["--slot", "SLOT=PROVIDER"]),
        (["run", "--slot", "memory=stock", "--", "true"], ["--slot", "'memory'"]),
        (["run", "--slot", "memory.storage=nobody", "--", "true"], ["'nobody'", "stock"]),
        (["run", "--off", "coffee", "--", "true"], ["--off", "'coffee'", "serialization"]),
        (["run", "--only", "coffee", "--", "true"], ["--only", "'coffee'", "serialization"]),
        (["run", "--verify", "2", "--", "true"], ["CREWAI_NATIVE_VERIFY", "'2'", "0 to 1"]),
        (["run"], ["COMMAND"]),
    ],
)
def test_what_means_nothing_is_one_line_that_names_it(capsys, monkeypatch, arguments, named):
    monkeypatch.setattr("os.execvpe", lambda *a: pytest.fail(f"ran {a}"))
    said = error_of(capsys, *arguments)
    for text in named:
        assert text in said


def test_a_setting_that_means_nothing_is_one_line(capsys, monkeypatch):
    monkeypatch.setenv("CREWAI_NATIVE_TRUST", "some\ntimes")
    assert "CREWAI_NATIVE_TRUST" in error_of(capsys, "lock")
