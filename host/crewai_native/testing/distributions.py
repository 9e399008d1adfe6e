"""Fabricates installed distributions that offer to serve slots: sound ones, and one of each bad kind.

A :class:`Site` is a folder like ``site-packages``. What it adds looks as if pip had installed it:
modules, and a ``dist-info`` folder with METADATA, entry points and RECORD. Put the folder on
``sys.path`` or ``PYTHONPATH``, which the fixture ``site`` of
:mod:`crewai_native.testing.plugin` does, and the host finds them.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import textwrap
from typing import TYPE_CHECKING, Final

from crewai_native._types import CONTRACT

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path


@dataclasses.dataclass(frozen=True, slots=True)
class Distribution:
    """A fabricated distribution.

    Attributes:
        name: Its name.
        version: Its version.
        module: The module that its entry points name.
        info: Its ``dist-info`` folder.
    """

    name: str
    version: str
    module: str
    info: Path


class Site:
    """A folder of installed distributions.

    Args:
        folder: Where they are installed; created if it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def add(
        self,
        name: str,
        source: str,
        *,
        slots: Iterable[str] = ("memory.storage",),
        version: str = "1.0",
        accelerates: str | None = None,
        contract: int = CONTRACT,
        module: str | None = None,
    ) -> Distribution:
        """Install a distribution that consists of one module.

        Args:
            name: Its name.
            source: The module's source.
            slots: The slots that it declares.
            version: Its version.
            accelerates: The CrewAI range that it states, such as ``>=1.14.7,<2``.
            contract: The major version of the contract that it is written for.
            module: The module's name; made from the distribution's if None.
        """
        stem = name.replace("-", "_").lower()
        module = module or stem
        files = {f"{module}.py": textwrap.dedent(source)}
        metadata = f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n"
        if accelerates is not None:
            metadata += f"Provides-Extra: accelerates\nRequires-Dist: crewai{accelerates}; "
            metadata += 'extra == "accelerates"\n'
        info = f"{stem}-{version}.dist-info"
        entries = "".join(f"{slot} = {module}\n" for slot in slots)
        files[f"{info}/METADATA"] = metadata
        files[f"{info}/entry_points.txt"] = f"[crewai_native.v{contract}]\n{entries}"
        self._install(files, f"{info}/RECORD")
        return Distribution(name, version, module, self.folder / info)

    # --- sound ----------------------------------------------------------------------------

    def valid(
        self,
        name: str = "acme-valid",
        *,
        slots: Iterable[str] = ("memory.storage",),
        version: str = "1.0",
        accelerates: str | None = ">=1.14.7,<2",
    ) -> Distribution:
        """Install one that serves the slots: its hooks answer, and nothing else works."""
        slots = tuple(slots)
        source = VALID + "".join(_hook(slot) for slot in slots)
        return self.add(name, source, slots=slots, version=version, accelerates=accelerates)

    def duplicate(self, first: str = "acme-one", second: str = "acme-two") -> list[Distribution]:
        """Install two that serve the same slot."""
        return [self.valid(first), self.valid(second)]

    # --- bad ------------------------------------------------------------------------------

    def broken(self, name: str = "acme-broken") -> Distribution:
        """Install one whose import raises."""
        return self.add(name, 'raise RuntimeError("acme is\\n broken")\n')

    def exiting(self, name: str = "acme-exiting") -> Distribution:
        """Install one whose import raises what no ``except Exception`` catches."""
        return self.add(name, 'raise SystemExit("acme wants to stop")\n')

    def aborting(self, name: str = "acme-aborting") -> Distribution:
        """Install one whose import calls ``abort()``."""
        return self.add(name, "import os\nos.abort()\n")

    def segfaulting(self, name: str = "acme-segfaulting") -> Distribution:
        """Install one whose import reads through a null pointer."""
        return self.add(name, "import ctypes\nctypes.string_at(0)\n")

    def hanging(self, name: str = "acme-hanging") -> Distribution:
        """Install one whose import does not end."""
        return self.add(name, "import threading\nthreading.Event().wait()\n")

    def wrong_contract(self, name: str = "acme-future") -> Distribution:
        """Install one that is written for another major version of the contract."""
        return self.add(name, VALID + _hook("memory.storage"), contract=CONTRACT + 1)

    def wrong_range(self, name: str = "acme-old") -> Distribution:
        """Install one that was tested with other releases of CrewAI only."""
        return self.valid(name, accelerates=">=0.1,<0.2")

    def unknown_slot(self, name: str = "acme-stranger") -> Distribution:
        """Install one that serves a slot that there is not."""
        return self.add(name, VALID, slots=["coffee.machine"])

    def missing_hook(self, name: str = "acme-hookless") -> Distribution:
        """Install one that declares a slot and implements nothing for it."""
        return self.add(name, VALID)

    def bad_signature(self, name: str = "acme-signature") -> Distribution:
        """Install one whose hook wants an argument that the host does not have."""
        hook = "\n@hookimpl\ndef crewai_native_memory_storage(spec, moon):\n    return None\n"
        return self.add(name, VALID + hook)

    def wrong_type(self, name: str = "acme-types") -> Distribution:
        """Install one whose hook returns something that is no storage."""
        hook = "\n@hookimpl\ndef crewai_native_memory_storage(spec):\n    return {spec: 1}\n"
        return self.add(name, VALID + hook)

    def declining(self, name: str = "acme-declining") -> Distribution:
        """Install one that steps aside when it is configured."""
        return self.add(name, VALID + DECLINE + _hook("memory.storage"))

    def stale(self, name: str = "acme-valid") -> Distribution:
        """Install an older copy of a distribution, for a folder that comes later on the path."""
        return self.valid(name, version="0.1")

    def _install(self, files: Mapping[str, str], record: str) -> None:
        lines = []
        for name, content in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest())
            lines.append(f"{name},sha256={digest.decode().rstrip('=')},{len(content.encode())}\n")
        (self.folder / record).write_text("".join([*lines, f"{record},,\n"]))


VALID: Final = '''
"""A plug-in for tests."""
from crewai_native import Declined, hookimpl

class Anything:
    """Has what every slot's protocol asks for, and none of it does anything."""
    name, takes_over, formats = "anything", False, ("json",)
    def __call__(self, *args, **kwargs):
        return None
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: None
'''
"""The start of a plug-in's module; hooks are added to it."""

DECLINE: Final = """
@hookimpl
def crewai_native_configure(options):
    raise Declined("no GPU here")
"""

_PARAMETERS: Final = {
    "memory.storage": "spec",
    "knowledge.storage": "embedder, collection_name",
    "locks": "name, timeout",
}


def _hook(slot: str) -> str:
    parameters = _PARAMETERS.get(slot, "")
    return (
        f"\n@hookimpl\ndef crewai_native_{slot.replace('.', '_')}({parameters}):\n"
        "    return Anything()\n"
    )
