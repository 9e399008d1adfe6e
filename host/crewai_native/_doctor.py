"""What ``crewai-native doctor`` looks at: the host's own checks and those of plug-ins."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import os
import platform
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from packaging.version import InvalidVersion, Version

import crewai_native
from crewai_native import _discovery, _probe, _roster
from crewai_native._errors import CrewAINativeError
from crewai_native._types import CONTRACT, State
from crewai_native.health import Check, Health, error, ok, warning

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from crewai_native._host import Host
    from crewai_native._plugins import Plugin
    from crewai_native._settings import Settings

_OLDEST_CREWAI: Final = Version("1.14.7")
_PYTHON: Final = ((3, 11), (3, 14))  # from, before
# Older ones can corrupt a write-ahead log that is checkpointed and reset at the same time.
_OLDEST_SQLITE: Final = Version("3.51.3")
_SCARCE: Final = 100 * 2**20  # bytes

_CPU_FLAGS: Final = (
    *("sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni"),
    *("avx512f", "avx512bw", "avx512_vnni", "avx512_bf16"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "sve"),
)

# Distributions that replace methods of CrewAI too; the later one stands on the earlier one.
_INSTRUMENTORS: Final = (
    "agentops",
    "ddtrace",
    "langtrace-python-sdk",
    "mlflow",
    "openinference-instrumentation-crewai",
    "openlit",
    "opentelemetry-instrumentation-crewai",
    "traceloop-sdk",
    "weave",
)


def examine(host: Host, settings: Settings) -> Iterator[Check]:
    """Look at everything, activating the host on the way.

    A check that fails of itself is a finding like any other: nothing here raises.
    """
    yield from _guarded("python", _python)
    yield from _guarded("crewai", _crewai)
    yield from _guarded("crewai-native", _host)
    yield from _guarded("import hook", lambda: _import_hook(settings))
    yield from _guarded("cpu", _cpu)
    yield from _guarded("python's sqlite", _python_sqlite)
    yield from _guarded("verdict cache", lambda: [_writable_cache(settings)])
    # In child processes, so before anything that imports a plug-in here.
    yield from _guarded("first imports", lambda: _first_imports(settings))
    yield from _guarded("activation", lambda: _activation(host, settings))
    yield from _guarded("slots", lambda: _slots(host))
    yield from _guarded("storage", lambda: [_storage()])
    yield from _guarded("builds", lambda: _builds(host))
    yield from _guarded("conflicts", lambda: _conflicts(host))
    for plugin in host.plugins():
        yield from _guarded(plugin.distribution, functools.partial(_own_checks, plugin))


def _guarded(name: str, look: Callable[[], Iterable[Check]]) -> list[Check]:
    found: list[Check] = []
    try:
        found.extend(look())
    except KeyboardInterrupt:
        raise
    except BaseException as problem:  # noqa: BLE001 - SystemExit too: of a plug-in
        found.append(error(name, f"could not be checked: {type(problem).__name__}: {problem}"))
    return found


def _python() -> Iterator[Check]:
    oldest, too_new = _PYTHON
    said = f"{platform.python_implementation()} {platform.python_version()}, {sys.executable}"
    if oldest <= sys.version_info < too_new:
        yield ok("python", said)
    else:
        yield error("python", f"{said}; supported are 3.11 to 3.13")


def _crewai() -> Iterator[Check]:
    version = _discovery.crewai_version()
    if not version:
        yield error("crewai", "not installed; pip install crewai")
        return
    try:
        too_old = Version(version) < _OLDEST_CREWAI
    except InvalidVersion:
        yield warning("crewai", f"{version} is no version number")
        return
    if too_old:
        yield error("crewai", f"{version}; supported are {_OLDEST_CREWAI} and newer")
    else:
        yield ok("crewai", version)


def _host() -> Iterator[Check]:
    place = Path(crewai_native.__file__).parent
    yield ok("crewai-native", f"{crewai_native.__version__}, contract {CONTRACT}, {place}")


def _import_hook(settings: Settings) -> Iterator[Check]:
    name = "import hook"
    if not settings.enabled:
        yield warning(name, f"crewai-native is switched off ({settings.source('enabled')})")
    elif "_crewai_native_hook" in sys.modules:
        yield ok(name, "crewai_native.pth was read at start-up: importing CrewAI activates")
    else:
        yield warning(
            name,
            "crewai_native.pth was not read at start-up, so importing CrewAI does not activate; "
            "install crewai-native into a site directory, or call crewai_native.activate()",
        )


def _cpu() -> Iterator[Check]:
    flags: set[str] = set()
    try:
        with Path("/proc/cpuinfo").open() as lines:
            for line in lines:
                if line.startswith(("flags", "Features")):
                    flags.update(line.partition(":")[2].split())
                    break
    except OSError:
        pass  # not Linux: the plug-ins' passports say what their kernels found
    found = [flag for flag in _CPU_FLAGS if flag in flags]
    yield ok(
        "cpu", f"{platform.machine()}, {os.cpu_count()} CPUs; {' '.join(found) or 'flags unknown'}"
    )


def _python_sqlite() -> Iterator[Check]:
    yield ok("python's sqlite", f"{sqlite3.sqlite_version}, used by CrewAI for its own files")


def _writable_cache(settings: Settings) -> Check:
    path = _probe.cache_file(settings)
    problem = _not_writable(path.parent)
    if problem is None:
        return ok("verdict cache", str(path))
    return warning(
        "verdict cache",
        f"{problem}; every start of a program tries the plug-ins' first import again. Set "
        "CREWAI_NATIVE_CACHE_DIR to a directory that can be written",
    )


def _first_imports(settings: Settings) -> Iterator[Check]:
    roster = _roster.roster(settings, again=True)
    for offer in roster.sound:
        candidate = offer.candidate
        yield ok(
            f"first import of {candidate.distribution}",
            f"{candidate.version}, {offer.value}: safe, tried now in a child process",
        )
    for distribution, problem in roster.problems:
        yield error(f"first import of {distribution}", problem)
    if not roster.sound and not roster.problems:
        yield ok("first imports", "no plug-in is installed and switched on")


def _activation(host: Host, settings: Settings) -> Iterator[Check]:
    try:
        host.activate(settings, "crewai-native doctor")
    except CrewAINativeError as problem:
        yield error("activation", str(problem))
        return
    status = host.status()
    bound = sum(slot.state is State.BOUND for slot in status.slots)
    if not status.active:
        yield warning("activation", status.reason)
    else:
        yield ok("activation", f"{bound} of {len(status.slots)} slots are bound")
    for text in status.warnings:
        yield warning("activation", text)


def _slots(host: Host) -> Iterator[Check]:
    grave = {State.BROKEN: error, State.TARGET_CHANGED: warning, State.INCOMPATIBLE: warning}
    grave[State.UNTRUSTED] = warning
    for slot in host.status().slots:
        if slot.reason.startswith("ambiguous"):
            yield warning(slot.slot, f"{slot.provider} serves it; {slot.reason}")
        for candidate in slot.candidates:
            if candidate.state in grave:
                yield grave[candidate.state](
                    slot.slot, f"{candidate.distribution} is {candidate.state}: {candidate.reason}"
                )


def _storage() -> Check:
    # CrewAI's own answer: it alone knows what its settings make of CREWAI_STORAGE_DIR.
    folder = Path(importlib.import_module("crewai_core.paths").db_storage_path())
    problem = _not_writable(folder)
    if problem is not None:
        return error("storage", f"{problem}; set CREWAI_STORAGE_DIR to one that can be written")
    free = shutil.disk_usage(folder).free
    if free < _SCARCE:
        return warning("storage", f"{folder} has {free >> 20} MiB left")
    return ok("storage", f"{folder}, {free >> 30} GiB free")


def _builds(host: Host) -> Iterator[Check]:
    seen = set()
    for plugin in host.plugins():
        for module, build in _roster.builds(plugin.value).items():
            if module in seen:
                continue
            seen.add(module)
            yield _build(module, build)
            if "sqlite" in build:
                yield _bundled_sqlite(module, str(build["sqlite"]))


def _build(module: str, build: dict[str, object]) -> Check:
    said = f"{build.get('version')} ({build.get('profile')}, {build.get('git')})"
    if build.get("contract", CONTRACT) != CONTRACT:
        return error(module, f"{said} speaks contract {build['contract']}, the host {CONTRACT}")
    if build.get("profile") == "debug":
        return warning(module, f"{said} is a debug build, many times slower; install a release")
    features = build.get("cpu_features")
    found = " ".join(map(str, features)) if isinstance(features, list) else ""
    return ok(module, f"{said}{', kernels find ' if found else ''}{found}")


def _bundled_sqlite(module: str, version: str) -> Check:
    name = f"sqlite in {module}"
    if Version(version) < _OLDEST_SQLITE:
        return error(name, f"{version} can corrupt a write-ahead log; {_OLDEST_SQLITE} is needed")
    return ok(name, version)


def _conflicts(host: Host) -> Iterator[Check]:
    found = []
    status = host.status()
    bound = {slot.slot: slot.provider for slot in status.slots if slot.state is State.BOUND}
    if os.environ.get("REDIS_URL") and "locks" in bound:
        found.append(
            warning(
                "locks",
                f"REDIS_URL is set, but locks are held by {bound['locks']}: processes on other "
                "machines, which lock through Redis, are not excluded. Where that matters, set "
                "CREWAI_NATIVE_SLOT_LOCKS=stock",
            )
        )
    for name in _INSTRUMENTORS:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        found.append(
            warning(
                "other patches",
                f"{name} {version} wraps methods of CrewAI too; crewai_native.status() in the "
                "program says over which slots it stands, and which it keeps with CrewAI",
            )
        )
    yield from found or [ok("conflicts", "none known")]


def _own_checks(plugin: Plugin) -> Iterator[Check]:
    distribution = plugin.distribution
    found = plugin.call("crewai_native_health", ())
    if isinstance(found, str) or not isinstance(found, Iterable):
        yield error(
            distribution,
            f"crewai_native_health() gave {type(found).__name__!r}; it accepts a list of "
            "crewai_native.health.Check",
        )
        return
    for check in found:
        if isinstance(check, Check):
            yield Check(f"{distribution}: {check.name}", Health(check.health), check.detail)
        else:
            yield error(
                distribution,
                f"crewai_native_health() gave {type(check).__name__!r}; it accepts "
                "crewai_native.health.Check",
            )


def _not_writable(folder: Path) -> str | None:
    """Return why nothing can be written to a directory, or None; makes it where it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(b"0")
            file.flush()
            os.fsync(file.fileno())
    except OSError as problem:
        return f"{folder} cannot be written ({problem.strerror})"
    return None
