"""What this wheel offers to ``crewai-native``: events and messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crewai_native import hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from crewai_native.bench import Case


@hookimpl
def crewai_native_features() -> dict[str, set[str]]:
    """What can be required."""
    return {"serialization.events": {"exact", "unaliased"}}


@hookimpl
def crewai_native_serialization_events() -> Callable[..., Any]:
    """CrewAI's ``to_serializable``."""
    from crewai_native_serialization import to_serializable

    return to_serializable


@hookimpl
def crewai_native_benchmarks() -> Iterator[Case]:
    """``crewai-native bench serialization``."""
    from crewai_native_serialization import benchmarks

    return benchmarks.cases()
