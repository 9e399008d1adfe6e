"""Checkpoints: a store, and beside it the outlines, which are files or rows of CrewAI's SQLite file."""

import json
import uuid

from subject import main, noise, together

from crewai_native_db import _native
from crewai_native_db.checkpoints import places

RUNS = ("a", "b")
CHECKPOINTS = 24
ROWS = 8


def text(run, number):
    return noise((run, number), 40_000 if number == 12 else 2000).encode()


def outline(run, number):
    return json.dumps({"run": run, "number": number, "text": noise(number, 9000)})


def opened(place):
    return _native.CheckpointStore(place / "run" / ".native" / "checkpoints.db")


def run(place, setting, mark):
    store = opened(place)

    def record(name):
        branch = place / "run" / f"branch-{name}"
        position, number = None, 0
        while number < CHECKPOINTS:
            # One after the other, and several that have waited for one another.
            batch = range(number, min(number + 1 + number % 4, CHECKPOINTS))
            moments = [
                ([text(name, n)], [(1, 1, str(n).encode() * 50)], [(f"{name}-{n}", str(n), n)])
                for n in batch
            ]
            files = [
                (branch / f".{name}-{n}.new", branch / f"{n:03}.json", outline(name, n))
                for n in batch
            ]
            tail = b"".join(text(name, n) for n in range(number))[-(1 << 16) :]
            position, failures = store.add(position, number, tail, moments, files)
            assert failures == [None] * len(batch)
            for n in batch:
                mark(name, n)
            number = batch.stop
            if number % 5 == 0:
                store.forget([f"{name}-{number - 3}"])

    def rows():
        table = places.Table(place / "run.db")
        data = _native.CheckpointStore(table.store)
        for n in range(ROWS):
            data.add(None, 0, b"", [([text("row", n)], [], [(f"row-{n}", "", n)])], [])
            table.publish(f"row-{n}", None, "main", outline("row", n))
            mark("row", n)
        data.close()

    together(*(lambda name=name: record(name) for name in RUNS), rows)
    store.close()


def check(place, setting, done):
    store = opened(place)
    assert store.check() == []
    for name in RUNS:
        branch = place / "run" / f"branch-{name}"
        files = sorted(branch.glob("*.json")) if branch.exists() else []
        there = [int(path.stem) for path in files]
        for path, n in zip(files, there, strict=True):
            assert path.read_text() == outline(name, n)
            found = store.load(f"{name}-{n}")
            if found is None:
                assert (n + 3) % 5 == 0, f"outline {path} has no data"
                continue
            segments, parts, note = found
            assert segments == [text(name, before) for before in range(n + 1)]
            assert parts == {1: str(n).encode() * 50}
            assert note == str(n)
        times = [path.stat().st_mtime_ns for path in files]
        assert times == sorted(times)
        acknowledged = {n for run, n in done if run == name}
        assert acknowledged <= set(there), f"{acknowledged - set(there)} of {name} are lost"
    table = places.Table(place / "run.db")
    data = _native.CheckpointStore(table.store)
    assert data.check() == []
    there = [checkpoint_id for checkpoint_id, _, _, _ in table.texts()]
    assert there == [f"row-{n}" for n in range(len(there))]
    assert len(there) >= sum(run == "row" for run, _ in done)
    for n, checkpoint_id in enumerate(there):
        assert data.load(checkpoint_id) == ([text("row", n)], {}, "")
    table.publish("row-next", None, "main", outline("row", 0))
    data.close()
    draft = place / "run" / "next" / f".{uuid.uuid4()}.new"
    added = store.add(
        None, 0, b"", [([b"x"], [], [("next", "", 1)])], [(draft, draft.with_name("n.json"), "{}")]
    )
    assert added is not None
    assert added[1] == [None]
    assert store.load("next") == ([b"x"], {}, "")
    store.close()


main(run, check)
