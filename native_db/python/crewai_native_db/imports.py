"""Taking over the states in a file of CrewAI's own.

Such a file is read through Python's ``sqlite3``, as CrewAI does: two copies of SQLite in one
process would drop one another's locks on it.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import time
from contextlib import closing
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crewai_native_db import _native

_logger = logging.getLogger("crewai_native")

_BATCH = 500
_TIMEOUT = 30.0
_State: TypeAlias = tuple[str, str, int, str, str | None]


def take_over(store: _native.FlowStore, file: Path) -> None:
    """Copy the states and the pending feedback of ``file`` into ``store``, once.

    A row that cannot be read stays behind, and the log names it.

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
    # What is no text is left to `_read`, which goes on without the row.
    db.text_factory = _decoded
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
                state
                for number, *row in batch
                if (state := _read(f"row {number} of flow_states", source, *row)) is not None
            ]
            if not store.import_rows(source, last, end, False, states):
                return
            last = end
    pending = []
    if "pending_feedback" in tables:
        pending = [
            state
            for number, uuid, context, text, asked_at in db.execute(
                "SELECT rowid, flow_uuid, context_json, state_json, created_at FROM pending_feedback"
            )
            if (
                state := _read(
                    f"row {number} of pending_feedback", source, uuid, None, asked_at, text, context
                )
            )
            is not None
        ]
    store.import_rows(source, last, last, True, pending)


def _read(  # noqa: PLR0917 - a row
    where: str,
    source: str,
    uuid: Any,
    method: Any,
    saved_at: Any,
    text: Any,
    context: Any = None,
) -> _State | None:
    """A row as it can be stored, or None for one that cannot, which must not keep others away.

    CrewAI itself reads neither times nor methods, and takes bytes for an id and for a state.
    """
    try:
        if context is not None:
            method = json.loads(context)["method_name"]
        if isinstance(uuid, bytes):
            uuid = str(uuid)
        if isinstance(text, bytes):
            text = text.decode()
        for value in (uuid, method, text, context or ""):
            if not isinstance(value, str):
                raise TypeError(f"{value!r:.100} is not text")  # noqa: TRY301
            value.encode()
    except KeyError as error:
        reason = f"its context has no {error}"
    except (ValueError, TypeError, RecursionError) as error:
        reason = str(error)
    else:
        try:
            moment = _microseconds(saved_at)
        except (ValueError, TypeError, OverflowError) as error:
            moment = time.time_ns() // 1000
            _logger.warning("%s: %s has no time, and now gets this one: %s", source, where, error)
        return uuid, method, moment, text, context
    _logger.warning("%s: %s cannot be read and stays behind: %s", source, where, reason)
    return None


def _decoded(text: bytes) -> str | bytes:
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text


def _batches(rows: sqlite3.Cursor) -> Iterator[list[tuple[Any, ...]]]:
    while batch := list(islice(rows, _BATCH)):
        yield batch


def _microseconds(text: str) -> int:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1_000_000)
