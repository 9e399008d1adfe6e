"""The pages say what is so: their programs run, their links lead somewhere, their tables are whole."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from crewai_native import ConfigurationError, _settings
from crewai_native._types import COMPONENTS
from crewai_native_celery import plugin as celery_plugin
from crewai_native_db import plugin as db_plugin
from crewai_native_memory import plugin as memory_plugin
from crewai_native_tasks import plugin as tasks_plugin
from crewai_native_tools import plugin as tools_plugin

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
EXAMPLES = sorted(ROOT.glob("examples/*.py"))
# The plug-in's module is tried out as a plug-in, and signatures are no programs.
NOT_RUN = {"publish-an-accelerator.md", "slots.md"}

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def blocks(page, language):
    return [text for kind, text in _BLOCK.findall(page.read_text()) if kind == language]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("documented")
    # What other tests chose for this process is not what a reader starts with.
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("CREWAI_NATIVE")}
    return {**inherited, "CREWAI_STORAGE_DIR": str(folder)}


# --- programs ---------------------------------------------------------------------------------


def test_examples_and_blocks_run(environment, tmp_path):
    programs = [(path.name, path.read_text()) for path in EXAMPLES]
    programs += [
        (f"{page.name}[{number}]", text)
        for page in PAGES
        if page.name not in NOT_RUN
        for number, text in enumerate(blocks(page, "python"))
    ]
    assert len(programs) > len(EXAMPLES) >= 3
    # One process for all of them, as each import of CrewAI takes seconds.
    runner = (
        "import json, sys\n"
        "for name, text in json.load(sys.stdin):\n"
        "    print('running', name, flush=True)\n"
        "    exec(compile(text, name, 'exec'), {'__name__': '__main__'})\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", runner],
        input=json.dumps(programs),
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count("running ") == len(programs)


def test_the_documented_plugin_is_bound(environment, tmp_path):
    page = ROOT / "docs/publish-an-accelerator.md"
    source, installed = tmp_path / "source", tmp_path / "installed"
    source.mkdir()
    (project,) = blocks(page, "toml")
    (module,) = blocks(page, "python")
    (source / "pyproject.toml").write_text(project)
    (source / "acme_tool_cache.py").write_text(module)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", installed, source], check=True)
    listed = subprocess.run(
        [sys.executable, "-m", "crewai_native", "list", "--json"],
        env={**environment, "PYTHONPATH": str(installed)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    slots = {slot["slot"]: slot for slot in json.loads(listed.stdout)["slots"]}
    cache = slots["tools.cache"]
    assert (cache["state"], cache["provider"]) == ("bound", "acme-tool-cache"), cache["reason"]


# --- links ------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in _LINK.findall(page.read_text()):
        if link.startswith(("http://", "https://")):
            continue
        path, _, fragment = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name} links to {link}"
        if fragment:
            anchors = {_anchor(heading) for heading in _HEADING.findall(target.read_text())}
            assert fragment in anchors, f"{page.name} links to {link}"


def test_every_page_can_be_reached():
    index = (ROOT / "docs/index.md").read_text()
    for page in ROOT.glob("docs/*.md"):
        assert page.name == "index.md" or f"({page.name})" in index, page.name


# --- references -------------------------------------------------------------------------------


def test_the_slots_reference_is_current():
    script = _script("slots_reference")
    assert script.PAGE.read_text() == script.render(), "run python scripts/slots_reference.py"


def test_every_setting_is_documented_and_none_more():
    page = (ROOT / "docs/configuration.md").read_text()
    table = page.partition("## Settings")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (?:`([\w<>]+)`)? ?\| ?(.*?) ?\|", table, re.MULTILINE)
    documented = {setting: variable for setting, variable, _ in rows}
    variables = {setting: variable for variable, setting in _settings._PLAIN_VARIABLES.items()}
    variables.update({name: f"CREWAI_NATIVE_{name.upper()}" for name in COMPONENTS})
    variables.update({"slots": "CREWAI_NATIVE_SLOT_<SLOT>", "require": ""})
    assert documented == variables
    assert set(documented) == set(_settings._TABLE_KEYS)


@pytest.mark.parametrize(
    ("prefix", "plugin"),
    [
        ("memory.", memory_plugin),
        ("db.", db_plugin),
        ("tools.", tools_plugin),
        ("tasks.(?!celery_)", tasks_plugin),
        ("tasks.(?=celery_)", celery_plugin),
    ],
)
def test_options_of_components_are_documented(prefix, plugin):
    page = (ROOT / "docs/configuration.md").read_text()
    documented = set(re.findall(rf"^\| `{prefix}(\w+)` \|", page, re.MULTILINE))
    unknown = "celery_no_such" if plugin is celery_plugin else "no-such-option"
    with pytest.raises(ConfigurationError) as refused:
        plugin.crewai_native_configure({unknown: 1})
    assert set(str(refused.value).rpartition("it has ")[2].split(", ")) == documented


def test_documented_defaults_are_the_defaults():
    page = (ROOT / "docs/configuration.md").read_text()
    defaults = _settings.Settings._field_defaults
    stated = dict(re.findall(r"^\| `(\w+)` \| `\w+` \| `([^`]+)` \|", page, re.MULTILINE))
    assert {"enabled", "trust", "lock", "strict", "verify", "probe_timeout"} <= set(stated)
    for setting, text in stated.items():
        default = True if setting in COMPONENTS else defaults[setting]
        if isinstance(default, bool):
            assert text == str(default).lower(), setting
        elif isinstance(default, float):
            assert float(text) == default, setting
        else:
            assert text == str(default), setting


def test_documented_tables_are_accepted():
    tables = [
        tomllib.loads(text)["tool"]["crewai-native"]
        for page in PAGES
        for text in blocks(page, "toml")
        if "tool.crewai-native" in text
    ]
    assert len(tables) >= 3
    for table in tables:
        _settings.load(environ={}, overrides=table)


def _anchor(heading):
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"scripts/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
