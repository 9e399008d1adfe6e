"""Environments as users have them: the host from a built wheel, and nothing of ours but what is installed."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What is ours, by the beginnings of names in site-packages.
OURS = ("crewai_native", "_crewai_native", "__editable__", "_editable_impl")
OFFLINE = {
    "PIP_NO_INDEX": "1",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    # In pip's words: do not isolate the build, which would fetch the build backend.
    "PIP_NO_BUILD_ISOLATION": "0",
    "CARGO_NET_OFFLINE": "true",
}


class Environment:
    """A fresh virtual environment that has the third-party packages of this one, and none of ours.

    Args:
        folder: Where it is made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        venv.create(folder / "venv", with_pip=False, symlinks=os.name != "nt")
        variables = {"base": str(folder / "venv"), "platbase": str(folder / "venv")}
        self.packages = Path(sysconfig.get_path("purelib", "venv", vars=variables))
        self.scripts = Path(sysconfig.get_path("scripts", "venv", vars=variables))
        others = folder / "others"
        others.mkdir()
        for path in Path(sysconfig.get_path("purelib")).iterdir():
            if not path.name.startswith(OURS):
                (others / path.name).symlink_to(path)
        # A plain line of a .pth file: the .pth files in that folder are not read.
        (self.packages / "others.pth").write_text(f"{others}\n")
        for tool in ("pip", "pytest"):
            script = self.scripts / tool
            script.write_text(f'#!/bin/sh\nexec "{self.scripts}/python" -m {tool} "$@"\n')
            script.chmod(0o755)
        # A program, not a script for one interpreter.
        (self.scripts / "maturin").symlink_to(Path(sysconfig.get_path("scripts")) / "maturin")
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("CREWAI_NATIVE", "PYTHON", "PYTEST"))
        }
        self.environ = inherited | OFFLINE
        self.environ |= {
            "PATH": f"{self.scripts}{os.pathsep}{os.environ['PATH']}",
            "VIRTUAL_ENV": str(folder / "venv"),
            "CREWAI_NATIVE_CACHE_DIR": str(folder / "cache"),
            "CREWAI_STORAGE_DIR": str(folder / "storage"),
        }

    def __call__(self, *command: str, cwd: Path | None = None, **variables: str) -> str:
        """Run a command and return what it prints."""
        done = subprocess.run(
            command,
            cwd=cwd or self.folder,
            env=self.environ | variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="session")
def host_wheel(tmp_path_factory):
    """The host as it is published."""
    folder = tmp_path_factory.mktemp("host")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder]
    subprocess.run([*build, ROOT], env=os.environ | OFFLINE, check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def fresh(tmp_path_factory):
    """Return a function that makes an environment with nothing of ours."""
    return lambda: Environment(tmp_path_factory.mktemp("user"))


@pytest.fixture
def environment(fresh, host_wheel):
    """An environment in which the host is installed, and nothing else of ours."""
    made = fresh()
    made("pip", "install", "--quiet", "--no-deps", str(host_wheel))
    return made
