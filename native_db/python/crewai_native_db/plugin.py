"""What this wheel offers to ``crewai-native``: databases and locks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crewai_native import hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from crewai_native.bench import Case
    from crewai_native_db.locks import NamedLock
    from crewai_native_db.persistence import NativeFlowPersistence
    from crewai_native_db.replay import ReplayStore

_options: dict[str, Any] = {}


@hookimpl
def crewai_native_configure(options: Mapping[str, Any]) -> None:
    """Takes ``synchronous``; of flows ``keep``, ``strict``, ``path``; of replay ``keep_runs``."""
    from crewai_native_db import options as known

    checked = known.check(options)
    _options.clear()
    _options.update(checked)


@hookimpl
def crewai_native_features() -> dict[str, set[str]]:
    """What the stores can be required to be."""
    return {
        "flow.persistence": {"deltas", "durable", "imports", "multi-process"},
        "replay.store": {"by-run", "durable", "imports", "multi-process"},
        "locks": {"fair", "multi-process", "thread-agnostic"},
    }


@hookimpl
def crewai_native_flow_persistence() -> NativeFlowPersistence:
    """A handle on the states of flows."""
    from crewai_native_db.persistence import NativeFlowPersistence

    fields = {
        name: _options[name] for name in ("synchronous", "keep", "strict") if name in _options
    }
    return NativeFlowPersistence(_options.get("path"), **fields)


@hookimpl
def crewai_native_locks(name: str, timeout: float) -> NamedLock:
    """A lock by its name."""
    from crewai_native_db.locks import NamedLock

    return NamedLock(name, timeout)


@hookimpl
def crewai_native_replay_store() -> ReplayStore:
    """The log of all crews."""
    from crewai_native_db import location, replay

    return replay.ReplayStore(
        location.default_path(replay.FILE_NAME),
        durable=_options.get("synchronous", "full") == "full",
        keep=_options.get("keep_runs", replay.KEEP),
    )


@hookimpl
def crewai_native_benchmarks() -> Iterator[Case]:
    """Cases for ``crewai-native bench db``."""
    from crewai_native_db import benchmarks

    return benchmarks.cases()
