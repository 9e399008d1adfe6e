"""The hooks of contract version 1: what a plug-in may implement.

A plug-in is a module (or object) named by entry points in the group ``crewai_native.v1``, one for
each slot it serves. For each of those it implements the slot's hook; the life-cycle hooks are
optional. As usual with pluggy, an implementation may take fewer arguments than its specification.

No hook is called on a hot path: the host takes the implementing function once and binds that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import typer

    from crewai_native.bench import Case
    from crewai_native.health import Check

hookspec = pluggy.HookspecMarker("crewai_native")
hookimpl = pluggy.HookimplMarker("crewai_native")

# --- life cycle -------------------------------------------------------------------------------


@hookspec
def crewai_native_configure(options: Mapping[str, Any]) -> None:
    """Take the component's options, before any of the plug-in's slots is bound.

    Args:
        options: What ``[tool.crewai-native.<component>]`` and
            ``CREWAI_NATIVE_<COMPONENT>_<OPTION>`` say (values from the environment are strings).

    Raises:
        ConfigurationError: An option means nothing; the message names it and what it accepts.
        Declined: The plug-in steps aside.
    """


@hookspec
def crewai_native_features() -> Mapping[str, Iterable[str]]:  # type: ignore[empty-body]
    """Return, per slot, what the plug-in can do there, for ``require`` and for repairs."""


@hookspec
def crewai_native_health() -> Iterable[Check]:  # type: ignore[empty-body]
    """Return the plug-in's checks of itself, for ``crewai-native doctor``."""


@hookspec
def crewai_native_metrics() -> Mapping[str, float]:  # type: ignore[empty-body]
    """Return counters and gauges of the plug-in's own, by dotted name, for ``crewai-native metrics``."""


@hookspec
def crewai_native_benchmarks() -> Iterable[Case]:  # type: ignore[empty-body]
    """Return the plug-in's cases for ``crewai-native bench``."""


@hookspec
def crewai_native_cli(app: typer.Typer) -> None:
    """Add sub-commands to ``crewai-native``."""


@hookspec
def crewai_native_unconfigure() -> None:
    """Let go of everything: the plug-in's slots have been unbound."""


# --- slots ------------------------------------------------------------------------------------
#
# A hook without arguments is called once, when the slot is bound, and what it returns is held until
# the slot is unbound. The others are factories that CrewAI calls as it goes.


@hookspec
def crewai_native_memory_storage(spec: str) -> Any:
    """Return a ``StorageBackend`` for a memory's storage spec, or None to leave it to CrewAI.

    Called for every ``Memory`` that CrewAI builds, several times per crew: return cheap handles
    on shared state. CrewAI calls the backend from several threads at once.
    """


@hookspec
def crewai_native_knowledge_storage(embedder: Any, collection_name: str | None) -> Any:
    """Return a ``BaseKnowledgeStorage``, or None to leave it to CrewAI.

    Called for every ``Knowledge``, for an agent's own at each kickoff: return cheap handles on
    shared state. CrewAI then saves all of the sources again.

    Args:
        embedder: The embedder's configuration as the user wrote it; None for the default.
        collection_name: Name of the collection; None for the default.
    """


@hookspec
def crewai_native_tools_guard() -> Any:
    """Return a :class:`~crewai_native.slots.tools_guard.ToolGuard`.

    A provider with the feature ``exact-usage-count`` gets ``current_usage_count`` right in every
    path: a call of a text-based agent counts once then, not twice.
    """


@hookspec
def crewai_native_tools_cache(handler: Any) -> Any:
    """Return a :class:`~crewai_native.slots.tools_cache.ToolCache` for one ``CacheHandler``.

    Called once for each handler, at its first use; the handler keeps it. Also called once when
    the slot is bound, with a handler that is thrown away.
    """


@hookspec
def crewai_native_tools_schemas() -> Any:
    """Return a :class:`~crewai_native.slots.tools_schemas.ToolSchemas`, or part of one."""


@hookspec
def crewai_native_tasks_batch() -> Any:
    """Return a :class:`~crewai_native.slots.tasks_batch.BatchEngine`.

    Several distributions serve this slot side by side, each by the name of its engine.
    """


@hookspec
def crewai_native_tasks_graph() -> Any:
    """Return a :class:`~crewai_native.slots.tasks_graph.TaskScheduler`."""


@hookspec
def crewai_native_tasks_control() -> Any:
    """Return a :class:`~crewai_native.slots.tasks_control.RunControl`."""


@hookspec
def crewai_native_tasks_executor() -> Any:
    """Return a :class:`~crewai_native.slots.tasks_executor.FlowDriver`."""


@hookspec
def crewai_native_flow_persistence() -> Any:
    """Return a ``FlowPersistence``.

    Called for every class and method that ``@persist`` decorates, while a program is imported:
    return cheap handles on shared, durable state. The name of its class must equal the default of
    its ``persistence_type`` field: CrewAI looks the class up by it when it restores a checkpoint.
    """


@hookspec
def crewai_native_checkpoint_writer() -> Any:
    """Return a :class:`~crewai_native.slots.checkpoint_writer.CheckpointWriter`."""


@hookspec
def crewai_native_replay_store() -> Any:
    """Return a :class:`~crewai_native.slots.replay_store.ReplayStore`."""


@hookspec
def crewai_native_locks(name: str, timeout: float) -> Any:
    """Return a context manager that holds the named lock while its block runs.

    Called each time a lock is wanted. The manager may be left on another thread than it was
    entered on, and excludes unpatched CrewAI processes (which ``flock`` the file
    ``<tempdir>/crewai:<md5 of the name>.lock``). Entering raises
    ``portalocker.exceptions.LockException`` after ``timeout`` seconds.

    Where CrewAI locks through Redis, only a provider with the feature ``distributed``, or one that
    the user chose, takes its place.
    """


@hookspec
def crewai_native_serialization_events() -> Callable[..., Any]:  # type: ignore[empty-body]
    """Return a function with the signature and results of CrewAI's ``to_serializable``."""


@hookspec
def crewai_native_serialization_messages() -> Any:
    """Return a :class:`~crewai_native.slots.serialization_messages.MessageCodec`."""
