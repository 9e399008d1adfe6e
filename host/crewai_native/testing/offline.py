"""Keeps CrewAI from calling home."""

from __future__ import annotations

from typing import Final

OFFLINE: Final = {
    "CREWAI_DISABLE_TELEMETRY": "true",
    "CREWAI_DISABLE_VERSION_CHECK": "true",
    "CREWAI_TRACING_ENABLED": "false",
    "OTEL_SDK_DISABLED": "true",
}
"""Environment variables for a process that imports CrewAI."""
