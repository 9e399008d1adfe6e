"""checkpoint.writer and replay.store: under real crews and flows."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import sqlite3
import weakref
from pathlib import Path

import pytest
from crewai import Agent, Crew, Task
from crewai.flow.flow import Flow, listen, start
from crewai.memory.storage.kickoff_task_outputs_storage import KickoffTaskOutputsSQLiteStorage
from crewai.state.checkpoint_config import CheckpointConfig
from crewai.state.provider import sqlite_provider
from crewai.state.provider.json_provider import JsonProvider
from crewai.state.provider.sqlite_provider import SqliteProvider
from crewai.state.runtime import RuntimeState
from crewai.utilities.crew_json_encoder import CrewJSONEncoder

from crewai_native._errors import ProviderError
from crewai_native.testing import ScriptedLLM


def crew_of(*answers, **options):
    agents = [
        Agent(role=f"worker {n}", goal="work", backstory="works", llm=ScriptedLLM(answer))
        for n, answer in enumerate(answers)
    ]
    tasks = [
        Task(description=f"task {n}", expected_output="words", agent=agent)
        for n, agent in enumerate(agents)
    ]
    return Crew(agents=agents, tasks=tasks, **options)


class Writer:
    """Writes what stock does, and marks it as its own."""

    def __init__(self):
        self.written = []
        self.drained = []
        self.reads = []
        self.pruned = []
        self.restores = []

    def write(self, checkpoint):
        checkpoint.stock()
        self.written.append((checkpoint.config.location, checkpoint.event.type))

    def save(self, checkpoint):
        self.written.append((checkpoint.config.location, None))
        return checkpoint.stock()

    def read(self, location, stock):
        self.reads.append(location)
        return stock()

    def restored(self, state, location):
        self.restores.append((state, location))

    def prune(self, location, keep, branch, stock):
        self.pruned.append((location, keep, branch))
        return stock()

    def drain(self, state):
        self.drained.append(len(self.written))


@pytest.fixture(autouse=True)
def any_sqlite(monkeypatch):
    """CrewAI's statement needs SQLite 3.45; the same row without JSONB does for older ones."""
    if sqlite3.sqlite_version_info < (3, 45):
        statement = sqlite_provider._INSERT.replace("jsonb(", "json(")
        monkeypatch.setattr(sqlite_provider, "_INSERT", statement)


PROVIDERS = pytest.mark.parametrize("provider", [JsonProvider, SqliteProvider])


class TestCheckpoints:
    @PROVIDERS
    def test_a_kickoffs_checkpoints_are_the_providers_and_done_when_it_returns(
        self, serve, tmp_path, provider
    ):
        writer = Writer()
        binding = serve("checkpoint.writer", lambda: writer)
        location = str(tmp_path / "checkpoints")
        config = CheckpointConfig(location=location, provider=provider())
        crew_of("first", "second", checkpoint=config).kickoff()
        assert writer.written == [(config.location, "task_completed")] * 2
        assert writer.drained == [2]
        assert binding.watch.metrics().errors == 0

    @PROVIDERS
    def test_restoring_reads_through_it(self, serve, tmp_path, provider):
        writer = Writer()
        serve("checkpoint.writer", lambda: writer)
        config = CheckpointConfig(location=str(tmp_path / "c"), provider=provider())
        crew_of("first", checkpoint=config).kickoff()
        where = the_only_one(config.location)
        restored = Crew.from_checkpoint(CheckpointConfig(restore_from=where))
        assert [task.output.raw for task in restored.tasks] == ["first"]
        assert asyncio.run(provider().afrom_checkpoint(where)) == provider().from_checkpoint(where)
        assert writer.reads == [where] * 3

    @PROVIDERS
    def test_pruning_goes_through_it(self, serve, tmp_path, provider):
        writer = Writer()
        serve("checkpoint.writer", lambda: writer)
        config = CheckpointConfig(
            location=str(tmp_path / "c"), provider=provider(), max_checkpoints=1
        )
        crew_of("first", "second", checkpoint=config).kickoff()
        assert writer.pruned == [(config.location, 1, "main")] * 2

    def test_the_events_of_the_end_are_in_time_too(self, serve, tmp_path):
        writer = Writer()
        serve("checkpoint.writer", lambda: writer)
        config = CheckpointConfig(location=str(tmp_path), on_events=["crew_kickoff_completed"])
        crew_of("first", checkpoint=config).kickoff()
        assert writer.written == [(str(tmp_path), "crew_kickoff_completed")]
        assert writer.drained == [1]

    def test_flows_are_drained_once_and_on_failure_too(self, serve, tmp_path):
        class Failing(Flow):
            @start()
            def one(self):
                return 1

            @listen(one)
            def two(self, number):
                raise KeyError("two")

        writer = Writer()
        serve("checkpoint.writer", lambda: writer)
        config = CheckpointConfig(location=str(tmp_path), on_events=["method_execution_finished"])
        with pytest.raises(KeyError):
            Failing(checkpoint=config).kickoff()
        assert writer.drained == [1]

    def test_a_run_without_checkpoints_does_not_drain(self, serve):
        writer = Writer()
        serve("checkpoint.writer", lambda: writer)
        crew_of("first").kickoff()
        assert writer.drained == []

    def test_what_a_program_asks_for_and_what_is_made_of_it(self, serve, tmp_path):
        writer = Writer()
        serve("checkpoint.writer", lambda: writer)
        state = RuntimeState(root=[crew_of("first")])
        where = state.checkpoint(str(tmp_path))
        again = asyncio.run(state.acheckpoint(str(tmp_path)))
        assert writer.written == [(str(tmp_path), None)] * 2
        made = RuntimeState.from_checkpoint(
            CheckpointConfig(restore_from=where), context={"from_checkpoint": True}
        )
        later = asyncio.run(
            RuntimeState.afrom_checkpoint(
                CheckpointConfig(restore_from=again), context={"from_checkpoint": True}
            )
        )
        assert [(id(one), at) for one, at in writer.restores] == [
            (id(made), where),
            (id(later), again),
        ]

    def test_a_failed_checkpoint_shows(self, serve, tmp_path, caplog):
        class Full(Writer):
            def write(self, checkpoint):
                raise OSError("no space left on device")

        binding = serve("checkpoint.writer", Full)
        with caplog.at_level(logging.ERROR, "crewai_native"):
            crew_of("first", checkpoint=CheckpointConfig(location=str(tmp_path))).kickoff()
        assert binding.watch.metrics().errors == 1
        assert f"no checkpoint was written at {tmp_path}" in caplog.text

    def test_what_drain_raises_is_the_kickoffs_error(self, serve, tmp_path):
        class Strict(Writer):
            def drain(self, state):
                raise OSError("a checkpoint was lost")

        serve("checkpoint.writer", Strict)
        crew = crew_of("first", checkpoint=CheckpointConfig(location=str(tmp_path)))
        with pytest.raises(OSError, match="a checkpoint was lost"):
            crew.kickoff()
        # The scope was left all the same: the next run is a run of its own.
        with pytest.raises(OSError, match="a checkpoint was lost"):
            crew.kickoff()

    def test_a_provider_class_of_the_applications_own_is_left_to_crewai(self, serve, tmp_path):
        class Mine(JsonProvider):
            def checkpoint(self, data, location, *, parent_id=None, branch="main"):
                return super().checkpoint(data, location, parent_id=parent_id, branch=branch)

        writer = Writer()
        serve("checkpoint.writer", lambda: writer)
        config = CheckpointConfig(location=str(tmp_path), provider=Mine())
        crew_of("first", checkpoint=config).kickoff()
        assert writer.written == []
        assert len(list(tmp_path.rglob("*.json"))) == 1

    @pytest.mark.parametrize("way", ["checkpoint", "acheckpoint"])
    def test_so_is_a_class_of_crewais_that_the_application_has_changed(
        self, serve, tmp_path, monkeypatch, way
    ):
        def mine(*_, **__):
            raise OSError("no such luck")

        writer = Writer()
        serve("checkpoint.writer", lambda: writer)
        with monkeypatch.context() as patch:
            patch.setattr(JsonProvider, way, mine)
            state = RuntimeState(root=[])
            if way == "checkpoint":
                with pytest.raises(OSError, match="no such luck"):
                    state.checkpoint(str(tmp_path))
            else:
                with pytest.raises(OSError, match="no such luck"):
                    asyncio.run(state.acheckpoint(str(tmp_path)))
            config = CheckpointConfig(location=str(tmp_path))
            crew_of("first", checkpoint=config).kickoff()
            assert writer.written == []
        RuntimeState(root=[]).checkpoint(str(tmp_path))
        assert len(writer.written) == 1

    def test_a_wrong_type_names_the_distribution(self, serve):
        with pytest.raises(ProviderError, match=r"fake-dist 1\.2.*a CheckpointWriter"):
            serve("checkpoint.writer", object)


def the_only_one(location):
    if Path(location).is_dir():
        (path,) = Path(location).rglob("*.json")
        return str(path)
    with contextlib.closing(sqlite3.connect(location)) as connection:
        ((checkpoint_id,),) = connection.execute("SELECT id FROM checkpoints").fetchall()
    return f"{location}#{checkpoint_id}"


class Log:
    def __init__(self, store):
        self.store, self.run = store, None

    def add(self, **row):
        for name in ("output", "inputs"):
            row[name] = json.loads(json.dumps(row[name], cls=CrewJSONEncoder))
        run = self._begun()
        run[:] = [old for old in run if old["task_id"] != row["task_id"]]
        run.append({**row, "timestamp": "now"})

    def update(self, task_index, fields):
        for row in self._begun():
            if row["task_index"] == task_index:
                row.update(json.loads(json.dumps(dict(fields), cls=CrewJSONEncoder)))

    def load(self):
        newest = self.store.runs[-1] if self.store.runs else []
        return sorted(newest if self.run is None else self.run, key=lambda row: row["task_index"])

    def clear(self):
        self.run = None
        self._begun()

    def delete_all(self):
        self.store.runs.clear()
        self.run = []

    def _begun(self):
        if self.run is None:
            self.run = []
            self.store.runs.append(self.run)
        return self.run


class Store:
    """Keeps every run in memory."""

    def __init__(self):
        self.runs = []
        self.opened = []

    def open(self, path):
        self.opened.append(path)
        return Log(self)


def rows(crew):
    """Return the log as CrewAI reads it, without what differs from run to run."""
    found = crew._task_output_handler.load()
    return [
        {key: row[key] for key in ("expected_output", "task_index", "inputs", "was_replayed")}
        | {"raw": row["output"]["raw"]}
        for row in found
    ]


class TestReplay:
    def test_a_crews_outputs_are_kept_there_and_replayed(self, serve, storage):
        stock = crew_of("first", "second")
        stock.kickoff({"topic": "x"})
        expected = rows(stock)
        store = Store()
        binding = serve("replay.store", lambda: store)
        crew = crew_of("first", "second")
        crew.kickoff({"topic": "x"})
        assert rows(crew) == expected
        assert [row["task_key"] for row in store.runs[0]] == [task.key for task in crew.tasks]
        assert crew.replay(str(crew.tasks[1].id)).raw == "second"
        assert [row["was_replayed"] for row in rows(crew)] == [False, True]
        assert all(path.endswith("latest_kickoff_task_outputs.db") for path in store.opened)
        assert binding.watch.metrics().errors == 0

    def test_concurrent_crews_do_not_erase_one_another(self, serve):
        store = Store()
        serve("replay.store", lambda: store)
        one, two = crew_of("one"), crew_of("two")
        one.kickoff()
        two.kickoff()
        assert [row["raw"] for row in rows(one)] == ["one"]
        assert [row["raw"] for row in rows(crew_of("three"))] == ["two"]

    @pytest.mark.parametrize("what", ["kickoff_outputs", "all"])
    def test_a_reset_deletes_every_run_and_a_kickoff_none(self, serve, what):
        store = Store()
        serve("replay.store", lambda: store)
        one, two = crew_of("one"), crew_of("two")
        one.kickoff()
        two.kickoff()
        assert len(store.runs) == 2
        two.reset_memories(what)
        assert store.runs == []
        two.kickoff()
        assert [row["raw"] for row in rows(two)] == ["two"]

    def test_a_reset_that_fails_says_so(self, serve):
        class Full(Log):
            def delete_all(self):
                raise OSError("no space left on device")

        store = Store()
        store.open = lambda path: Full(store)
        serve("replay.store", lambda: store)
        with pytest.raises(RuntimeError, match="no space left"):
            crew_of("first").reset_memories("kickoff_outputs")

    def test_a_task_costs_no_load_of_the_others(self, serve):
        loads = []

        class Counting(Log):
            def load(self):
                loads.append(1)
                return super().load()

        store = Store()
        store.open = lambda path: Counting(store)
        serve("replay.store", lambda: store)
        crew_of("1", "2", "3").kickoff()
        assert loads == []

    def test_crewais_file_is_not_touched_while_bound_and_works_after(self, serve, storage):
        binding = serve("replay.store", Store)
        crew = crew_of("first")
        crew.kickoff()
        path = Path(crew._task_output_handler.storage.db_path)
        assert not path.exists()
        binding.undo()
        assert rows(crew) == []
        crew.kickoff()
        assert [row["raw"] for row in rows(crew)] == ["first"]

    def test_a_crew_from_before_goes_over(self, serve):
        crew = crew_of("first")
        crew.kickoff()
        store = Store()
        binding = serve("replay.store", lambda: store)
        crew.kickoff()
        assert len(store.runs) == 1
        binding.undo()
        assert [row["raw"] for row in rows(crew)] == ["first"]

    def test_an_error_of_the_store_is_raised(self, serve):
        class Full(Log):
            def add(self, **row):
                raise OSError("no space left on device")

        store = Store()
        store.open = lambda path: Full(store)
        binding = serve("replay.store", lambda: store)
        with pytest.raises(OSError, match="no space left"):
            crew_of("first").kickoff()
        assert binding.watch.metrics().errors == 1

    def test_a_log_goes_with_its_crew(self, serve):
        serve("replay.store", Store)
        storage = KickoffTaskOutputsSQLiteStorage()
        storage.load()
        (log,) = [value for value in vars(storage).values() if isinstance(value, Log)]
        gone = weakref.ref(log)
        del storage, log
        gc.collect()
        assert gone() is None

    def test_a_wrong_type_names_the_distribution(self, serve):
        with pytest.raises(ProviderError, match=r"fake-dist 1\.2.*a ReplayStore"):
            serve("replay.store", object)
        store = Store()
        store.open = lambda path: object()
        serve("replay.store", lambda: store)
        with pytest.raises(ProviderError, match=r"fake-dist 1\.2.*ReplayLogs from open"):
            crew_of("first")
