"""The replay log: what ``crewai replay`` and ``crewai log-tasks-outputs`` see."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import threading
import uuid
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from crewai.memory.storage.kickoff_task_outputs_storage import KickoffTaskOutputsSQLiteStorage
from crewai_cli.task_outputs import load_task_outputs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crewai_native_db import DatabaseError, _native, mirror, replay

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.uuids()
    | st.datetimes()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
OUTPUTS = st.dictionaries(st.text(), VALUES, max_size=4)


@pytest.fixture
def store(tmp_path):
    store = replay.ReplayStore(tmp_path / "native" / "replay.db")
    yield store
    store.close()


@pytest.fixture
def place(tmp_path):
    return str(tmp_path / "latest.db")


def add(log, index, *, task_id=None, raw="out", replayed=False):
    log.add(
        task_id=task_id or f"task{index}",
        task_key=f"key{index}",
        expected_output="words",
        output={"raw": raw, "messages": [{"role": "user", "content": raw}] * 3},
        task_index=index,
        inputs={"topic": "x"},
        was_replayed=replayed,
    )


def raws(log):
    return [row["output"]["raw"] for row in log.load()]


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["add", "add", "update", "clear"]),
            st.integers(0, 3),
            OUTPUTS,
            st.booleans(),
        ),
        min_size=1,
        max_size=8,
    )
)
@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
def test_it_loads_what_stock_loads(tmp_path, steps):
    where = tmp_path / str(uuid.uuid4())
    where.mkdir()
    stock = KickoffTaskOutputsSQLiteStorage(str(where / "stock.db"))
    store = replay.ReplayStore(where / "replay.db", durable=False)
    log = store.open(str(where / "ours.db"))
    log.clear()
    for step, index, output, replayed in steps:
        if step == "add":
            task = SimpleNamespace(id=f"t{index}", key="k", expected_output="e")
            stock.add(task, output, index, replayed, {"i": index})
            log.add(
                task_id=f"t{index}",
                task_key="k",
                expected_output="e",
                output=output,
                task_index=index,
                inputs={"i": index},
                was_replayed=replayed,
            )
        elif step == "update":
            fields = {"output": output, "was_replayed": replayed, "expected_output": "new"}
            stock.update(index, **fields)
            log.update(index, fields)
        else:
            stock.delete_all()
            log.clear()
        ours, theirs = log.load(), stock.load()
        for rows in (ours, theirs):
            for row in rows:
                datetime.strptime(row.pop("timestamp"), "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
        assert json.dumps(ours) == json.dumps(theirs)
    store.flush()
    mirrored = load_task_outputs(str(where / "ours.db"))
    if ours:
        assert [r["task_id"] for r in mirrored] == [r["task_id"] for r in ours]
        assert [r["output"] for r in mirrored] == [r["output"] for r in ours]
    assert store._store.check() == []
    store.close()


def test_concurrent_crews_do_not_erase_one_another(store, place):
    one, two = store.open(place), store.open(place)
    one.clear()
    add(one, 0, raw="one 0")
    two.clear()
    add(two, 0, raw="two 0")
    add(one, 1, raw="one 1")
    assert raws(one) == ["one 0", "one 1"]
    assert raws(two) == ["two 0"]
    # The run that began last is what the commands see, whoever wrote last.
    assert raws(store.open(place)) == ["two 0"]
    store.flush()
    assert [row["output"]["raw"] for row in load_task_outputs(place)] == ["two 0"]
    two.clear()
    assert raws(two) == []
    add(two, 0, raw="again")
    store.flush()
    assert [row["output"]["raw"] for row in load_task_outputs(place)] == ["again"]
    assert raws(one) == ["one 0", "one 1"]


@pytest.mark.xfail(reason="all crews of a project share one table, and each run empties it")
def test_stock_keeps_crews_apart(place):
    one, two = (KickoffTaskOutputsSQLiteStorage(place) for _ in range(2))
    one.delete_all()
    one.add(SimpleNamespace(id="a", key="k", expected_output="e"), {"raw": "one"}, 0)
    two.delete_all()
    assert [row["output"]["raw"] for row in one.load()] == ["one"]


def test_threads_of_one_crew_log_into_one_run(store, place):
    log = store.open(place)
    log.clear()
    gate = threading.Barrier(8)

    def work(number):
        gate.wait()
        add(log, number, raw=str(number))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert raws(log) == [str(number) for number in range(8)]
    assert store._store.totals()["runs"] == 1


def test_the_last_runs_are_kept(tmp_path, place):
    store = replay.ReplayStore(tmp_path / "replay.db", keep=3)
    other = store.open(place + "-other")
    add(other, 0, raw="elsewhere")
    for run in range(7):
        log = store.open(place)
        log.clear()
        add(log, 0, raw=str(run))
        add(log, 1, raw=str(run))
    assert store._store.totals() | {"packed_bytes": 0} == {
        "runs": 4,
        "outputs": 7,
        "packed_bytes": 0,
    }
    assert raws(store.open(place)) == ["6", "6"]
    assert raws(store.open(place + "-other")) == ["elsewhere"]
    assert store._store.prune(1) == 2
    assert store._store.check() == []
    store.close()


def test_runs_that_go_on_longer_than_they_are_kept_leave_nothing(tmp_path, place):
    store = replay.ReplayStore(tmp_path / "replay.db", keep=2)
    for _ in range(3):
        logs = [store.open(place) for _ in range(6)]
        for index in range(3):
            for number, log in enumerate(logs):
                if index == 0:
                    log.clear()
                add(log, index, raw=str(number))
    # The newest one at the place is whole, and so is what the commands see.
    assert raws(store.open(place)) == raws(logs[5]) == ["5"] * 3
    # What a run has logged since it was dropped counts, and goes when the next one begins.
    assert raws(logs[0]) == ["0"] * 2
    log = store.open(place)
    log.clear()
    add(log, 0)
    assert store._store.totals() | {"packed_bytes": 0} == {
        "runs": 2,
        "outputs": 4,
        "packed_bytes": 0,
    }
    store.close()


@pytest.mark.parametrize("mirrored", [True, False])
def test_a_reset_leaves_no_run_of_the_place_and_no_text_of_one(store, place, tmp_path, mirrored):
    text = uuid.uuid4().hex * 50
    other = store.open(place + "-other")
    add(other, 0, raw="elsewhere")
    one, two = store.open(place), store.open(place)
    for log in (one, two):
        log.clear()
        add(log, 0, task_id=text)
    if mirrored:
        store.flush()
    two.delete_all()
    assert raws(one) == raws(two) == raws(store.open(place)) == []
    store.flush()
    assert load_task_outputs(place) == []
    assert raws(other) == ["elsewhere"]
    assert store._store.totals()["outputs"] == 1
    store.close()
    for file in tmp_path.rglob("*"):
        assert file.is_dir() or text.encode() not in file.read_bytes(), file
    add(two, 0, raw="again")
    store.flush()
    assert [row["output"]["raw"] for row in load_task_outputs(place)] == ["again"]


def test_a_reset_where_nothing_was_logged_makes_no_file(store, place):
    store.open(place).delete_all()
    assert not Path(place).exists()
    assert not store._store.path.exists()


def test_a_reset_that_cannot_empty_crewais_file_says_so(store, place):
    Path(place).write_text("Dear diary, " * 100)
    with pytest.raises(DatabaseError, match=r"latest\.db: CrewAI's log"):
        store.open(place).delete_all()


def test_a_new_process_goes_on_with_the_newest_run(store, place):
    log = store.open(place)
    log.clear()
    for index in range(3):
        add(log, index)
    later = store.open(place)
    assert len(later.load()) == 3
    later.update(1, {"output": {"raw": "replayed"}, "was_replayed": True})
    add(later, 2, raw="after")
    assert raws(later) == raws(log) == ["out", "replayed", "after"]
    assert store._store.totals()["runs"] == 1


def test_what_stock_logged_later_is_the_newest_run(store, place):
    log = store.open(place)
    log.clear()
    add(log, 0, raw="ours")
    store.flush()
    stock = KickoffTaskOutputsSQLiteStorage(place)
    stock.delete_all()
    stock.add(SimpleNamespace(id="s", key="k", expected_output="e"), {"raw": "theirs"}, 0)
    later = store.open(place)
    assert raws(later) == ["theirs"]
    later.update(0, {"output": {"raw": "replayed"}})
    store.flush()
    assert [row["output"]["raw"] for row in load_task_outputs(place)] == ["replayed"]
    # And ours, going on meanwhile, is older: it stays out of the way.
    add(log, 1, raw="more")
    store.flush()
    assert [row["output"]["raw"] for row in load_task_outputs(place)] == ["replayed"]
    assert raws(log) == ["ours", "more"]


def test_a_log_from_before_this_wheel_can_be_replayed(store, place):
    stock = KickoffTaskOutputsSQLiteStorage(place)
    stock.add(SimpleNamespace(id="s", key="k", expected_output="e"), {"raw": "old"}, 0)
    assert raws(store.open(place)) == ["old"]


def test_a_crew_that_begins_does_not_see_other_runs(store, place):
    add(store.open(place), 0)
    log = store.open(place)
    log.clear()
    assert log.load() == []


def test_an_index_without_a_task_is_a_warning_and_an_unknown_field_an_error(store, place, caplog):
    log = store.open(place)
    log.clear()
    add(log, 0)
    log.update(7, {"output": {}})
    assert "task 7" in caplog.text
    with pytest.raises(ValueError, match=r"no colour; it has task_id"):
        log.update(0, {"colour": "red"})
    with pytest.raises(TypeError, match="not JSON serializable"):
        log.update(0, {"output": {"a": object()}})
    assert raws(log) == ["out"]


def test_a_task_reads_no_other_tasks_output(store, place):
    log = store.open(place)
    log.clear()
    for index in range(20):
        add(log, index)
    counts = store._store.statistics()
    store.flush()
    assert counts["writes"] >= 20
    before = store._store.statistics()["reads"]
    with store._mirror._state:
        # With the mirror kept from reading, nothing reads.
        add_without_mirror(log, 20)
        assert store._store.statistics()["reads"] == before


def add_without_mirror(log, index):
    row = (f"t{index}", "k", "e", "{}", index, "{}", False, 1)
    log._store.add(log._run, log._place, log._keep, [row])


def test_what_cannot_be_mirrored_is_logged_and_kept(store, tmp_path, caplog):
    place = tmp_path / "latest.db"
    place.write_text("Dear diary, " * 100)
    log = store.open(str(place))
    log.clear()
    add(log, 0)
    store.flush()
    assert "will not show the newest run" in caplog.text
    assert raws(log) == ["out"]
    assert place.read_text().startswith("Dear diary")


def test_where_no_thread_can_be_started_it_is_mirrored_at_once(store, place, monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    log = store.open(place)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    log.clear()
    add(log, 0)
    assert [row["task_id"] for row in load_task_outputs(place)] == ["task0"]
    store.flush()
    monkeypatch.undo()
    add(log, 1)
    store.flush()
    assert [row["task_id"] for row in load_task_outputs(place)] == ["task0", "task1"]


CHILD = """
import sys
from crewai_native_db import replay
store = replay.ReplayStore(sys.argv[1])
log = store.open(sys.argv[2])
log.clear()
for index in range(int(sys.argv[3])):
    log.add(task_id=f"t{index}", task_key="k", expected_output="e", output={"raw": str(index)},
            task_index=index, inputs={}, was_replayed=False)
print("logged", flush=True)
if sys.argv[4] == "wait":
    sys.stdin.readline()
"""


def test_an_exit_right_after_a_run_leaves_the_commands_a_whole_one(tmp_path, place, start):
    child = start(CHILD, tmp_path / "replay.db", place, 9, "exit")
    assert child.wait(timeout=60) == 0
    assert [row["output"]["raw"] for row in load_task_outputs(place)] == list(map(str, range(9)))


def test_kill_9_loses_no_logged_output(tmp_path, place, start):
    child = start(CHILD, tmp_path / "replay.db", place, 9, "wait")
    assert child.stdout.readline() == "logged\n"
    child.kill()
    child.wait()
    store = replay.ReplayStore(tmp_path / "replay.db")
    assert raws(store.open(place)) == list(map(str, range(9)))
    # The next output of anybody brings CrewAI's own file up to date.
    later = store.open(place)
    later.update(0, {"was_replayed": True})
    store.flush()
    assert [row["output"]["raw"] for row in load_task_outputs(place)] == list(map(str, range(9)))
    store.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_logs_its_own_run(store, place):
    log = store.open(place)
    log.clear()
    add(log, 0, raw="parent")
    pid = os.fork()
    if pid == 0:
        try:
            mine = store.open(place)
            mine.clear()
            add(mine, 0, raw="child")
            store.flush()
            os._exit(0)
        except BaseException:  # noqa: BLE001 - the exit status says it
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert raws(log) == ["parent"]
    assert raws(store.open(place)) == ["child"]
    assert [row["output"]["raw"] for row in load_task_outputs(place)] == ["child"]


def test_stocks_file_is_touched_by_pythons_sqlite_alone(store, place):
    log = store.open(place)
    log.clear()
    add(log, 0)
    store.flush()
    with closing(sqlite3.connect(place)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (0,)
        assert db.execute("SELECT count(*) FROM latest_kickoff_task_outputs").fetchone() == (1,)
    assert Path(store._store.path) != Path(place)
    assert mirror.read(place)[0][0] == "task0"
    assert isinstance(store._store, _native.ReplayStore)
