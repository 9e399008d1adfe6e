"""A CrewAI in miniature: what the official slots rely on, imported in milliseconds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from crewai_native import _discovery

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from crewai_native.testing.distributions import Site

_FACTORY = """
_factory = None

def set_{thing}_factory(factory):
    global _factory
    _factory = factory

def {resolve}({parameters}):
    return None if _factory is None else _factory({parameters})
"""

_FILES = {
    "crewai/__init__.py": "READY = True\n",
    "crewai/memory/__init__.py": "",
    "crewai/memory/storage/__init__.py": "",
    "crewai/memory/storage/factory.py": _FACTORY.format(
        thing="memory_storage", resolve="resolve_memory_storage", parameters="spec"
    ),
    "crewai/flow/__init__.py": "",
    "crewai/flow/persistence/__init__.py": "",
    "crewai/flow/persistence/base.py": "class FlowPersistence: pass\n",
    "crewai/flow/persistence/factory.py": _FACTORY.format(
        thing="flow_persistence", resolve="default_flow_persistence", parameters=""
    ),
    "crewai_core/__init__.py": "",
    "crewai_core/lock_store.py": """
_backend = None

def set_lock_backend(backend):
    global _backend
    _backend = backend

def lock(name, timeout=120.0):
    return _backend(name, timeout=timeout)

def _redis_available():
    return False
""",
}


class Miniature:
    """A site with a small CrewAI in it, and programs that run on it."""

    def __init__(self, site: Site, run: Callable[..., Any]) -> None:
        self.site = site
        self._run = run
        # Wheels that happen to be installed here must not take part.
        self._installed = _discovery.offers()[0]
        for name, text in _FILES.items():
            path: Path = site.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.crewai("1.15.30")

    def crewai(self, version: str) -> None:
        """Say that CrewAI has this version."""
        for old in self.site.folder.glob("crewai-*.dist-info/METADATA"):
            old.unlink()
            old.parent.rmdir()
        info = self.site.folder / f"crewai-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: crewai\nVersion: {version}\n")

    def run(self, code: str, *, check: bool = True, **variables: str) -> Any:
        """Run a program; see the fixture ``run``."""
        deny = {variables.pop("CREWAI_NATIVE_DENY", ""), *self.denied(*self._installed)}
        return self._run(code, check=check, CREWAI_NATIVE_DENY=",".join(deny), **variables)

    def denied(self, *slots: str) -> set[str]:
        """Return the installed distributions that offer these slots and take no part.

        One of the same name in the test's site comes before it on the path, and takes part.
        """
        here = {path.name.partition("-")[0] for path in self.site.folder.glob("*.dist-info")}
        installed = {offer.name for slot in slots for offer in self._installed[slot]}
        return {name for name in installed if name.replace("-", "_") not in here}

    def status(self, first: str = "", **variables: str) -> Status:
        """Import CrewAI in a program, after some code, and return the host's status there."""
        return Status(self.run(f"{first}\n{STATUS}", **variables))


STATUS = "import crewai, crewai_native; answer(crewai_native.status().as_json())"


class Status(dict):
    """The host's status as JSON, with the look-ups that tests need."""

    def slot(self, name: str) -> dict[str, Any]:
        return next(slot for slot in self["slots"] if slot["slot"] == name)

    def candidate(self, distribution: str, slot: str = "memory.storage") -> dict[str, Any]:
        found = [*self.slot(slot)["candidates"], *self["strangers"]]
        return next(c for c in found if c["distribution"] == distribution)


@pytest.fixture
def miniature(site: Site, run: Callable[..., Any]) -> Miniature:
    """The test's site, with a small CrewAI that comes before the installed one."""
    return Miniature(site, run)
