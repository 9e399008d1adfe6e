"""Checks that ``crewai-native doctor`` runs: the host's own, and those of plug-ins."""

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
