"""``crewai-native run``: the program takes the command's place, under the settings it was given."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from crewai_native.cli import _run


@pytest.fixture
def program(miniature):
    """Run a Python program through ``crewai-native run`` with these options."""

    def program(options, code, **variables):
        arguments = ["run", *options, "--", sys.executable, "-c", code]
        main = f"from crewai_native.cli import main; main({arguments!r})"
        return miniature.run(main, check=False, **variables)

    return program


def test_the_exit_status_is_the_programs(program):
    assert program([], "raise SystemExit(37)").returncode == 37


def test_output_and_input_are_the_programs(program):
    done = program([], "import sys; print('out'); print('err', file=sys.stderr)")
    assert (done.returncode, done.stdout, done.stderr) == (0, "out\n", "err\n")


def test_signals_reach_the_program(miniature, tmp_path):
    code = """
import os, signal, sys
def stop(*_):
    print("stopped", flush=True)
    sys.exit(5)
signal.signal(signal.SIGTERM, stop)
print(os.getpid(), flush=True)
signal.pause()
"""
    command = [sys.executable, "-m", "crewai_native", "run", "--", sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stdout is not None
        # The program is this very process: nothing stands between it and whoever supervises it.
        assert int(process.stdout.readline()) == process.pid
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "stopped\n"
    assert process.returncode == 5


def test_a_program_that_dies_of_a_signal_is_seen_to(program):
    done = program([], "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert done.returncode == -signal.SIGKILL


def test_options_of_the_program_are_not_ours(program):
    done = program(["--stock"], "import sys; print(sys.argv)", CREWAI_NATIVE_DENY="x")
    assert done.stdout == "['-c']\n"
    main = [
        *[sys.executable, "-m", "crewai_native", "run", sys.executable],
        *["-c", "import sys; print(sys.argv[1:])", "--strict", "--", "--slot", "--help"],
    ]
    done = subprocess.run(main, capture_output=True, text=True, check=True)
    assert done.stdout == "['--strict', '--', '--slot', '--help']\n"


def test_slots_are_served_as_chosen(miniature, program):
    miniature.site.duplicate()
    code = """
import crewai, crewai_native, json
slot = crewai_native.status()["memory.storage"]
print(json.dumps([slot.provider, slot.reason]))
"""
    chosen = "CREWAI_NATIVE_SLOT_MEMORY_STORAGE"
    for options, variables, expected in (
        ([], {}, "acme-one"),
        (["--slot", "memory.storage=acme-two"], {}, "acme-two"),
        (["--slot", "memory.storage=acme-two"], {chosen: "acme-one"}, "acme-two"),
        (["--slot", "memory.storage=stock"], {}, "stock"),
        (["--off", "memory"], {}, "stock"),
        (["--only", "tools"], {}, "stock"),
        (["--only", "memory"], {"CREWAI_NATIVE_MEMORY": "0"}, "acme-one"),
        (["--stock"], {}, "stock"),
        ([], {"CREWAI_NATIVE": "0"}, "acme-one"),
    ):
        done = program(options, code, **variables)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)[0] == expected, (options, variables)


def test_strict_fails_in_the_program(miniature, program):
    miniature.site.broken()
    assert program([], "import crewai").returncode == 0
    done = program(["--strict"], "import crewai")
    assert done.returncode == 1
    assert "StrictError" in done.stderr
    assert "acme-broken" in done.stderr


def test_the_environment_says_what_the_options_say(tmp_path):
    assert _run.environment() == {"CREWAI_NATIVE": "1"}
    assert _run.environment(stock=True) == {"CREWAI_NATIVE": "0"}
    assert _run.environment(
        slots=["memory.storage=acme", "tools.guard=stock"],
        off=["tasks"],
        only=["memory", "tools", "tasks"],
        strict=True,
        verify="0.01",
        metrics=tmp_path / "m",
    ) == {
        "CREWAI_NATIVE": "1",
        "CREWAI_NATIVE_SLOT_MEMORY_STORAGE": "acme",
        "CREWAI_NATIVE_SLOT_TOOLS_GUARD": "stock",
        "CREWAI_NATIVE_MEMORY": "1",
        "CREWAI_NATIVE_TOOLS": "1",
        "CREWAI_NATIVE_TASKS": "0",
        "CREWAI_NATIVE_DB": "0",
        "CREWAI_NATIVE_SERIALIZATION": "0",
        "CREWAI_NATIVE_STRICT": "1",
        "CREWAI_NATIVE_VERIFY": "0.01",
        "CREWAI_NATIVE_METRICS": str(tmp_path / "m"),
    }


@pytest.mark.parametrize(("mode", "status"), [(None, 127), (0o644, 126)])
def test_a_program_that_cannot_run_gives_the_shells_status(miniature, tmp_path, mode, status):
    path = tmp_path / "program"
    if mode is not None:
        path.write_text("#!/bin/sh\n")
        path.chmod(mode)
    code = f"from crewai_native.cli import main; main(['run', '--', {str(path)!r}])"
    done = miniature.run(code, check=False)
    assert done.returncode == status
    assert done.stderr.startswith("crewai-native: error: ")
    assert str(path) in done.stderr
    assert done.stderr.count("\n") == 1


def test_metrics_of_each_process_are_kept_and_shown(miniature, program, tmp_path):
    miniature.site.add(
        "acme-counted",
        """
        from crewai_native import hookimpl
        class Store:
            def count(self):
                return 1
            def reset(self):
                raise OSError("acme")
            def __getattr__(self, name):
                if name.startswith("__"):
                    raise AttributeError(name)
                return lambda *a, **k: None
        for name in ("save", "search", "delete", "update", "get_record", "list_records",
                     "get_scope_info", "list_scopes", "list_categories", "asave", "asearch",
                     "adelete"):
            setattr(Store, name, lambda self, *a, **k: None)
        @hookimpl
        def crewai_native_memory_storage(spec):
            return Store()
        @hookimpl
        def crewai_native_metrics():
            return {"cache.hits": 7}
        """,
    )
    code = """
import crewai
from crewai.memory.storage import factory
import sys
store = factory.resolve_memory_storage("lancedb")
for _ in range(int(sys.argv[1])):
    store.count()
try:
    store.reset()
except OSError:
    pass
"""
    kept = tmp_path / "sub" / "metrics.jsonl"
    for calls in ("3", "5"):
        arguments = [
            *["run", "--metrics", str(kept), "--", sys.executable, "-c", code, calls],
        ]
        main = f"from crewai_native.cli import main; main({arguments!r})"
        done = miniature.run(main, check=False)
        assert (done.returncode, done.stderr) == (0, "")
    shown = miniature.run(
        f"from crewai_native.cli import main; main(['metrics', {str(kept)!r}, '--json'])",
        check=False,
    )
    found = json.loads(shown.stdout)
    assert [entry["slots"][0]["calls"] for entry in found] == [4, 6]
    assert [entry["slots"][0]["errors"] for entry in found] == [1, 1]
    assert all(0 < entry["slots"][0]["p50"] < 10 for entry in found)
    assert [entry["plugins"] for entry in found] == [{"acme-counted": {"cache.hits": 7.0}}] * 2
    assert found[0]["program"][1:] == ["3"]
    # The setting names the file as well as the argument does.
    table = miniature.run(
        "from crewai_native.cli import main; main(['metrics'])",
        check=False,
        CREWAI_NATIVE_METRICS=str(kept),
    )
    assert table.returncode == 0
    assert table.stdout.count("memory.storage") == 2
    assert "cache.hits" in table.stdout


def test_what_is_no_file_of_metrics_is_named(miniature, tmp_path):
    for text in ("not json\n", "[1]\n", '{"pid": 1}\n'):
        (tmp_path / "other").write_text(text)
        done = miniature.run(
            "from crewai_native.cli import main; main(['metrics', 'other'])", check=False
        )
        assert done.returncode == 2
        assert done.stderr.startswith("crewai-native: error: other holds no metrics")


def test_a_line_that_is_cut_off_costs_itself_alone(miniature, tmp_path):
    whole = '{"pid": 1, "program": ["a"], "ended": "today", "slots": [], "plugins": {}}'
    (tmp_path / "kept").write_text(f'{whole}\n{{"pid": 2, "prog')
    done = miniature.run("from crewai_native.cli import main; main(['metrics', 'kept', '--json'])")
    assert [entry["pid"] for entry in json.loads(done.stdout)] == [1]
    assert done.stderr == (
        "crewai-native: warning: kept has lines that hold no metrics, which are left out: 2\n"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser writes anywhere")
def test_metrics_that_cannot_be_written_do_not_fail_the_program(miniature, program, tmp_path):
    miniature.site.valid()
    folder = tmp_path / "read-only"
    folder.mkdir(mode=0o555)
    assert program(["--metrics", str(folder / "x")], "import crewai").returncode == 0


def test_metrics_where_a_file_stands_do_not_fail_the_program(miniature, program, tmp_path):
    miniature.site.valid()
    (tmp_path / "file").touch()
    done = program(["--metrics", str(tmp_path / "file" / "x")], "import crewai")
    assert done.returncode == 0
    assert "metrics cannot be written" in done.stderr
