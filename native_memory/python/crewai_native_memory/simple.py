"""A store for texts alone: save a value, find it by its words. Needs no embedder and no CrewAI."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from crewai_native_memory import _native, embedders, location
from crewai_native_memory.storage import FUSION_CONSTANT, fusion_depth

if TYPE_CHECKING:
    import os

Embedder = Callable[[list[str]], Sequence[Any]]


class Found(TypedDict):
    """A text that was found.

    Attributes:
        id: Its id.
        content: The text.
        metadata: What was saved with it.
        score: How well it matches, above 0 and at most 1; compares within one result.
    """

    id: str
    content: str
    metadata: dict[str, Any]
    score: float


class MemoryStorage:
    """Texts with metadata, shared by threads and processes, found by their words.

    >>> storage = MemoryStorage("notes.db")  # doctest: +SKIP
    >>> storage.save("The kick-off is on Monday", {"project": "apollo"})  # doctest: +SKIP
    >>> storage.search("when is the kick-off?")[0]["content"]  # doctest: +SKIP
    'The kick-off is on Monday'

    With an embedder, texts are found by what they mean as well.

    Args:
        path: The file; ``native/simple.db`` under CrewAI's storage directory by default.
        embedder: Gives a vector for each of a list of texts.

    Raises:
        ValueError: From every method, for arguments that mean nothing.
        OSError: From every method, when the system refuses (space, permissions).
        StoreError: From every method, when the file is damaged or of a newer format.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, *, embedder: Embedder | None = None
    ) -> None:
        file = _default_path() if path is None else Path(path).expanduser()
        self._store = _native.Store(file, "cosine")
        self._embedder = embedder

    @property
    def path(self) -> str:
        """The file."""
        return str(self._store.path)

    def save(self, value: str, metadata: dict[str, Any] | None = None) -> str:
        """Save a text with what belongs to it, and give its id.

        Args:
            value: The text.
            metadata: Anything that JSON can hold.
        """
        key, now = str(uuid.uuid4()), time.time_ns() // 1000
        try:
            fields = json.dumps({} if metadata is None else metadata, ensure_ascii=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"metadata must be JSON: {error}") from error
        vector = None
        if self._embedder is not None and value.strip():
            vector = embedders.vectors(self._embedder, [value])[0]
        batch = _native.Batch()
        batch.add(key, value, "/", [], fields, 0.5, now, now, None, False, vector)
        with self._fitting():
            self._store.save(batch)
        return key

    def search(self, text: str, limit: int = 3, score_threshold: float = 0.0) -> list[Found]:
        """Find the texts that match best, best first.

        Args:
            text: Words to look for; with an embedder also what is meant.
            limit: At most so many texts.
            score_threshold: Only texts with at least this score.
        """
        if limit <= 0:
            return []
        if self._embedder is None or not text.strip():
            rows = _native.search_text(self._store, text, limit=limit)
            # BM25 has no upper limit: brought to 0..1 without changing the order.
            found = [_found(row, row[-1] / (1 + row[-1])) for row in _taken(rows)]
        else:
            vector = embedders.query_vector(self._embedder, text)
            with self._fitting():
                found = self._search_both(text, vector, limit)
        return [one for one in found if one["score"] >= score_threshold]

    def delete(self, *ids: str) -> int:
        """Delete the texts with these ids; give how many there were."""
        return self._store.delete(record_ids=list(ids)) if ids else 0

    def reset(self) -> None:
        """Delete every text."""
        self._store.reset()

    def close(self) -> None:
        """Let go of the file; the next call opens it again."""
        self._store.close()

    def __len__(self) -> int:
        """Return the number of texts."""
        return self._store.count("/")

    @contextmanager
    def _fitting(self) -> Iterator[None]:
        """Name the embedder whose vectors are of another length than those that are stored."""
        try:
            yield
        except _native.DimensionError as error:
            stored, given = error.args
            name = "" if self._embedder is None else embedders.identity(self._embedder)
            raise ValueError(
                f"{self.path} holds vectors of {stored} dimensions, and the embedder {name} gave "
                f"{given}; `crewai-native memory reembed --store` makes them all anew"
            ) from None

    def _search_both(self, text: str, vector: Any, limit: int) -> list[Found]:
        """Merge both rankings by reciprocal rank fusion; 1 is the first of both."""
        depth = fusion_depth(limit)
        similar = self._store.search(vector, limit=depth, min_score=-1.0)
        worded = _native.search_text(self._store, text, limit=depth)
        rows: dict[str, Any] = {}
        scores: dict[str, float] = {}
        for result in (similar, worded):
            for rank, row in enumerate(_taken(result)):
                rows[row[0]] = row
                share = (FUSION_CONSTANT + 1) / (FUSION_CONSTANT + 1 + rank) / 2
                scores[row[0]] = scores.get(row[0], 0.0) + share
        best = sorted(scores, key=lambda k: (-scores[k], k))[:limit]
        return [_found(rows[key], scores[key]) for key in best]


def _default_path() -> Path:
    try:
        return location.default_path().with_name("simple.db")
    except ModuleNotFoundError:
        import platformdirs

        return Path(platformdirs.user_data_dir("crewai-native")) / "simple.db"


def _taken(rows: _native.Rows) -> list[Any]:
    return [rows.take(at) for at in range(len(rows))]


def _found(row: Any, score: float) -> Found:
    return {"id": row[0], "content": row[1], "metadata": json.loads(row[4]), "score": score}
