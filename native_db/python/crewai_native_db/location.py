"""Where files lie."""

from __future__ import annotations

from pathlib import Path


def crewai_directory() -> Path:
    """CrewAI's own storage directory (``CREWAI_STORAGE_DIR``)."""
    from crewai_core.paths import db_storage_path

    return Path(db_storage_path())


def default_path(name: str) -> Path:
    """A file of ours: ``native/<name>`` under CrewAI's storage directory."""
    return crewai_directory() / "native" / name
