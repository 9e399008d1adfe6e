"""The text of a whole checkpoint, from what the store keeps of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from crewai_native_db import _native

# The number of what is said of a checkpoint as a whole.
HEAD: Final = -1


Stored = tuple[list[bytes], dict[int, bytes], str]


def whole(store: _native.CheckpointStore, checkpoint_id: str, location: str) -> str:
    """Return the text of a checkpoint in a store.

    Raises:
        FileNotFoundError: It is not there.
    """
    return assemble(*load(store, checkpoint_id, location))


def load(store: _native.CheckpointStore, checkpoint_id: str, location: str) -> Stored:
    """Return what a store keeps of a checkpoint.

    Raises:
        FileNotFoundError: It is not there.
    """
    stored = store.load(checkpoint_id)
    if stored is None:
        raise FileNotFoundError(
            f"{location} is the outline of a checkpoint whose data should be in {store.path}, and "
            "are not: move or copy a location as a whole"
        )
    return stored


def guardrails(stored: Stored) -> dict[str, Any]:
    """Return what is said of guardrails that are functions, by the id of their task or agent."""
    body, _ = json.loads(stored[1][HEAD])
    found: dict[str, Any] = body["guardrails"]
    return found


def assemble(segments: list[bytes], texts: dict[int, bytes], note: str) -> str:
    """Return the JSON text that CrewAI would have written.

    Args:
        segments: Each ``{"nodes": [[id, event, parts by field, edges], …], "edges": [[id, type,
            start, ids from there on], …]}``: what was added to the record of events.
        texts: ``[part, parts by field]`` by number: what does change. Wherever a part is due there
            is its number, or a list of such. Under ``HEAD`` is ``{"crewai_version": …,
            "entities": [number, …], "guardrails": {id: …}}``.
        note: ``{"parent_id": …, "branch": …, "trigger": …}``: the place in the lineage.
    """
    said = json.loads(note)
    parts = Parts({number: json.loads(text) for number, text in texts.items()})
    state = parts.expand(HEAD)
    nodes: dict[str, Any] = {}
    for segment in segments:
        added = json.loads(segment)
        for name, event, refs, edges in added["nodes"]:
            nodes[name] = {"event": parts.fill(event, refs), "edges": edges}
        for name, kind, start, more in added["edges"]:
            nodes[name]["edges"].setdefault(kind, [])[start:] = more
    whole = {
        "crewai_version": state["crewai_version"],
        "parent_id": said["parent_id"],
        "branch": said["branch"],
        "entities": parts.expand(state["entities"]),
        "event_record": {"nodes": nodes},
    }
    if said["trigger"] is not None:
        whole["trigger"] = said["trigger"]
    return json.dumps(whole)


class Parts:
    """Dumps of objects, each with the numbers of the dumps that belong into its fields.

    Args:
        parts: (dump without those fields, number or list of numbers by field), by number.
    """

    def __init__(self, parts: dict[int, Any]) -> None:
        self._parts = parts
        self._whole: dict[int, Any] = {}

    def expand(self, ref: int | list[int]) -> Any:
        """Return the whole dump, or list of dumps. Not to be changed: it may be in others."""
        if isinstance(ref, list):
            return [self.expand(number) for number in ref]
        if ref not in self._whole:
            self._whole[ref] = self.fill(*self._parts[ref])
        return self._whole[ref]

    def fill(self, body: Any, refs: dict[str, Any]) -> Any:
        """Return a dump with the fields that ``refs`` names."""
        return (
            {**body, **{field: self.expand(ref) for field, ref in refs.items()}} if refs else body
        )
