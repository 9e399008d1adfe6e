"""Where a store lies."""

from __future__ import annotations

import os
from pathlib import Path

FILE_NAME = "memory.db"
_DATABASE_SUFFIXES = {".db", ".sqlite", ".sqlite3"}


def default_path() -> Path:
    """``native/memory.db`` under CrewAI's storage directory (``CREWAI_STORAGE_DIR``)."""
    from crewai_core.paths import db_storage_path

    return Path(db_storage_path()) / "native" / FILE_NAME


def resolve(place: str | os.PathLike[str]) -> Path:
    """The file for a place that a user named.

    A path to a file, or one that ends like a database's, is that file. Anything else is a
    directory, maybe one that another store uses, in which ``native/memory.db`` is ours.
    """
    path = Path(place).expanduser()
    if path.is_file() or (path.suffix in _DATABASE_SUFFIXES and not path.is_dir()):
        return path
    return path / "native" / FILE_NAME


def is_writable(directory: Path) -> bool:
    """Whether files can be made in a directory, which may have to be made itself."""
    existing = next((place for place in (directory, *directory.parents) if place.exists()), None)
    return existing is not None and os.access(existing, os.W_OK | os.X_OK)
