"""The first import of a plug-in in a child process, and what is remembered of it."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

from crewai_native import _cache, _discovery, _probe, _settings

# Leaves a mark each time that it is imported, saying by which process.
COUNTING = """
import os
with open("imports", "a") as marks:
    print(os.environ.get("CREWAI_NATIVE", "host"), file=marks)
from crewai_native import hookimpl
@hookimpl
def crewai_native_memory_storage(spec):
    return None
"""


@pytest.fixture
def imports(tmp_path):
    """Returns who has imported the counting plug-in: the child (0) or the host."""

    def read():
        path = tmp_path / "imports"
        return path.read_text().split() if path.exists() else []

    return read


def step(status, distribution="acme-counting"):
    steps = status.candidate(distribution)["steps"]
    return next(s for s in steps if s["name"] == "first-import")["detail"]


def test_a_sound_plugin_is_tried_once(miniature, imports):
    miniature.site.add("acme-counting", COUNTING)
    assert step(miniature.status()) == "tried now"
    assert imports() == ["0", "host"]
    assert step(miniature.status()) == "remembered as sound"
    assert imports() == ["0", "host", "host"]


def test_it_is_tried_again_when_its_files_change(miniature, imports):
    miniature.site.add("acme-counting", COUNTING)
    miniature.status()
    miniature.site.add("acme-counting", COUNTING + "# another build\n")
    assert step(miniature.status()) == "tried now"
    assert imports() == ["0", "host"] * 2


def test_an_editable_install_is_tried_again_when_its_sources_change(miniature):
    dist = miniature.site.add("acme-counting", COUNTING)
    (dist.info / "direct_url.json").write_text('{"url": "x", "dir_info": {"editable": true}}')
    assert step(miniature.status()) == "tried now"
    assert step(miniature.status()) == "remembered as sound"
    source = miniature.site.folder / "acme_counting.py"
    source.write_text(source.read_text() + "# edited, and RECORD does not know\n")
    assert step(miniature.status()) == "tried now"


def test_a_link_to_nowhere_among_the_files_does_no_harm(miniature):
    """Such as an editor makes while it has a file open."""
    dist = miniature.site.add("acme-counting", COUNTING)
    (dist.info / "RECORD").unlink()
    package = miniature.site.folder / "acme_counting"
    package.mkdir()
    package.with_suffix(".py").rename(package / "__init__.py")
    (package / ".#plugin.py").symlink_to("user@host.1")
    assert step(miniature.status()) == "tried now"


def test_without_a_record_the_files_themselves_count(miniature):
    dist = miniature.site.add("acme-counting", COUNTING)
    (dist.info / "RECORD").unlink()
    assert step(miniature.status()) == "tried now"
    assert step(miniature.status()) == "remembered as sound"
    source = miniature.site.folder / "acme_counting.py"
    source.write_text(source.read_text() + "# edited\n")
    assert step(miniature.status()) == "tried now"


def test_a_plugin_that_kills_is_remembered_and_not_tried_again(miniature):
    miniature.site.add("acme-counting", COUNTING + "os.abort()\n")
    assert "SIGABRT" in miniature.status().candidate("acme-counting")["reason"]
    again = miniature.status().candidate("acme-counting")["reason"]
    assert again.startswith("its import ended the process with SIGABRT (remembered")


def test_a_plugin_that_merely_raises_heals_when_what_it_lacked_is_there(miniature):
    miniature.site.add("acme-needs", "import acme_library\n" + COUNTING)
    reason = miniature.status().candidate("acme-needs")["reason"]
    assert reason == "ModuleNotFoundError: No module named 'acme_library'"
    (miniature.site.folder / "acme_library.py").write_text("")
    assert miniature.status().candidate("acme-needs")["state"] == "bound"


def test_one_child_tries_all_and_each_killer_costs_one_more(miniature):
    miniature.site.valid("acme-1", slots=["memory.storage"])
    miniature.site.valid("acme-2", slots=["locks"])
    code = """
    import subprocess
    children = []
    popen = subprocess.Popen
    class Counting(popen):
        def __init__(self, *args, **kwargs):
            children.append(args); super().__init__(*args, **kwargs)
    subprocess.Popen = Counting
    import crewai
    answer(len(children))
    """
    assert miniature.run(code) == 1
    miniature.site.aborting("aaa-first")
    assert miniature.run(code) == 1
    assert miniature.status().slot("memory.storage")["provider"] == "acme-1"


@pytest.mark.parametrize("content", ["", "[1]", "{", "null"])
def test_a_damaged_cache_is_made_anew(content, miniature, tmp_path):
    miniature.site.add("acme-counting", COUNTING)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "first-imports.json").write_text(content)
    assert step(miniature.status()) == "tried now"
    assert step(miniature.status()) == "remembered as sound"


def test_a_cache_that_cannot_be_written_costs_time_only(miniature, tmp_path):
    miniature.site.add("acme-counting", COUNTING)
    (tmp_path / "cache").write_text("in the way")
    for _ in range(2):
        assert step(miniature.status()) == "tried now"


def test_a_cache_on_a_full_disk_leaves_no_file_behind(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_cache.json, "dump", full)
    _cache.write(tmp_path / "verdicts.json", {"a": None})
    assert list(tmp_path.iterdir()) == []


def test_what_a_plugin_prints_is_taken_for_no_answer(miniature):
    lie = 'print(\'["acme_counting", "I am broken"]\', flush=True)\n'
    miniature.site.add("acme-counting", lie + COUNTING)
    assert miniature.status().candidate("acme-counting")["state"] == "bound"


def test_a_module_in_the_working_directory_is_no_part_of_the_trial(miniature, tmp_path):
    """Nor of the program, which is a file somewhere else."""
    miniature.site.add("acme-counting", COUNTING)
    for module in ("json", "importlib", "encodings"):
        (tmp_path / f"{module}.py").write_text("open('executed', 'w'); raise SystemExit(3)")
    program = tmp_path / "elsewhere" / "program.py"
    program.parent.mkdir()
    program.write_text("import crewai, crewai_native; print(crewai_native.status().as_json())")
    done = miniature.run(
        f"""
        import sys
        sys.path.remove("")
        import os
        os.execv(sys.executable, [sys.executable, {str(program)!r}])
        """
    )
    assert "tried now" in done.stdout
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("ending", ["raise SystemExit(3)", "import os; os.abort()"])
def test_a_child_that_does_not_begin_says_nothing_of_the_plugins(ending, miniature):
    miniature.site.add("acme-counting", COUNTING)
    customize = miniature.site.folder / "sitecustomize.py"
    customize.write_text(f"import os\nif os.environ.get('CREWAI_NATIVE') == '0': {ending}\n")
    candidate = miniature.status().candidate("acme-counting")
    assert candidate["state"] == "broken"
    assert candidate["reason"].startswith("it cannot be tried in a child process: before the first")
    customize.unlink()
    assert step(miniature.status()) == "tried now"


def test_what_is_printed_at_the_start_is_taken_for_no_answer(miniature):
    miniature.site.add("acme-counting", COUNTING)
    print_it = "print('hello', end='', flush=True)\nprint('[1]', flush=True)\n"
    (miniature.site.folder / "sitecustomize.py").write_text(print_it)
    assert step(miniature.status()) == "tried now"
    assert step(miniature.status()) == "remembered as sound"


def test_what_python_ignores_on_the_path_does_no_harm(miniature):
    miniature.site.add("acme-counting", COUNTING)
    entries = '[pathlib.Path("somewhere"), "not-\\udcffunicode"]'
    first = f"import pathlib, sys; sys.path[:0] = {entries}"
    assert step(miniature.status(first)) == "tried now"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            "sys.executable = None",
            "sys.executable is unknown, and there is no /nowhere/bin/python3",
        ),
        ("sys.executable = ''", "sys.executable is unknown"),
        ("sys.executable = '/nowhere/python3'", "No such file"),
        ("sys.executable = '/etc/passwd'", "not named like a Python interpreter"),
        ("sys.frozen = True", "frozen"),
    ],
)
def test_without_an_interpreter_nothing_is_started_nor_remembered(code, words, miniature):
    miniature.site.add("acme-counting", COUNTING)
    status = miniature.status(f"import sys; sys.exec_prefix = '/nowhere'; {code}")
    assert status["active"]
    assert words in status.candidate("acme-counting")["reason"]
    assert step(miniature.status()) == "tried now"


def test_a_program_that_is_its_own_interpreter_is_not_started_again(miniature, tmp_path):
    miniature.site.add("acme-counting", COUNTING)
    application = tmp_path / "application"
    application.write_text("#!/bin/sh\necho started >> starts\n")
    application.chmod(0o755)
    named = f"import sys; sys.executable = {str(application)!r}"
    status = miniature.status(f"{named}; sys.exec_prefix = '/nowhere'")
    assert status.candidate("acme-counting")["state"] == "broken"
    # A server such as uWSGI has taken its library from a Python that is installed.
    assert step(miniature.status(named)) == "tried now"
    assert not (tmp_path / "starts").exists()
    (tmp_path / "interpreter").symlink_to(sys.executable)
    linked = f"import sys; sys.executable = {str(tmp_path / 'interpreter')!r}"
    assert step(miniature.status(linked)) == "tried now"


@pytest.mark.parametrize("flags", [["-I"], ["-E", "-s", "-P"], ["-S", "-B", "-P"]])
def test_the_child_has_the_flags_of_the_program(flags, site, tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    source = f"import sys; open({str(theirs)!r}, 'w').write(str(sys.flags))"
    site.add("acme-flags", source)
    program = f"""
import sys
sys.path[:] = {sys.path}
from crewai_native import _probe
assert _probe._try_all(["acme_flags"], 20) == ({{"acme_flags": None}}, None)
open({str(ours)!r}, "w").write(str(sys.flags))
"""
    subprocess.run([sys.executable, *flags, "-c", program], check=True)
    assert theirs.read_text() == ours.read_text()


def test_children_of_a_hanging_plugin_are_ended_with_it(miniature, tmp_path):
    source = """
    import subprocess, sys, threading
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with open("child", "w") as file:
        file.write(str(child.pid))
    threading.Event().wait()
    """
    miniature.site.add("acme-family", source)
    status = miniature.status(CREWAI_NATIVE_PROBE_TIMEOUT="1")
    assert status.candidate("acme-family")["state"] == "broken"
    pid = int((tmp_path / "child").read_text())
    assert _ended(pid)


def test_the_limit_holds_for_each_import_and_not_for_all_together(miniature):
    # Each blocks for less than the limit, all of them together for more.
    slow = "import threading\nthreading.Event().wait(0.4)\n"
    slots = ["memory.storage", "flow.persistence", "locks"]
    for number, slot in enumerate(slots):
        hook = f"def crewai_native_{slot.replace('.', '_')}():\n    raise RuntimeError\n"
        source = f"{slow}from crewai_native import hookimpl\n@hookimpl\n{hook}"
        miniature.site.add(f"acme-{number}", source, slots=[slot])
    status = miniature.status(CREWAI_NATIVE_PROBE_TIMEOUT="1")
    for number, slot in enumerate(slots):
        assert "did not end" not in status.candidate(f"acme-{number}", slot)["reason"]


def test_again_tries_what_is_remembered(site, tmp_path):
    site.valid("acme-again")
    offers = [o for o in _discovery.offers()[0]["memory.storage"] if o.name == "acme-again"]
    settings = _settings.Settings(cache_dir=tmp_path)
    assert _probe.verdicts(offers, settings)["acme_again"].fresh
    assert not _probe.verdicts(offers, settings)["acme_again"].fresh
    assert _probe.verdicts(offers, settings, again=True)["acme_again"].fresh


def test_the_cache_does_not_grow_for_ever(site, tmp_path):
    site.valid("acme-again")
    offers = [o for o in _discovery.offers()[0]["memory.storage"] if o.name == "acme-again"]
    settings = _settings.Settings(cache_dir=tmp_path)
    cache = _probe.cache_file(settings)
    cache.write_text(json.dumps({f"old-{n}": None for n in range(1000)}))
    _probe.verdicts(offers, settings)
    kept = json.loads(cache.read_text())
    assert len(kept) == 256
    assert "old-999" in kept
    assert not _probe.verdicts(offers, settings)["acme_again"].fresh


def _ended(pid):
    """Whether a process is gone, or a zombie that nobody has waited for yet."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
