"""Imports that a fork has cut off.

Accelerators import much of what they consist of at first use, on whichever thread that is. A fork in
the middle of it leaves the child the import's lock, held by a thread that the child does not have, and
a module of which a part was executed. CPython clears neither: the child's own import of that module
never returns.
"""

from __future__ import annotations

import importlib
import sys
import threading


def forget_cut_off_imports() -> None:
    """In a child, let go of what threads of the parent were importing, to be imported anew.

    What this thread itself is importing goes on.
    """
    # Nothing public tells of these locks. There is an entry for each import that is under way.
    locks = getattr(importlib._bootstrap, "_module_locks", {})  # noqa: SLF001
    for name, reference in list(locks.items()):
        lock = reference()
        if lock is not None and lock.owner == threading.get_ident():
            continue
        del locks[name]
        spec = getattr(sys.modules.get(name), "__spec__", None)
        if getattr(spec, "_initializing", False):
            del sys.modules[name]
