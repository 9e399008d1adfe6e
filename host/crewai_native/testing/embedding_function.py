"""The class that CrewAI builds from the configuration of a custom embedder. Imports CrewAI."""

from __future__ import annotations

from typing import Any

from chromadb.api.types import Documents, EmbeddingFunction
from crewai.rag.embeddings.providers.custom.embedding_callable import CustomEmbeddingFunction

from crewai_native.testing.embedder import HashEmbedder


class HashEmbeddingFunction(CustomEmbeddingFunction, EmbeddingFunction[Documents]):
    """:class:`HashEmbedder` in the form that CrewAI and Chroma want.

    CrewAI checks for both base classes, in different places.
    """

    def __init__(self, dimension: int = 256, **_: Any) -> None:
        self._embedder = HashEmbedder(dimension)

    def __call__(self, input: Any) -> Any:  # noqa: A002 - CrewAI's name
        """Return one vector for each text; CrewAI turns them into arrays."""
        return self._embedder([input] if isinstance(input, str) else input)

    @staticmethod
    def name() -> str:
        """Return the name that Chroma keeps with a collection."""
        return "crewai-native-hash"

    def get_config(self) -> dict[str, Any]:
        """Return what Chroma keeps to build the function again."""
        return {"dimension": self._embedder.dimension}

    @classmethod
    def build_from_config(cls, config: dict[str, Any]) -> HashEmbeddingFunction:
        """Build the function from what Chroma kept."""
        return cls(**config)
