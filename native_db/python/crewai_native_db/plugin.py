"""What this wheel offers to ``crewai-native``: databases and locks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crewai_native import hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import typer

    from crewai_native.bench import Case
    from crewai_native.health import Check
    from crewai_native.slots.checkpoint_writer import Checkpoint
    from crewai_native_db.checkpoints.writer import CheckpointWriter
    from crewai_native_db.locks import NamedLock
    from crewai_native_db.persistence import NativeFlowPersistence
    from crewai_native_db.replay import ReplayStore

_options: dict[str, Any] = {}
_writer: _Writer | None = None


class _Writer:
    """Serves ``checkpoint.writer``; what it consists of is loaded by the first checkpoint."""

    made: CheckpointWriter | None = None

    def write(self, checkpoint: Checkpoint) -> None:
        (self.made or self._make()).write(checkpoint)

    def save(self, checkpoint: Checkpoint) -> str:
        return (self.made or self._make()).save(checkpoint)

    def read(self, location: str, stock: Callable[[], str]) -> str:
        return (self.made or self._make()).read(location, stock)

    def restored(self, state: Any, location: str) -> None:
        (self.made or self._make()).restored(state, location)

    def prune(self, location: str, keep: int, branch: str, stock: Callable[[], int]) -> int:
        return (self.made or self._make()).prune(location, keep, branch, stock)

    def drain(self, state: Any) -> None:
        if self.made is not None:
            self.made.drain(state)

    def _make(self) -> CheckpointWriter:
        from crewai_native_db.checkpoints.writer import CheckpointWriter

        new = CheckpointWriter(strict=_options.get("strict_checkpoints", False))
        # One for all threads, whichever of them comes first: it knows the runs.
        made: CheckpointWriter = vars(self).setdefault("made", new)
        return made


@hookimpl
def crewai_native_configure(options: Mapping[str, Any]) -> None:
    """Takes ``synchronous``; for flows ``keep``, ``strict``, ``path``; for the others two more."""
    from crewai_native_db import options as known

    checked = known.check(options)
    _options.clear()
    _options.update(checked)


@hookimpl
def crewai_native_features() -> dict[str, set[str]]:
    """What the stores can be required to be."""
    return {
        "flow.persistence": {"deltas", "durable", "imports", "multi-process"},
        "checkpoint.writer": {"atomic", "durable", "incremental", "multi-process"},
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
def crewai_native_checkpoint_writer() -> _Writer:
    """The writer of all runs of this process."""
    global _writer  # noqa: PLW0603 - its counts are this process's
    _writer = _Writer()
    return _writer


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


def flow_path() -> str:
    """The file of flow states, as configured."""
    from crewai_native_db import location

    path: str | None = _options.get("path")
    return str(location.default_path("flow_states.db")) if path is None else path


@hookimpl
def crewai_native_health() -> Iterator[Check]:
    """Whether the files at the default places can be read."""
    from crewai_native.health import error, ok
    from crewai_native_db import DatabaseError, _native, location, replay

    files: dict[str, _native.FlowStore | _native.ReplayStore] = {
        "flow states": _native.FlowStore(flow_path(), durable=True),
        "replay log": _native.ReplayStore(location.default_path(replay.FILE_NAME), durable=True),
    }
    for name, file in files.items():
        try:
            totals = file.totals()
        except (DatabaseError, OSError) as failure:
            yield error(name, str(failure))
        else:
            counts = ", ".join(f"{count} {what}" for what, count in totals.items())
            yield ok(name, f"{file.path}: {counts}")


@hookimpl
def crewai_native_metrics() -> dict[str, float]:
    """What this process has done with the files at the default places."""
    from crewai_native_db import _native, location, replay

    files: dict[str, _native.FlowStore | _native.ReplayStore] = {
        "flow": _native.FlowStore(flow_path(), durable=True),
        "replay": _native.ReplayStore(location.default_path(replay.FILE_NAME), durable=True),
    }
    counts = {name: file.statistics() for name, file in files.items()}
    if _writer is not None and _writer.made is not None:
        counts["checkpoint"] = _writer.made.statistics()
    return {
        f"db.{name}.{what}": float(count)
        for name, found in counts.items()
        for what, count in found.items()
    }


@hookimpl
def crewai_native_cli(app: typer.Typer) -> None:
    """Adds ``crewai-native db``."""
    from crewai_native_db import cli

    app.add_typer(cli.app, name="db")


@hookimpl
def crewai_native_benchmarks() -> Iterator[Case]:
    """Cases for ``crewai-native bench db``."""
    from crewai_native_db import benchmarks

    return benchmarks.cases()
