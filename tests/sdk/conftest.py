"""Builds and loads the SDK's test module, in this process and in others."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "crewai-native-sdk-testmod"
NAME = "sdk_testmod"

# What a script starts with: the module, as a child process loads it.
PRELUDE = """
import importlib.machinery, importlib.util, sys
loader = importlib.machinery.ExtensionFileLoader("{name}", {path!r})
spec = importlib.util.spec_from_file_location("{name}", {path!r}, loader=loader)
sdk = importlib.util.module_from_spec(spec)
loader.exec_module(sdk)
"""

# Runs a script in a fresh interpreter and returns what it did.
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def library() -> Path:
    """The shared library of the test module, built if it is not up to date."""
    command = ["cargo", "build", "--quiet", "--message-format=json", "--package", PACKAGE]
    built = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    for line in built.stdout.splitlines():
        message = json.loads(line)
        if message["reason"] == "compiler-artifact" and message["target"]["name"] == NAME:
            return Path(message["filenames"][0])
    raise AssertionError(f"cargo built no {NAME}: {built.stdout}")


@pytest.fixture(scope="session")
def sdk(library: Path) -> ModuleType:
    """The test module, loaded into this process."""
    loader = importlib.machinery.ExtensionFileLoader(NAME, str(library))
    spec = importlib.util.spec_from_file_location(NAME, library, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture
def run(library: Path) -> Run:
    """`run(script)`: runs a script that finds the module as `sdk`; fails if it hangs.

    `before` is run before the module is loaded.
    """

    def run(
        script: str, *, before: str = "", env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        prelude = PRELUDE.format(name=NAME, path=str(library))
        return subprocess.run(
            [sys.executable, "-c", before + prelude + textwrap.dedent(script)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={**os.environ, **(env or {})},
        )

    return run
