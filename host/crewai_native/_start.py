"""Activates the host when a program has imported CrewAI, in as little time as that takes."""

from __future__ import annotations

import contextlib
import gc
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# Python 3.12 freezes by itself what is never freed, 375 objects; a program that does has thousands.
_IMMORTAL = 1000


def activate() -> None:
    """Import the host and activate it; called by the import hook."""
    with no_collection():
        from crewai_native._host import HOST

        HOST.activate_on_import()


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Keep the garbage collector from going over all that importing CrewAI has made, for nothing.

    That takes 0.2 s and more, which is longer than activating. What activating makes lives as long
    as the program, as a rule, so it is handed to the oldest generation: to freeze and to unfreeze
    moves lists of objects as they are, where the next collection would go over each of them.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            if gc.get_freeze_count() <= _IMMORTAL:  # what the program has frozen must stay so
                gc.freeze()
                gc.unfreeze()
            gc.enable()
