# The compiled core.

from collections.abc import Container
from typing import Any

__build_info__: dict[str, Any]

def to_serializable(
    obj: Any,
    exclude: Container[Any] | None = None,
    max_depth: int = 5,
    _current_depth: int = 0,
    _ancestors: set[int] | None = None,
) -> Any: ...
