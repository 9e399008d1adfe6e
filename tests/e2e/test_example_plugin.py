"""plugins/example as a stranger would install it: from a built wheel, with pip."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2] / "plugins" / "example"
NAME = "acme-crewai-cache"

CREW = """
import json
from crewai import Agent, Crew, Task
from crewai.tools import tool
import crewai_native
from crewai_native.testing import ScriptedLLM, ToolCall

calls = []

@tool
def double(number: int) -> int:
    "Double a number."
    calls.append(number)
    return number * 2

call = ToolCall("double", {"number": 21})
llm = ScriptedLLM([call, call, lambda turn: ", ".join(turn.results)])
agent = Agent(role="r", goal="g", backstory="b", llm=llm, tools=[double])
task = Task(description="d", expected_output="e", agent=agent)
raw = Crew(agents=[agent], tasks=[task], cache=True).kickoff().raw
(metrics,) = [m for m in crewai_native.metrics() if m.slot == "tools.cache"]
print("answer:" + json.dumps([raw, calls, metrics.calls, metrics.errors]))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Runs Python in an environment of its own that has what this one has, and more."""
    folder = tmp_path_factory.mktemp("stranger")
    venv.create(folder / "venv", with_pip=False, symlinks=os.name != "nt")
    scripts = "Scripts" if os.name == "nt" else "bin"
    executable = folder / "venv" / scripts / "python"
    here = sysconfig.get_path("purelib")
    variables = {"base": str(folder / "venv"), "platbase": str(folder / "venv")}
    packages = Path(sysconfig.get_path("purelib", "venv", vars=variables))
    # What is installed here, with its own .pth files, comes after what is installed there.
    (packages / "outer.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CREWAI_NATIVE")}
    environment |= {
        # It serves the same slot, and would step in when the stranger's has gone.
        "CREWAI_NATIVE_DENY": "crewai-native-tools",
        "CREWAI_NATIVE_CACHE_DIR": str(folder / "cache"),
        "CREWAI_STORAGE_DIR": str(folder / "storage"),
    }

    def run(*arguments, outer=False):
        done = subprocess.run(
            [sys.executable if outer else executable, *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def pip(*arguments):
        return run("-m", "pip", "--python", str(executable), *arguments, outer=True)

    run.pip = pip
    wheels = folder / "wheels"
    offline = ("--no-deps", "--no-index")
    build = ("-m", "pip", "wheel", *offline, "--no-build-isolation", "-w", str(wheels))
    run(*build, str(PROJECT), outer=True)
    pip("install", *offline, *map(str, wheels.glob("*.whl")))
    return run


def cache_slot(python):
    slots = json.loads(python("-m", "crewai_native", "list", "--json"))["slots"]
    return next(slot for slot in slots if slot["slot"] == "tools.cache")


@pytest.mark.slow
def test_the_example_is_installed_bound_used_and_removed(python):
    slot = cache_slot(python)
    assert (slot["state"], slot["provider"], slot["version"]) == ("bound", NAME, "0.1.0")

    answer = next(x for x in python("-c", CREW).splitlines() if x.startswith("answer:"))
    raw, calls, counted, errors = json.loads(answer.removeprefix("answer:"))
    assert (raw, calls, errors) == ("42, 42", [21], 0)
    assert counted >= 3  # a miss, the result, and a hit

    options = ("-p", "no:cacheprovider", "-o", "addopts=", "-q")
    assert "passed" in python("-m", "pytest", *options, str(PROJECT / "tests"))
    contract = ("--pyargs", "crewai_native.testing.contract", "--provider", NAME)
    told = python("-m", "pytest", *options, *contract)
    assert re.search(rf"^tools.cache +stock +{NAME}$", told, re.MULTILINE), told
    assert "FAILED" not in told

    python.pip("uninstall", "--yes", NAME)
    slot = cache_slot(python)
    assert (slot["state"], slot["provider"]) == ("stock", "stock")
