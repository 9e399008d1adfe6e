"""What stands where CrewAI's commands look for a checkpoint.

``crewai checkpoint`` reads files and tables itself, in a process that need not load accelerators.
An outline is JSON of a checkpoint's shape that has what those commands show, and where the rest
is. CrewAI cannot restore it by itself, and says so: the first thing that it reads is the version,
which says what to do instead.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from crewai_native_db.checkpoints.placeholders import MARK

if TYPE_CHECKING:
    from collections.abc import Iterable

    from crewai_native_db.checkpoints.recorder import Snapshot

_FORMAT: Final = 1
_PREFIX: Final = f'{{"{MARK}":'
_ENTITY: Final = ("entity_type", "name", "id", "role", "goal")
_TASK: Final = (
    "description",
    "checkpoint_original_description",
    "checkpoint_original_expected_output",
)
_AGENT: Final = ("id", "role", "goal", "backstory")
# What the commands show of a flow's state: so many items, so many characters of each.
_ITEMS: Final = 5
_CHARACTERS: Final = 80


def write(snapshot: Snapshot, checkpoint_id: str, data: str, said: dict[str, Any]) -> str:
    """Return the text of an outline.

    Args:
        snapshot: What the checkpoint consists of.
        checkpoint_id: Its id.
        data: The path of the store, from the directory of the outline on.
        said: ``parent_id``, ``branch`` and ``trigger``.
    """
    return compact(
        {
            MARK: {
                "format": _FORMAT,
                "data": data,
                "id": checkpoint_id,
                "named": sorted(snapshot.named),
                "lost": sorted(snapshot.lost),
            },
            "crewai_version": (
                f"this is the outline of a checkpoint of CrewAI {snapshot.version}, whose data is "
                f"in {data}: restore it where crewai-native-db is active, or write it whole with "
                "crewai-native db export --checkpoints"
            ),
            **said,
            "entities": [_entity(snapshot, number) for number in snapshot.entities],
            # The commands count the events; here is one character for each.
            "event_record": {"nodes": "." * snapshot.events},
        }
    )


def compact(value: Any) -> str:
    """Return the JSON text of a value."""
    return json.dumps(value, separators=(",", ":"))


def read(text: str) -> tuple[str, str] | None:
    """Return the path of the store and the id; None for a checkpoint of CrewAI's own.

    Raises:
        ValueError: The outline was written by a later release.
    """
    if not text.startswith(_PREFIX):
        return None
    said = json.loads(text)[MARK]
    if said["format"] > _FORMAT:
        raise ValueError(
            f"a checkpoint in format {said['format']}, and this release understands up to format "
            f"{_FORMAT}: upgrade crewai-native-db to restore it"
        )
    return said["data"], said["id"]


def _entity(snapshot: Snapshot, number: int) -> dict[str, Any]:
    body, refs = snapshot.parts[number]
    kept = _pick(body, _ENTITY)
    if kept.get("entity_type") == "flow":
        kept["checkpoint_completed_methods"] = body.get("checkpoint_completed_methods")
        state = body.get("checkpoint_state")
        if isinstance(state, dict):
            items = list(state.items())[:_ITEMS]
            kept["checkpoint_state"] = {key: _short(value) for key, value in items}
    if kept.get("entity_type") == "crew":
        kept["checkpoint_inputs"] = body.get("checkpoint_inputs")
        kept["tasks"] = [
            _task(snapshot, task, more) for task, more in _field(snapshot, body, refs, "tasks")
        ]
        kept["agents"] = [
            _pick(agent, _AGENT) for agent, _ in _field(snapshot, body, refs, "agents")
        ]
    return kept


def _task(snapshot: Snapshot, body: dict[str, Any], refs: dict[str, Any]) -> dict[str, Any]:
    kept = _pick(body, _TASK)
    for agent, _ in _field(snapshot, body, refs, "agent"):
        kept["agent"] = _pick(agent, ("id", "role"))
    if body.get("output") is not None:
        kept["output"] = _pick(body["output"], ("raw",))
    return kept


def _field(
    snapshot: Snapshot, body: dict[str, Any], refs: dict[str, Any], name: str
) -> Iterable[tuple[dict[str, Any], dict[str, Any]]]:
    """The dumps in a field, be they parts or not, each with its own parts."""
    if name in refs:
        ref = refs[name]
        return [snapshot.parts[number] for number in (ref if isinstance(ref, list) else [ref])]
    value = body.get(name)
    items = value if isinstance(value, list) else [value]
    return [(item, {}) for item in items if isinstance(item, dict)]


def _pick(body: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: body[name] for name in names if body.get(name) is not None}


def _short(value: Any) -> Any:
    text = str(value)
    return value if len(text) <= _CHARACTERS else text[:_CHARACTERS]
