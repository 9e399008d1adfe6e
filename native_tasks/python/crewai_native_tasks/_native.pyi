# The compiled core.

from typing import Any

__build_info__: dict[str, Any]
