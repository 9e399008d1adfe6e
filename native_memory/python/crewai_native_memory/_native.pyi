"""The compiled core. Times are microseconds since 1970 UTC; nested values are JSON text."""

from collections.abc import Buffer, Sequence
from os import PathLike
from typing import Any, Literal, final

__build_info__: dict[str, Any]

class StoreError(Exception): ...
class DamagedStoreError(StoreError): ...
class NewerFormatError(StoreError): ...

class DimensionError(ValueError):
    args: tuple[int, int]

@final
class Vector:
    def __len__(self) -> int: ...
    def tolist(self) -> list[float]: ...

@final
class Batch:
    def __init__(self) -> None: ...
    def __len__(self) -> int: ...
    def add(
        self,
        id: str,
        content: str,
        scope: str,
        categories: list[str],
        metadata: str,
        importance: float,
        created_at: int,
        last_accessed: int,
        source: str | None,
        private: bool,
        embedding: Sequence[float] | Buffer | None,
    ) -> None: ...

@final
class Rows:
    def __len__(self) -> int: ...
    def take(
        self, at: int
    ) -> tuple[
        str, str, str, str, str, float, int, int, str | None, bool, Vector | None, float
    ]: ...

@final
class Store:
    def __init__(
        self, path: str | PathLike[str], metric: Literal["l2", "cosine", "dot"]
    ) -> None: ...
    @property
    def path(self) -> str: ...
    def close(self) -> None: ...
    def save(self, batch: Batch) -> None: ...
    def search(
        self,
        embedding: Sequence[float] | Buffer,
        *,
        limit: int,
        min_score: float,
        scope: str | None = None,
        categories: list[str] | None = None,
        metadata: str | None = None,
        created_from: int | None = None,
        created_before: int | None = None,
        sources: list[str] | None = None,
        include_private: bool = True,
        viewer: str | None = None,
    ) -> Rows: ...
    def delete(
        self,
        *,
        scope: str | None = None,
        categories: list[str] | None = None,
        record_ids: list[str] | None = None,
        created_before: int | None = None,
        metadata: str | None = None,
    ) -> int: ...
    def touch(self, record_ids: list[str], at: int) -> None: ...
    def get(self, record_id: str) -> Rows: ...
    def list(self, scope: str, limit: int, offset: int) -> Rows: ...
    def scope_info(
        self, scope: str
    ) -> tuple[str, int, list[str], int | None, int | None, list[str]]: ...
    def children(self, scope: str) -> list[str]: ...
    def categories(self, scope: str) -> list[tuple[str, int]]: ...
    def count(self, scope: str) -> int: ...
    def reset(self, scope: str | None = None) -> None: ...
    def optimize(self) -> None: ...

def before_fork() -> None: ...
def after_fork_in_parent() -> None: ...
