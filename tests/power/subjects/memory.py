"""Memories: saved, deleted, sealed into files, copied."""

import functools
import math
import random

from subject import main

from crewai_native_memory import _native

DIMENSION = 8
QUERY = 4
# So many that they are sealed twice.
BATCHES = (1, 1, 30, 2500, 1, 5, 2600, 1, 1)


@functools.cache
def vector(n):
    rng = random.Random(n)
    return [rng.gauss(0, 1) for _ in range(DIMENSION)]


def steps():
    """What is done, and what is there after it."""
    there, n = frozenset(), 0
    for size in BATCHES:
        new = range(n, n + size)
        n += size
        there |= set(new)
        yield "save", list(new), there
        gone = [number for number in new if number % 7 == 3]
        if gone:
            there -= set(gone)
            yield "delete", gone, there
        if size > 2000:
            yield "optimize", [], there
        if size == 5:
            yield "backup", [], there


def open_at(place, setting, name="memory.db"):
    return _native.Store(place / "deep" / name, "cosine", synchronous=setting == "full")


def save(store, numbers):
    batch = _native.Batch()
    for n in numbers:
        batch.add(
            f"r{n}", f"text {n}", f"/s/{n % 3}", ["c"], "{}", 0.5, n, n, None, False, vector(n)
        )
    store.save(batch)


def run(place, setting, mark):
    store = open_at(place, setting)
    for number, (what, numbers, _) in enumerate(steps()):
        if what == "save":
            save(store, numbers)
        elif what == "delete":
            store.delete(record_ids=[f"r{n}" for n in numbers])
        elif what == "backup":
            assert _native.backup(store, place / "copy.db")
        else:
            store.search(vector(0), limit=3, min_score=-1.0)
            store.optimize()
        mark(number)
    store.close()


def contents(store):
    found = store.list("/", 100_000, 0)
    return {int(found.take(at)[0][1:]) for at in range(len(found))}


def check(place, setting, done):
    store = open_at(place, setting)
    assert _native.check(store) == []
    there = contents(store)
    known = [frozenset(), *(state for _, _, state in steps())]
    assert there in known, f"{len(there)} records are nothing that was there at any time"
    acknowledged = max((number for (number,) in done), default=-1) + 1
    if setting == "full":
        assert there in known[acknowledged:], f"{len(there)} records after {acknowledged} steps"
    best = store.search(vector(QUERY), limit=10, min_score=-1.0)
    names = [int(best.take(at)[0][1:]) for at in range(len(best))]
    assert names == [n for n in by_likeness() if n in there][:10]
    if any(what == "backup" for what, _, _ in list(steps())[:acknowledged]):
        copy = _native.Store(place / "copy.db", "cosine")
        assert _native.check(copy) == []
        assert contents(copy) == next(there for what, _, there in steps() if what == "backup")
    save(store, [10**6])
    best = store.search(vector(10**6), limit=1, min_score=-1.0)
    assert best.take(0)[0] == f"r{10**6}"
    store.optimize()
    assert _native.check(store) == []
    store.close()


@functools.cache
def by_likeness():
    """All that there ever is, in the order in which a search finds it."""

    def cosine(n):
        dot = sum(x * y for x, y in zip(vector(n), vector(QUERY), strict=True))
        return dot / math.hypot(*vector(n))

    return sorted(range(sum(BATCHES)), key=cosine, reverse=True)


main(run, check)
