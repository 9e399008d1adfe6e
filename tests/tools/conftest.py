"""Fixtures of the tools' tests."""

from __future__ import annotations

import os
import warnings

# What these tests show must not depend on the host binding slots by itself.
os.environ["CREWAI_NATIVE"] = "0"

with warnings.catch_warnings():
    # What CrewAI's dependencies say while they are imported is not what is tested here.
    warnings.simplefilter("ignore")
    import crewai.tools.tool_usage  # noqa: F401
