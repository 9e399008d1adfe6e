"""What one start has found out and the next can go by: small JSON files in the user's cache directory.

They hold nothing that cannot be found out again: one that cannot be read or written costs time alone.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from crewai_native._settings import Settings

_logger = logging.getLogger("crewai_native")
_MOST_KEPT: Final = 256


def file(settings: Settings, name: str) -> Path:
    """Return where a file of the cache is, under these settings."""
    return (settings.cache_dir or _default_folder()) / name


def _default_folder() -> Path:
    if sys.platform == "linux":
        # What platformdirs would say; importing it takes longer than reading what is there.
        base = Path(os.environ.get("XDG_CACHE_HOME", ""))
        return (base if base.is_absolute() else Path("~/.cache").expanduser()) / "crewai-native"
    import platformdirs

    return Path(platformdirs.user_cache_dir("crewai-native"))


def read(path: Path) -> dict[str, Any]:
    """Return what a file holds; nothing where there is none."""
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        _logger.warning("%s cannot be read, and what it held is found out anew: %s", path, error)
        return {}
    return found if isinstance(found, dict) else {}


def write(path: Path, content: dict[str, Any]) -> None:
    """Replace a file in one step; of too many entries the first ones are left out."""
    kept = dict(list(content.items())[-_MOST_KEPT:])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            temporary = Path(file.name)
            try:
                json.dump(kept, file, indent=1)
                file.close()  # which writes what is left
                temporary.replace(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
    except OSError as error:
        # Nothing is lost but time: the next start finds it out once more.
        _logger.info("%s cannot be written: %s", path, error)
