"""The command line: ``crewai-native``."""

from __future__ import annotations

from crewai_native.cli._app import app, main

__all__ = ["app", "main"]
