"""The lock file: which plug-ins, in which version, with which content, may be loaded.

Locking is about surprise, not sandboxing: an installed plug-in is code that runs with all the
rights of the program. What the lock prevents is that another one, or another build of the same
one, is picked up unnoticed.
"""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any

from crewai_native._discovery import content_hash
from crewai_native._errors import ConfigurationError
from crewai_native._settings import normalise

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from crewai_native._discovery import Offer

_HEADER = """\
# The accelerators that crewai-native may load, written by `crewai-native lock`.
# In force with trust = "locked" under [tool.crewai-native], or CREWAI_NATIVE_TRUST=locked.
version = 1
"""


def write(path: Path, offers: Iterable[Offer]) -> list[str]:
    """Pin what is installed.

    Returns:
        The distributions that were pinned, sorted.
    """
    pins = {offer.name: (offer.candidate.version, content_hash(offer)) for offer in offers}
    text = _HEADER + "".join(
        f'\n[plugins."{name}"]\nversion = "{version}"\ncontent = "sha256:{content}"\n'
        for name, (version, content) in sorted(pins.items())
    )
    path.write_text(text)
    return sorted(pins)


def read(path: Path) -> Mapping[str, Mapping[str, Any]]:
    """Return the pins of a lock file by distribution.

    Raises:
        ConfigurationError: There is no such file, or it is not a lock file.
    """
    try:
        table = tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"lock file {path} does not exist; `crewai-native lock` writes it"
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"lock file {path} cannot be read: {error}") from error
    plugins = table.get("plugins", {})
    if table.get("version") != 1 or not isinstance(plugins, dict):
        raise ConfigurationError(
            f"lock file {path} has version {table.get('version')!r}; this host reads version 1"
        )
    for name, pin in plugins.items():
        if not isinstance(pin, dict):
            raise ConfigurationError(
                f"lock file {path} pins {name} by {pin!r}; it accepts a table of version and content"
            )
    return {normalise(name): pin for name, pin in plugins.items()}


def mismatch(pins: Mapping[str, Mapping[str, Any]], offer: Offer, path: Path) -> str | None:
    """Return how an installed plug-in differs from its pin, or None where it is the same."""
    pin = pins.get(offer.name)
    if pin is None:
        return f"not in the lock file {path}"
    if pin.get("version") != offer.candidate.version:
        return f"{path} pins version {pin.get('version')}, installed is {offer.candidate.version}"
    if pin.get("content") != f"sha256:{content_hash(offer)}":
        return f"its files are not those that {path} pins for version {offer.candidate.version}"
    return None
