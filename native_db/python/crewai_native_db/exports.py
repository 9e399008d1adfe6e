"""Copies: of the states of flows, as lines of JSON or a file of CrewAI's own; of checkpoints."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import tempfile
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from crewai_native_db import DatabaseError, _native, location
from crewai_native_db.checkpoints import assembly, outline, places

if TYPE_CHECKING:
    from collections.abc import Iterator

_ALL: Final = 2**62
_TABLES: Final = """
CREATE TABLE flow_states (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    flow_uuid TEXT NOT NULL,
    method_name TEXT NOT NULL,
    timestamp DATETIME NOT NULL,
    state_json TEXT NOT NULL
);
CREATE INDEX idx_flow_states_uuid ON flow_states(flow_uuid);
CREATE TABLE pending_feedback (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    flow_uuid TEXT NOT NULL UNIQUE,
    context_json TEXT NOT NULL,
    state_json TEXT NOT NULL,
    created_at DATETIME NOT NULL
);
CREATE INDEX idx_pending_feedback_uuid ON pending_feedback(flow_uuid);
"""


def _states(store: _native.FlowStore, flow: str | None) -> Iterator[tuple[int, str, str, str, str]]:
    """(number, flow, method, time, JSON) of each state, flow by flow, oldest first."""
    for uuid in store.flows() if flow is None else [flow]:
        for number, method, saved_at, _, _ in reversed(store.history(uuid, _ALL)):
            text = store.load_at(number)
            # Pruned by somebody else meanwhile.
            if text is not None:
                yield number, uuid, method, _moment(saved_at), text


def _moment(microseconds: int) -> str:
    return datetime.fromtimestamp(microseconds / 10**6, UTC).isoformat()


@contextmanager
def drafted(target: Path) -> Iterator[Path]:
    """Give a path to write to, which becomes ``target`` once all of it is there, and not before.

    Raises:
        FileExistsError: There is something at ``target``.
        OSError: It cannot be written.
        DatabaseError: It is to be a SQLite file, and cannot be written.
    """
    if target.exists():
        raise FileExistsError(
            errno.EEXIST, "it exists; choose a new place to write to", str(target)
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    directory = ""
    try:
        above = target.parent.absolute()
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=above) as directory:
            draft = Path(directory, target.name)
            yield draft
            if draft.is_file():
                # Nobody's file is written over.
                target.open("x").close()
            if draft.exists():
                draft.replace(target)
    except sqlite3.Error as error:
        raise DatabaseError(f"{target}: {error}") from error
    except OSError as error:
        if error.errno is None or not str(error.filename or directory).startswith(directory):
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(target)) from error


def as_lines(store: _native.FlowStore, out: IO[str], flow: str | None = None) -> int:
    """Write one JSON object for each state: ``flow``, ``method``, ``saved_at``, ``state``.

    Returns:
        The number of states.
    """
    count = 0
    for _, uuid, method, moment, text in _states(store, flow):
        head = json.dumps({"flow": uuid, "method": method, "saved_at": moment})
        out.write(f'{head[:-1]}, "state": {text}}}\n')
        count += 1
    return count


def as_stock(store: _native.FlowStore, file: Path, flow: str | None = None) -> int:
    """Write a file that CrewAI's ``SQLiteFlowPersistence`` opens, pending feedback included.

    Returns:
        The number of states.

    Raises:
        FileExistsError: There is such a file.
    """
    states = sorted(_states(store, flow))
    pending: list[tuple[Any, ...]] = []
    for uuid in store.flows() if flow is None else [flow]:
        found = store.load_pending(uuid)
        if found is not None:
            state, context = found
            moment = json.loads(context).get("requested_at")
            pending.append((uuid, context, state, moment or _moment(0)))
    with drafted(file) as draft, closing(sqlite3.connect(draft)) as db, db:
        db.executescript(_TABLES)
        db.executemany(
            "INSERT INTO flow_states (flow_uuid, method_name, timestamp, state_json)"
            " VALUES (?, ?, ?, ?)",
            (row[1:] for row in states),
        )
        db.executemany(
            "INSERT INTO pending_feedback (flow_uuid, context_json, state_json, created_at)"
            " VALUES (?, ?, ?, ?)",
            pending,
        )
    return len(states)


def _with_stock_persistence(text: str) -> str:
    """Return a checkpoint whose flows keep their states in CrewAI's own file.

    CrewAI by itself does not know our class, and restores nothing that names it.
    """
    checkpoint = json.loads(text)
    for entity in checkpoint["entities"]:
        kept = entity.get("persistence")
        if kept and kept["persistence_type"] == "NativeFlowPersistence":
            path = kept["import_from"] or str(location.crewai_directory() / "flow_states.db")
            entity["persistence"] = {"persistence_type": "SQLiteFlowPersistence", "db_path": path}
    return json.dumps(checkpoint)


def checkpoints(place: Path, target: Path) -> int:
    """Write the checkpoints at a location whole, to a new one that CrewAI restores them from.

    Args:
        place: A directory or a SQLite file, as ``CheckpointConfig`` has it.
        target: The same, not there yet.

    Returns:
        The number of checkpoints.

    Raises:
        FileExistsError: There is something at ``target``.
        FileNotFoundError: The data of a checkpoint are not there.
    """
    source, count = places.of(place), 0
    store = _native.CheckpointStore(source.store)
    with drafted(target) as draft:
        copy = places.Table(draft) if places.is_table(place) else places.Files(draft)
        for checkpoint_id, parent_id, branch, text in source.texts():
            whole = text
            if outline.read(text) is not None:
                where = source.name(str(place), checkpoint_id, parent_id, branch)
                whole = _with_stock_persistence(assembly.whole(store, checkpoint_id, where))
            copy.publish(checkpoint_id, parent_id, branch, whole)
            count += 1
    return count
