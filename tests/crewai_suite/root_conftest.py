"""What CrewAI's own tests expect around them, and a record of what became of them.

CrewAI's source distribution has its tests and recorded answers of models, but not the
``conftest.py`` at the root of its repository. This one takes its place: keys that open nothing, a
storage directory for each test, event handlers and emission counters that start anew, and
cassettes found beside the tests.

``CREWAI_SUITE_REPORT`` names a directory. The run leaves ``results.json`` there, and each of its
processes a ``slots-<pid>.json`` with who served each slot and how often it was called.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import crewai_native

if TYPE_CHECKING:
    from collections.abc import Iterator

_ENVIRONMENT = {
    "CREWAI_DISABLE_TELEMETRY": "true",
    "CREWAI_TESTING": "true",
    "CREWAI_TRACING_ENABLED": "false",
    "OTEL_SDK_DISABLED": "true",
    "AWS_ACCESS_KEY_ID": "none",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_SECRET_ACCESS_KEY": "none",
    "ANTHROPIC_API_KEY": "none",
    "AZURE_API_KEY": "none",
    "AZURE_API_VERSION": "2024-02-15-preview",
    "AZURE_ENDPOINT": "https://fake-azure-endpoint.openai.azure.com",
    "GEMINI_API_KEY": "none",
    # It fetches prices while it is imported. Where that fails, inside whichever test happens to
    # come first, CrewAI counts litellm as missing until the process ends.
    "LITELLM_LOCAL_MODEL_COST_MAP": "true",
    "OPENAI_API_KEY": "none",
    "OPENAI_API_VERSION": "2024-02-15-preview",
    "OPENROUTER_API_KEY": "none",
}
# Some tests read it while they are imported; and a maintainer's real keys stay out of all this.
os.environ.update(_ENVIRONMENT)

_results: dict[str, dict[str, str]] = {}
_calls: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A storage directory for one test, and the environment that CrewAI's repository gives it."""
    before = dict(os.environ)
    os.environ.update(_ENVIRONMENT, CREWAI_STORAGE_DIR=str(tmp_path_factory.mktemp("storage")))
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(autouse=True)
def events() -> Iterator[None]:
    """Events counted from the start, and no handler left to the next test."""
    from crewai.events import event_context
    from crewai.events.base_events import reset_emission_counter
    from crewai.events.event_bus import crewai_event_bus
    from crewai.events.listeners.tracing.trace_listener import TraceCollectionListener

    reset_emission_counter()
    event_context._event_id_stack.set(())
    event_context._event_context_config.set(event_context.EventContextConfig())
    yield
    with crewai_event_bus._rwlock.w_locked():
        crewai_event_bus._sync_handlers.clear()
        crewai_event_bus._async_handlers.clear()
    TraceCollectionListener._instance = None


@pytest.fixture(scope="session")
def served() -> dict[str, str]:
    """The slots that are bound when the run begins, and by whom."""
    import crewai  # noqa: F401 - which activates the host

    return _served()


@pytest.fixture(autouse=True)
def accelerated(served: dict[str, str], storage: None, events: None) -> None:
    """Bind what was bound at first: tests of CrewAI's extension points leave them empty."""
    if _served() != served:
        _count_calls()
        crewai_native.deactivate()
        crewai_native.activate()
        assert _served() == served


def _served() -> dict[str, str]:
    return {
        slot.slot: f"{slot.provider} {slot.version}"
        for slot in crewai_native.status().slots
        if slot.state is crewai_native.State.BOUND
    }


def _count_calls() -> None:
    # A slot's metrics end with its binding.
    _calls.update({metrics.slot: metrics.calls for metrics in crewai_native.metrics()})


@pytest.fixture(scope="module")
def vcr_cassette_dir(request: pytest.FixtureRequest) -> str:
    """The folder below ``tests/cassettes`` that mirrors the module's own."""
    root = request.config.rootpath / "tests"
    return str(root / "cassettes" / request.path.parent.relative_to(root))


@pytest.fixture(scope="module")
def vcr_config(vcr_cassette_dir: str) -> dict[str, Any]:
    """Cassettes hold scrubbed headers and bodies of older releases: a request is its address."""
    return {
        "cassette_library_dir": vcr_cassette_dir,
        "match_on": ["method", "scheme", "host", "port", "path"],
        "filter_query_parameters": ["key"],
    }


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Record a test's outcome: of its three phases, the first that did not pass."""
    known = _results.setdefault(report.nodeid, {"outcome": "passed", "why": ""})
    if known["outcome"] == "passed" and not report.passed:
        known.update(outcome=report.outcome, why=_last_line(report.longrepr))


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Record a module that cannot be imported as a failed test."""
    if report.failed:
        _results[report.nodeid] = {"outcome": "failed", "why": _last_line(report.longrepr)}


def _last_line(longrepr: object) -> str:
    """Return the error of a traceback: the first of the lines that pytest marks with an E."""
    lines = str(longrepr).splitlines() or [""]
    return next((line[1:].strip() for line in lines if line.startswith("E ")), lines[-1])


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Leave behind what became of the tests, and what served them."""
    if not (directory := os.environ.get("CREWAI_SUITE_REPORT")):
        return
    if not hasattr(session.config, "workerinput"):
        Path(directory, "results.json").write_text(json.dumps(_results, indent=1))
    _count_calls()
    report = {"bound": _served(), "calls": _calls}
    Path(directory, f"slots-{os.getpid()}.json").write_text(json.dumps(report))
