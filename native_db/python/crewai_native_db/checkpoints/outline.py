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
    from collections.abc import Callable, Iterable

    from crewai_native_db.checkpoints.recorder import Part, Snapshot

_FORMAT: Final = 1
_PREFIX: Final = f'{{"{MARK}":'
_ENTITY: Final = ("entity_type", "name", "id", "role", "goal")
_TASK: Final = (
    "description",
    "checkpoint_original_description",
    "checkpoint_original_expected_output",
)
# What may be a part of its own.
_SHOWN: Final = ("agent", "output")
_AGENT: Final = ("id", "role", "goal", "backstory")
# What the commands show of a flow's state: so many items, so many characters of each.
_ITEMS: Final = 5
_CHARACTERS: Final = 80


class Summaries:
    """What the commands show of the entities of a run, made anew only of what has changed."""

    def __init__(self) -> None:
        # Texts by what they are of: a part, as a task or an agent, and the parts that it shows.
        self._texts: dict[tuple[str, int], tuple[tuple[Part, ...], str]] = {}

    def of(self, snapshot: Snapshot) -> str:
        """Return the entities as JSON."""
        return _list(self._entity(snapshot, number) for number in snapshot.entities)

    def _entity(self, snapshot: Snapshot, number: int) -> str:
        part = snapshot.parts[number]
        if part.body.get("entity_type") != "crew":
            return self._text("entity", number, (part,), _entity)
        fields = {
            "tasks": self._all(snapshot, part, "tasks", self._task),
            "agents": self._all(snapshot, part, "agents", self._agent),
        }
        said = self._text("entity", number, (part,), _entity)
        return said[:-1] + "".join(f',"{name}":{text}' for name, text in fields.items()) + "}"

    def _all(
        self, snapshot: Snapshot, part: Part, field: str, text: Callable[[Snapshot, int], str]
    ) -> str:
        if field in part.refs:
            return _list(text(snapshot, number) for number in part.refs[field])
        # Dumped where they are: there is nothing to tell whether they have changed.
        summary = _task if field == "tasks" else _agent
        return compact([summary(item) for item in part.body.get(field) or ()])

    def _task(self, snapshot: Snapshot, number: int) -> str:
        part = snapshot.parts[number]
        refs = {name: ref for name in _SHOWN if isinstance(ref := part.refs.get(name), int)}
        parts = part, *(snapshot.parts[ref] for ref in refs.values())
        return self._text(
            "task",
            number,
            parts,
            lambda body, *inside: _task({**body, **dict(zip(refs, inside, strict=True))}),
        )

    def _agent(self, snapshot: Snapshot, number: int) -> str:
        return self._text("agent", number, (snapshot.parts[number],), _agent)

    def _text(
        self, kind: str, number: int, parts: tuple[Part, ...], summary: Callable[..., Any]
    ) -> str:
        known = self._texts.get((kind, number))
        if known is None or known[0] != parts:
            known = parts, compact(summary(*(part.body for part in parts)))
            self._texts[kind, number] = known
        return known[1]


def write(snapshot: Snapshot, entities: str, checkpoint_id: str, data: str, said: Any) -> str:
    """Return the text of an outline.

    Args:
        snapshot: What the checkpoint consists of.
        entities: What the commands show of the entities, as JSON.
        checkpoint_id: Its id.
        data: The path of the store, from the directory of the outline on.
        said: ``parent_id``, ``branch`` and ``trigger``.
    """
    text = compact(
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
            # The commands count the events; here is one character for each.
            "event_record": {"nodes": "." * snapshot.events},
        }
    )
    return f'{text[:-1]},"entities":{entities}}}'


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


def _entity(body: dict[str, Any]) -> dict[str, Any]:
    kept = _pick(body, _ENTITY)
    if kept.get("entity_type") == "flow":
        kept["checkpoint_completed_methods"] = body.get("checkpoint_completed_methods")
        state = body.get("checkpoint_state")
        if isinstance(state, dict):
            items = list(state.items())[:_ITEMS]
            kept["checkpoint_state"] = {key: _short(value) for key, value in items}
    if kept.get("entity_type") == "crew":
        kept["checkpoint_inputs"] = body.get("checkpoint_inputs")
    return kept


def _task(body: dict[str, Any]) -> dict[str, Any]:
    kept = _pick(body, _TASK)
    if body.get("agent") is not None:
        kept["agent"] = _pick(body["agent"], ("id", "role"))
    if body.get("output") is not None:
        kept["output"] = _pick(body["output"], ("raw",))
    return kept


def _agent(body: dict[str, Any]) -> dict[str, Any]:
    return _pick(body, _AGENT)


def _list(texts: Iterable[str]) -> str:
    return f"[{','.join(texts)}]"


def _pick(body: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: body[name] for name in names if body.get(name) is not None}


def _short(value: Any) -> Any:
    text = str(value)
    return value if len(text) <= _CHARACTERS else text[:_CHARACTERS]
