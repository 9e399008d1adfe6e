"""Benchmarks: the cases that plug-ins contribute, and the runner behind ``crewai-native bench``.

A plug-in describes what is worth measuring with :class:`Case` and returns its cases from the hook
``crewai_native_benchmarks()``. The host measures them; no plug-in times itself.
"""

from __future__ import annotations

from crewai_native.bench._case import Case, Measured, Unavailable, identical

__all__ = ["Case", "Measured", "Unavailable", "identical"]
