"""What this wheel offers to ``crewai-native``: memory and knowledge."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from crewai_native import hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import typer

    from crewai_native.bench import Case
    from crewai_native.health import Check
    from crewai_native_memory.knowledge import NativeKnowledgeStorage
    from crewai_native_memory.storage import NativeStorage

_BOOLEANS = {"true": True, "1": True, "on": True, "false": False, "0": False, "off": False}
_BENCH_OPTIONS = ("bench_records", "bench_dimensions", "bench_data")
_METRICS = ("l2", "cosine", "dot")
_SYNCHRONOUS = ("normal", "full")
_DEFAULT_SPECS = ("lancedb", "native")
"""CrewAI's own default, which says that the user did not choose; and ours, by name."""
_OTHER_STORES = ("qdrant-edge",)
"""CrewAI has no default but the first: whoever names one of these wants it."""
_PREFIX = "native:"

_options: dict[str, Any] = {}


@hookimpl
def crewai_native_configure(options: Mapping[str, Any]) -> None:
    """Takes the options of ``memory``.

    ``metric``: "l2" (the default), "cosine" or "dot". ``path``: the store to use instead of the
    default one. ``import``: whether records of CrewAI's own store at the same place are brought
    over at the first use; true by default. ``hybrid``: whether recall goes by words as well as by
    similarity; false by default. ``approximate``: whether large stores may be searched
    approximately, or from how many records on; false by default. ``synchronous``: "normal" (the
    default), or "full" for saves that survive the loss of power. ``bench_records``,
    ``bench_dimensions``, ``bench_data``: what ``crewai-native bench memory`` measures with.
    """
    from crewai_native import ConfigurationError

    known = {
        "approximate", "hybrid", "import", "metric", "path", "synchronous", *_BENCH_OPTIONS,
    }  # fmt: skip
    for name in options.keys() - known:
        raise ConfigurationError(
            f"memory has no option {name!r}; it has {', '.join(sorted(known))}"
        )
    for name, accepted in (("metric", _METRICS), ("synchronous", _SYNCHRONOUS)):
        if (value := options.get(name, accepted[0])) not in accepted:
            raise ConfigurationError(
                f"memory.{name} must be one of {', '.join(accepted)}; got {value!r}"
            )
    path = options.get("path")
    if path is not None and not isinstance(path, str | os.PathLike):
        raise ConfigurationError(f"memory.path must be a path; got {path!r}")
    flags: dict[str, Any] = {
        name: _flag(name, options[name]) for name in ("hybrid", "import") if name in options
    }
    if "approximate" in options:
        flags["approximate"] = _flag_or_number("approximate", options["approximate"])
    _options.clear()
    _options.update(options, **flags)


def _flag(name: str, value: object) -> bool:
    from crewai_native import ConfigurationError

    text = str(value).strip().lower()
    if text not in _BOOLEANS:
        raise ConfigurationError(
            f"memory.{name} must be one of {', '.join(_BOOLEANS)}; got {value!r}"
        )
    return _BOOLEANS[text]


def _flag_or_number(name: str, value: object) -> bool | int:
    from crewai_native import ConfigurationError

    text = str(value).strip().lower()
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if not text.isdecimal():
        raise ConfigurationError(
            f"memory.{name} must be one of {', '.join(_BOOLEANS)} or a number of records; "
            f"got {value!r}"
        )
    return int(text)


@hookimpl
def crewai_native_features() -> dict[str, set[str]]:
    """What the store can be required to be."""
    memory = {"durable", "isolated", "multi-process", "reembeds"}
    if _options.get("approximate", False) is False:
        memory.add("exact")
    return {
        "memory.storage": memory,
        "knowledge.storage": {"async", "durable", "exact", "skips-unchanged"},
    }


@hookimpl
def crewai_native_memory_storage(spec: str) -> NativeStorage | None:
    """A handle for a memory's storage spec.

    ``"lancedb"`` (CrewAI's default) and ``"native"`` mean the default place; ``"native:<path>"``
    and any other path mean that place; ``"qdrant-edge"`` is the user's choice of another store.

    Where CrewAI's own store lies at that place and ours does not yet, the first operation brings
    its records over; a reset of everything erases that store as well. If neither can be written,
    as on a read-only file system, CrewAI's own serves unless ours was named.
    """
    if spec in _OTHER_STORES:
        return None
    place = None if spec in _DEFAULT_SPECS else spec.removeprefix(_PREFIX)
    from crewai_native_memory import imports, sources

    directory = sources.default_directory() if place is None else Path(place).expanduser()
    look = functools.partial(sources.find, directory)
    storage = imports.reset_with(open_store(place), look)
    if _options.get("import", True):
        named = spec == "native" or spec.startswith(_PREFIX)
        if not named and imports.must_stay(storage, directory, look):
            return None
        imports.import_first(storage, look)
    return storage


def open_store(place: str | None) -> NativeStorage:
    """The store at a place, or at the configured or the default one."""
    from crewai_native_memory.storage import NativeStorage

    file = _options.get("path") if place is None else place
    return NativeStorage(
        file,
        metric=cast("Literal['l2', 'cosine', 'dot']", _options.get("metric", "l2")),
        hybrid=_options.get("hybrid", False),
        approximate=_options.get("approximate", False),
        synchronous=cast("Literal['normal', 'full']", _options.get("synchronous", "normal")),
    )


@hookimpl
def crewai_native_knowledge_storage(
    embedder: Any, collection_name: str | None
) -> NativeKnowledgeStorage | None:
    """The storage of a knowledge collection, unless the application chose a place of its own."""
    from crewai_native_memory.knowledge import storage_for

    return storage_for(embedder, collection_name, bring=_options.get("import", True))


@hookimpl
def crewai_native_health() -> list[Check]:
    """Whether the default store can be read, and whether its place suits it."""
    from crewai_native_memory import health

    return health.checks(open_store(None))


@hookimpl
def crewai_native_metrics() -> dict[str, float]:
    """The sizes of the default store."""
    sizes = open_store(None).stats()
    return {
        "memory.records": sizes.records,
        "memory.file_bytes": sizes.file,
        "memory.log_bytes": sizes.log,
    }


@hookimpl
def crewai_native_cli(app: typer.Typer) -> None:
    """``crewai-native memory``."""
    from crewai_native_memory import cli

    app.add_typer(cli.app, name="memory")


@hookimpl
def crewai_native_benchmarks() -> Iterator[Case]:
    """``crewai-native bench memory``."""
    from crewai_native_memory import benchmarks

    return benchmarks.cases(_options)
