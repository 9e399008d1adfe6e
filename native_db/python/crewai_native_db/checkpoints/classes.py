"""What is found out of classes once, for as long as they live.

A program may make classes as it goes, of what tasks are to answer with for one.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def once(function: Callable[..., T]) -> Callable[..., T]:
    """Return a function that is called once for a class and what else is given.

    As with ``functools.cache``, but the class is let go. So must be what is returned of it.
    """
    known: WeakKeyDictionary[type, dict[tuple[Any, ...], T]] = WeakKeyDictionary()

    @functools.wraps(function)
    def look(kind: type, *rest: Any) -> T:
        found = known.get(kind)
        if found is None:
            found = known.setdefault(kind, {})
        if rest not in found:
            found[rest] = function(kind, *rest)
        return found[rest]

    return look
