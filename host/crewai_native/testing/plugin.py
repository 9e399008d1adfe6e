"""The contract kit as a pytest plug-in.

A distribution's own test-suite runs the contracts of the slots that it serves, with stock CrewAI as
the control, and ends in a table of both::

    pytest --pyargs crewai_native.testing.contract --provider my-distribution

Tests that want the kit's fixtures for themselves say ``pytest_plugins =
["crewai_native.testing.plugin"]`` in their ``conftest.py``.
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
from crewai_native.testing.table import PROPERTY, Table, rule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from crewai_native.testing.contract._trials import Import, Trial, Trials

pytest.register_assert_rewrite("crewai_native.testing.contract")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--provider``."""
    parser.addoption(
        "--provider",
        action="append",
        default=None,
        metavar="DIST",
        help="run the contracts of the slots that this distribution serves, for it and for stock, "
        "and end in a table; by default those of all slots, for every distribution installed",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker of what is wrong in CrewAI itself, and check the options.

    Raises:
        pytest.UsageError: A provider serves no slot.
    """
    config.addinivalue_line(
        "markers",
        "stock_defect(reason): a test of a contract that CrewAI's own code fails, and must go on "
        "failing until the claim that it does is withdrawn",
    )
    if not (chosen := _chosen(config)):
        return
    served = {name for names in _served().values() for name in names}
    if strangers := [name for name in chosen if name not in {*served, "stock"}]:
        raise pytest.UsageError(
            f"--provider is {strangers[0]!r}, which serves no slot here; it accepts "
            f"{', '.join([*sorted(served), 'stock'])}"
        )
    # Theirs to mend; in a session of contracts alone they only bury the table.
    config.addinivalue_line("filterwarnings", "ignore::DeprecationWarning:crewai.*")
    columns = ["stock", *(name for name in chosen if name != "stock")]
    config.pluginmanager.register(Table(columns), "crewai-native-table")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the tests of a slot's contract for each provider."""
    slot = getattr(metafunc.cls, "slot", None)
    if slot is None or "provider" not in metafunc.fixturenames:
        return
    available = sorted(_served()[slot])
    chosen = _chosen(metafunc.config)
    if chosen and chosen != ["stock"]:
        available = [name for name in available if name in chosen]
    elif chosen:
        available = []
    metafunc.parametrize("provider", [*available, "stock"], indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the slots that no chosen provider serves; name the rule that each test is."""
    chosen = {*_chosen(config)} - {"stock"}
    served = _served()
    left_out = []
    for item in items:
        slot = getattr(getattr(item, "cls", None), "slot", None)
        if not isinstance(item, pytest.Function) or slot not in served:
            continue
        if chosen and not chosen & served[slot]:
            left_out.append(item)
        elif hasattr(item, "callspec") and "provider" in item.callspec.params:
            told = (slot, rule(item.originalname), item.callspec.params["provider"])
            item.user_properties.append((PROPERTY, told))
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


def _chosen(config: pytest.Config) -> list[str]:
    from crewai_native._settings import normalise

    # Each once: a project may name itself in its settings, and be named on the command line.
    return list(dict.fromkeys(normalise(name) for name in config.getoption("--provider") or ()))


def _served() -> dict[str, set[str]]:
    """Return the distributions that serve each slot."""
    from crewai_native import _discovery

    return {slot: {offer.name for offer in found} for slot, found in _discovery.offers()[0].items()}


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
    if name == "stock" and request.node.originalname in request.cls.stock_defects:
        pytest.xfail(request.cls.stock_defects[request.node.originalname])
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


@pytest.fixture(scope="session")
def _trials(request: pytest.FixtureRequest) -> Iterator[Trials]:
    """What becomes of each provider that this session tests, and of stock, in the background."""
    from crewai_native.testing.contract._trials import Trials

    # In the order of the tests, each slot's stock first: a dictionary, for its order.
    wanted: dict[tuple[str, str], None] = {}
    for item in request.session.items:
        if isinstance(item, pytest.Function) and "trial" in item.fixturenames:
            slot = str(item.cls.slot)
            wanted[slot, "stock"] = None
            wanted[slot, str(item.callspec.params["provider"])] = None
    trials = Trials(wanted)
    yield trials
    trials.close()


@pytest.fixture
def trial(provider: str, request: pytest.FixtureRequest, _trials: Trials) -> Trial:
    """What became of the provider in a process of its own."""
    return _trials[request.cls.slot, provider]


@pytest.fixture
def stock_trial(request: pytest.FixtureRequest, _trials: Trials) -> Trial:
    """What became of stock."""
    return _trials[request.cls.slot, "stock"]


@pytest.fixture
def start_up(request: pytest.FixtureRequest, provider: str) -> Import:
    """What importing the provider's plug-in does to a process."""
    from crewai_native import _discovery
    from crewai_native.testing.contract import _trials

    offers = _discovery.offers()[0][request.cls.slot]
    value = next((offer.value for offer in offers if offer.name == provider), None)
    if value is None:
        pytest.skip("stock is no plug-in")
    return _trials.imported(value)


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
