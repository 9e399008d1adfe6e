"""The log of tasks' outputs."""

import json

from subject import main, noise

from crewai_native_db import _native

TASKS = 30


def row(n):
    output = json.dumps({"n": n, "text": noise(n, 3000 * n)})
    return (f"task-{n}", "key", "text", output, n % 5, "{}", False, n)


def run(place, setting, mark):
    log = _native.ReplayStore(place / "replay.db", setting == "full")
    run = None
    for n in range(TASKS):
        run = log.add(None if n % 5 == 0 else run, "/place", 3, [row(n)])
        mark(n)
        if n % 5 == 4:
            log.update(run, 2, expected_output=f"changed {n}")
            mark(n + 0.5)
    log.close()


def check(place, setting, done):
    log = _native.ReplayStore(place / "replay.db", setting == "full")
    assert log.check() == []
    run = log.newest("/place")
    rows = [] if run is None else log.load(run)
    newest = max((found[7] for found in rows), default=-1)
    for found in rows:
        n = found[7]
        assert found[3] == row(n)[3]
        assert found[2] in ("text", f"changed {n + 2}")
    assert [found[7] for found in rows] == list(range(max(newest, 0) // 5 * 5, newest + 1))
    if setting == "full":
        acknowledged = max((n for (n,) in done), default=-1)
        assert newest >= int(acknowledged)
        if acknowledged == newest + 0.5:
            assert rows[2][2] == f"changed {newest}"
    assert log.load(log.add(None, "/place", 3, [row(100)])) == [row(100)]
    log.close()


main(run, check)
