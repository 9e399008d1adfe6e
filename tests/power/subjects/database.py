"""A program's own tables: rows, transactions, memories of tasks."""

from subject import main, noise, together

from crewai_native_db import Database

TABLES = ("a", "b")
ROWS = 16


def open_at(place, setting):
    return Database(place / "data.db", synchronous=setting)


def run(place, setting, mark):
    with open_at(place, setting) as db:
        for table in TABLES:
            db.execute(f"CREATE TABLE {table} (n INTEGER PRIMARY KEY, text TEXT)")
            db.execute(f"CREATE TABLE {table}_twice (n INTEGER PRIMARY KEY, text TEXT)")
        mark("tables", 0)

        def rows(table):
            for n in range(ROWS):
                text = noise((table, n), 200_000 if n == 9 else 500 * n)
                with db.transaction() as work:
                    work.execute(f"INSERT INTO {table} VALUES (?, ?)", [n, text])
                    work.execute(f"INSERT INTO {table}_twice VALUES (?, ?)", [n, text])
                mark(table, n)

        def memories():
            for n in range(ROWS):
                db.save_memory("task", {"n": n}, f"{n:04}", n)
                mark("memory", n)

        together(*(lambda table=table: rows(table) for table in TABLES), memories)


def check(place, setting, done):
    db = open_at(place, setting)
    assert db.check() == []
    if not (place / "data.db").exists():
        assert setting != "full" or not done
        return

    def ends(name):
        return max((n for what, n in done if what == name), default=-1) + 1

    found = {
        table: db.query(f"SELECT n, text FROM {table} ORDER BY n")
        for table in ("a", "b", "a_twice", "b_twice")
        if db.query("SELECT 1 FROM sqlite_master WHERE name = ?", [table])
    }
    if setting == "full" and done:
        assert len(found) == 4
    for table in TABLES:
        rows = found.get(table, [])
        assert rows == found.get(f"{table}_twice", [])
        assert [row["n"] for row in rows] == list(range(len(rows)))
        for row in rows:
            n = row["n"]
            assert row["text"] == noise((table, n), 200_000 if n == 9 else 500 * n)
        if setting == "full":
            assert len(rows) >= ends(table), f"{len(rows)} of {table}, and there were {ends(table)}"
    memories = db.load_memories("task", 100)
    assert sorted(memory["metadata"]["n"] for memory in memories) == list(range(len(memories)))
    if setting == "full":
        assert len(memories) >= ends("memory")
    db.save_memory("task", {"n": len(memories)}, "9", 1.0)
    assert len(db.load_memories("task", 100)) == len(memories) + 1
    db.close()


main(run, check)
