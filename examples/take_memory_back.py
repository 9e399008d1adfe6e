"""Write the records of crewai-native's memory into a new store of CrewAI's own kind.

    python examples/take_memory_back.py NEW_FOLDER [STORAGE]

STORAGE is CrewAI's storage directory; by default the one that CrewAI uses here. Records keep their
ids, times and embeddings, so nothing is embedded again. The native store is only read; let no crew
write meanwhile. NEW_FOLDER must not exist: CrewAI's store would keep old and new rows of one id side
by side.
"""

import sys
from pathlib import Path

from crewai.memory.storage.lancedb_storage import LanceDBStorage

from crewai_native_memory import NativeStorage

PAGE = 1000


def main(new_folder: str, storage: str | None = None) -> None:
    """Copy every record."""
    if Path(new_folder).exists():
        sys.exit(f"{new_folder} exists already")
    native = NativeStorage(storage)
    stock = LanceDBStorage(path=new_folder)
    copied = 0
    while records := native.list_records(limit=PAGE, offset=copied):
        stock.save(records)
        copied += len(records)
    native.close()
    print(f"{copied} records written to {new_folder}")


if __name__ == "__main__":
    if len(sys.argv) not in {2, 3}:
        sys.exit(__doc__)
    main(*sys.argv[1:])
