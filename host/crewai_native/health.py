"""Checks that ``crewai-native doctor`` runs: the host's own, and those of plug-ins.

A plug-in returns its own from the hook ``crewai_native_health()``::

    from crewai_native.health import error, ok

    @hookimpl
    def crewai_native_health():
        yield ok("index", "12 files") if index.sound else error("index", "run `… repair`")
"""

from __future__ import annotations

import dataclasses
import enum


class Health(enum.StrEnum):
    """How a check came out."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """One finding.

    Attributes:
        name: What was looked at.
        health: How it came out; an ``error`` makes ``doctor`` exit with status 1.
        detail: What was found and, where something is wrong, what to do.
    """

    name: str
    health: Health
    detail: str


def ok(name: str, detail: str) -> Check:
    """Return a finding that all is well."""
    return Check(name, Health.OK, detail)


def warning(name: str, detail: str) -> Check:
    """Return a finding that the user should know of."""
    return Check(name, Health.WARNING, detail)


def error(name: str, detail: str) -> Check:
    """Return a finding that something is wrong and must be mended."""
    return Check(name, Health.ERROR, detail)
