"""The commands as programs of their own, over a small CrewAI and whatever is installed with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PLUGIN = """
from pathlib import Path
from crewai_native import hookimpl
Path({mark!r}).touch()
options = {{}}

@hookimpl
def crewai_native_memory_storage(spec):
    return None

@hookimpl
def crewai_native_configure(options):
    globals()["options"] = options

@hookimpl
def crewai_native_cli(app):
    @app.command()
    def {command}(cups: int = 1):
        "Brews something."
        print("cups", cups, options.get("strength"))
"""


@pytest.fixture
def cli(miniature):
    """Run the command line in a process and return it, ended."""

    def cli(*arguments, **variables):
        code = f"from crewai_native.cli import main; main({list(arguments)!r})"
        return miniature.run(code, check=False, **variables)

    return cli


@pytest.fixture
def plugin(miniature, tmp_path):
    """Install a plug-in with a sub-command; the returned path exists once it was imported."""
    mark = tmp_path / "imported"

    def plugin(name="acme-brew", command="brew", more=""):
        source = PLUGIN.format(mark=str(mark), command=command) + textwrap.dedent(more)
        miniature.site.add(name, source)
        return mark

    return plugin


def test_help_imports_neither_crewai_nor_anything_heavy(miniature):
    code = """
    import sys
    from crewai_native.cli import main
    try:
        main(["--help"])
    except SystemExit as stop:
        heavy = {"crewai", "lancedb", "pydantic", "rich.table", "rich.markdown", "numpy"}
        answer([stop.code, sorted(heavy & set(sys.modules))])
    """
    assert miniature.run(code) == [0, []]


def test_a_bad_plugin_of_every_kind_breaks_no_command(miniature, cli):
    site = miniature.site
    bad = [
        site.broken(),
        site.exiting(),
        site.aborting(),
        site.hanging(),
        site.wrong_contract(),
        site.wrong_range(),
        site.unknown_slot(),
        site.missing_hook(),
        site.bad_signature(),
        site.declining(),
    ]
    (site.folder / "crewai_core/paths.py").write_text(
        f"def db_storage_path():\n    return {str(site.folder)!r}\n"
    )
    limit = {"CREWAI_NATIVE_PROBE_TIMEOUT": "2"}
    listed = cli("list", "--all", "--json", **limit)
    assert listed.returncode == 0, listed.stderr
    found = json.loads(listed.stdout)
    slot = next(s for s in found["slots"] if s["slot"] == "memory.storage")
    reasons = {
        c["distribution"]: f"{c['state']}: {c['reason']}"
        for c in [*slot["candidates"], *found["strangers"]]
    }
    for distribution, cause in {
        "acme-broken": "broken: RuntimeError: acme is broken",
        "acme-exiting": "broken: its import raised SystemExit",
        "acme-aborting": "broken: its import ended the process with SIGABRT",
        "acme-hanging": "broken: its import did not end within 2 s",
        "acme-declining": "declined: no GPU here",
        "acme-old": "incompatible: accelerates crewai",
    }.items():
        assert reasons[distribution].startswith(cause)
    assert set(reasons) >= {distribution.name for distribution in bad}
    assert not any(reasons[distribution.name].startswith("bound") for distribution in bad)

    # What the first command has found out is remembered, so none of these waits.
    assert cli("--help", **limit).returncode == 0
    assert cli("status", **limit).returncode == 0
    assert cli("explain", "memory.storage", **limit).returncode == 0
    assert cli("lock", **limit).returncode == 0

    seen = cli("doctor", "--json", **limit)
    assert seen.returncode == 1, seen.stderr
    checks = {check["name"]: check for check in json.loads(seen.stdout)}
    assert checks["first import of acme-aborting"]["health"] == "error"
    assert "SIGABRT" in checks["first import of acme-aborting"]["detail"]
    assert checks["storage"]["health"] == "ok"

    bench = cli("bench", "--list", **limit)
    assert bench.returncode == 0
    assert "warning: acme-broken: its benchmarks: RuntimeError: acme is broken" in bench.stderr
    assert "host.metering" in bench.stdout


def test_a_plugins_command_runs_with_its_options(plugin, cli):
    plugin()
    done = cli("brew", "--cups", "3", CREWAI_NATIVE_MEMORY_STRENGTH="strong")
    assert (done.returncode, done.stdout, done.stderr) == (0, "cups 3 strong\n", "")
    assert "brew" in cli("--help").stdout


def test_the_hosts_own_commands_import_no_plugin_for_its_commands(plugin, cli):
    mark = plugin()
    assert cli("--version").returncode == 0
    assert cli("lock").returncode == 0
    assert not mark.exists()


def test_a_plugin_that_is_not_trusted_or_switched_off_is_not_imported_for_its_commands(plugin, cli):
    mark = plugin()
    for variables in (
        {"CREWAI_NATIVE_DENY": "acme-brew"},
        {"CREWAI_NATIVE_PLUGINS": "other"},
        {"CREWAI_NATIVE_TRUST": "listed"},
        {"CREWAI_NATIVE_MEMORY": "0"},
    ):
        done = cli("brew", **variables)
        assert done.returncode == 2
        assert "No such command 'brew'" in done.stderr
        assert not mark.exists()


def test_a_command_that_there_is_not_is_told_with_those_that_there_are(plugin, cli):
    plugin()
    done = cli("brw")
    assert "No such command 'brw'" in done.stderr
    assert "There are: list, explain, " in done.stderr
    assert done.stderr.endswith(", brew\n")
    assert cli("plan").stderr.endswith("; plan comes with crewai-native-tasks\n")


@pytest.mark.parametrize("error", ["ValueError('acme cannot')", "SystemExit('acme stops')"])
def test_a_hook_that_raises_costs_only_its_own_commands(plugin, cli, error):
    plugin()
    plugin(
        "acme-zany",
        "unused",
        f"""
        @hookimpl
        def crewai_native_cli(app):
            raise {error}
        """,
    )
    done = cli("brew")
    assert (done.returncode, done.stdout) == (0, "cups 1 None\n")
    assert done.stderr.startswith("crewai-native: warning: acme-zany: its sub-commands: ")
    assert done.stderr.count("\n") == 1


def test_no_plugin_takes_the_name_of_another_command(plugin, cli):
    plugin("acme-a", "brew")
    plugin("acme-b", "brew")
    plugin("acme-c", "status")
    shown = cli("--help")
    assert shown.stdout.count("  brew ") == 1
    assert shown.stdout.count("  status ") == 1
    assert shown.stderr.splitlines() == [
        "crewai-native: warning: acme-b: there is a command 'brew' already",
        "crewai-native: warning: acme-c: there is a command 'status' already",
    ]


def test_a_usage_error_in_a_plugins_command_is_one_line_too(plugin, cli):
    plugin()
    done = cli("brew", "--cups", "many")
    assert done.returncode == 2
    assert done.stderr.startswith("crewai-native: error: ")
    assert done.stderr.count("\n") == 1


def test_what_crewai_prints_while_it_is_imported_stays_out_of_json(miniature, cli):
    (miniature.site.folder / "crewai/__init__.py").write_text("print('hello from crewai')\n")
    done = cli("list", "--json")
    assert json.loads(done.stdout)["crewai"] == "1.15.30"
    assert "hello from crewai" in done.stderr


def test_strict_is_no_reason_not_to_look(miniature, cli):
    miniature.site.broken()
    assert cli("list", CREWAI_NATIVE_STRICT="1").returncode == 0


def test_looking_keeps_no_metrics(miniature, cli, tmp_path):
    miniature.site.valid()
    assert cli("list", CREWAI_NATIVE_METRICS=str(tmp_path / "kept")).returncode == 0
    assert not (tmp_path / "kept").exists()


def test_switched_off_is_what_list_says(miniature, cli):
    miniature.site.valid()
    found = json.loads(cli("list", "--json", CREWAI_NATIVE="0").stdout)
    assert found["active"] is False
    assert {slot["reason"] for slot in found["slots"]} == {"switched off (CREWAI_NATIVE)"}


@pytest.mark.parametrize("command", [["list"], ["status"], ["lock"], ["brew"], ["--help"]])
def test_a_malformed_pyproject_is_named(cli, tmp_path, command):
    (tmp_path / "pyproject.toml").write_text("[tool.crewai-native\n")
    done = cli(*command)
    last = done.stderr.splitlines()[-1]
    if command == ["--help"]:
        # Help is help: it is shown, and says what is missing from it.
        assert done.returncode == 0
        assert f"warning: no sub-commands of plug-ins: {tmp_path}/pyproject.toml" in last
    else:
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        if command != ["brew"]:
            assert f"error: {tmp_path}/pyproject.toml is not valid TOML" in last


def test_lock_pins_and_check_finds_what_has_changed(miniature, cli, tmp_path):
    one, _ = miniature.site.duplicate()
    assert cli("lock", "--check").returncode == 2  # there is no lock file yet
    pinned = cli("lock")
    assert pinned.returncode == 0
    assert pinned.stdout.splitlines()[:2] == ["pinned acme-one 1.0", "pinned acme-two 1.0"]
    same = cli("lock", "--check")
    assert (same.returncode, same.stdout) == (
        0,
        "crewai-native.lock pins exactly what is installed\n",
    )
    found = json.loads(cli("list", "--json", CREWAI_NATIVE_TRUST="locked").stdout)
    assert found["slots"][0]["provider"] == "acme-one"

    (one.info / "RECORD").write_text("acme_one.py,sha256=other,1\n")
    miniature.site.valid("acme-three")
    changed = cli("lock", "--check")
    assert changed.returncode == 1
    assert changed.stdout.count("acme-one: its files are not those") == 1
    assert "acme-three: not in the lock file" in changed.stdout
    assert "acme-two" not in changed.stdout


def test_lock_that_cannot_be_written_is_one_line(miniature, cli, tmp_path):
    done = cli("lock", CREWAI_NATIVE_LOCK=str(tmp_path / "no" / "folder" / "x.lock"))
    assert done.returncode == 2
    assert done.stderr.startswith("crewai-native: error: lock file")
    assert done.stderr.count("\n") == 1


def test_fingerprints_of_a_crewai_that_is_not_there_are_named_unknown(miniature, cli):
    done = cli("fingerprints", "--json")
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert found["targets"]
    assert all(target["problem"] for target in found["targets"])
    assert {target["slot"] for target in found["targets"]} >= {"tools.guard", "replay.store"}


def test_without_crewai_it_says_so(run):
    code = """
    import importlib.metadata
    from crewai_native import _roster
    from crewai_native.cli import main
    real = importlib.metadata.distributions
    def missing(**fields):
        return () if fields.get("name") == "crewai" else real(**fields)
    importlib.metadata.distributions = missing
    main(["list"])
    """
    done = run(code, check=False)
    assert done.returncode == 2
    assert done.stderr == "crewai-native: error: CrewAI is not installed; pip install crewai\n"


def test_a_reader_that_leaves_is_no_traceback(miniature, tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    for arguments in (["--version"], ["lock"]):
        command = [sys.executable, "-m", "crewai_native", *arguments]
        done = subprocess.run(
            command, stdout=writing, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False
        )
        assert (done.returncode, done.stderr) == (1, "")
    os.close(writing)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is always full")
def test_a_full_disk_is_one_line(tmp_path):
    with Path("/dev/full").open("w") as full:
        for arguments in (["--version"], ["fingerprints", "--json"]):
            command = [sys.executable, "-m", "crewai_native", *arguments]
            done = subprocess.run(
                command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False
            )
            assert done.returncode == 1
            assert done.stderr.endswith(
                "crewai-native: error: the output cannot be written: No space left on device\n"
            )
            assert "Traceback" not in done.stderr
