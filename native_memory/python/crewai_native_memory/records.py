"""CrewAI's ``MemoryRecord`` with an embedding that is made when it is read.

Thousands of floats per record are most of what a search would spend its time on, and hardly any
caller looks at them. This module imports CrewAI; nothing imports it before it is needed.
"""

from __future__ import annotations

import copyreg
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from crewai.memory.types import MemoryRecord, ScopeInfo
from pydantic import PrivateAttr

from crewai_native_memory import _native

if TYPE_CHECKING:
    from collections.abc import Generator

    from crewai_native_memory._native import Batch, Rows, Vector

__all__ = [
    "EmbeddingDimensionMismatchError",
    "MemoryRecord",
    "ScopeInfo",
    "StoredRecord",
    "add_record",
    "datetime_of",
    "microseconds_of",
    "record_at",
]

try:
    from crewai.memory.storage.backend import EmbeddingDimensionMismatchError
except ImportError:

    class EmbeddingDimensionMismatchError(ValueError):  # type: ignore[no-redef]
        """What CrewAI raises since 1.15, for the releases before."""

        def __init__(self, stored_dim: int, new_dim: int) -> None:
            self.stored_dim = stored_dim
            self.new_dim = new_dim
            super().__init__(
                f"Embedding dimension mismatch: this memory store contains {stored_dim}-"
                f"dimensional vectors, and the embedder produced a {new_dim}-dimensional one. "
                "Reset the memory, or go back to the embedder that it was made with."
            )


_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - CrewAI's datetimes are naive UTC
_FIELDS = frozenset(MemoryRecord.model_fields)
_encode = json.JSONEncoder(ensure_ascii=False).encode
# `json.loads` without looking for white space around the value: the store holds what `_encode` and
# the core wrote. That halves the time it takes to read the short texts of a record.
_decode = json.JSONDecoder().raw_decode


class StoredRecord(MemoryRecord):
    """A record as a store returned it.

    It is a ``MemoryRecord`` in every respect: it compares, copies, pickles and dumps as one, and
    a pickle of it loads where this package is not installed.
    """

    _vector: Vector | None = PrivateAttr(default=None)

    def _complete(self) -> dict[str, Any]:
        """All fields, the embedding among them."""
        fields = self.__dict__
        if "embedding" not in fields:
            fields["embedding"] = None if self._vector is None else self._vector.tolist()
        return fields

    def __repr_name__(self) -> str:
        return MemoryRecord.__name__

    def __iter__(self) -> Generator[tuple[str, Any], None, None]:
        self._complete()
        return super().__iter__()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MemoryRecord):
            return NotImplemented
        theirs = other._complete() if isinstance(other, StoredRecord) else other.__dict__
        return self._complete() == theirs

    __hash__ = None  # type: ignore[assignment]  # as MemoryRecord

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        state: dict[str, Any] = self.__getstate__()  # type: ignore[assignment]
        state["__dict__"] = self._complete()
        state["__pydantic_private__"] = None
        reconstruct = copyreg._reconstructor  # type: ignore[attr-defined]  # noqa: SLF001
        return reconstruct, (MemoryRecord, object, None), state


class _LazyEmbedding:
    """Fills the field when it is first read; from then on the instance's own value is found."""

    def __get__(self, record: StoredRecord | None, owner: type | None = None) -> Any:
        if record is None:
            # Pydantic keeps its fields off the class, and so does this.
            raise AttributeError("embedding")
        return record._complete()["embedding"]  # noqa: SLF001 - its other half


StoredRecord.embedding = _LazyEmbedding()


def record_at(rows: Rows, at: int) -> tuple[StoredRecord, float]:
    """The record in a row of a result, and its score."""
    row = rows.take(at)
    record = StoredRecord.__new__(StoredRecord)
    fields = {
        "id": row[0],
        "content": row[1],
        "scope": row[2],
        "categories": _decode(row[3])[0],
        "metadata": _decode(row[4])[0],
        "importance": row[5],
        "created_at": datetime_of(row[6]),
        "last_accessed": datetime_of(row[7]),
        "source": row[8],
        "private": row[9],
    }
    # What `model_construct` does, without going over the fields: they were valid when they were
    # saved.
    set_attribute = object.__setattr__
    set_attribute(record, "__dict__", fields)
    set_attribute(record, "__pydantic_fields_set__", set(_FIELDS))
    set_attribute(record, "__pydantic_extra__", None)
    set_attribute(record, "__pydantic_private__", {"_vector": row[10]})
    return record, row[11]


def add_record(batch: Batch, record: MemoryRecord) -> None:
    """Adds a record to a batch.

    Raises:
        ValueError: A field holds something that cannot be stored; the message names the record.
    """
    try:
        created_at = microseconds_of(record.created_at)
        last_accessed = microseconds_of(record.last_accessed)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"record {record.id!r}: created_at, last_accessed: {error}") from None
    metadata = record.metadata
    if not isinstance(metadata, dict):
        raise ValueError(  # noqa: TRY004 - one error for whatever a record cannot hold
            f"record {record.id!r}: metadata must be a dict, got {type(metadata).__name__}"
        )
    try:
        text = _json_of(metadata)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"record {record.id!r}: metadata must be JSON: {error}") from error
    batch.add(
        record.id,
        record.content,
        record.scope,
        record.categories,
        text,
        record.importance,
        created_at,
        last_accessed,
        record.source,
        record.private,
        record.embedding,
    )


def _json_of(metadata: dict[str, Any]) -> str:
    try:
        return _native.to_json(metadata)
    except (TypeError, ValueError):
        # Only Python's module writes keys that are not text and numbers that are not finite.
        return _encode(metadata)


def microseconds_of(moment: datetime) -> int:
    """Microseconds since 1970 UTC; a naive datetime is UTC.

    Raises:
        TypeError: It is not a datetime.
        OverflowError: In UTC it is before the year 1 or after 9999.
    """
    if not isinstance(moment, datetime):
        raise TypeError(f"expected a datetime, got {type(moment).__name__}")
    if moment.tzinfo is not None:
        moment = moment.astimezone(UTC).replace(tzinfo=None)
    since = moment - _EPOCH
    # Half the time of dividing by a `timedelta`.
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def datetime_of(microseconds: int) -> datetime:
    """The naive UTC datetime, as CrewAI's own code expects it."""
    return _EPOCH + timedelta(0, 0, microseconds)
