"""Taking over the states in a file of CrewAI's own.

Such a file is read through Python's ``sqlite3``, as CrewAI does: two copies of SQLite in one
process would drop one another's locks on it.
"""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crewai_native_db import _native

_BATCH = 500
_TIMEOUT = 30.0


def take_over(store: _native.FlowStore, file: Path) -> None:
    """Copy the states and the pending feedback of ``file`` into ``store``, once.

    The work is done in batches, of which each is recorded as it is committed: what is interrupted
    goes on with the next call, and of several processes that try, one does each batch.

    Raises:
        DatabaseError: ``file`` cannot be read.
    """
    if not file.exists():
        return
    source = os.path.realpath(file)
    last, done = store.imported(source)
    if done:
        return
    from crewai_native_db import DatabaseError

    # A path may have characters that mean something in a URI.
    uri = f"{Path(source).as_uri()}?mode=ro"
    try:
        with closing(sqlite3.connect(uri, uri=True, timeout=_TIMEOUT)) as db:
            _copy(store, source, db, last)
    except sqlite3.Error as error:
        raise DatabaseError(
            f"{file}: the states of flows in it cannot be taken over: {error}"
        ) from error


def _copy(store: _native.FlowStore, source: str, db: sqlite3.Connection, last: int) -> None:
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if "flow_states" in tables:
        rows = db.execute(
            "SELECT id, flow_uuid, method_name, timestamp, state_json FROM flow_states"
            " WHERE id > ? ORDER BY id",
            (last,),
        )
        for batch in _batches(rows):
            end = batch[-1][0]
            states = [
                (uuid, method, _microseconds(saved_at), text, None)
                for _, uuid, method, saved_at, text in batch
            ]
            if not store.import_rows(source, last, end, False, states):
                return
            last = end
    pending = []
    if "pending_feedback" in tables:
        pending = [
            (uuid, json.loads(context)["method_name"], _microseconds(saved_at), text, context)
            for uuid, context, text, saved_at in db.execute(
                "SELECT flow_uuid, context_json, state_json, created_at FROM pending_feedback"
            )
        ]
    store.import_rows(source, last, last, True, pending)


def _batches(rows: sqlite3.Cursor) -> Iterator[list[tuple[Any, ...]]]:
    while batch := list(islice(rows, _BATCH)):
        yield batch


def _microseconds(text: str) -> int:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1_000_000)
