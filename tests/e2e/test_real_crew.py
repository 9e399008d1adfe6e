"""A real CrewAI, of any supported release, with sound and with every bad kind of plug-in installed."""

from __future__ import annotations

import pytest

from crewai_native.slots import SLOT_NAMES

pytestmark = pytest.mark.matrix

OFFICIAL = ("memory.storage", "knowledge.storage", "flow.persistence", "locks")
BAD = {
    "broken": ("broken", "acme is broken"),
    "exiting": ("broken", "SystemExit"),
    "aborting": ("broken", "SIGABRT"),
    "hanging": ("broken", "did not end within"),
    "wrong_range": ("incompatible", "installed is"),
    "missing_hook": ("broken", "implements no"),
    "bad_signature": ("broken", "moon"),
    "declining": ("declined", "no GPU here"),
}


def test_binding_every_slot_and_taking_all_back_leaves_crewai_as_it_was(site, run):
    site.valid(slots=SLOT_NAMES)
    code = """
    import crewai, crewai_native
    from crewai_native import slots
    from crewai_native.testing.contract.rules import standing, targets_of

    slot_names = %r
    chosen = {name: "acme-valid" for name in slot_names}
    crewai_native.deactivate()
    targets = [target for name in slot_names for target in targets_of(name)]
    before = standing(targets)
    changed, left = [], []
    for _ in range(2):
        status = crewai_native.activate(slots=chosen)
        now = standing(targets)
        changed.append([path for path in before if now[path] is not before[path]])
        crewai_native.deactivate()
        now = standing(targets)
        left.append([path for path in before if now[path] is not before[path]])
    answer([len(before), changed, left, [
        [slot.slot, slot.state, [[c.state, c.reason] for c in slot.candidates
                                 if c.distribution == "acme-valid"][0]]
        for slot in status.slots]])
    """
    known, (first, second), left, slots = run(code % (list(SLOT_NAMES),))
    assert left == [[], []]
    assert first == second
    assert len(first) >= len(OFFICIAL)
    assert known > len(SLOT_NAMES)
    for slot, state, (candidate, reason) in slots:
        assert "\n" not in reason
        if slot in OFFICIAL:
            assert (slot, state) == (slot, "bound"), reason
        else:
            assert candidate in {"bound", "target-changed", "incompatible"}, (slot, reason)


def test_a_crew_with_memory_runs_whatever_is_installed(site, run):
    dists = {kind: getattr(site, kind)() for kind in BAD}
    site.wrong_contract()
    code = """
    from crewai import Agent, Crew, Task
    from crewai.memory.unified_memory import Memory
    from crewai.tools import tool
    import crewai_native
    from crewai_native.testing import HashEmbedder, ScriptedLLM, ToolCall

    @tool
    def add(a: int, b: int) -> int:
        "Add two numbers."
        return a + b

    answers = []
    for native in (True, False):
        say = lambda turn: f"The sum of the two numbers is {turn.results[-1]}."
        llm = ScriptedLLM([ToolCall("add", {"a": 1, "b": 2}), say], native=native)
        memory = Memory(llm=llm, embedder=HashEmbedder(64))
        agent = Agent(role="r", goal="g", backstory="b", llm=llm, tools=[add])
        task = Task(description="Add them up", expected_output="a number", agent=agent)
        raw = Crew(agents=[agent], tasks=[task], memory=memory).kickoff().raw
        memory.drain_writes()
        found = [m.record.content for m in memory.recall("sum of the numbers", depth="shallow")]
        answers.append([raw, found[0]])
        memory.reset()
    answer([answers, crewai_native.status().as_json()])
    """
    answers, status = run(code, CREWAI_NATIVE_PROBE_TIMEOUT="5")
    assert answers == [["The sum of the two numbers is 3."] * 2] * 2
    slot = next(slot for slot in status["slots"] if slot["slot"] == "memory.storage")
    assert slot["provider"] in {"crewai-native-memory", "stock"}
    candidates = {c["distribution"]: c for c in [*slot["candidates"], *status["strangers"]]}
    for kind, (state, reason) in BAD.items():
        candidate = candidates[dists[kind].name]
        assert (kind, candidate["state"]) == (kind, state)
        assert reason in candidate["reason"]
    assert "contract 2" in candidates["acme-future"]["reason"]
