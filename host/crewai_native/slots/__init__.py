"""The places in CrewAI that can be served: one module each, loaded when it is needed."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crewai_native.slots._base import Slot

_MODULES: Final = {
    "memory.storage": "memory_storage",
    "knowledge.storage": "knowledge_storage",
    "tools.guard": "tools_guard",
    "tools.cache": "tools_cache",
    "tools.schemas": "tools_schemas",
    "tasks.batch": "tasks_batch",
    "tasks.graph": "tasks_graph",
    "tasks.control": "tasks_control",
    "tasks.executor": "tasks_executor",
    "flow.persistence": "flow_persistence",
    "checkpoint.writer": "checkpoint_writer",
    "replay.store": "replay_store",
    "locks": "locks",
    "serialization.events": "serialization_events",
    "serialization.messages": "serialization_messages",
}

SLOT_NAMES: Final = tuple(_MODULES)
"""Every slot, in the order in which they are bound and listed."""


def load(name: str) -> Slot:
    """Return a slot.

    Raises:
        KeyError: There is no slot of that name.
    """
    slot: Slot = importlib.import_module(f"{__name__}.{_MODULES[name]}").SLOT
    return slot
