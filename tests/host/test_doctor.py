"""What ``doctor`` finds, each thing made wrong on purpose."""

from __future__ import annotations

import json
import os
import sys
import types

import pytest

from crewai_native import (
    Candidate,
    SlotStatus,
    State,
    Status,
    StrictError,
    _discovery,
    _doctor,
    _roster,
)
from crewai_native._settings import Settings
from crewai_native.health import Check, Health, error, ok, warning


class FakeHost:
    """A host whose activation has come out in a given way."""

    def __init__(self, *slots, active=True, plugins=(), raises=None, warnings=()):
        self._status = Status(active, "because", "1.15.30", list(slots), warnings=list(warnings))
        self._plugins = plugins
        self._raises = raises

    def activate(self, settings, reason):
        if self._raises is not None:
            raise self._raises

    def status(self):
        return self._status

    def plugins(self):
        return list(self._plugins)


def slot(name, state, provider="acme", candidates=()):
    return SlotStatus(name, "", state, provider, "1", "", "", list(candidates))


def candidate(state, reason="a reason"):
    found = Candidate("locks", "acme", "1", "acme", "/site")
    found.state, found.reason = state, reason
    return found


def plugin(name="acme", health=None):
    def call(hook, default=None):
        return default if health is None else health()

    return types.SimpleNamespace(distribution=name, value=f"{name}.plugin", call=call)


@pytest.fixture
def examine(monkeypatch, tmp_path):
    """Examine a host and return the findings by name; no plug-in is really installed."""
    monkeypatch.setattr(_roster, "roster", lambda *_, **__: _roster.Roster([], []))
    paths = types.ModuleType("crewai_core.paths")
    paths.db_storage_path = lambda: str(tmp_path / "storage")
    monkeypatch.setitem(sys.modules, "crewai_core.paths", paths)
    monkeypatch.delenv("REDIS_URL", raising=False)

    def examine(host=None, **settings):
        settings.setdefault("cache_dir", tmp_path / "cache")
        found = list(_doctor.examine(host or FakeHost(), Settings(**settings)))
        assert all(isinstance(check, Check) for check in found)
        return {check.name: check for check in found}

    return examine


def test_where_all_is_well_nothing_is_wrong(examine):
    found = examine()
    assert [c for c in found.values() if c.health is Health.ERROR] == []
    assert set(found) >= {"python", "crewai", "crewai-native", "cpu", "storage", "verdict cache"}


@pytest.mark.parametrize(
    ("version", "health"),
    [("1.14.6", "error"), ("1.14.7", "ok"), ("1.16.0", "ok"), ("", "error"), ("odd", "warning")],
)
def test_crewai_must_be_there_and_new_enough(examine, monkeypatch, version, health):
    monkeypatch.setattr(_discovery, "crewai_version", lambda: version)
    assert examine()["crewai"].health == health


def test_an_unsupported_python_is_an_error(examine, monkeypatch):
    monkeypatch.setattr(_doctor.sys, "version_info", (3, 14, 0))
    assert examine()["python"].health is Health.ERROR


def test_a_host_that_no_import_activates_is_told(examine, monkeypatch):
    monkeypatch.delitem(sys.modules, "_crewai_native_hook", raising=False)
    assert "crewai_native.pth was not read" in examine()["import hook"].detail
    monkeypatch.setitem(sys.modules, "_crewai_native_hook", types.ModuleType("hook"))
    assert examine()["import hook"].health is Health.OK
    off = examine(enabled=False, sources={"enabled": "CREWAI_NATIVE"})["import hook"]
    assert (off.health, off.detail) == (
        Health.WARNING,
        "crewai-native is switched off (CREWAI_NATIVE)",
    )


def test_every_first_import_is_tried_again(examine, monkeypatch):
    offer = types.SimpleNamespace(
        candidate=Candidate("locks", "acme", "1", "a.b", "/"), value="a.b"
    )
    asked = []

    def roster(settings, *, again=False):
        asked.append(again)
        return _roster.Roster([offer], [("acme-bad", "its import ended the process with SIGILL")])

    monkeypatch.setattr(_roster, "roster", roster)
    found = examine()
    assert asked == [True]
    assert found["first import of acme"].health is Health.OK
    assert found["first import of acme-bad"].health is Health.ERROR
    assert "SIGILL" in found["first import of acme-bad"].detail


def test_an_activation_that_fails_is_an_error(examine):
    found = examine(FakeHost(active=False, raises=StrictError("strict: not bound: locks")))
    assert (found["activation"].health, found["activation"].detail) == (
        Health.ERROR,
        "strict: not bound: locks",
    )


@pytest.mark.parametrize(
    ("state", "health"),
    [
        (State.BROKEN, Health.ERROR),
        (State.TARGET_CHANGED, Health.WARNING),
        (State.INCOMPATIBLE, Health.WARNING),
        (State.UNTRUSTED, Health.WARNING),
        (State.DISABLED, None),
        (State.SHADOWED, None),
        (State.DECLINED, None),
        (State.BOUND, None),
    ],
)
def test_a_candidate_that_should_serve_and_cannot_is_told(examine, state, health):
    found = examine(FakeHost(slot("locks", State.STOCK, candidates=[candidate(state)])))
    if health is None:
        assert "locks" not in found
    else:
        assert found["locks"].health is health
        assert found["locks"].detail == f"acme is {state}: a reason"


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser writes anywhere")
def test_a_folder_that_cannot_be_written_is_told(examine, tmp_path):
    for name in ("storage", "cache"):
        (tmp_path / name).mkdir(mode=0o555)
    found = examine()
    assert found["storage"].health is Health.ERROR
    assert found["verdict cache"].health is Health.WARNING


def test_a_file_where_a_folder_should_be_is_told(examine, tmp_path):
    for name in ("storage", "cache"):
        (tmp_path / name).touch()
    found = examine()
    assert found["storage"].health is Health.ERROR
    assert "CREWAI_STORAGE_DIR" in found["storage"].detail
    assert found["verdict cache"].health is Health.WARNING
    assert "CREWAI_NATIVE_CACHE_DIR" in found["verdict cache"].detail


def test_a_disk_that_is_nearly_full_is_told(examine, monkeypatch):
    monkeypatch.setattr(
        _doctor.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=50 * 2**20)
    )
    found = examine()["storage"]
    assert found.health is Health.WARNING
    assert found.detail.endswith("has 50 MiB left")


@pytest.mark.parametrize(
    ("build", "checks"),
    [
        ({"profile": "release"}, {"acme._native": "ok"}),
        ({"profile": "debug"}, {"acme._native": "warning"}),
        ({"profile": "release", "contract": 2}, {"acme._native": "error"}),
        (
            {"profile": "release", "sqlite": "3.51.3"},
            {"acme._native": "ok", "sqlite in acme._native": "ok"},
        ),
        (
            {"profile": "release", "sqlite": "3.51.2"},
            {"acme._native": "ok", "sqlite in acme._native": "error"},
        ),
        ({"profile": "release", "sqlite": "odd"}, {"builds": "error"}),
    ],
)
def test_builds_are_looked_at(examine, monkeypatch, build, checks):
    module = types.ModuleType("acme._native")
    module.__build_info__ = {"version": "1.0", "git": "abc", **build}
    monkeypatch.setitem(sys.modules, "acme", types.ModuleType("acme"))
    monkeypatch.setitem(sys.modules, "acme._native", module)
    found = examine(FakeHost(plugins=[plugin(), plugin()]))
    assert {name: found[name].health for name in checks} == checks


def test_locks_that_leave_redis_alone_are_told(examine, monkeypatch):
    bound = FakeHost(slot("locks", State.BOUND))
    assert examine(bound)["conflicts"].health is Health.OK
    monkeypatch.setenv("REDIS_URL", "redis://localhost")
    assert "CREWAI_NATIVE_SLOT_LOCKS=stock" in examine(bound)["locks"].detail
    assert "locks" not in examine(FakeHost(slot("locks", State.STOCK)))


def test_other_patchers_are_named(examine, monkeypatch):
    real = _doctor.importlib.metadata.version
    monkeypatch.setattr(
        _doctor.importlib.metadata,
        "version",
        lambda name: "9.9" if name == "openinference-instrumentation-crewai" else real(name),
    )
    found = examine()["other patches"]
    assert found.health is Health.WARNING
    assert found.detail.startswith("openinference-instrumentation-crewai 9.9 ")


class PanicException(BaseException):
    """What a panic in a Rust extension arrives as."""


def panic():
    raise PanicException("index out of bounds")


@pytest.mark.parametrize(
    ("health", "name", "expected"),
    [
        (lambda: [ok("index", "fine")], "acme: index", (Health.OK, "fine")),
        (lambda: iter([error("index", "bad")]), "acme: index", (Health.ERROR, "bad")),
        (lambda: [warning("index", "so so")], "acme: index", (Health.WARNING, "so so")),
        (lambda: 1 / 0, "acme", (Health.ERROR, "could not be checked: ZeroDivisionError")),
        (panic, "acme", (Health.ERROR, "could not be checked: PanicException: index out")),
        (lambda: None, "acme", (Health.ERROR, "crewai_native_health() gave 'NoneType'")),
        (
            lambda: "fine",
            "acme",
            (Health.ERROR, "crewai_native_health() gave 'str'; it accepts a list"),
        ),
        (lambda: ["fine"], "acme", (Health.ERROR, "crewai_native_health() gave 'str'")),
        (lambda: [Check("index", "odd", "")], "acme", (Health.ERROR, "could not be checked")),
    ],
)
def test_plugins_check_themselves_at_their_own_risk(examine, health, name, expected):
    found = examine(FakeHost(plugins=[plugin(health=health), plugin("acme-other", lambda: ())]))
    assert found[name].health is expected[0]
    assert found[name].detail.startswith(expected[1])


def test_one_check_that_fails_leaves_the_others(examine, monkeypatch):
    def broken():
        raise OSError("no such thing")

    monkeypatch.setattr(_doctor, "_cpu", broken)
    found = examine()
    assert found["cpu"].health is Health.ERROR
    assert "no such thing" in found["cpu"].detail
    assert "storage" in found


def test_the_exit_status_tells_errors_from_warnings(miniature, tmp_path):
    site = miniature.site
    (site.folder / "crewai_core/paths.py").write_text(
        f"def db_storage_path():\n    return {str(tmp_path)!r}\n"
    )
    source = """
    from crewai_native import hookimpl
    from crewai_native.health import Check
    @hookimpl
    def crewai_native_memory_storage(spec):
        return None
    @hookimpl
    def crewai_native_health():
        return [Check("index", "{health}", "as it is")]
    """

    def doctor():
        code = "from crewai_native.cli import main; main(['doctor', '--json'])"
        done = miniature.run(code, check=False)
        found = {check["name"]: check["health"] for check in json.loads(done.stdout)}
        return done.returncode, found["acme-index: index"]

    for health, status in (("ok", 0), ("warning", 0), ("error", 1)):
        site.add("acme-index", source.replace("{health}", health))
        assert doctor() == (status, health)


def test_a_slot_that_two_others_offer_is_told(examine):
    ambiguous = slot("locks", State.BOUND)
    ambiguous.reason = "ambiguous: 2 third-party candidates, taken by name"
    found = examine(FakeHost(ambiguous))["locks"]
    assert found == warning("locks", f"acme serves it; {ambiguous.reason}")
