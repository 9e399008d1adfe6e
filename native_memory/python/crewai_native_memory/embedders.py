"""Which embedder made a vector: a name to compare and to show."""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# Credentials and connections do not change what an embedder computes, and are nobody's business.
_IRRELEVANT: Final = re.compile(
    r"key|token|secret|password|credential|header|timeout|retr|client|session|url|base|host",
    re.IGNORECASE,
)


def identity(embedder: Callable[..., Any]) -> str:
    """Name an embedder by its kind and what it is configured with.

    Two embedders of one identity give the same vector for the same text, as far as this can be
    told from outside: by the function's own ``get_config()`` where it has one, as Chroma's have,
    or else by the plain values that it holds, or by its code. Telling two apart that are the same
    costs embedding a text twice; secrets and addresses are not looked at.

    Returns:
        ``Kind[model]#digest``; ``[model]`` where a model is named.
    """
    kind = embedder if isinstance(embedder, type) or _is_function(embedder) else type(embedder)
    name = f"{kind.__module__}.{kind.__qualname__}"
    settings = _settings(embedder)
    text = json.dumps([name, settings], sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    model = next((settings[key] for key in sorted(settings) if "model" in key.lower()), None)
    return f"{kind.__qualname__}{f'[{model}]' if model else ''}#{digest}"


def vectors(embedder: Callable[..., Any], texts: Sequence[str]) -> list[Any]:
    """Embed texts.

    Raises:
        ValueError: The embedder did not give one vector for each text.
    """
    found = list(embedder(list(texts)))
    if len(found) != len(texts):
        raise ValueError(
            f"the embedder {identity(embedder)} gave {len(found)} vectors for {len(texts)} texts"
        )
    return [_plain(vector) for vector in found]


def query_vector(embedder: Callable[..., Any], text: str) -> Any:
    """Embed a query, which some embedders do differently from what is searched."""
    embed_query = getattr(embedder, "embed_query", None)
    found = embed_query([text]) if callable(embed_query) else embedder([text])
    return _plain(next(iter(found)))


def _plain(vector: Any) -> Any:
    # NumPy's arrays go to the store as they are, through the buffer protocol.
    return vector if hasattr(vector, "__array_interface__") else list(vector)


def _is_function(embedder: object) -> bool:
    return hasattr(embedder, "__code__")


def _settings(embedder: Any) -> dict[str, Any]:
    code = getattr(embedder, "__code__", None)
    if code is not None:
        return {"code": code.co_code.hex(), "constants": repr(code.co_consts)}
    get_config = getattr(embedder, "get_config", None)
    values: Any = None
    if callable(get_config):
        try:
            values = get_config()
        except NotImplementedError:
            values = None
    if not isinstance(values, dict):
        values = getattr(embedder, "__dict__", {})
    return {
        key: value
        for key, value in values.items()
        if isinstance(value, str | int | float | bool) and not _IRRELEVANT.search(key)
    }
