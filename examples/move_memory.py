"""Copy the records of a memory between CrewAI's default store and crewai-native's.

    python examples/move_memory.py to-native [FOLDER]
    python examples/move_memory.py to-stock [FOLDER]

FOLDER is CrewAI's storage directory; by default the one that CrewAI uses here. Records keep their
ids, times and embeddings, so nothing is embedded again. Those that are there already are
replaced, so the program may be run twice. The store that is read is not changed. Let no crew write
meanwhile.
"""

import sys
from pathlib import Path

from crewai.memory.storage.backend import StorageBackend
from crewai.memory.storage.lancedb_storage import LanceDBStorage
from crewai_core.paths import db_storage_path

from crewai_native_memory import NativeStorage

PAGE = 1000


def copy(source: StorageBackend, target: StorageBackend) -> int:
    """Copy every record; return how many there were."""
    copied = 0
    while records := source.list_records(limit=PAGE, offset=copied):
        for record in records:
            # CrewAI's store keeps zeros for a record that was never embedded.
            if record.embedding is not None and not any(record.embedding):
                record.embedding = None
        # CrewAI's store would keep both of two records with one id.
        target.delete(record_ids=[record.id for record in records])
        target.save(records)
        copied += len(records)
    return copied


def main(direction: str, folder: str | None = None) -> None:
    """Copy in one direction."""
    stock = LanceDBStorage(path=Path(folder or db_storage_path()) / "memory")
    native = NativeStorage(folder)
    source, target = (stock, native) if direction == "to-native" else (native, stock)
    print(f"{copy(source, target)} records copied {direction}")
    native.close()


if __name__ == "__main__":
    if len(sys.argv) not in {2, 3} or sys.argv[1] not in {"to-native", "to-stock"}:
        sys.exit(__doc__)
    main(*sys.argv[1:])
