"""What pytest loads of this distribution in every session: next to nothing.

Only a session that is told to run the contracts gets the kit, with its options and fixtures::

    pytest --pyargs crewai_native.testing.contract --provider my-distribution
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest


def pytest_load_initial_conftests(early_config: pytest.Config, args: Sequence[str]) -> None:
    """Load the kit, while there is time to add options, if the command line names a contract."""
    if any(argument.startswith("crewai_native.testing.contract") for argument in args):
        early_config.pluginmanager.import_plugin("crewai_native.testing.plugin")
