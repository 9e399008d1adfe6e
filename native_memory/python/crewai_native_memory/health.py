"""What ``crewai-native doctor`` looks at in a memory store."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

from crewai_native.health import Check, Health
from crewai_native_memory import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crewai_native_memory.storage import NativeStorage

_ROOM: Final = 100_000_000
_LARGE_LOG: Final = 1_000_000_000


def checks(storage: NativeStorage) -> list[Check]:
    """Look at a store without changing it."""
    try:
        sizes = storage.stats()
        imported = storage.note("import")
    except (StoreError, OSError) as error:
        return [Check("memory store", Health.ERROR, str(error))]
    finally:
        storage.close()
    return [
        Check("memory store", Health.OK, f"{sizes.records} records in {storage.path}"),
        *_import(imported),
        *_log(sizes.log),
        *_place(Path(storage.path)),
    ]


def _import(note: str | None) -> Iterator[Check]:
    if note is None:
        return
    told = json.loads(note)
    if told["state"] == "running":
        yield Check(
            "memory import",
            Health.WARNING,
            f"bringing the records of {told['source']} over was begun and is not done: the next "
            "use of the memory goes on with it, and says what is in the way",
        )
    elif told.get("left"):
        yield Check(
            "memory import",
            Health.OK,
            f"{told['left']} records cannot be read and stayed behind in {told['source']}",
        )


def _log(size: int) -> Iterator[Check]:
    if size > _LARGE_LOG:
        yield Check(
            "memory log",
            Health.WARNING,
            f"the write-ahead log has {size / 1e9:.1f} GB: some process has been reading one "
            "result for very long; `crewai-native memory compact` empties it",
        )


def _place(path: Path) -> Iterator[Check]:
    directory = next(parent for parent in path.parents if parent.exists())
    if not os.access(directory, os.W_OK):
        yield Check(
            "memory directory",
            Health.WARNING,
            f"{directory} is read-only: memories can be recalled and not saved; "
            "set CREWAI_STORAGE_DIR or memory.path",
        )
    elif (free := shutil.disk_usage(directory).free) < _ROOM:
        yield Check(
            "memory directory", Health.WARNING, f"{free / 1e6:.0f} MB are free in {directory}"
        )
