r"""The contract kit as pytest fixtures: ``pytest -p crewai_native.testing.plugin``.

A plug-in's own test-suite that runs the contract of the slots that it serves::

    pytest -p crewai_native.testing.plugin --pyargs crewai_native.testing.contract \
        --provider my-distribution
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import textwrap
import warnings
from typing import TYPE_CHECKING, Any, Final

import pytest

from crewai_native.testing.distributions import Site
from crewai_native.testing.offline import OFFLINE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytest.register_assert_rewrite("crewai_native.testing.contract")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--provider``."""
    parser.addoption(
        "--provider",
        action="append",
        default=None,
        metavar="DIST",
        help="run the slots' contracts for this distribution, or 'stock'; "
        "by default for each that is installed, and for stock",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker of what is wrong in CrewAI itself."""
    config.addinivalue_line(
        "markers",
        "stock_defect(reason): a test of a contract that CrewAI's own code fails, and must go on "
        "failing until the claim that it does is withdrawn",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the tests of a slot's contract for each provider."""
    slot = getattr(metafunc.cls, "slot", None)
    if slot is None or "provider" not in metafunc.fixturenames:
        return
    from crewai_native import _discovery

    available = [*sorted({offer.name for offer in _discovery.offers()[0][slot]}), "stock"]
    chosen = metafunc.config.getoption("--provider") or available
    metafunc.parametrize("provider", [n for n in available if n in chosen], indirect=True)


@pytest.fixture
def provider(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The distribution under test, bound to the slot of the test's class; or ``stock``."""
    import crewai_native
    from crewai_native import State
    from crewai_native.testing.contract.rules import alone

    slot, name = request.cls.slot, request.param
    defect = request.node.get_closest_marker("stock_defect")
    if name == "stock" and defect is not None:
        request.applymarker(pytest.mark.xfail(reason=defect.args[0], strict=True))
    monkeypatch.setenv("CREWAI_STORAGE_DIR", str(tmp_path / "storage"))
    with warnings.catch_warnings():
        # What CrewAI's dependencies say while they are imported is not the provider's fault.
        warnings.simplefilter("ignore")
        importlib.import_module("crewai")
    status = crewai_native.activate(enabled=True, slots=alone(slot, name))
    try:
        mine = next((c for c in status[slot].candidates if c.distribution == name), None)
        if mine is not None and mine.state in {State.TARGET_CHANGED, State.INCOMPATIBLE}:
            pytest.skip(f"{mine.state}: {mine.reason}")
        assert status[slot].provider == name, status[slot].reason
        yield name
    finally:
        crewai_native.deactivate()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A folder of distributions that this process and its children have installed."""
    site = Site(tmp_path / "site")
    monkeypatch.syspath_prepend(str(site.folder))
    path = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site.folder), *([path] if path else [])]))
    return site


@pytest.fixture
def no_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """No plug-in is installed, as far as the host can see."""
    from crewai_native import _discovery

    monkeypatch.setattr(_discovery, "_distributions", lambda: iter(()))


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Any]:
    """Run Python code in a fresh interpreter and return what it passes to ``answer()``.

    The environment is this process's, without what configures the host, with verdicts on plug-ins
    and CrewAI's data in the test's own folder, and with the given variables on top. Where the code
    gives no answer, the ``subprocess.CompletedProcess`` is returned.
    """

    def run(code: str, *, check: bool = True, **variables: str) -> Any:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("CREWAI_NATIVE")}
        environment |= OFFLINE
        environment |= {
            "CREWAI_STORAGE_DIR": str(tmp_path / "storage"),
            "CREWAI_NATIVE_CACHE_DIR": str(tmp_path / "cache"),
        }
        done = subprocess.run(  # noqa: S603 - the test's own code
            [sys.executable, "-c", _PRELUDE + textwrap.dedent(code)],
            cwd=tmp_path,
            env=environment | variables,
            capture_output=True,
            text=True,
            check=False,
        )
        if check and done.returncode:
            pytest.fail(f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}")
        answers = [line for line in done.stdout.splitlines() if line.startswith(_MARK)]
        return json.loads(answers[-1].removeprefix(_MARK)) if answers else done

    return run


_MARK: Final = "@answer@"
_PRELUDE: Final = f"""
def answer(value):
    import json
    print("\\n{_MARK}" + json.dumps(value), flush=True)
"""
