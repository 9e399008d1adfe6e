"""The memory store as the place of CrewAI's knowledge: one store file for each collection."""

from __future__ import annotations

import hashlib
import logging
import math
import re
import uuid
from collections.abc import Callable  # noqa: TC003 - pydantic evaluates the types of fields
from pathlib import Path  # noqa: TC003
from typing import TYPE_CHECKING, Any, Final

from crewai.knowledge.storage.base_knowledge_storage import BaseKnowledgeStorage
from crewai.memory.types import MemoryRecord
from pydantic import Field, PrivateAttr

from crewai_native_memory import embedders, imports, location, sources
from crewai_native_memory.storage import NativeStorage, _in_thread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crewai.rag.types import SearchResult

_BATCH: Final = 100
"""Passages embedded and committed at a time, as CrewAI's own storage does by default."""

_SAME: Final = 0.999
"""The cosine from which two vectors of a text are those of one model.

The same model does not give the same bits twice: sums are formed in another order on another device
and in another batch, often with 8 bits for a number (bfloat16). This cosine allows an error of 4.5 %
of a vector's length, eleven times the rounding of such numbers. Vectors that are nearer still can
be compared, whatever made them."""

_logger = logging.getLogger("crewai_native_memory")


class NativeKnowledgeStorage(BaseKnowledgeStorage):
    """Passages of one knowledge collection, in a store file of its own.

    Saving embeds and writes only what is new: a passage that this embedder has embedded before
    is left alone, so that the sources that CrewAI adds again at every kickoff cost a look-up. An
    embedder may be another one under the same name, with the model exchanged inside: the first
    saving of each object embeds one known passage again, and all of them if the vector differs.

    Results, scores (``(1 + cosine) / 2``) and thresholds are those of CrewAI's own storage, and
    so is a collection's name; unlike there, names that differ in punctuation only are different
    collections. What goes wrong while searching is raised: CrewAI's agents report it as an event
    and go on without knowledge, where its own storage would tell them that nothing is known.

    Args:
        embedder: The configuration of the embedder as the user wrote it; None for the default of
            CrewAI's RAG configuration.
        collection_name: Which collection; None for the one without a name.
        directory: Where the collections lie; ``native/knowledge`` under CrewAI's storage
            directory by default.

    Raises:
        ValueError: From searching and saving: embeddings of another length than the
            collection's ("dimension mismatch"), or a document that is not a string.
        OSError: When the system refuses.
        StoreError: When the collection's file is damaged or of a newer format.
    """

    collection_name: str | None = None
    embedder: Any = Field(default=None, exclude=True)
    directory: Path | None = Field(default=None, exclude=True)
    _storage: NativeStorage = PrivateAttr()
    _function: Callable[..., Any] | None = PrivateAttr(default=None)
    _tried: bool = PrivateAttr(default=False)

    def model_post_init(self, _context: Any, /) -> None:
        """Build the embedder at once where one is configured, so that a bad one is told early."""
        if self.embedder:
            self._function = _build(self.embedder)
        directory = self.directory or location.default_path().parent / "knowledge"
        self._storage = NativeStorage(
            directory / f"{_file_name(self.collection_name)}.db", metric="cosine"
        )

    def search(
        self,
        query: list[str],
        limit: int = 5,
        metadata_filter: dict[str, Any] | None = None,
        score_threshold: float = 0.6,
    ) -> list[SearchResult]:
        """Return the passages most similar to the query, best first.

        Args:
            query: Its parts, which are joined by spaces. Nothing is found for no parts.
            limit: At most so many passages.
            metadata_filter: Only passages whose metadata has all of these values.
            score_threshold: Only passages with at least this score, from 0 to 1.
        """
        if not query or not self._storage.count():
            return []
        vector = embedders.query_vector(self._embed, " ".join(query))
        try:
            found = self._storage.search(
                vector, limit=limit, metadata_filter=metadata_filter, min_score=-1.0
            )
        except ValueError as error:
            raise _mismatch(error) from error
        scored = ((record, min(1.0, max(0.0, (1 + cosine) / 2))) for record, cosine in found)
        return [
            {
                "id": record.id,
                "content": record.content,
                "metadata": record.metadata,
                "score": score,
            }
            for record, score in scored
            if not score_threshold or score >= score_threshold
        ]

    def save(self, documents: list[str]) -> None:
        """Embed and write the passages that this embedder has not embedded before.

        They are written in batches: when the embedder fails, what it had embedded is kept, and
        the next attempt goes on from there.
        """
        texts = {}
        for index, document in enumerate(documents):
            if not isinstance(document, str):
                raise ValueError(  # noqa: TRY004 - as CrewAI's own storage
                    f"documents[{index}] must be a string, got {type(document).__name__}"
                )
            texts[hashlib.sha256(document.encode()).hexdigest()] = document
        if not texts:
            return
        embedder = self._source()
        known = self._storage.are_from(list(texts), embedder)
        if not self._tried:
            example = next(
                (key for key, embedded in zip(texts, known, strict=True) if embedded), None
            )
            if not self._still_made_by(embedder, example):
                embedder = self._another_source()
                known = [False] * len(texts)
            self._tried = True
        new = [key for key, embedded in zip(texts, known, strict=True) if not embedded]
        for start in range(0, len(new), _BATCH):
            keys = new[start : start + _BATCH]
            found = embedders.vectors(self._embed, [texts[key] for key in keys])
            records = []
            for key, vector in zip(keys, found, strict=True):
                record = MemoryRecord(id=key, content=texts[key], source=embedder)
                record.embedding = vector  # as it is: validation would make a list of an array
                records.append(record)
            try:
                self._storage.save(records)
            except ValueError as error:
                raise _mismatch(error) from error

    def reset(self) -> None:
        """Delete the collection's passages; the next may have embeddings of another length."""
        self._storage.reset()

    async def asearch(
        self,
        query: list[str],
        limit: int = 5,
        metadata_filter: dict[str, Any] | None = None,
        score_threshold: float = 0.6,
    ) -> list[SearchResult]:
        """:meth:`search`, without blocking the event loop."""
        return await _in_thread(self.search, query, limit, metadata_filter, score_threshold)

    async def asave(self, documents: list[str]) -> None:
        """:meth:`save`, without blocking the event loop."""
        await _in_thread(self.save, documents)

    async def areset(self) -> None:
        """:meth:`reset`, without blocking the event loop."""
        await _in_thread(self.reset)

    def _source(self) -> str:
        """What passages of the embedder have as their source: its identity, marked if need be."""
        name = embedders.identity(self._embed)
        marked = self._storage.note("embedder")
        return marked if marked is not None and marked.startswith(f"{name}~") else name

    def _another_source(self) -> str:
        """A mark for the embedder under which no passage is known yet.

        It is kept in the collection, as the sources are saved one by one, perhaps by several
        programs, and an interrupted saving has to go on where it stopped.
        """
        source = f"{embedders.identity(self._embed)}~{uuid.uuid4().hex[:8]}"
        self._storage.set_note("embedder", source)
        return source

    def _still_made_by(self, source: str, example: str | None) -> bool:
        """Embed a passage of a source again, and say whether its vector is the stored one.

        Args:
            source: Whose passages to try.
            example: The id of one; if None, the newest passage is tried, should it be one. Even if
                none of this saving is known: what it adds must not stand beside vectors of
                another model under one mark.
        """
        if example is None:
            record = next(iter(self._storage.list_records(limit=1)), None)
        else:
            record = self._storage.get_record(example)
        if record is None or record.source != source or record.embedding is None:
            return True
        (vector,) = embedders.vectors(self._embed, [record.content])
        similarity = _cosine(record.embedding, vector)
        if similarity >= _SAME:
            return True
        _logger.warning(
            "knowledge collection %s: the embedder %s gives other vectors than it gave before "
            "(cosine %.3f), so its model must be another one; all passages are embedded anew "
            "when their sources are added",
            self.collection_name or "without a name",
            embedders.identity(self._embed),
            similarity,
        )
        return False

    @property
    def _embed(self) -> Callable[..., Any]:
        if self._function is None:
            self._function = _default_embedder()
        return self._function


def storage_for(
    embedder: Any, collection_name: str | None, *, bring: bool = True
) -> NativeKnowledgeStorage | None:
    """Return the storage for a collection, or None where the application chose another.

    A client factory registered for Chroma, and a RAG configuration of other than the default
    place, are such choices.

    Args:
        embedder: The embedder's configuration; None for the default.
        collection_name: Which collection; None for the one without a name.
        bring: Whether a new collection gets, at its first use, what CrewAI's own storage holds
            under the name. Which embedder made those vectors is unknown, so a source that is
            added again is embedded once more.
    """
    from crewai.rag.factory import _factories

    if "chromadb" in _factories or (not embedder and _configured_elsewhere()):
        return None
    storage = NativeKnowledgeStorage(embedder=embedder, collection_name=collection_name)
    passages = imports.reset_with(storage._storage, lambda: _in_chroma(collection_name))  # noqa: SLF001
    if bring:
        imports.import_first(passages, lambda: _in_chroma(collection_name))
    return storage


def _in_chroma(collection: str | None) -> sources.ChromaSource | None:
    directory = location.default_path().parents[1]
    if not (directory / "chroma.sqlite3").is_file():
        return None
    from crewai.rag.chromadb.utils import _sanitize_collection_name

    name = f"knowledge_{collection}" if collection else "knowledge"
    return sources.ChromaSource(directory, _sanitize_collection_name(name))


def _configured_elsewhere() -> bool:
    from crewai.rag.config.utils import _rag_context

    context = _rag_context.get()
    if context is None:
        return False
    from crewai.rag.chromadb.config import _default_settings
    from crewai.rag.chromadb.constants import DEFAULT_DATABASE, DEFAULT_TENANT

    config: Any = context.config
    return (
        config.provider != "chromadb"
        or config.settings != _default_settings()
        or (config.tenant, config.database) != (DEFAULT_TENANT, DEFAULT_DATABASE)
    )


def _build(embedder: Any) -> Callable[..., Any]:
    from crewai.rag.embeddings.factory import build_embedder

    function: Callable[..., Any] = build_embedder(embedder)
    return function


def _default_embedder() -> Callable[..., Any]:
    """The embedder of CrewAI's RAG configuration, without opening the store configured there."""
    from crewai.rag.chromadb.config import _default_embedding_function
    from crewai.rag.config.utils import _rag_context

    context = _rag_context.get()
    function: Callable[..., Any] = (
        _default_embedding_function() if context is None else context.config.embedding_function
    )
    return function


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """The cosine of the angle between two vectors; 0 where they are of different lengths."""
    if len(one) != len(other):
        return 0.0
    a, b = ([float(component) for component in vector] for vector in (one, other))
    lengths = math.hypot(*a) * math.hypot(*b)
    if not lengths:
        return float(a == b)
    return sum(x * y for x, y in zip(a, b, strict=True)) / lengths


def _file_name(collection: str | None) -> str:
    """A file name for any collection name: readable, and different for different names."""
    if not collection:
        return "knowledge"
    digest = hashlib.sha256(collection.encode()).hexdigest()[:8]
    return f"knowledge_{re.sub(r'[^A-Za-z0-9_-]', '_', collection)[:64]}-{digest}"


def _mismatch(error: ValueError) -> ValueError:
    """The error as CrewAI words it, which is how its callers know it."""
    from crewai_native_memory.records import EmbeddingDimensionMismatchError

    if not isinstance(error, EmbeddingDimensionMismatchError):
        return error
    return ValueError(
        f"Embedding dimension mismatch: the collection holds {error.stored_dim}-dimensional "
        f"vectors, and the embedder gave {error.new_dim} dimensions. Make sure you're using the "
        "same embedding model across all operations with this collection. Try resetting the "
        "collection using `crewai reset-memories -a`"
    )
