"""Checkpoints: that each is what CrewAI's would have been, and that none is lost."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from crewai import Agent, Crew, Flow, Task
from crewai.events.base_events import BaseEvent
from crewai.events.event_bus import crewai_event_bus
from crewai.events.types.checkpoint_events import CheckpointCompletedEvent, CheckpointFailedEvent
from crewai.flow.flow import listen, start
from crewai.state import checkpoint_listener
from crewai.state.checkpoint_config import CheckpointConfig
from crewai.state.provider.json_provider import JsonProvider
from crewai.state.provider.sqlite_provider import SqliteProvider
from crewai.state.runtime import RuntimeState
from crewai.tools import BaseTool, tool
from crewai_cli import checkpoint_cli
from pydantic import BaseModel
from typer.testing import CliRunner

import crewai_native
from crewai_native.slots import SLOT_NAMES
from crewai_native.slots.checkpoint_writer import Checkpoint
from crewai_native.testing import ScriptedLLM, ToolCall
from crewai_native.testing.contract.crews import crew as crew_of
from crewai_native_db import _native, exports
from crewai_native_db.checkpoints import places, recorder, writer
from crewai_native_db.checkpoints.assembly import assemble
from crewai_native_db.cli import app

pytestmark = pytest.mark.filterwarnings("ignore:.*checkpoint.*:UserWarning")
PROVIDERS = pytest.mark.parametrize("provider", [JsonProvider, SqliteProvider])


class Look(BaseTool):
    name: str = "look"
    description: str = "looks something up"

    def _run(self, q: str) -> str:
        return f"found {q}"


@tool("shout")
def shout(text: str) -> str:
    """Shouts a text."""
    return text.upper()


def guarded(output):
    return output.raw != "refused", f"{output.raw} and guarded"


def also_guarded(output):
    return True, output.raw


class Progress(BaseModel):
    seen: list[str] = []
    score: float = 0.0


class Counting(Flow[Progress]):
    @start()
    def first(self):
        self.state.seen.append("first")
        return {"made": "first"}

    @listen(first)
    def second(self, made):
        self.state.score = float("inf")
        self.state.seen.append(made["made"])
        return "second"

    @listen(second)
    def third(self, _):
        self.state.seen.append("third")
        return self.state.seen


@pytest.fixture(scope="module", autouse=True)
def active():
    served = dict.fromkeys(SLOT_NAMES, "stock") | {"checkpoint.writer": "crewai-native-db"}
    crewai_native.activate(enabled=True, slots=served)
    yield
    crewai_native.deactivate()


@pytest.fixture(autouse=True)
def no_run():
    """CrewAI goes on in the state that was restored last, whichever crew is started."""
    crewai_event_bus.reset_runtime_state()


@pytest.fixture
def config(tmp_path):
    def make(provider=JsonProvider, **fields):
        return CheckpointConfig(
            **{"location": str(tmp_path / "saved"), "provider": provider(), **fields}
        )

    return make


class Inline:
    """Runs handlers where the event is emitted."""

    def submit(self, function, *args):
        from concurrent.futures import Future

        done = Future()
        done.set_result(function(*args))
        return done

    def shutdown(self, **_):
        pass


@pytest.fixture
def taken(monkeypatch):
    """What CrewAI would have written at each snapshot. Handlers run where the event is emitted."""
    taken = []
    original = recorder.Recorder.snapshot

    def snapshot(self, state):
        found = original(self, state)
        taken.append(state.model_dump(mode="json"))
        return found

    crewai_event_bus._ensure_executor_initialized()
    monkeypatch.setattr(recorder.Recorder, "snapshot", snapshot)
    monkeypatch.setattr(crewai_event_bus, "_sync_executor", Inline())
    return taken


@pytest.fixture
def both(monkeypatch, taken):
    """The same where nothing else goes on: only once everything before is stored."""

    def record(self, run, due, then=writer.CheckpointWriter._record):
        then(self, run, due)
        with run.changed:
            run.changed.wait_for(lambda: not (run.taken or run.storing))

    monkeypatch.setattr(writer.CheckpointWriter, "_record", record)
    return taken


def saved(location):
    """(where, checkpoint) of each, oldest first."""
    place = places.of(location)
    for checkpoint_id, parent_id, branch, _ in place.texts():
        where = place.name(str(location), checkpoint_id, parent_id, branch)
        provider = SqliteProvider() if places.is_table(location) else JsonProvider()
        yield where, json.loads(provider.from_checkpoint(where))


def tooled(count=2, calls=2, tools=None, **options):
    agents, tasks = [], []
    for number in range(count):
        script = [ToolCall("look", {"q": f"{number} {call}"}) for call in range(calls)]
        agents.append(
            Agent(
                role=f"worker {number}",
                goal="work",
                backstory="works",
                llm=ScriptedLLM([*script, f"answer {number}"]),
                tools=[Look(), *(tools or [])],
            )
        )
        tasks.append(
            Task(
                description=f"task {number} on {{topic}}",
                expected_output="words",
                agent=agents[-1],
                context=tasks[-1:] or None,
            )
        )
    return Crew(agents=agents, tasks=tasks, name="crew", **options)


def same(location, taken):
    found = list(saved(location))
    assert len(found) == len(taken)
    parent = None
    for (where, ours), theirs in zip(found, taken, strict=True):
        # CrewAI takes the parent before the dump, which is the same when nothing else goes on.
        assert ours.pop("trigger")
        assert ours == theirs
        assert ours["parent_id"] == parent
        parent = JsonProvider().extract_id(where) if "#" not in where else where.split("#")[1]
    return found


class TestAgainstStock:
    """What is restored is what CrewAI restores from its own checkpoint of the same moment."""

    @PROVIDERS
    def test_a_crew_with_tools_at_every_event(self, config, both, provider):
        made = config(provider, on_events=["*"])
        tooled(checkpoint=made).kickoff(inputs={"topic": "x"})
        found = same(made.location, both)
        assert len(found) > 10
        where, newest = found[-1]
        theirs = RuntimeState.model_validate_json(
            json.dumps(newest), context={"from_checkpoint": True}
        )
        ours = RuntimeState.from_checkpoint(
            CheckpointConfig(restore_from=where), context={"from_checkpoint": True}
        )
        assert (
            ours.model_dump(mode="json")["entities"] == theirs.model_dump(mode="json")["entities"]
        )

    def test_a_flow_at_every_event(self, config, both):
        made = config(on_events=["*"])
        Counting(checkpoint=made).kickoff()
        found = same(made.location, both)
        states = [checkpoint["entities"][0]["checkpoint_state"] for _, checkpoint in found]
        assert states[-1]["seen"] == ["first", "first", "third"]

    @pytest.mark.parametrize("beside", [None, 2**70])  # what only Python writes
    def test_numbers_that_are_not_finite(self, config, both, beside):
        class Scored(BaseModel):
            score: float = float("nan")
            scores: dict[str, float] = {"NaN": float("-inf"), "Infinity": 1.0}
            beside: int | None = None

        class Scoring(Flow):
            @start()
            def first(self):
                return Scored(beside=beside)

            @listen(first)
            def second(self, made):
                return {"score": made.score}

        made = config(on_events=["*"])
        Scoring(checkpoint=made).kickoff()
        output = same(made.location, both)[-1][1]["entities"][0]["checkpoint_method_outputs"][0]
        assert output["output"]["scores"] == {"NaN": None, "Infinity": 1.0}

    def test_a_crew_in_a_flow(self, config, both):
        class Outer(Flow):
            @start()
            def work(self):
                return crew_of("one", "two").kickoff(inputs={"topic": "x"}).raw

        made = config(on_events=["*"])
        Outer(checkpoint=made).kickoff()
        assert len(same(made.location, both)[-1][1]["entities"]) >= 2

    @PROVIDERS
    def test_checkpoints_that_are_stored_together(self, config, taken, monkeypatch, provider):
        made = config(provider)
        _hold(monkeypatch, 3)
        tooled(3, checkpoint=made).kickoff(inputs={"topic": "x"})
        store = _native.CheckpointStore(places.of(made.location).store)
        assert store.statistics()["commits"] == 1
        parent, found = None, list(saved(made.location))
        assert len(found) == 3
        for (where, ours), theirs in zip(found, taken, strict=True):
            assert ours.pop("trigger") == "task_completed"
            assert ours.pop("parent_id") == parent
            theirs.pop("parent_id")
            assert ours == theirs
            parent = JsonProvider().extract_id(where) if "#" not in where else where.split("#")[1]

    def test_a_run_that_was_restored_goes_on_in_a_record_of_its_own(self, config, both):
        made = config()
        crew_of("one", "two", checkpoint=made).kickoff(inputs={"topic": "x"})
        where, _ = next(iter(saved(made.location)))
        both.clear()
        restored = Crew.from_checkpoint(CheckpointConfig(restore_from=where))
        for agent in restored.agents:
            agent.llm = ScriptedLLM("again")
        for task in restored.tasks:
            task.agent.llm = ScriptedLLM("again")
        restored.checkpoint = made
        result = restored.kickoff(inputs={"topic": "x"})
        assert [output.raw for output in result.tasks_output] == ["one", "again"]
        newest = list(saved(made.location))[-1][1]
        newest.pop("trigger")
        assert newest == both[-1]
        assert newest["parent_id"] == JsonProvider().extract_id(where)

    def test_an_executor_that_was_done_and_is_changed_is_dumped_again(self, monkeypatch):
        crew = tooled(1)
        crew.kickoff(inputs={"topic": "x"})
        executor = crew.agents[0].agent_executor
        state = RuntimeState(root=[crew, executor])
        dumped = []
        original = recorder._sync_checkpoint_fields
        monkeypatch.setattr(
            recorder,
            "_sync_checkpoint_fields",
            lambda entity: (dumped.append(entity is executor), original(entity)),
        )
        taker = recorder.Recorder()

        def check():
            taken = taker.snapshot(state)
            note = json.dumps({"parent_id": None, "branch": "main", "trigger": None})
            texts = {number: part.text for number, part in taken.parts.items()}
            ours = assemble(taken.segments[: taken.count], texts, note)
            assert json.loads(ours) == state.model_dump(mode="json")

        check()
        check()
        executor._state.messages[-1]["content"] = "changed"
        check()
        executor._method_outputs.append({"method": "m", "output": 1})
        check()
        executor.human_feedback_history.append(None)
        check()
        check()
        # The crew each time, and it.
        assert dumped == [False, True, False, *[False, True] * 3, False]

    def test_a_run_that_goes_on_while_a_field_is_looked_at_leaves_no_doubt_of_it(self, monkeypatch):
        monkeypatch.setattr(recorder, "_proofs", {})
        crew = tooled(1)
        task = crew.tasks[0]
        original = recorder.Recorder._dump
        left = [5]

        def dump(self, view, value, **select):
            if select == {"include": {"tasks"}} and left[0]:
                # As another thread does after the task was dumped, and before the field is.
                left[0] -= 1
                task.description = f"changed {left[0]}"
            return original(self, view, value, **select)

        monkeypatch.setattr(recorder.Recorder, "_dump", dump)
        taker = recorder.Recorder()
        state = RuntimeState(root=[crew])
        while left[0]:
            taken = taker.snapshot(state)
            assert "tasks" not in taken.parts[taken.entities[0]].refs
            crew.name = f"to be dumped again {left[0]}"
        taken = taker.snapshot(state)
        assert "tasks" in taken.parts[taken.entities[0]].refs

    @PROVIDERS
    def test_the_commands_show_what_they_show_of_whole_ones(
        self, config, provider, tmp_path, monkeypatch
    ):
        made = config(provider)
        tooled(checkpoint=made).kickoff(inputs={"topic": "x"})
        whole = tmp_path / f"whole{Path(made.location).suffix}"
        run = CliRunner().invoke(app, ["export", str(whole), "--checkpoints", made.location])
        assert run.exit_code == 0, run.output
        assert "2 checkpoints written" in run.output
        monkeypatch.setattr(checkpoint_cli, "_format_size", lambda _: "")
        ids = [checkpoint_id for checkpoint_id, *_ in places.of(made.location).texts()]
        for command in (
            checkpoint_cli.list_checkpoints,
            checkpoint_cli.info_checkpoint,
            lambda place: checkpoint_cli.diff_checkpoints(place, *ids),
        ):
            shown = []
            for place in (made.location, str(whole)):
                with contextlib.redirect_stdout(io.StringIO()) as out:
                    command(place)
                shown.append(out.getvalue().replace(place, "PLACE"))
            assert shown[0] == shown[1]
            assert len(shown[0].splitlines()) > 3
        for checkpoint_id in ids:
            of = checkpoint_cli._resolve_checkpoint
            mine, theirs = of(made.location, checkpoint_id), of(str(whole), checkpoint_id)
            for meta in (mine, theirs):
                for field in ("path", "db", "size"):
                    meta.pop(field, None)
                for entity in meta["entities"]:
                    # Shown as five items of forty characters each.
                    state = entity.pop("flow_state", {})
                    entity["shown"] = {k: str(v)[:40] for k, v in list(state.items())[:5]}
            assert mine == theirs


class TestWithoutUs:
    @PROVIDERS
    def test_crewai_says_what_an_outline_is(self, config, provider):
        made = config(provider)
        crew_of("one", checkpoint=made).kickoff()
        ((where, _),) = saved(made.location)
        with (
            crewai_native.using({"checkpoint.writer": "stock"}),
            pytest.raises(Exception, match=r"outline of a checkpoint.*crewai-native db export"),
        ):
            Crew.from_checkpoint(CheckpointConfig(restore_from=where))

    @PROVIDERS
    def test_crewai_restores_what_was_exported(self, config, provider, tmp_path):
        made = config(provider)
        crew_of("one", "two", checkpoint=made).kickoff(inputs={"topic": "x"})
        whole = tmp_path / f"whole{Path(made.location).suffix}"
        assert (
            CliRunner()
            .invoke(app, ["export", str(whole), "--checkpoints", made.location])
            .exit_code
            == 0
        )
        with crewai_native.using({"checkpoint.writer": "stock"}):
            for where, _ in list(saved(whole))[-1:]:
                restored = Crew.from_checkpoint(CheckpointConfig(restore_from=where))
                assert [task.output.raw for task in restored.tasks] == ["one", "two"]
        again = CliRunner().invoke(app, ["export", str(whole), "--checkpoints", made.location])
        assert again.exit_code == 1
        assert "exists" in again.output

    def test_checkpoints_of_crewais_own_are_restored(self, config):
        made = config()
        with crewai_native.using({"checkpoint.writer": "stock"}):
            crew_of("one", checkpoint=made).kickoff()
        (file,) = Path(made.location).rglob("*.json")
        restored = Crew.from_checkpoint(CheckpointConfig(restore_from=str(file)))
        assert restored.tasks[0].output.raw == "one"

    def test_an_outline_without_its_data_is_an_error_that_says_so(self, config, tmp_path):
        made = config()
        crew_of("one", checkpoint=made).kickoff()
        (file,) = Path(made.location).rglob("*.json")
        alone = tmp_path / "elsewhere" / "main" / file.name
        alone.parent.mkdir(parents=True)
        alone.write_bytes(file.read_bytes())
        with pytest.raises(FileNotFoundError, match="move or copy a location as a whole"):
            Crew.from_checkpoint(CheckpointConfig(restore_from=str(alone)))
        moved = tmp_path / "moved"
        Path(made.location).rename(moved)
        (file,) = moved.rglob("*.json")
        Crew.from_checkpoint(CheckpointConfig(restore_from=str(file)))


class TestValuesWithoutJson:
    def test_tool_functions_come_back_as_what_can_be_imported(self, config, caplog):
        made = config()
        crew = tooled(1, tools=[shout], checkpoint=made)
        crew.kickoff(inputs={"topic": "x"})
        ((where, _),) = saved(made.location)
        restored = Crew.from_checkpoint(CheckpointConfig(restore_from=where))
        look, back = restored.agents[0].tools
        assert type(look) is Look
        assert type(back) is type(shout)
        assert back.func is shout.func
        assert back.run(text="hey") == "HEY"
        assert list(back.args_schema.model_fields) == ["text"]
        assert "cannot be imported" not in caplog.text

    @PROVIDERS
    def test_guardrail_functions_come_back_if_they_can_be_imported(self, config, provider):
        made = config(provider)
        crew = crew_of("one", "two", "three", checkpoint=made)
        first, second, _ = crew.tasks
        first.guardrail = guarded
        second.guardrails = [guarded, lambda output: (True, output), also_guarded]
        crew.agents[0].guardrail = guarded
        crew.kickoff()
        where = [where for where, _ in saved(made.location)][-1]
        restored = Crew.from_checkpoint(CheckpointConfig(restore_from=where))
        assert restored.tasks[0].guardrail is restored.tasks[0]._guardrail is guarded
        assert restored.tasks[1].guardrails == [guarded, also_guarded]
        assert restored.tasks[1]._guardrails == [guarded, also_guarded]
        assert restored.tasks[2].guardrail is None
        assert restored.agents[0].guardrail is guarded
        again = asyncio.run(
            RuntimeState.afrom_checkpoint(
                CheckpointConfig(restore_from=where), context={"from_checkpoint": True}
            )
        )
        assert again.root[0].tasks[0].guardrail is guarded

    def test_a_restored_guardrail_guards(self, config):
        made = config()
        crew = crew_of("one", "two", checkpoint=made)
        crew.tasks[1].guardrails = [guarded]
        crew.tasks[1].guardrail_max_retries = 1
        crew.kickoff()
        where, _ = next(iter(saved(made.location)))
        crewai_event_bus.reset_runtime_state()
        restored = Crew.from_checkpoint(CheckpointConfig(restore_from=where))
        for task in restored.tasks:
            task.agent.llm = ScriptedLLM("refused")
        with pytest.raises(Exception, match="Task failed guardrail 0"):
            restored.kickoff()

    def test_guardrails_that_cannot_be_imported_are_reported(self, config, caplog):
        def guard(output):
            return True, output.raw

        made = config()
        crew = crew_of("one", checkpoint=made)
        crew.tasks[0].guardrail = guard
        crew.kickoff()
        assert f"{__name__}.{guard.__qualname__}" in caplog.text

    def test_crewai_by_itself_restores_without_guardrails(self, config, tmp_path):
        made = config()
        crew = crew_of("one", checkpoint=made)
        crew.tasks[0].guardrail = guarded
        crew.kickoff()
        whole = str(tmp_path / "whole")
        CliRunner().invoke(app, ["export", whole, "--checkpoints", made.location])
        with crewai_native.using({"checkpoint.writer": "stock"}):
            ((where, _),) = saved(whole)
            restored = Crew.from_checkpoint(CheckpointConfig(restore_from=where))
        assert restored.tasks[0].guardrail is None

    def test_local_functions_are_reported_and_say_so_when_called(self, config, caplog):
        @tool("local")
        def local(text: str) -> str:
            """Says it."""
            return text

        made = config()
        crew = tooled(2, tools=[local], checkpoint=made)
        crew.kickoff(inputs={"topic": "x"})
        name = f"{__name__}.{local.func.__qualname__}"
        told = [r for r in caplog.records if "cannot be imported" in r.getMessage()]
        assert len(told) == 1
        assert name in told[0].getMessage()
        where, _ = list(saved(made.location))[-1]
        said = json.loads(Path(where).read_text())["crewai_native"]
        assert said["lost"] == [name]
        _, back = Crew.from_checkpoint(CheckpointConfig(restore_from=where)).agents[0].tools
        with pytest.raises(RuntimeError, match="not in the checkpoint"):
            back.run(text="hey")


class TestAskedFor:
    """``RuntimeState.checkpoint`` by a program."""

    @PROVIDERS
    def test_is_incremental_as_well_and_there_when_it_returns(self, config, provider):
        made = config(provider)
        crew = tooled(2)
        crew.kickoff(inputs={"topic": "x"})
        state = RuntimeState(root=[crew, *crew.agents])
        state._provider = made.provider
        told = []

        def note(source, event):
            told.append((source, event.checkpoint_id, event.location))

        crewai_event_bus.on(CheckpointCompletedEvent)(note)
        try:
            first = state.checkpoint(made.location)
            crew.tasks[0].output.raw = "changed"
            state.event_record.add(BaseEvent(type="more"))
            second = asyncio.run(state.acheckpoint(made.location))
            crewai_event_bus.flush()
        finally:
            crewai_event_bus.off(CheckpointCompletedEvent, note)
        ids = [made.provider.extract_id(where) for where in (first, second)]
        assert sorted(told, key=lambda one: ids.index(one[1])) == [
            (state, ids[0], first),
            (state, ids[1], second),
        ]
        assert state._parent_id == ids[1]
        (_, before), (where, after) = saved(made.location)
        assert where == second
        assert after == state.model_dump(mode="json") | {"parent_id": ids[0]}
        assert after["parent_id"] == ids[0]
        assert before["entities"][0]["tasks"][0]["output"]["raw"] == "answer 0"
        totals = _native.CheckpointStore(places.of(made.location).store).totals()
        assert totals["checkpoints"] == 2
        assert totals["text_bytes"] < 1.5 * len(json.dumps(after))

    def test_outside_of_kickoffs_it_is_there_and_told_of_at_once(self, config):
        told = []

        def note(_source, event):
            told.append(event.checkpoint_id)

        crewai_event_bus.on(CheckpointCompletedEvent)(note)
        try:
            for _ in range(3):
                made = config(max_checkpoints=2)
                checkpoint_listener._do_checkpoint(RuntimeState(root=[]), made)
                crewai_event_bus.flush()
        finally:
            crewai_event_bus.off(CheckpointCompletedEvent, note)
        assert len(told) == 3
        assert [made.provider.extract_id(where) for where, _ in saved(made.location)] == told[1:]

    def test_what_cannot_be_written_is_raised(self, config, tmp_path):
        (tmp_path / "saved").write_text("not a directory")
        state = RuntimeState(root=[crew_of("one")])
        with pytest.raises(OSError, match="saved"):
            state.checkpoint(config().location)
        assert state._parent_id is None


class TestLineage:
    @PROVIDERS
    def test_pruning_keeps_younger_ones_readable_and_frees_the_rest(self, config, provider):
        made = config(provider, max_checkpoints=2)
        crew_of(*map(str, range(6)), checkpoint=made).kickoff(inputs={"topic": "x"})
        found = list(saved(made.location))
        assert [len(_done(checkpoint)) for _, checkpoint in found] == [5, 6]
        store = _native.CheckpointStore(places.of(made.location).store)
        assert {name for name, _ in store.ids()} == places.of(made.location).ids()
        assert store.check() == []
        made.provider.prune(made.location, 0)
        assert store.totals() == {
            "checkpoints": 0,
            "records": 0,
            "text_bytes": 0,
            "packed_bytes": 0,
        }

    def test_a_run_goes_on_after_everything_of_it_was_removed(self, config):
        made = config()
        state = RuntimeState(root=[crew_of("one")])
        for number in range(4):
            state.event_record.add(BaseEvent(type=f"event {number}"))
            served = next(iter(writer._live))
            served.write(Checkpoint(state, made, None, lambda: None))
            with served._runs[id(state)][1].changed:
                run = served._runs[id(state)][1]
                run.changed.wait_for(lambda run=run: not (run.taken or run.storing))
            if number == 2:
                assert made.provider.prune(made.location, 0) == 3
        ((_, checkpoint),) = saved(made.location)
        types = [node["event"]["type"] for node in checkpoint["event_record"]["nodes"].values()]
        assert types == [f"event {number}" for number in range(4)]
        served.drain(state)

    def test_a_fork_has_a_branch_and_its_own_pruning(self, config):
        made = config()
        crew_of("one", "two", checkpoint=made).kickoff(inputs={"topic": "x"})
        where, _ = next(iter(saved(made.location)))
        fork = Crew.fork(CheckpointConfig(restore_from=where), branch="try/this")
        for task in fork.tasks:
            task.agent.llm = ScriptedLLM("other")
        fork.checkpoint = config(max_checkpoints=1)
        fork.kickoff(inputs={"topic": "x"})
        place = places.of(made.location)
        assert len(place.ids("main")) == 2
        (name,) = place.ids("try/this")
        forked = [c for w, c in saved(made.location) if name in Path(w).stem.partition("_p-")[0]]
        assert _done(forked[0]) == ["one", "other"]
        assert forked[0]["branch"] == "try/this"

    def test_what_was_removed_elsewhere_is_reclaimed_once_it_is_old(self, config, monkeypatch):
        made = config()
        crew_of("one", checkpoint=made).kickoff()
        store = _native.CheckpointStore(places.of(made.location).store)
        checkpoint_cli.prune_checkpoints(made.location, 0, None)
        prune = ["prune", "--checkpoints", made.location]
        assert "data of 0 checkpoints" in CliRunner().invoke(app, prune).output
        monkeypatch.setattr(places, "_GRACE", -1)
        assert "data of 1 checkpoints" in CliRunner().invoke(app, prune).output
        assert store.ids() == []

    def test_threads_that_checkpoint_one_run_make_one_line(self, config):
        made = config()
        state = RuntimeState(root=[crew_of("one")])
        from crewai.state import checkpoint_listener

        threads = [
            threading.Thread(target=checkpoint_listener._do_checkpoint, args=(state, made))
            for _ in range(24)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        _drain(state)
        rows = {name: parent for name, parent, _, _ in places.of(made.location).texts()}
        assert len(rows) == 24
        assert sorted(filter(None, rows.values())) == sorted(set(filter(None, rows.values())))
        assert state._parent_id in rows
        assert state._parent_id not in rows.values()

    def test_locations_of_runs_that_are_over_are_not_kept_open(self, tmp_path):
        def run(count):
            for number in range(count):
                made = CheckpointConfig(location=str(tmp_path / str(number)))
                crew_of("one", checkpoint=made).kickoff()
            return len(list(Path("/proc/self/fd").iterdir()))

        some = run(writer._OPEN)
        assert run(2 * writer._OPEN) <= some + 4
        # One that is open again, and one that never was closed.
        for number in (0, 2 * writer._OPEN - 1):
            assert len(list(saved(tmp_path / str(number)))) == (2 if number == 0 else 1)


class TestFailures:
    def test_a_checkpoint_that_cannot_be_written_is_told(self, config, tmp_path, caplog):
        (tmp_path / "saved").write_text("not a directory")
        failed = []

        def told(_, event):
            failed.append(event.error)

        crewai_event_bus.on(CheckpointFailedEvent)(told)
        try:
            result = crew_of("one", checkpoint=config()).kickoff()
            crewai_event_bus.flush()
        finally:
            crewai_event_bus.off(CheckpointFailedEvent, told)
        assert result.raw == "one"
        assert len(failed) == 1
        assert "saved" in failed[0]
        errors = [r for r in caplog.records if r.levelno == logging.ERROR]
        assert len(errors) == 1
        assert "was not written" in errors[0].getMessage()

    def test_strict_raises_it_from_the_kickoff(self, config, tmp_path, monkeypatch):
        (tmp_path / "saved").write_text("not a directory")
        for served in writer._live:
            monkeypatch.setattr(served, "_strict", True)
        with pytest.raises(OSError, match="saved"):
            crew_of("one", checkpoint=config()).kickoff()

    @pytest.mark.parametrize("together", [False, True])
    def test_a_failure_in_between_does_not_hurt_the_others(
        self, config, tmp_path, monkeypatch, together
    ):
        made = config()
        attempts = []
        original = places.Files.file

        def file(self, *args):
            if args[0] not in attempts:
                attempts.append(args[0])
            draft, path = original(self, *args)
            if attempts.index(args[0]) == 1:
                draft = tmp_path / "file" / "draft"
            return draft, path

        (tmp_path / "file").write_text("not a directory")
        monkeypatch.setattr(places.Files, "file", file)
        if together:
            _hold(monkeypatch, 3)
        crew_of("one", "two", "three", checkpoint=made).kickoff(inputs={"topic": "x"})
        found = list(saved(made.location))
        assert [len(_done(checkpoint)) for _, checkpoint in found] == [1, 3]
        assert found[1][1]["parent_id"] == attempts[0]
        store = _native.CheckpointStore(places.of(made.location).store)
        assert [name for name, _ in store.ids()] == [attempts[0], attempts[2]]
        assert store.check() == []

    def test_one_is_told_of_whose_data_cannot_be_taken_back_either(self, config, monkeypatch):
        class Full:
            """A store on a disk on which there is no room to take anything back."""

            def __init__(self, path):
                self._store = _native.CheckpointStore(path)

            def __getattr__(self, name):
                return getattr(self._store, name)

            def forget(self, _ids):
                raise OSError(errno.ENOSPC, "no room")

        def publish(*_):
            raise sqlite3.OperationalError("disk I/O error")

        failed = []

        def told(_, event):
            failed.append(event.error)

        monkeypatch.setattr(writer.CheckpointWriter, "_store", lambda _, path: Full(path))
        crewai_event_bus.on(CheckpointFailedEvent)(told)
        try:
            with monkeypatch.context() as patch:
                patch.setattr(places.Table, "publish", publish)
                crew_of("one", checkpoint=config(SqliteProvider)).kickoff()
            crewai_event_bus.flush()
        finally:
            crewai_event_bus.off(CheckpointFailedEvent, told)
        assert failed == ["disk I/O error"]

    @PROVIDERS
    def test_where_no_thread_can_be_started_it_is_stored_at_once(
        self, config, monkeypatch, provider
    ):
        original = threading.Thread.start

        def start(thread):
            if thread.name == "crewai-native-checkpoints":
                raise RuntimeError("can't start new thread")
            original(thread)

        made = config(provider)
        monkeypatch.setattr(threading.Thread, "start", start)
        crew_of("one", "two", checkpoint=made).kickoff(inputs={"topic": "x"})
        assert len(list(saved(made.location))) == 2
        assert RuntimeState(root=[]).checkpoint(str(Path(made.location).with_suffix("")))

    def test_an_interrupt_in_a_snapshot_does_not_keep_others_waiting(self, config, monkeypatch):
        original, taken = recorder.Recorder.snapshot, []
        begun, goes_on = threading.Event(), threading.Event()

        def snapshot(self, state):
            taken.append(state)
            if len(taken) > 1:
                raise KeyboardInterrupt
            begun.set()
            goes_on.wait()
            return original(self, state)

        def save():
            try:
                outcomes.append(type(state.checkpoint(config().location)))
            except (KeyboardInterrupt, RuntimeError) as error:
                outcomes.append(type(error))

        monkeypatch.setattr(recorder.Recorder, "snapshot", snapshot)
        state, outcomes = RuntimeState(root=[]), []
        threads = [threading.Thread(target=save, daemon=True) for _ in range(3)]
        threads[0].start()
        begun.wait()
        for thread in threads[1:]:
            thread.start()
        runs = [served._runs[id(state)][1] for served in writer._live if id(state) in served._runs]
        while len(runs[0].waiting) < 2:
            time.sleep(0.001)
        goes_on.set()
        for thread in threads:
            thread.join(30)
        assert sorted(kind.__name__ for kind in outcomes) == [
            "KeyboardInterrupt",
            "RuntimeError",
            "str",
        ]

    def test_a_listener_that_fails_does_not_keep_others_waiting(self, config, monkeypatch):
        made = config()
        original = writer.CheckpointWriter._complete
        told = []

        def complete(self, run, due, parent_id):
            told.append(due.checkpoint_id)
            if len(told) == 1:
                raise RuntimeError("no listener")
            original(self, run, due, parent_id)

        monkeypatch.setattr(writer.CheckpointWriter, "_complete", complete)
        _hold(monkeypatch, 3)
        crew_of("one", "two", "three", checkpoint=made).kickoff(inputs={"topic": "x"})
        assert [name for name, *_ in places.of(made.location).texts()] == told
        assert len(told) == 3


def _hold(monkeypatch, count):
    """Have nothing stored before so many snapshots wait for it."""
    original = writer.CheckpointWriter._store_all

    def store_all(self, run):
        with run.changed:
            run.changed.wait_for(lambda: len(run.taken) >= count)
        original(self, run)

    monkeypatch.setattr(writer.CheckpointWriter, "_store_all", store_all)


# Tests run on stock CrewAI, and so would the programs that they start.
BOUND = """
import crewai_native
status = crewai_native.activate(enabled=True)
assert status["checkpoint.writer"].provider == "crewai-native-db", status["checkpoint.writer"]
"""
KEPT = """
import sys
from crewai import Flow
from crewai.flow.flow import start
from crewai.flow.persistence import persist
from crewai.state.checkpoint_config import CheckpointConfig

@persist()
class Kept(Flow):
    @start()
    def only(self):
        self.state["kept"] = True

made = CheckpointConfig(location=sys.argv[1], on_events=["method_execution_finished"])
Kept(checkpoint=made).kickoff()
"""
RESUMED = """
import sys
from crewai import Flow
from crewai.state.checkpoint_config import CheckpointConfig

flow = Flow.from_checkpoint(CheckpointConfig(restore_from=sys.argv[1]))
print(flow.persistence.persistence_type, flow.persistence.load_state(flow.state["id"]) is not None)
"""
MADE = """
import gc, sys, threading, weakref
from crewai import Agent, Crew, Flow, Task
from crewai.events.event_bus import crewai_event_bus
from crewai.flow.flow import start
from crewai.state.checkpoint_config import CheckpointConfig
from crewai_native.testing import ScriptedLLM
from pydantic import create_model

def run(number):
    output = create_model("Output", answer=(int, number))
    made = CheckpointConfig(location=sys.argv[1], on_events=["*"])
    agent = Agent(role="r", goal="g", backstory="b", llm=ScriptedLLM('{"answer": 3}'))
    task = Task(description="d", expected_output="e", agent=agent, output_pydantic=output)
    assert Crew(agents=[agent], tasks=[task], checkpoint=made).kickoff().pydantic.answer == 3

    class Answering(Flow[output]):
        @start()
        def only(self):
            return self.state

    Answering(checkpoint=made).kickoff()
    crewai_event_bus.flush()
    crewai_event_bus.reset_runtime_state()
    return weakref.ref(output), weakref.ref(Answering)

made = [kind for number in range(10) for kind in run(number)]
gc.collect()
print()
print(sum(kind() is not None for kind in made))
"""
KILLED = """
import os, sys
from crewai.state.checkpoint_config import CheckpointConfig
from crewai_native.testing.contract.crews import crew

config = CheckpointConfig(location=sys.argv[1], on_events=["*"], max_checkpoints=12)
while True:
    print("run", flush=True)
    crew("one", "two", checkpoint=config).kickoff(inputs={"topic": "x"})
"""


class TestElsewhere:
    def test_a_process_that_has_loaded_nothing_else_resumes_a_persisted_flow(self, tmp_path, start):
        # As `crewai checkpoint resume` does, without the program that wrote it.
        ran = start(BOUND + KEPT, tmp_path / "saved")
        ran.communicate()
        assert ran.returncode == 0
        ((where, _),) = saved(tmp_path / "saved")
        said, _ = start(BOUND + RESUMED, where).communicate()
        assert said.split() == ["NativeFlowPersistence", "True"]
        # And one that is of CrewAI alone.
        exports.checkpoints(tmp_path / "saved", tmp_path / "whole")
        ((where, _),) = saved(tmp_path / "whole")
        said, _ = start(RESUMED, where).communicate()
        assert said.split() == ["SQLiteFlowPersistence", "False"]

    def test_classes_that_a_program_makes_for_a_run_go_with_it(self, tmp_path, start):
        said, _ = start(BOUND + MADE, tmp_path / "saved").communicate()
        # CrewAI's threads may still have those of the last ones.
        assert int(said.splitlines()[-1]) <= 6


class TestKilled:
    @pytest.mark.slow
    def test_processes_at_one_place_lose_nothing_when_they_are_killed(self, tmp_path, start):
        place = tmp_path / "saved"
        for wait in (2, 3):  # the first kickoffs, then, are over
            children = [start(BOUND + KILLED, place) for _ in range(2)]
            for child in children:
                for _ in range(wait):
                    assert child.stdout.readline() == "run\n"
            for child in children:
                os.kill(child.pid, signal.SIGKILL)
                child.wait()
            found = list(saved(place))
            assert len(found) >= wait
            # Whole, each of them.
            for _, checkpoint in found:
                RuntimeState.model_validate(checkpoint, context={"from_checkpoint": True})
            assert _native.CheckpointStore(places.of(place).store).check() == []

    @pytest.mark.slow
    def test_a_forked_child_begins_a_record_of_its_own(self, tmp_path):
        code = """
import os, sys
from crewai.state.checkpoint_config import CheckpointConfig
from crewai.state import checkpoint_listener
from crewai.state.runtime import RuntimeState
from crewai.events.base_events import BaseEvent
from crewai.events.event_bus import crewai_event_bus
from crewai_native.testing.contract.crews import crew

crewai_event_bus.emit = lambda *_: None
config = CheckpointConfig(location=sys.argv[1])
state = RuntimeState(root=[crew("one")])
checkpoint_listener._do_checkpoint(state, config)
child = os.fork()
for _ in range(3):
    checkpoint_listener._do_checkpoint(state, config)
if child:
    assert os.waitpid(child, 0)[1] == 0
"""
        run = [sys.executable, "-W", "ignore", "-c", BOUND + code, str(tmp_path / "saved")]
        done = subprocess.run(run, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert len(list(saved(tmp_path / "saved"))) == 7


def test_stock_tables_take_outlines_beside_their_own_rows(config):
    made = config(SqliteProvider)
    crew_of("one", checkpoint=made).kickoff()
    with closing(sqlite3.connect(made.location)) as db, db:
        db.execute(
            "INSERT INTO checkpoints (id, created_at, data) VALUES ('other', '', ?)",
            (json.dumps({"entities": []}),),
        )
    assert json.loads(SqliteProvider().from_checkpoint(f"{made.location}#other")) == {
        "entities": []
    }
    assert len(places.of(made.location).ids()) == 2


def _done(checkpoint):
    tasks = checkpoint["entities"][0]["tasks"]
    return [task["output"]["raw"] for task in tasks if task["output"] is not None]


def _drain(state):
    for served in list(writer._live):
        served.drain(state)
