"""Fixtures of the tasks' tests."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import pytest

import crewai_native

if TYPE_CHECKING:
    from pathlib import Path

with warnings.catch_warnings():
    # What CrewAI's dependencies say while they are imported is not what is tested here.
    warnings.simplefilter("ignore")
    import crewai  # noqa: F401

# Importing CrewAI may have bound the slots; the test modules take CrewAI's own code to compare with.
crewai_native.deactivate()


@pytest.fixture(autouse=True, scope="module")
def unbound() -> None:
    """What these tests show must not depend on what another module's left bound."""
    crewai_native.deactivate()


@pytest.fixture(autouse=True, scope="module")
def crewai_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage directory for CrewAI of the module's own."""
    folder = tmp_path_factory.mktemp("crewai")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CREWAI_STORAGE_DIR", str(folder))
        yield folder
