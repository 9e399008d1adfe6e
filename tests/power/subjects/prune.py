"""Checkpoints of which CrewAI removes the oldest outlines, and the writer their data."""

import warnings

from subject import main, noise

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from crewai_native_db import _native
    from crewai_native_db.checkpoints import places
    from crewai_native_db.checkpoints.writer import CheckpointWriter

CHECKPOINTS = 12
KEPT = 2


def text(n):
    return noise(n, 3000).encode()


def run(place, setting, mark):
    there = places.Files(place / "run")
    store, writer = _native.CheckpointStore(there.store), CheckpointWriter()
    for n in range(CHECKPOINTS):
        draft, path = there.file(f"{n:03}", None, "main")
        store.add(None, 0, b"", [([text(n)], [], [(f"{n:03}", "", n)])], [(draft, path, "{}")])
        mark(n)

        def stock(path=path):
            old = sorted(path.parent.glob("*.json"))[:-KEPT]
            for file in old:
                file.unlink()
            return len(old)

        writer.prune(str(place / "run"), KEPT, "main", stock)
    store.close()


def check(place, setting, done):
    there = places.Files(place / "run")
    store = _native.CheckpointStore(there.store)
    assert store.check() == []
    found = [int(checkpoint_id) for checkpoint_id, _, _, _ in there.texts()]
    for n in found:
        assert store.load(f"{n:03}") == ([text(n)], {}, ""), f"the outline of {n} has no data"
    newest = [n for (n,) in done][-KEPT:]
    assert set(newest[1:]) <= set(found)
    store.close()


main(run, check)
