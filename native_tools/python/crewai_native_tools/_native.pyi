# The compiled core.

from collections.abc import Callable, Sequence
from typing import Any, Self, final

__build_info__: dict[str, Any]

def closest(names: Sequence[str], wanted: str, above: float) -> int | None: ...
def totals() -> dict[str, int]: ...

@final
class ResultCache:
    def __new__(
        cls,
        policy: Callable[[str], tuple[float | None, int | None]],
        *,
        max_bytes: int | None = None,
        models: type | None = None,
        clock: Callable[[], float] | None = None,
    ) -> Self: ...
    def add(self, tool: str, input: str, output: Any) -> None: ...  # noqa: A002
    def read(self, tool: str, input: str) -> Any: ...  # noqa: A002
    def clear(self) -> None: ...
    def stats(self) -> dict[str, int]: ...
    def __len__(self) -> int: ...
