"""What this wheel offers to ``crewai-native``: events and messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crewai_native import hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from crewai_native.bench import Case
    from crewai_native_serialization.codec import Codec


@hookimpl
def crewai_native_features() -> dict[str, set[str]]:
    """What can be required."""
    return {
        "serialization.events": {"exact", "unaliased"},
        "serialization.messages": {"hardened", "msgpack"},
    }


@hookimpl
def crewai_native_serialization_events() -> Callable[..., Any]:
    """CrewAI's ``to_serializable``."""
    from crewai_native_serialization import to_serializable

    return to_serializable


@hookimpl
def crewai_native_serialization_messages() -> Codec:
    """Messages as JSON and MessagePack."""
    from crewai_native_serialization.codec import Codec

    return Codec()


@hookimpl
def crewai_native_metrics() -> dict[str, float]:
    """Messages and bytes that this process has written and read."""
    from crewai_native_serialization import _native

    return {f"serialization.messages.{name}": float(n) for name, n in _native.totals().items()}


@hookimpl
def crewai_native_benchmarks() -> Iterator[Case]:
    """``crewai-native bench serialization``."""
    from crewai_native_serialization import benchmarks

    return benchmarks.cases()
