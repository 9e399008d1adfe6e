"""Cases for ``crewai-native bench tasks``: those of every area, each in a module of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crewai_native.bench import Case


def cases() -> Iterator[Case]:
    """Return the cases."""
    from crewai_native_tasks import batch_benchmarks, executor_benchmarks, graph_benchmarks

    yield from batch_benchmarks.cases()
    yield from executor_benchmarks.cases()
    yield from graph_benchmarks.cases()
