"""The journal of a batch."""

from subject import main, noise

from crewai_native_tasks.journal import Journal

ITEMS = 20


def output(n):
    return {"n": n, "text": noise(n, 700 * n)}


def run(place, setting, mark):
    for first in range(0, ITEMS, 5):
        journal = Journal(place / "new" / "batch.journal", "key")
        for n in range(first, first + 5):
            journal.write(n, Journal.key_of({"item": n}), output(n), None)
            mark(n)
        journal.close()


def check(place, setting, done):
    journal = Journal(place / "new" / "batch.journal", "key")
    there = [n for n in range(ITEMS) if journal.find(n, Journal.key_of({"item": n}))]
    assert there == list(range(len(there)))
    for n in there:
        assert journal.find(n, Journal.key_of({"item": n})).output == output(n)
    assert len(there) >= len(done), f"{len(there)} of {len(done)} items"
    journal.write(100, Journal.key_of({"item": 100}), output(5), None)
    journal.close()
    journal = Journal(place / "new" / "batch.journal", "key")
    assert len(journal) == len(there) + 1
    journal.close()


main(run, check)
