"""A deterministic embedder that needs no model: similar texts get similar vectors.

The hashing trick (Weinberger et al., 2009, "Feature Hashing for Large Scale Multitask Learning"):
each word and each trigram of a word's letters is hashed to a position and a sign, and counted
there. Texts that share words point the same way; shared trigrams bring inflected forms together.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_WORD: Final = re.compile(r"\w+")
_WORD_WEIGHT: Final = 1.0
_TRIGRAM_WEIGHT: Final = 0.3


class HashEmbedder:
    """Embeds texts by hashing their words and trigrams; the same in every process and release.

    Give it to CrewAI as ``Memory(embedder=HashEmbedder())``, or :meth:`config` where CrewAI wants
    an embedder's configuration.

    Args:
        dimension: Length of the vectors.
    """

    def __init__(self, dimension: int = 256) -> None:
        if dimension < 1:
            raise ValueError(f"dimension is {dimension}; it accepts 1 and more")
        self.dimension = dimension

    def __call__(self, input: Iterable[str]) -> list[list[float]]:  # noqa: A002 - CrewAI's name
        """Return one vector of length 1 for each text."""
        return [self.embed(text) for text in input]

    def __repr__(self) -> str:
        return f"HashEmbedder({self.dimension})"

    def embed(self, text: str) -> list[float]:
        """Return the vector of one text, ``dimension`` floats with a Euclidean norm of 1."""
        vector = [0.0] * self.dimension
        for feature, weight in _features(text):
            digest = _hash(feature)
            vector[(digest >> 1) % self.dimension] += weight if digest & 1 else -weight
        norm = math.hypot(*vector)
        if norm == 0.0:  # nothing but punctuation, or features that cancel each other out
            vector[_hash(text) % self.dimension] = norm = 1.0
        return [value / norm for value in vector]

    def config(self) -> dict[str, Any]:
        """Return this embedder as CrewAI's configuration of a custom one. Imports CrewAI."""
        from crewai_native.testing.embedding_function import HashEmbeddingFunction

        return {
            "provider": "custom",
            "config": {"embedding_callable": HashEmbeddingFunction, "dimension": self.dimension},
        }


def _features(text: str) -> Iterator[tuple[str, float]]:
    for word in _WORD.findall(text.lower()):
        yield word, _WORD_WEIGHT
        padded = f"<{word}>"
        for start in range(len(padded) - 2):
            yield padded[start : start + 3], _TRIGRAM_WEIGHT


@functools.lru_cache(maxsize=65536)
def _hash(feature: str) -> int:
    # Not hash(): that differs from process to process.
    return int.from_bytes(hashlib.blake2b(feature.encode(), digest_size=8).digest())
