"""The states of flows as CrewAI's ``FlowPersistence``."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from crewai.flow.persistence.base import FlowPersistence
from pydantic import BaseModel, Field, PrivateAttr, model_validator

from crewai_native_db import _native, imports, location
from crewai_native_db.encoding import encode

if TYPE_CHECKING:
    from typing import Self

    from crewai.flow.async_feedback.types import PendingFeedbackContext

__all__ = ["NativeFlowPersistence"]

FILE_NAME = "flow_states.db"


class NativeFlowPersistence(FlowPersistence):
    """Keeps the states of flows in one file, shared by threads and processes.

    It takes and gives what CrewAI's ``SQLiteFlowPersistence`` does. States are stored as what
    changed since an earlier one, compressed; threads that save at once share one commit. The first
    use at a place takes over the states that stand in CrewAI's own ``flow_states.db`` there, which
    is read and left as it is.

    Instances on one file share connections, and survive a fork.

    Attributes:
        db_path: The file; by default ``native/flow_states.db`` under CrewAI's storage directory.
        synchronous: What a saved state survives: ``"full"`` a power cut, ``"normal"`` the death of
            the process.
        keep: How many states of each flow to keep; all by default. The state that a kept one is
            stored as a difference from stays as well.
        strict: Refuse a state that would come back as something else, with a ``ValueError`` that
            says where; by default it is stored as CrewAI does, with ``str(value)`` and the like.
        import_from: The file of CrewAI's own to take over. By default the one in CrewAI's storage
            directory where ``db_path`` is the default too, and else none.
    """

    persistence_type: str = Field(default="NativeFlowPersistence")
    db_path: str = Field(default_factory=lambda: str(location.default_path(FILE_NAME)))
    synchronous: Literal["full", "normal"] = "full"
    keep: int | None = Field(default=None, ge=1, lt=2**32)
    strict: bool = False
    import_from: str | None = None
    _store: _native.FlowStore = PrivateAttr()

    def __init__(self, db_path: str | None = None, /, **fields: Any) -> None:
        if db_path is not None:
            fields["db_path"] = db_path
        super().__init__(**fields)

    @model_validator(mode="after")
    def _open(self) -> Self:
        self._store = _native.FlowStore(self.db_path, self.synchronous == "full")
        if self.import_from is None and Path(self.db_path) == location.default_path(FILE_NAME):
            self.import_from = str(location.crewai_directory() / FILE_NAME)
        self.init_db()
        return self

    def init_db(self) -> None:
        """Take over CrewAI's own states, once. The file is created by the first save."""
        if self.import_from is not None:
            imports.take_over(self._store, Path(self.import_from))

    def save_state(
        self, flow_uuid: str, method_name: str, state_data: dict[str, Any] | BaseModel
    ) -> None:
        """Save the state of a flow.

        When this returns, the state survives what ``synchronous`` says.

        Raises:
            ValueError: The state is neither a dict nor a model; or it is not what a strict
                persistence accepts.
            OSError: The system refuses (space, permissions).
            DatabaseError: The file is damaged or of a newer format.
        """
        self._store.save(
            _text(flow_uuid),
            method_name,
            time.time_ns() // 1000,
            encode(state_data, strict=self.strict),
            keep=self.keep,
        )

    def load_state(self, flow_uuid: str | None) -> dict[str, Any] | None:
        """Return the state of a flow that was saved last, or None."""
        if flow_uuid is None:
            return None  # what a kickoff with `inputs={"id": None}` asks for
        text = self._store.load(_text(flow_uuid))
        state = None if text is None else json.loads(text)
        return state if isinstance(state, dict) else None

    def save_pending_feedback(
        self,
        flow_uuid: str,
        context: PendingFeedbackContext,
        state_data: dict[str, Any] | BaseModel,
    ) -> None:
        """Save the state of a flow that waits for a person's answer, and what it asks, at once."""
        self._store.save(
            _text(flow_uuid),
            context.method_name,
            time.time_ns() // 1000,
            encode(state_data, strict=self.strict),
            pending=encode(context.to_dict()),
            keep=self.keep,
        )

    def load_pending_feedback(
        self, flow_uuid: str | None
    ) -> tuple[dict[str, Any], PendingFeedbackContext] | None:
        """Return the state with which a flow began to wait, and what it asks, or None."""
        from crewai.flow.async_feedback.types import PendingFeedbackContext

        if flow_uuid is None:
            return None
        found = self._store.load_pending(_text(flow_uuid))
        if found is None:
            return None
        state, context = found
        return json.loads(state), PendingFeedbackContext.from_dict(json.loads(context))

    def clear_pending_feedback(self, flow_uuid: str | None) -> None:
        """Say that a flow has its answer."""
        if flow_uuid is None:
            return
        self._store.clear_pending(_text(flow_uuid))

    def close(self) -> None:
        """Let go of the file; the next call opens it again."""
        self._store.close()


def _text(flow_uuid: object) -> str:
    """A flow's id as text: a program that passes ``inputs={"id": 42}`` has 42 for it.

    SQLite, too, which keeps CrewAI's own states, makes text of a number for a column of texts. Bytes
    become what they are in the JSON of the state that they are the id of.
    """
    if isinstance(flow_uuid, str):
        return flow_uuid
    if isinstance(flow_uuid, int):  # a bool as well
        return str(int(flow_uuid))
    if isinstance(flow_uuid, float):
        return repr(flow_uuid)
    if isinstance(flow_uuid, bytes):
        return str(flow_uuid)
    raise TypeError(f"flow_uuid accepts a str, a number or bytes, got {type(flow_uuid).__name__}")
