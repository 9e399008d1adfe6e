"""All slots together: each can be bound, they do not touch one another, and all come off again."""

from __future__ import annotations

import contextlib
import itertools
import random
from typing import Any

import pytest
from crewai import Agent, Crew, Task
from crewai.flow.persistence import SQLiteFlowPersistence
from crewai.memory.unified_memory import Memory
from crewai.tools import tool

from crewai_native import _targets, hookspecs, slots
from crewai_native._bind import Binding
from crewai_native._watch import Watch
from crewai_native.slots._base import Provider
from crewai_native.slots.serialization_messages import JsonCodec
from crewai_native.testing import HashEmbedder, ScriptedLLM, ToolCall


class Through:
    """Serves every slot by letting CrewAI do it."""

    name = "through"
    takes_over = True

    def run(self, call, proceed):
        return proceed()

    async def arun(self, call, proceed):
        return await proceed()

    def execute(self, run):
        return run.stock()

    async def aexecute(self, run):
        return await run.stock()

    def limit(self, run):
        return run.proceed()

    async def alimit(self, run):
        return await run.proceed()

    def check(self, point, subject):
        pass

    def done(self, point, subject):
        pass

    def call(self, call):
        return call.proceed(call.attempt)

    async def acall(self, call):
        return await call.proceed(call.attempt)

    def used(self, tokens):
        pass

    def drives(self, flow):
        return False

    def kickoff(self, run):
        raise NotImplementedError

    async def akickoff(self, run):
        raise NotImplementedError

    def map(self, target, inputs, options):
        raise NotImplementedError

    async def amap(self, target, inputs, options):
        raise NotImplementedError

    def for_each(self, call):
        return call.stock()

    async def afor_each(self, call):
        return await call.stock()

    def write(self, checkpoint):
        checkpoint.stock()

    def save(self, checkpoint):
        return checkpoint.stock()

    def read(self, location, stock):
        return stock()

    def restored(self, state, location):
        pass

    def prune(self, location, keep, branch, stock):
        return stock()

    def drain(self, state):
        pass

    def open(self, path):
        return Log()

    def sanitize_tool_name(self, name, max_length=64):
        raise NotImplementedError("left to CrewAI")


class Log:
    def __init__(self):
        self.rows = []

    def add(self, **row):
        self.rows.append(row)

    def update(self, task_index, fields):
        self.rows[task_index].update(fields)

    def load(self):
        return self.rows

    def clear(self):
        self.rows.clear()

    def delete_all(self):
        self.rows.clear()


class Kept:
    def __init__(self):
        self.results = {}

    def add(self, tool, input, output):  # noqa: A002
        self.results[tool, input] = output

    def read(self, tool, input):  # noqa: A002
        return self.results.get((tool, input))


def left_to_crewai(*args, **kwargs):
    raise NotImplementedError


def hook_of(name: str) -> Any:
    """Return an implementation of a slot's hook."""
    special = {
        "memory.storage": lambda spec: None,
        "knowledge.storage": lambda embedder, collection_name: None,
        "flow.persistence": SQLiteFlowPersistence,
        "locks": lambda name, timeout: contextlib.nullcontext(),
        "tools.cache": lambda handler: Kept(),
        "serialization.events": lambda: left_to_crewai,
        "serialization.messages": JsonCodec,
    }
    return special.get(name, Through)


def bound(name: str) -> Binding:
    binding = Binding(Watch(name))
    slots.load(name).bind(binding, Provider(name, "fake-dist", "1.2", frozenset(), hook_of(name)))
    return binding


def servable() -> list[str]:
    """Return the slots that can be bound to this release; on the newest that is all of them."""
    return [n for n in slots.SLOT_NAMES if not _targets.problems(slots.load(n).targets)]


def a_run() -> str:
    @tool("note")
    def note(text: str) -> str:
        """Note."""
        return text.upper()

    llm = ScriptedLLM([ToolCall("note", {"text": "a"}), lambda turn: turn.results[-1]])
    agent = Agent(role="r", goal="g", backstory="b", llm=llm, tools=[note])
    task = Task(description="d", expected_output="e", agent=agent)
    memory = Memory(embedder=HashEmbedder(), llm=ScriptedLLM())
    crew = Crew(agents=[agent], tasks=[task], memory=memory, cache=True)
    result: str = crew.kickoff().raw
    memory.close()
    return result


@pytest.mark.parametrize("name", slots.SLOT_NAMES)
class TestEach:
    def test_its_targets_are_as_they_were_tested(self, name, check_targets):
        slot = slots.load(name)
        assert slot.name == name
        check_targets(slot.targets)
        for repair in slot.repairs:
            check_targets(repair.targets)

    def test_its_hook_is_specified_and_documented(self, name):
        slot = slots.load(name)
        assert getattr(hookspecs, slot.hook).__doc__
        assert slot.describe()["how"]

    def test_what_it_replaces_is_among_its_targets(self, name, check_targets):
        check_targets(slots.load(name).targets)
        targets = {}
        for target in slots.load(name).targets:
            owner, attribute, found = _targets.resolve(target.path)
            targets[owner, attribute] = found
        binding = bound(name)
        replaced = [(c.owner, c.name) for c in binding._changes if _is_crewais(c.owner)]
        values = list(targets.values())
        before = {(c.owner, c.name): c.before for c in binding._changes}
        binding.undo()
        # A function that is known by many names is a target by one of them.
        assert [
            place for place in replaced if place not in targets and before[place] not in values
        ] == []


def _is_crewais(owner: Any) -> bool:
    module = owner.__name__ if hasattr(owner, "__path__") or not isinstance(owner, type) else None
    return (module or owner.__module__).partition(".")[0] in {"crewai", "crewai_core"}


def test_no_two_slots_replace_the_same(serve):
    places = {}
    for name in servable():
        binding = serve(name, hook_of(name))
        places[name] = {(c.owner, c.name) for c in binding._changes}
        # Probing sees CrewAI's code under ours, so a slot can be bound after any other.
        assert _targets.problems(slots.load(name).targets) == []
    for one, other in itertools.combinations(places, 2):
        assert places[one] & places[other] == set(), (one, other)


def test_a_crew_runs_with_all_of_them_and_they_come_off_in_any_order(serve):
    expected = a_run()
    bindings = [serve(name, hook_of(name)) for name in servable()]
    assert a_run() == expected == "A"
    random.Random(5).shuffle(bindings)
    for binding in bindings:
        binding.undo()
    assert a_run() == expected


def test_binding_again_after_undoing_works(serve):
    for _ in range(3):
        bindings = [serve(name, hook_of(name)) for name in servable()]
        for binding in bindings:
            binding.undo()


UNLOADED = """
import crewai, sys
loaded = set(sys.modules)
from crewai_native import slots
waiting = []
for name in slots.SLOT_NAMES:
    for repair in slots.load(name).repairs:
        modules = {target.module for target in repair.targets}
        if (late := modules - loaded - set(repair.imports)) and modules & loaded:
            waiting.append([repair.name, sorted(late)])
answer(waiting)
"""


def test_no_repair_waits_for_a_module_that_only_a_part_of_it_is_about(run):
    # A program may use what is mended and never what that module is for.
    assert run(UNLOADED, CREWAI_NATIVE="0") == []
