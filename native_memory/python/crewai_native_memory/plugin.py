"""What this wheel offers to ``crewai-native``: memory and knowledge."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal, cast

from crewai_native import hookimpl
from crewai_native_memory import location
from crewai_native_memory.storage import NativeStorage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crewai_native.health import Check
    from crewai_native_memory.knowledge import NativeKnowledgeStorage

_METRICS = ("l2", "cosine", "dot")
_DEFAULT_SPECS = ("lancedb", "native")
"""CrewAI's own default, which says that the user did not choose; and ours, by name."""
_OTHER_STORES = ("qdrant-edge",)
"""CrewAI has no default but the first: whoever names one of these wants it."""
_PREFIX = "native:"

_options: dict[str, Any] = {}


@hookimpl
def crewai_native_configure(options: Mapping[str, Any]) -> None:
    """Takes ``metric`` ("l2", "cosine", "dot") and ``path`` (instead of the default place)."""
    from crewai_native import ConfigurationError

    known = {"metric", "path"}
    for name in options.keys() - known:
        raise ConfigurationError(
            f"memory has no option {name!r}; it has {', '.join(sorted(known))}"
        )
    if (metric := options.get("metric", "l2")) not in _METRICS:
        raise ConfigurationError(
            f"memory.metric must be one of {', '.join(_METRICS)}; got {metric!r}"
        )
    path = options.get("path")
    if path is not None and not isinstance(path, str | os.PathLike):
        raise ConfigurationError(f"memory.path must be a path; got {path!r}")
    _options.clear()
    _options.update(options)


@hookimpl
def crewai_native_features() -> dict[str, set[str]]:
    """What the store can be required to be."""
    return {
        "memory.storage": {"durable", "exact", "isolated", "multi-process"},
        "knowledge.storage": {"async", "durable", "exact", "skips-unchanged"},
    }


@hookimpl
def crewai_native_memory_storage(spec: str) -> NativeStorage | None:
    """A handle for a memory's storage spec.

    ``"lancedb"`` (CrewAI's default) and ``"native"`` mean the default place; ``"native:<path>"``
    and any other path mean that place; ``"qdrant-edge"`` is the user's choice of another store.
    """
    if spec in _OTHER_STORES:
        return None
    place: str | os.PathLike[str] | None
    if spec in _DEFAULT_SPECS:
        place = _options.get("path")
    else:
        place = spec.removeprefix(_PREFIX)
    metric = cast("Literal['l2', 'cosine', 'dot']", _options.get("metric", "l2"))
    return NativeStorage(place, metric=metric)


@hookimpl
def crewai_native_knowledge_storage(
    embedder: Any, collection_name: str | None
) -> NativeKnowledgeStorage | None:
    """The storage of a knowledge collection, unless the application chose a place of its own."""
    from crewai_native_memory.knowledge import storage_for

    return storage_for(embedder, collection_name)


@hookimpl
def crewai_native_health() -> list[Check]:
    """Whether the default store can be read."""
    from crewai_native.health import Check, Health
    from crewai_native_memory import StoreError

    place = _options.get("path")
    storage = NativeStorage(place if place is not None else location.default_path())
    try:
        count = storage.count()
    except (StoreError, OSError) as error:
        return [Check("memory store", Health.ERROR, str(error))]
    finally:
        storage.close()
    return [Check("memory store", Health.OK, f"{count} records in {storage.path}")]
