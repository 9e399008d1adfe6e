"""``crewai-native memory``, and CrewAI's own commands on a native store."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
from crewai.memory.storage.lancedb_storage import LanceDBStorage
from crewai.memory.types import MemoryRecord
from typer.testing import CliRunner

from crewai_native import ConfigurationError
from crewai_native_memory import MemoryStorage, NativeStorage, cli, plugin
from crewai_native_memory.reembed import reembed


def backwards(texts):
    return [[3.0, 2.0, 1.0] for _ in texts]


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments, code=0):
        result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
        assert result.exit_code == code, result.output
        return result.output

    return run


@pytest.fixture
def default(crewai_home):
    storage = NativeStorage()
    storage.save(
        [
            MemoryRecord(id="a", content="one", scope="/x/y", categories=["c"], embedding=[1, 0]),
            MemoryRecord(id="b", content="two", scope="/x"),
            MemoryRecord(id="c", content="three", scope="/z"),
        ]
    )
    return storage


def test_stats(run, default):
    found = json.loads(run("stats", "--json"))
    assert found["path"] == default.path
    assert (found["records"], found["vectors"], found["dimension"]) == (3, 1, 2)
    assert found["scopes"] == {"/": 3, "/x": 2, "/z": 1}
    assert found["categories"] == {"c": 1}
    assert found["file"] == Path(default.path).stat().st_size
    text = run("stats")
    assert default.path in text.replace("\n", "")
    assert "/x" in text


def test_stats_of_nothing(run, crewai_home):
    assert json.loads(run("stats", "--json"))["records"] == 0
    assert not crewai_home.joinpath("native").exists()


def test_check_finds_nothing_in_a_sound_store(run, default):
    assert "3 records, all as they should be" in run("check")
    assert json.loads(run("check", "--json"))["problems"] == []
    MemoryStorage(default.path).search("one")
    reembed(default, backwards)
    default.delete(record_ids=["b"])
    assert "2 records, all as they should be" in run("check")


DAMAGES = {
    "UPDATE records SET content = 'forged' WHERE id = 'a'": 'record "a" does not match',
    "UPDATE vectors SET vector = x'00000000'": 'the embedding of record "a"',
    "DELETE FROM vectors": 'the embedding of record "a" is missing',
    "UPDATE scopes SET records = 9 WHERE path = '/x'": "scopes whose number of records",
    "DELETE FROM timeline WHERE record = 1 AND scope > 2": "not listed in their scope",
    "INSERT INTO timeline VALUES (1, 0, 77)": "listed records that do not exist",
    "UPDATE scope_categories SET records = 5": "categories whose number of records",
    "INSERT INTO vectors VALUES (99, 0, x'00000000')": "1 vectors belong to no record",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_check_finds_what_does_not_add_up(run, default, damage):
    default.close()
    with sqlite3.connect(default.path) as connection:
        assert connection.execute(damage).rowcount > 0
    connection.close()
    assert DAMAGES[damage] in run("check", code=1)
    assert json.loads(run("check", "--json", code=1))["problems"]


def test_check_finds_flipped_bytes(run, default):
    default.optimize()
    default.close()
    path = Path(default.path)
    data = bytearray(path.read_bytes())
    place = data.index(b"three")
    data[place] ^= 1
    path.write_bytes(bytes(data))
    assert 'record "c" does not match its checksum' in run("check", code=1)


def test_compact_gives_room_back(run, default):
    default.save([MemoryRecord(id=str(n), content="x" * 5000) for n in range(500)])
    default.delete(record_ids=[str(n) for n in range(500)])
    assert json.loads(run("compact", "--json"))["freed"] > 1_000_000
    assert "0 bytes freed" in run("compact")
    assert default.count() == 3


def test_backup_is_a_store_of_its_own(run, default, tmp_path):
    default.search_text("one")
    copy = tmp_path / "copy.db"
    assert f"{copy}: 3 records" in run("backup", copy)
    default.reset()
    restored = NativeStorage(copy)
    assert {record.id for record in restored.list_records()} == {"a", "b", "c"}
    assert [r.id for r, _ in restored.search_text("two")] == ["b"]
    restored.save([MemoryRecord(id="d", content="four")])
    assert restored.check() == []
    assert "exists already" in run("backup", copy, code=1)
    assert "there is no store" in run("backup", "x.db", "--store", tmp_path / "no.db", code=1)
    assert "there is no store" in run("stats", "--store", tmp_path / "no.db", code=1)


def test_backups_to_one_file_at_once_make_one_whole_copy(default, tmp_path):
    default.save(
        [MemoryRecord(id=f"r{n}", content="x" * 2000, embedding=[1, n]) for n in range(500)]
    )
    together = threading.Barrier(4)

    def back_up(to):
        together.wait(30)
        with contextlib.suppress(ValueError):  # there is one already
            return default.backup(to)
        return False

    for number in range(5):
        to = tmp_path / str(number) / "copy.db"
        to.parent.mkdir()
        with ThreadPoolExecutor(4) as threads:
            assert any(threads.map(back_up, [to] * 4))
        assert list(to.parent.iterdir()) == [to]
        copy = NativeStorage(to)
        assert (copy.count(), copy.check()) == (503, [])


def test_a_backup_of_a_store_that_is_being_written_is_of_one_moment(default, tmp_path):
    code = """
import sys
from crewai_native_memory import NativeStorage
from crewai.memory.types import MemoryRecord
storage = NativeStorage(sys.argv[1])
print("ready", flush=True)
for n in range(10**9):
    storage.save([MemoryRecord(id=f"{n}-{half}", content="x", embedding=[1, n]) for half in "ab"])
"""
    env = os.environ | {"CREWAI_NATIVE": "0"}
    writer = subprocess.Popen(
        [sys.executable, "-c", code, default.path], stdout=subprocess.PIPE, env=env
    )
    try:
        assert writer.stdout.readline() == b"ready\n"
        for number in range(5):
            assert default.backup(tmp_path / f"{number}.db")
    finally:
        writer.kill()
        writer.communicate()
    for number in range(5):
        copy = NativeStorage(tmp_path / f"{number}.db")
        assert copy.check() == []
        ids = {record.id for record in copy.list_records(limit=10**6)} - {"a", "b", "c"}
        assert {id_[:-2] + "-a" for id_ in ids} | {id_[:-2] + "-b" for id_ in ids} == ids


def test_import_and_export_both_ways(run, default, tmp_path):
    lines, lance = tmp_path / "records.jsonl", tmp_path / "lance"
    assert "3 records" in run("export", lines)
    assert "3 records" in run("export", lance)
    assert LanceDBStorage(path=lance).count() == 3
    for source in (lines, lance):
        store = tmp_path / f"{source.name}.db"
        assert "imported 3 of 3 records" in run("import", source, "--store", store)
        assert NativeStorage(store).list_records() == default.list_records()
        again = json.loads(run("import", source, "--store", store, "--json"))
        assert (again["records"], again["imported"]) == (3, 0)
    assert "expected a .jsonl file" in run("import", tmp_path / "nothing", code=1)
    assert "File exists" in run("export", lines, code=1)


def test_a_store_is_no_source_and_how_to_use_it_is_said(run, default, tmp_path):
    copy = tmp_path / "copy.db"
    run("backup", copy)
    told = run("import", copy, code=1)
    assert f"{copy} is an SQLite file, as a native store and its backup are" in told
    assert f"--store {copy}" in told


def test_a_backup_names_the_directory_that_is_missing(run, default, tmp_path, monkeypatch):
    missing = tmp_path / "missing"
    assert f"No such file or directory (os error 2): '{missing}'" in run(
        "backup", missing / "copy.db", code=1
    )
    monkeypatch.chdir(tmp_path)
    assert "copy.db: 3 records" in run("backup", "copy.db")


def test_an_export_is_a_file_of_lines_or_a_directory(run, default, tmp_path):
    told = run("export", tmp_path / "o.json", code=1)
    assert "expected a file that ends in .jsonl, or a directory" in told
    assert not (tmp_path / "o.json").exists()


def test_an_import_from_the_default_place_is_remembered_for_a_reset(run, default):
    default.save([MemoryRecord(id="ours", content="x")])
    LanceDBStorage().save([MemoryRecord(id="theirs", content="y", embedding=[1.0, 0.0])])
    assert "imported 1 of 1 records" in run("import")
    plugin.crewai_native_memory_storage(spec="lancedb").reset()
    assert LanceDBStorage().list_records() == []
    assert "expected a .jsonl file" in run("import", code=1)


def test_what_an_import_leaves_behind_is_told(run, default, tmp_path):
    lance = LanceDBStorage(path=tmp_path / "lance", compact_every=0)
    lance.save([MemoryRecord(id=id_, content=id_) for id_ in ("fine", "half")])
    lance._table.update(where="id = 'half'", values={"created_at": "yesterday"})
    told = run("import", tmp_path / "lance")
    assert "1 cannot be read and stay behind there: 'half' (created_at: Invalid" in told
    report = json.loads(run("import", tmp_path / "lance", "--json"))
    assert list(report["left"]) == ["half"]


def test_reembed(run, default, monkeypatch):
    module = ModuleType("an_embedder")
    module.backwards = backwards
    monkeypatch.setitem(sys.modules, "an_embedder", module)
    assert "3 records embedded, by backwards#" in run("reembed", "an_embedder:backwards")
    assert default.get_record("b").embedding == [3.0, 2.0, 1.0]
    assert "no_such_module" in run("reembed", "no_such_module:embed", code=1)


class OutOfOrderError(Exception):
    pass


def test_an_embedder_that_raises_is_named(run, default, monkeypatch):
    def broken(texts):
        raise OutOfOrderError("api key wrong")

    module = ModuleType("an_embedder")
    module.broken, module.short = broken, lambda texts: []
    monkeypatch.setitem(sys.modules, "an_embedder", module)
    told = run("reembed", "an_embedder:broken", code=1)
    assert "embedder an_embedder:broken: OutOfOrderError: api key wrong; what it has" in told
    assert told.count("\n") == 1
    assert "gave 0 vectors for 3 texts" in run("reembed", "an_embedder:short", code=1)
    assert default.get_record("a").embedding == [1.0, 0.0]


def test_health_and_metrics(default):
    (check,) = plugin.crewai_native_health()
    assert "3 records" in check.detail
    assert plugin.crewai_native_metrics()["memory.records"] == 3
    default.set_note("import", json.dumps({"state": "running", "source": "LanceDB table x"}))
    _, check = plugin.crewai_native_health()
    assert check.health == "warning"
    assert "LanceDB table x over was begun and is not done" in check.detail
    default.set_note("import", json.dumps({"state": "done", "source": "x", "left": 2}))
    assert "2 records cannot be read and stayed" in plugin.crewai_native_health()[1].detail
    Path(default.path).write_bytes(b"nothing")
    default.close()
    (check,) = plugin.crewai_native_health()
    assert check.health == "error"


def test_options_that_mean_nothing_are_named():
    for options, message in (
        ({"hybrid": "maybe"}, "memory.hybrid must be one of true, .*; got 'maybe'"),
        ({"metric": "l3"}, "memory.metric must be one of l2, cosine, dot; got 'l3'"),
        ({"hybird": True}, "memory has no option 'hybird'; it has .*hybrid"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            plugin.crewai_native_configure(options=options)
    plugin.crewai_native_configure(options={"hybrid": "on", "import": False})
    try:
        assert plugin.open_store(None)._hybrid
    finally:
        plugin.crewai_native_configure(options={})
    assert not plugin.open_store(None)._hybrid


# --- whole commands ---------------------------------------------------------------------------


def execute(*command, **environment):
    env = os.environ | {"COLUMNS": "200", "OPENAI_API_KEY": "x"} | environment
    env.pop("CREWAI_NATIVE", None)
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def test_crewai_native_has_the_command(default):
    done = execute(sys.executable, "-m", "crewai_native", "memory", "stats", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["records"] == 3
    done = execute(
        sys.executable, "-m", "crewai_native", "memory", "check", "--store", "nothing.db"
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "nothing.db" in done.stderr


def test_crewais_memory_browser_shows_the_native_store(default):
    code = """
from crewai_cli.memory_tui import MemoryTUI
browser = MemoryTUI()
assert browser._init_error is None, browser._init_error
print(type(browser._memory._storage).__name__, browser._memory.info("/").record_count)
"""
    done = execute(sys.executable, "-c", code)
    assert done.stdout.split() == ["NativeStorage", "3"], done.stderr


def test_crewais_memory_browser_shows_a_native_store_elsewhere(tmp_path):
    NativeStorage(tmp_path / "place").save([MemoryRecord(content="one")])
    code = f"""
from crewai_cli.memory_tui import MemoryTUI
print(MemoryTUI(storage_path={str(tmp_path / "place")!r})._memory.info("/").record_count)
"""
    done = execute(sys.executable, "-c", code)
    assert done.stdout.split() == ["1"], done.stderr


def test_crewais_reset_command_resets_the_native_store(default, tmp_path):
    project = tmp_path / "project"
    (project / "src" / "demo").mkdir(parents=True)
    (project / "pyproject.toml").write_text('[project]\nname = "demo"\n')
    (project / "src" / "demo" / "__init__.py").write_text("")
    (project / "src" / "demo" / "crew.py").write_text(
        textwrap.dedent(
            """
            from crewai import Agent, Crew, Task
            agent = Agent(role="r", goal="g", backstory="b")
            task = Task(description="d", expected_output="e", agent=agent)
            crew = Crew(agents=[agent], tasks=[task], memory=True)
            """
        )
    )
    env = os.environ | {"OPENAI_API_KEY": "x"}
    env.pop("CREWAI_NATIVE", None)
    code = "from crewai_cli.cli import crewai; crewai()"
    done = subprocess.run(
        [sys.executable, "-c", code, "reset-memories", "--memory"],
        cwd=project,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Memory has been reset" in done.stdout, done.stdout + done.stderr
    assert default.count() == 0
