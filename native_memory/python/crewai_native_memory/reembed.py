"""Changing a store's embedder: every vector is made anew while the store stays in use."""

from __future__ import annotations

import importlib
import json
from typing import TYPE_CHECKING, Any, Final

from crewai_native_memory import _native, embedders
from crewai_native_memory.progress import progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from crewai_native_memory.storage import NativeStorage

BATCH: Final = 100
"""Texts embedded at a time; an interruption costs at most so many."""


def reembed(storage: NativeStorage, embedder: Callable[..., Any]) -> int:
    """Exchange every vector of a store for an embedder's; give the number of records embedded.

    New vectors are collected in the store beside the old ones, which serve until all are there;
    then they change places at once. After an interruption, a second call with the same embedder
    goes on where the first one stopped. Records saved meanwhile, with the old embedder, are
    included; programs that go on with that one are told of the mismatch from then on.

    Records without a vector get one, unless they have no text.

    Raises:
        ValueError: The embedder gave something else than one vector for each text, or vectors
            of different lengths; or an exchange for another embedder was begun meanwhile, which
            goes on.
    """
    store = storage._store  # noqa: SLF001 - one package
    name = embedders.identity(embedder)
    ready = _native.reembed_begin(store, name)
    embedded = 0
    with progress(f"Embedding with {name}", storage.count()) as advance:
        advance(ready)
        # What is saved while this runs lies behind or before us: again until nothing is missing.
        waiting = True
        while waiting:
            after = 0
            while batch := _native.reembed_pending(store, name, after, BATCH):
                embedded += _stage(store, name, embedder, batch)
                after = batch[-1][0]
                advance(len(batch))
            try:
                waiting = _native.reembed_finish(store, name) > 0
            except _native.DimensionError as error:
                # Collected vectors that do not fit together would fail every later attempt too.
                _native.reembed_abandon(store, name)
                raise ValueError(
                    f"the embedder {name} gave vectors of {error.args[0]} and of {error.args[1]} "
                    "dimensions; the store keeps the old ones"
                ) from error
    return embedded


def _stage(
    store: _native.Store, name: str, embedder: Callable[..., Any], batch: list[tuple[int, str]]
) -> int:
    texts = [text for _, text in batch if text.strip()]
    made = iter(embedders.vectors(embedder, texts) if texts else ())
    _native.reembed_stage(
        store,
        name,
        [(record, text, next(made) if text.strip() else None) for record, text in batch],
    )
    return len(texts)


def load_embedder(description: str) -> Callable[..., Any]:
    """Build the embedder that a user describes.

    Args:
        description: CrewAI's configuration as JSON, such as ``{"provider": "ollama", "config":
            {"model_name": "nomic-embed-text"}}``; a provider's name; or ``module:name`` of a
            function that takes a list of texts.

    Raises:
        ValueError: It is none of these.
    """
    if description.lstrip().startswith("{"):
        try:
            spec = json.loads(description)
        except json.JSONDecodeError as error:
            raise ValueError(f"embedder: not JSON: {error}") from error
    elif ":" in description:
        module, _, name = description.partition(":")
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"embedder {description!r}: {error}") from error
        if not callable(found):
            raise ValueError(f"embedder {description!r} is no function")
        function: Callable[..., Any] = found
        return function
    else:
        spec = {"provider": description, "config": {}}
    from crewai.rag.embeddings.factory import build_embedder

    built: Callable[..., Any] = build_embedder(spec)
    return built
