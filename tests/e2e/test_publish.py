"""The page "Publish an accelerator", done as it says, and a stranger's pytest beside it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from crewai_native.slots import SLOT_NAMES

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "publish-an-accelerator.md"


def commands(heading):
    """Return the commands of the first block below a heading of the page."""
    section = PAGE.read_text().partition(f"\n## {heading}\n")[2]
    block = re.search(r"^(?:    .+\n)+", section, re.MULTILINE)[0]
    return [line.strip() for line in block.splitlines()]


def slot(environment, name):
    slots = json.loads(environment("crewai-native", "list", "--json"))["slots"]
    found = next(slot for slot in slots if slot["slot"] == name)
    return found["state"], found["provider"]


def written(text, name, slot, kind):
    """Return a command of the page, for another accelerator than its example."""
    text = text.replace("acme-tool-cache", name).replace("tools.cache", slot)
    return text.replace("--kind python", f"--kind {kind}")


PROJECTS = [
    ("acme-tool-cache", "tools.cache", "python"),
    ("acme-locks", "locks", "python"),
    ("acme-codec", "serialization.messages", "rust"),
]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_page_as_it_stands(environment):
    """For three slots side by side, so that CrewAI is imported once for all of their rules."""
    for name, served, kind in PROJECTS:
        begin, *_ = commands("Begin")
        options = ("--sdk-path", str(ROOT / "host/sdk")) if kind == "rust" else ()
        environment(*written(begin, name, served, kind).split(), *options)
        project = environment.folder / name
        variables = {}
        if kind == "rust":
            # What the repository's crates are built from, which can be had offline and is built.
            shutil.copy(ROOT / "Cargo.lock", project)
            variables = {
                "CARGO_TARGET_DIR": str(ROOT / "target"),
                "MATURIN_PEP517_ARGS": "--profile dev",
            }
        for command in commands("Build it and look"):
            environment("sh", "-c", written(command, name, served, kind), cwd=project, **variables)
        assert slot(environment, served) == ("bound", name)
        assert "1 passed" in environment("pytest", "-q", "tests/test_plugin.py", cwd=project)

    (contract,) = commands("Hold it to the contract")
    others = [option for name, _, _ in PROJECTS[1:] for option in ("--provider", name)]
    told = environment(*contract.split(), *others)
    for name, served, _ in PROJECTS:
        assert re.search(rf"^{re.escape(served)} +stock .*\b{name}\b", told, re.MULTILINE), told
    assert "FAILED" not in told
    cells = re.findall(r"^  threads can use it at once +(.*)$", told, re.MULTILINE)
    assert [sorted(row.split()) for row in cells] == [["-", "-", "kept", "kept"]] * 3

    for name, served, _ in PROJECTS:
        environment("pip", "uninstall", "--yes", name)
        assert slot(environment, served) == ("stock", "stock")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_slot_begins_in_rust_too(environment):
    """Rendered as the command does; what differs between slots is Python, so one is compiled."""
    for served in SLOT_NAMES:
        name = f"acme-{served.replace('.', '-')}"
        sdk = ("--sdk-path", str(ROOT / "host/sdk"))
        environment("crewai-native", "new-plugin", name, "--slot", served, "--kind", "rust", *sdk)
        source = environment.folder / name / "python" / name.replace("-", "_")
        for module in source.glob("*.py"):
            compile(module.read_text(), str(module), "exec")
        assert f'"{served}" = ' in (environment.folder / name / "pyproject.toml").read_text()
    rust = [environment.folder / f"acme-{s.replace('.', '-')}/src/calls.rs" for s in SLOT_NAMES]
    assert len({path.read_text() for path in rust}) == 1
    project = environment.folder / "acme-tools-guard"
    shutil.copy(ROOT / "Cargo.lock", project)
    environment("cargo", "check", "--quiet", cwd=project, CARGO_TARGET_DIR=str(ROOT / "target"))


@pytest.mark.slow
def test_a_strangers_pytest_is_as_it_was(environment, tmp_path):
    """With an option of the same name as the kit's, warnings as errors, and nothing loaded."""
    (tmp_path / "conftest.py").write_text(
        "def pytest_addoption(parser):\n    parser.addoption('--provider', default='mine')\n"
    )
    (tmp_path / "test_mine.py").write_text(
        "import sys\n"
        "def test_mine(pytestconfig):\n"
        "    assert pytestconfig.getoption('--provider') == 'mine'\n"
        "    loaded = {name for name in sys.modules if name.startswith('crewai_native')}\n"
        "    testing = 'crewai_native.testing'\n"
        "    assert loaded == {'crewai_native', testing, f'{testing}.entry'}\n"
    )
    # pytest-asyncio warns of its own defaults.
    quiet = ("-p", "no:cacheprovider", "-p", "no:asyncio", "-W", "error", "-q")
    assert "1 passed" in environment("pytest", *quiet, "test_mine.py", cwd=tmp_path)
