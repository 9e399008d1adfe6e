"""What this wheel offers to ``crewai-native``: schemas of tools."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crewai_native import hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crewai_native.bench import Case
    from crewai_native_tools.schemas import NativeSchemas


@hookimpl
def crewai_native_features() -> dict[str, set[str]]:
    """What can be required."""
    return {"tools.schemas": {"exact"}}


@hookimpl
def crewai_native_tools_schemas() -> NativeSchemas:
    """Names, schemas and descriptions of tools."""
    from crewai_native_tools.schemas import NativeSchemas

    return NativeSchemas()


@hookimpl
def crewai_native_benchmarks() -> Iterator[Case]:
    """``crewai-native bench tools``."""
    from crewai_native_tools import benchmarks

    return benchmarks.cases()
