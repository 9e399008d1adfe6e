"""Accelerators for CrewAI, installed one by one and wired in by a host that you can watch.

Importing CrewAI activates the host, through a ``.pth`` file; nothing has to be called. This module
is for programs that want to look or to choose, and for plug-ins:

    >>> import crewai_native
    >>> with crewai_native.using({"memory.storage": "stock"}):  # doctest: +SKIP
    ...     crew.kickoff()

Importing it loads no plug-in, not CrewAI, and nothing heavy.

PYTEST_DONT_REWRITE: see ``_crewai_native_hook``; a program that calls ``pytest.main`` has it already.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from crewai_native._errors import (
        ConfigurationError,
        CrewAINativeError,
        Declined,
        ProviderError,
        StrictError,
    )
    from crewai_native._status import SlotStatus, Status
    from crewai_native._types import Candidate, State, Step
    from crewai_native._watch import Metrics
    from crewai_native.hookspecs import hookimpl

__all__ = [
    "Candidate",
    "ConfigurationError",
    "CrewAINativeError",
    "Declined",
    "Metrics",
    "ProviderError",
    "SlotStatus",
    "State",
    "Status",
    "Step",
    "StrictError",
    "activate",
    "deactivate",
    "hookimpl",
    "metrics",
    "status",
    "using",
]

_HOMES = {
    "_errors": (
        "ConfigurationError",
        "CrewAINativeError",
        "Declined",
        "ProviderError",
        "StrictError",
    ),
    "_status": ("SlotStatus", "Status"),
    "_types": ("Candidate", "State", "Step"),
    "_watch": ("Metrics",),
    "hookspecs": ("hookimpl",),
}


def activate(**settings: Any) -> Status:
    """Wire the installed accelerators into CrewAI; what the import hook does by itself.

    Idempotent. Imports CrewAI if the program has not.

    Args:
        **settings: Settings that go before those of the environment and ``pyproject.toml``, with
            the keys of ``[tool.crewai-native]``, such as ``slots={"memory.storage": "stock"}``.

    Returns:
        Who serves each slot, and why.

    Raises:
        ConfigurationError: A setting means nothing, or CrewAI is not installed.
        StrictError: ``strict`` is set and a slot that should be bound is not.
    """
    from crewai_native import _settings
    from crewai_native._host import HOST

    HOST.activate(_settings.load(overrides=settings), "activate() was called")
    return HOST.status()


def deactivate() -> None:
    """Restore CrewAI exactly as it was before :func:`activate`. Idempotent."""
    from crewai_native._host import HOST

    HOST.deactivate()


def using(slots: dict[str, str]) -> AbstractContextManager[Status]:
    """Serve some slots by other providers for the length of a block, process-wide.

    Args:
        slots: Provider per slot: the name of an installed distribution, or ``"stock"``.

    Raises:
        ConfigurationError: There is no such slot or provider.
    """
    from crewai_native._host import HOST

    # What is no dictionary is refused with the rest of what means nothing.
    return HOST.using(dict(slots) if isinstance(slots, dict) else slots)


def status() -> Status:
    """Return who serves each slot, and why."""
    from crewai_native._host import HOST

    return HOST.status()


def metrics() -> list[Metrics]:
    """Return calls, errors, fallbacks and latencies of each bound slot."""
    from crewai_native._host import HOST

    return HOST.metrics()


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            import importlib

            return getattr(importlib.import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
