"""Fixtures of the tools' tests."""

from __future__ import annotations

import warnings

import pytest

import crewai_native

with warnings.catch_warnings():
    # What CrewAI's dependencies say while they are imported is not what is tested here.
    warnings.simplefilter("ignore")
    import crewai.tools.tool_usage  # noqa: F401

# Importing CrewAI has bound the slots; the test modules take CrewAI's own functions to compare with.
crewai_native.deactivate()


@pytest.fixture(autouse=True, scope="module")
def unbound() -> None:
    """What these tests show must not depend on what another module's left bound."""
    crewai_native.deactivate()
