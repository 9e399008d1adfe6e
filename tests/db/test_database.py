"""``Database``: a program's own tables on the engine that serves CrewAI."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import crewai_native_db
from crewai_native_db import Database, DatabaseError

VALUES = (
    st.none()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8", exclude_characters="\x00"))
    | st.binary()
)
CHILD = """
import sys
from crewai_native_db import Database

database = Database(sys.argv[1])
sys.stdin.readline()
for number in range(100):
    database.execute("INSERT INTO items VALUES (?)", [number])
    print(number, flush=True)
"""


@pytest.fixture
def database(tmp_path):
    with Database(tmp_path / "own" / "data.db", pool_size=2) as opened:
        opened.execute("CREATE TABLE items (value)")
        yield opened


def values(database):
    return [row["value"] for row in database.query("SELECT value FROM items ORDER BY rowid")]


class TestStatements:
    @settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(rows=st.lists(VALUES, max_size=5))
    def test_values_come_back_as_from_sqlite_itself(self, database, rows):
        database.execute("DELETE FROM items")
        assert database.executemany("INSERT INTO items VALUES (?)", ([row] for row in rows)) == len(
            rows
        )
        stock = sqlite3.connect(":memory:")
        stock.execute("CREATE TABLE items (value)")
        stock.executemany("INSERT INTO items VALUES (?)", [(row,) for row in rows])
        expected = [value for (value,) in stock.execute("SELECT value FROM items ORDER BY rowid")]
        stock.close()
        assert values(database) == expected

    def test_what_has_no_form_in_sqlite_is_refused(self, database):
        with pytest.raises(TypeError, match="list has no form in SQLite"):
            database.execute("INSERT INTO items VALUES (?)", [[]])
        with pytest.raises(OverflowError, match="2\\*\\*63"):
            database.execute("INSERT INTO items VALUES (?)", [2**63])
        with pytest.raises(ValueError, match="1 parameters and got 2"):
            database.execute("INSERT INTO items VALUES (?)", [1, 2])
        with pytest.raises(ValueError, match="pool_size"):
            Database("x.db", pool_size=0)
        with pytest.raises(ValueError, match="synchronous"):
            Database("x.db", synchronous="off")

    @pytest.mark.parametrize("sql", ["COMMIT", "/**/ rollback", "ATTACH 'x' AS y", "VACUUM"])
    def test_statements_cannot_reach_into_those_of_other_threads(self, database, sql):
        with pytest.raises(ValueError, match="threads share"):
            database.execute(sql)
        with pytest.raises(ValueError, match="threads share"):
            database.query(sql)

    @pytest.mark.parametrize("named", [{"a": 1}, {1}])
    def test_values_by_name_or_in_no_order_are_refused(self, database, named):
        with database.transaction() as work:
            for within in (database, work):
                with pytest.raises(TypeError, match=f"by position.*got a {type(named).__name__}"):
                    within.query("SELECT :a", named)
            with pytest.raises(TypeError, match="by position"):
                work.execute("INSERT INTO items VALUES (:a)", named)
        with pytest.raises(TypeError, match="by position"):
            database.executemany("INSERT INTO items VALUES (:a)", [named])
        assert values(database) == []

    def test_no_statement_takes_back_what_others_write_with_it(self, database):
        database.execute("CREATE UNIQUE INDEX unique_items ON items (value)")
        database.execute("INSERT INTO items VALUES (-1)")

        def collide(stop):
            while not stop.is_set():
                with pytest.raises(ValueError, match="ROLLBACK at a conflict"):
                    database.execute("INSERT OR ROLLBACK INTO items VALUES (-1)")

        stop = threading.Event()
        others = [threading.Thread(target=collide, args=(stop,)) for _ in range(2)]
        for other in others:
            other.start()
        try:
            for number in range(100):
                database.execute("INSERT INTO items VALUES (?)", [number])
        finally:
            stop.set()
            for other in others:
                other.join()
        assert values(database) == [-1, *range(100)]

    def test_a_query_changes_nothing(self, database):
        with pytest.raises(ValueError, match=r"use execute\(\)"):
            database.query("INSERT INTO items VALUES (1) RETURNING value")
        with pytest.raises(ValueError, match="one statement at a time"):
            database.execute("DELETE FROM items; DELETE FROM items")
        assert values(database) == []

    def test_an_error_of_sqlite_names_the_file(self, database):
        with pytest.raises(DatabaseError, match=r"data\.db.*no such table: absent"):
            database.query("SELECT * FROM absent")

    def test_rows_that_a_statement_returns_are_all_changed(self, database):
        database.executemany("INSERT INTO items VALUES (?)", [[1], [2], [3]])
        assert database.execute("UPDATE items SET value = value + 1 RETURNING value") == 3
        assert values(database) == [2, 3, 4]


class TestTransactions:
    def test_all_or_nothing(self, database):
        with database.transaction() as work:
            work.execute("INSERT INTO items VALUES (1)")
            assert work.executemany("INSERT INTO items VALUES (?)", [[2], [3]]) == 2
            assert values(database) == []
        assert values(database) == [1, 2, 3]
        with contextlib.suppress(KeyError), database.transaction() as work:
            work.execute("DELETE FROM items")
            raise KeyError
        assert values(database) == [1, 2, 3]

    def test_it_sees_what_it_has_done(self, database):
        with database.transaction() as work:
            work.execute("INSERT INTO items VALUES (1)")
            (row,) = work.query("SELECT value FROM items")
            work.execute("UPDATE items SET value = ?", [row["value"] + 1])
            assert values(work) == [2]
        assert values(database) == [2]

    def test_a_statement_that_fails_is_taken_back_alone(self, database):
        with database.transaction() as work:
            work.execute("INSERT INTO items VALUES (1)")
            with pytest.raises(ValueError, match="parameters"):
                work.executemany("INSERT INTO items VALUES (?)", [[2], [3, 4]])
            with pytest.raises(DatabaseError, match="absent"):
                work.execute("INSERT INTO absent VALUES (1)")
            assert values(work) == [1]
        assert values(database) == [1]

    def test_it_is_of_its_block_and_its_thread(self, database):
        half = database.transaction()
        with pytest.raises(RuntimeError, match="use it in its block"):
            half.execute("DELETE FROM items")
        refused = []

        def elsewhere():
            with pytest.raises(RuntimeError, match="belongs to the thread"):
                half.query("SELECT 1")
            refused.append(True)

        with half:
            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()
            with pytest.raises(RuntimeError, match="open already"), half:
                pass
            # It would wait for itself.
            with pytest.raises(ValueError, match="transaction open"):
                database.execute("INSERT INTO items VALUES (1)")
            with pytest.raises(ValueError, match="transaction open"):
                Database(database._file.path).transaction().__enter__()
        assert refused == [True]
        database.execute("INSERT INTO items VALUES (1)")
        assert values(database) == [1]

    def test_others_write_when_it_has_ended(self, database):
        written = threading.Event()

        def other():
            database.execute("INSERT INTO items VALUES (2)")
            written.set()

        with database.transaction() as work:
            threads = [threading.Thread(target=other) for _ in range(3)]
            for thread in threads:
                thread.start()
            work.execute("INSERT INTO items VALUES (1)")
            assert not written.is_set()
            assert values(work) == [1]
        for thread in threads:
            thread.join()
        assert values(database) == [1, 2, 2, 2]

    def test_one_that_is_open_too_long_does_not_hold_others_up(self, database):
        with pytest.raises(TimeoutError, match="rolled back"):  # noqa: PT012, SIM117 - the block's own
            with database.transaction(timeout=0.05) as work:
                work.execute("INSERT INTO items VALUES (1)")
                other = threading.Thread(
                    target=database.execute, args=("INSERT INTO items VALUES (2)",)
                )
                other.start()
                other.join()
                assert values(database) == [2]
                work.execute("INSERT INTO items VALUES (3)")
        with database.transaction() as work:
            work.execute("INSERT INTO items VALUES (4)")
        assert values(database) == [2, 4]

    def test_who_waits_too_long_for_one_is_told(self, database):
        told = []

        def other():
            try:
                with database.transaction(timeout=0.05):
                    pass
            except TimeoutError as error:
                told.append(str(error))

        with database.transaction() as work:
            work.execute("INSERT INTO items VALUES (1)")
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
        assert "data.db" in told[0]
        assert values(database) == [1]

    @pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
    def test_a_process_that_was_stopped_in_one_holds_nobody_up_for_good(self, database, tmp_path):
        program = (
            "import sys\n"
            "from crewai_native_db import Database\n"
            "with Database(sys.argv[1]).transaction() as work:\n"
            "    work.execute('INSERT INTO items VALUES (1)')\n"
            "    print('begun', flush=True)\n"
            "    sys.stdin.readline()\n"
        )
        arguments = [sys.executable, "-c", program, tmp_path / "own" / "data.db"]
        with subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as other:
            other.stdout.readline()
            other.send_signal(signal.SIGSTOP)
            with (
                pytest.raises(TimeoutError, match=rf"process {other.pid} has been writing"),
                database.transaction(timeout=0.05),
            ):
                pass
            assert values(database) == []
            other.send_signal(signal.SIGCONT)
            other.communicate("go on\n")
        with database.transaction(timeout=60) as work:
            work.execute("INSERT INTO items VALUES (2)")
        assert values(database) == [1, 2]

    def test_a_fork_in_its_middle(self, database):
        """Another thread's is waited for; the forking thread's own is over, in both processes."""
        begun, go = threading.Event(), threading.Event()

        def other():
            with database.transaction() as work:
                work.execute("INSERT INTO items VALUES (1)")
                begun.set()
                go.wait()
                # While the fork waits.
                assert values(database) == []

        thread = threading.Thread(target=other)
        thread.start()
        begun.wait()
        threading.Timer(0.05, go.set).start()
        child = os.fork()
        if child == 0:
            os._exit(len(values(database)))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
        thread.join()
        with (  # noqa: PT012 - the block's own
            pytest.raises(TimeoutError, match="fork"),
            database.transaction() as work,
        ):
            work.execute("INSERT INTO items VALUES (2)")
            child = os.fork()
            if child == 0:
                database.execute("INSERT INTO items VALUES (3)")
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            work.execute("INSERT INTO items VALUES (4)")
        assert values(database) == [1, 3]

    def test_an_exit_in_its_middle_takes_it_back(self, database, start):
        code = """
import sys
from crewai_native_db import Database
work = Database(sys.argv[1]).transaction().__enter__()
work.execute("INSERT INTO items VALUES (1)")
"""
        assert start(code, database._file.path).wait() == 0
        assert values(database) == []
        database.execute("INSERT INTO items VALUES (2)")

    def test_a_failing_one_takes_nobody_with_it(self, database):
        """Threads share commits; what fails is taken back alone."""
        gate = threading.Barrier(8)
        refused = []

        def work(number):
            gate.wait()
            for turn in range(20):
                try:
                    with database.transaction() as both:
                        both.execute("INSERT INTO items VALUES (?)", [number * 100 + turn])
                        if number % 2:
                            both.execute("INSERT INTO absent VALUES (1)")
                except DatabaseError:
                    refused.append(number)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(refused) == 80
        assert sorted(values(database)) == [n * 100 + t for n in (0, 2, 4, 6) for t in range(20)]
        counts = database.statistics()
        assert counts["failures"] == 80
        assert database.check() == []


class TestMemories:
    def test_the_newest_of_a_task_come_first(self, database):
        database.save_memory("task", {"q": [1]}, "2026-01-01", 5)
        database.save_memory("task", {}, datetime(2026, 1, 2, tzinfo=UTC), 9)
        database.save_memory("task", {"worse": True}, "2026-01-02T00:00:00+00:00", 1.5)
        database.save_memory("other", {}, "2027-01-01", 5)
        assert database.load_memories("task", latest_n=2) == [
            {
                "task_description": "task",
                "metadata": {"worse": True},
                "datetime": "2026-01-02T00:00:00+00:00",
                "score": 1.5,
            },
            {
                "task_description": "task",
                "metadata": {},
                "datetime": "2026-01-02T00:00:00+00:00",
                "score": 9.0,
            },
        ]
        assert database.load_memories("task")[-1]["metadata"] == {"q": [1]}

    def test_words_are_found_and_the_best_match_first(self, database):
        database.save_memory("pay the invoice", {"place": "Berlin"}, "2026", 1)
        database.save_memory("Berlin in Berlin", {}, "2026", 1)
        found = database.search_memories('berlin "')
        assert [memory["task_description"] for memory in found] == [
            "Berlin in Berlin",
            "pay the invoice",
        ]
        assert database.search_memories("nobody") == []
        assert len(database.search_memories("no\0berlin")) == 2
        assert database.search_memories("\0") == []
        assert len(database.search_memories("berlin", limit=1)) == 1

    def test_words_of_any_script_are_found_in_a_task_and_in_its_metadata(self, database):
        database.save_memory("東京に行く", {"place": "Köln"}, "2026", 1)
        database.save_memory("go", {"place": "北京の駅", "half": "\ud800"}, "2026", 1)
        database.save_memory("go", {"place": "北京の駅"}, "2026", 1)

        def found(text):
            return [memory["metadata"]["place"] for memory in database.search_memories(text)]

        assert found("köln") == found("東京") == ["Köln"]
        assert found("北京") == ["北京の駅"]
        assert database.load_memories("go")[1]["metadata"]["half"] == "\ud800"
        assert found(" ".join(map(str, range(10_000))) + "京" * 10_000) == []


class TestSharing:
    def test_coroutines_have_every_method(self, database):
        async def work():
            await database.aexecute("INSERT INTO items VALUES (1)")
            await database.aexecutemany("INSERT INTO items VALUES (?)", [[2]])
            async with database.transaction() as both:
                both.execute("INSERT INTO items VALUES (3)")
                others = [
                    asyncio.create_task(database.aexecute("INSERT INTO items VALUES (4)"))
                    for _ in range(64)
                ]
                await asyncio.sleep(0)
                (count,) = both.query("SELECT count(*) AS n FROM items")
                assert count["n"] == 3
            await asyncio.gather(*others)
            await database.asave_memory("task", {}, "2026", 1)
            found = (
                await database.aquery("SELECT count(*) AS n FROM items"),
                await database.aload_memories("task"),
                await database.asearch_memories("task"),
            )
            await database.aclose()
            return found

        rows, loaded, searched = asyncio.run(work())
        assert rows == [{"n": 67}]
        assert loaded == searched
        assert len(loaded) == 1

    def test_coroutines_have_their_transactions_one_after_another(self, database):
        inside = []

        async def add(number):
            async with database.transaction() as work:
                inside.append(number)
                (row,) = work.query("SELECT count(*) AS n FROM items")
                await asyncio.sleep(0)
                work.execute("INSERT INTO items VALUES (?)", [row["n"]])
                assert inside.pop() == number
                assert inside == []
                if number % 10 == 7:
                    raise KeyError(number)

        async def work():
            return await asyncio.gather(*(add(n) for n in range(40)), return_exceptions=True)

        errors = [error for error in asyncio.run(work()) if error is not None]
        assert sorted(error.args for error in errors) == [(7,), (17,), (27,), (37,)]
        assert all(isinstance(error, KeyError) for error in errors)
        assert values(database) == list(range(36))

    def test_a_coroutine_that_is_cancelled_while_it_waits_leaves_the_turn(self, database):
        async def work():
            entered, waiting = asyncio.Event(), 0

            async def first():
                async with database.transaction() as one:
                    entered.set()
                    one.execute("INSERT INTO items VALUES (1)")
                    await asyncio.sleep(3600)

            async def second():
                nonlocal waiting
                waiting += 1
                async with database.transaction():
                    raise AssertionError("it was cancelled")

            holder = asyncio.create_task(first())
            await entered.wait()
            others = [asyncio.create_task(second()) for _ in range(9)]
            await asyncio.sleep(0)
            assert waiting == 9
            for other in others:
                other.cancel()
            await asyncio.wait(others)
            assert all(other.cancelled() for other in others)
            holder.cancel()
            await asyncio.wait([holder])
            # Long before the time of those who have gone is up.
            async with database.transaction(timeout=30) as work:
                work.execute("INSERT INTO items VALUES (2)")
            await database.aexecute("INSERT INTO items VALUES (3)")

        asyncio.run(asyncio.wait_for(work(), 50))
        assert values(database) == [2, 3]

    def test_a_coroutine_waits_no_longer_than_it_says(self, database):
        async def work():
            async with database.transaction() as one:
                one.execute("INSERT INTO items VALUES (1)")

                async def second():
                    async with database.transaction(timeout=0.05):
                        raise AssertionError("the other one goes on")

                with pytest.raises(TimeoutError, match=r"more than 0\.05 s"):
                    await asyncio.create_task(second())

        asyncio.run(work())
        assert values(database) == [1]

    @pytest.mark.timeout(30)
    def test_a_task_does_not_wait_for_itself(self, database):
        async def nested():
            async with database.transaction():
                raise AssertionError("it would never end")

        async def sync_in_async():
            with database.transaction():
                raise AssertionError("it would never end")

        async def write():
            database.execute("INSERT INTO items VALUES (9)")

        async def work():
            for how, message in [
                (nested, "this task has"),
                (sync_in_async, "this thread has"),
                (write, "this thread has"),
            ]:
                async with database.transaction() as one:
                    one.execute("INSERT INTO items VALUES (1)")
                    with pytest.raises(ValueError, match=message):
                        await how()
            with database.transaction() as one:
                one.execute("INSERT INTO items VALUES (1)")
                with pytest.raises(ValueError, match="this thread has"):
                    await nested()
            # And one after another it may have as many as it likes.
            for _ in range(2):
                async with database.transaction() as one:
                    one.execute("INSERT INTO items VALUES (2)")

        asyncio.run(work())
        with database.transaction(), pytest.raises(ValueError, match="this thread has"):
            asyncio.run(nested())
        assert values(database) == [1, 1, 1, 1, 2, 2]

    def test_processes_write_to_one_file(self, database, start):
        children = [start(CHILD, database._file.path) for _ in range(2)]
        for child in children:
            child.stdin.write("go\n")
        for child in children:
            assert [child.stdout.readline() for _ in range(100)] == [f"{n}\n" for n in range(100)]
            assert child.wait() == 0
        assert sorted(values(database)) == sorted([*range(100), *range(100)])
        assert database.check() == []

    def test_a_forked_child_goes_on(self, database):
        database.execute("INSERT INTO items VALUES (1)")
        child = os.fork()
        if child == 0:
            database.execute("INSERT INTO items VALUES (2)")
            os._exit(len(values(database)))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
        assert values(database) == [1, 2]

    def test_closing_empties_the_log_and_removes_nothing(self, database):
        database.execute("INSERT INTO items VALUES (1)")
        log = Path(f"{database._file.path}-wal")
        before = log.stat()
        assert before.st_size > 0
        database.close()
        # SQLite would remove it, by its name: that of a file, too, that was begun there meanwhile.
        assert (log.stat().st_ino, log.stat().st_size) == (before.st_ino, 0)
        assert values(database) == [1]

    def test_files_of_others_are_refused(self, tmp_path):
        other = tmp_path / "other.db"
        with sqlite3.connect(other) as db:
            db.execute("CREATE TABLE x (y)")
        db.close()
        with pytest.raises(DatabaseError, match="not a database of crewai-native"):
            Database(other).query("SELECT 1")

    def test_a_query_on_a_new_file_creates_it(self, tmp_path):
        database = Database(tmp_path / "new.db")
        assert database.query("SELECT 1 AS one, NULL AS none") == [{"one": 1, "none": None}]
        assert repr(database) == f"Database({str(tmp_path / 'new.db')!r})"
        assert "Database" in crewai_native_db.__all__
