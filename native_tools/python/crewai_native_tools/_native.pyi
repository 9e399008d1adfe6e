# The compiled core.

from collections.abc import Sequence
from typing import Any

__build_info__: dict[str, Any]

def closest(names: Sequence[str], wanted: str, above: float) -> int | None: ...
