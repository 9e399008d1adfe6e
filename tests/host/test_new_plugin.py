"""``crewai-native new-plugin``: a project for every slot, in both languages."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import yaml

from crewai_native import hookspecs, new_plugin
from crewai_native._errors import ConfigurationError
from crewai_native.cli import main
from crewai_native.slots import SLOT_NAMES

PAIRS = [(slot, kind) for slot in SLOT_NAMES for kind in ("python", "rust")]


@pytest.fixture
def make(tmp_path, capsys):
    def make(name, *options):
        with pytest.raises(SystemExit) as ended:
            main(["new-plugin", name, "--into", str(tmp_path / name), *options])
        return ended.value.code, capsys.readouterr().err

    return make


@pytest.mark.parametrize(("slot", "kind"), PAIRS)
def test_a_project_of_every_slot_is_whole(slot, kind, make, tmp_path):
    assert make("acme-new", "--slot", slot, "--kind", kind) == (0, "")
    project = tmp_path / "acme-new"
    files = {path.relative_to(project).as_posix(): path for path in project.rglob("*")}
    source = "python" if kind == "rust" else "src"
    assert {"pyproject.toml", "README.md", "LICENSE", f"{source}/acme_new/py.typed"} <= files.keys()
    assert ("Cargo.toml" in files, "src/lib.rs" in files) == (kind == "rust", kind == "rust")
    for path in files.values():
        if path.is_file():
            text = path.read_text()
            assert "{%" not in text
            assert path.suffix == ".yml" or "{{" not in text.replace("{{{", "")
            if path.suffix == ".py":
                compile(text, path, "exec")
    steps = yaml.safe_load(files[".github/workflows/wheels.yml"].read_text())["jobs"]
    assert set(steps) == {"build", "test"}
    assert {"ubuntu-latest", "macos-latest", "windows-latest"} <= set(
        steps["test"]["strategy"]["matrix"]["os"]
    )


def test_formatters_have_nothing_to_say(make, tmp_path):
    for slot, kind in PAIRS:
        make(f"acme-{slot.replace('.', '-')}-{kind}", "--slot", slot, "--kind", kind)
    ruff = [sys.executable, "-m", "ruff"]
    isolated = ["--isolated", "--no-cache", str(tmp_path)]
    formatted = [*ruff, "format", "--diff", "--line-length", "100", *isolated]
    linted = [*ruff, "check", "--select", "E,F,W,B,D1,UP", *isolated]
    linted += ["--ignore", "E501,D105,D107"]
    for command in (formatted, linted):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    crates = [path for path in tmp_path.rglob("*.rs") if path.name == "lib.rs"]
    assert len(crates) == len(SLOT_NAMES)
    rustfmt = ["rustfmt", "--check", "--edition", "2024", *map(str, crates)]
    done = subprocess.run(rustfmt, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_what_it_renders_is_bound_and_does_what_stock_does(make, tmp_path, site, run, monkeypatch):
    providers = {slot: f"acme-{slot.replace('.', '-')}" for slot in SLOT_NAMES}
    for slot, name in providers.items():
        make(name, "--slot", slot)
        package = name.replace("-", "_")
        site.add(name, "", slots=[slot], accelerates=">=1.14.7,<2", module=f"{package}_info")
        entries = site.folder / f"{package}-1.0.dist-info" / "entry_points.txt"
        entries.write_text(f"[crewai_native.v1]\n{slot} = {package}.plugin\n")
    sources = [str(tmp_path / name / "src") for name in providers.values()]
    path = os.pathsep.join([str(site.folder), *sources])
    # One process for all: CrewAI takes seconds to import, and what each slot does a moment.
    found = run(
        f"""
        import crewai_native
        from crewai_native.testing.contract import _trials, rules

        found = {{}}
        for slot, name in {providers!r}.items():
            found[slot] = []
            for provider in (name, "stock"):
                choice = rules.alone(slot, provider)
                status = crewai_native.activate(enabled=True, slots=choice)[slot]
                answer_ = _trials.contract(slot).exercise()
                failed = sum(m.errors + m.fallbacks for m in crewai_native.metrics())
                found[slot].append([status.provider, failed, answer_])
                crewai_native.deactivate()
        answer(found)
        """,
        PYTHONPATH=path,
        CREWAI_NATIVE="0",
    )
    for slot, (rendered, stock) in found.items():
        assert rendered[:2] == [providers[slot], 0], slot
        assert rendered[2] == stock[2], slot


def test_the_hook_has_the_hosts_parameters(make, tmp_path):
    make("acme-locks", "--slot", "locks")
    plugin = (tmp_path / "acme-locks/src/acme_locks/plugin.py").read_text()
    assert "def crewai_native_locks(name: str, timeout: float) -> Any:" in plugin
    assert hookspecs.crewai_native_locks.__annotations__.keys() == {"name", "timeout", "return"}


def test_answers_that_mean_nothing(make, tmp_path):
    assert make("acme", "--slot", "coffee") == (
        2,
        f"crewai-native: error: coffee is no slot; it accepts {', '.join(SLOT_NAMES)}\n",
    )
    code, error = make("acme", "--slot", "locks", "--kind", "cobol")
    assert (code, "kind is 'cobol'; it accepts rust, python" in error) == (2, True)
    for name in ("Acme", "1st", "a_b", "a b", "../up", ""):
        code, error = make(name, "--slot", "locks")
        assert (code, "is no name of a distribution" in error) == (2, True)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("class", "a keyword of Python"),
        ("none", "a keyword of Python"),
        ("json", "a module of Python itself"),
        ("crewai", "a distribution of CrewAI"),
        ("crewai-native", "a distribution of crewai-native"),
        ("crewai-native-memory", "a distribution of crewai-native"),
    ],
)
def test_names_that_cannot_work_are_refused(name, words, make, tmp_path):
    code, error = make(name, "--slot", "locks")
    assert code == 2
    assert f"{name} is {words}; a plug-in needs a name of its own" in error
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["self", "core"])
def test_words_of_rust_name_no_crate(name, make, tmp_path):
    code, error = make(name, "--slot", "locks", "--kind", "rust")
    assert (code, f"{name} is a word of Rust" in error) == (2, True)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("into", ["file/x", "/proc/nosuch/x", "a" * 300])
def test_a_folder_that_cannot_be_made_is_one_line(into, make, tmp_path):
    (tmp_path / "file").write_text("mine")
    code, error = make("acme", "--slot", "locks", "--into", str(tmp_path / into))
    assert (code, len(error.splitlines()), "cannot be written: " in error) == (2, 1, True)


def test_a_folder_with_something_in_it_is_left_alone(make, tmp_path):
    (tmp_path / "acme").mkdir()
    (tmp_path / "acme" / "mine").write_text("mine")
    code, error = make("acme", "--slot", "locks")
    assert (code, "exists; new-plugin accepts a folder that does not" in error) == (2, True)
    assert [path.name for path in (tmp_path / "acme").iterdir()] == ["mine"]


def test_a_mistake_in_a_template_writes_nothing(tmp_path):
    source = tmp_path / "template"
    source.mkdir()
    (source / "copier.yml").write_text("name: {type: str, default: x}\n")
    (source / "good").write_text("good")
    (source / "wrong.jinja").write_text("{{ nobody }}")
    with pytest.raises(Exception, match="'nobody' is undefined"):
        new_plugin.render(source, tmp_path / "out", {})
    assert not (tmp_path / "out").exists()
    (source / "wrong.jinja").write_text("{{ name }}")
    new_plugin.render(source, tmp_path / "out", {"name": "y"})
    assert (tmp_path / "out" / "wrong").read_text() == "y"
    with pytest.raises(ConfigurationError):
        new_plugin.render(source, tmp_path / "out", {})


def test_without_jinja_it_says_what_to_install(run):
    code = """
    import sys
    sys.modules["jinja2"] = None
    from crewai_native.cli import main
    main(["new-plugin", "acme", "--slot", "locks"])
    """
    ended = run(code, check=False)
    assert ended.returncode == 2
    assert "pip install 'crewai-native[new-plugin]'" in ended.stderr
    assert "Traceback" not in ended.stderr
