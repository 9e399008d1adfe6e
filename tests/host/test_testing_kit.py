"""The kit itself: a model and an embedder that can be relied on, and fixtures that do what they say."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import os
import re
import subprocess
import sys

import pytest
from crewai import Agent, Crew, Task
from crewai.events import crewai_event_bus
from crewai.events.types.llm_events import LLMCallCompletedEvent, LLMCallStartedEvent
from crewai.memory.unified_memory import Memory
from crewai.rag.embeddings.factory import build_embedder
from pydantic import BaseModel

from crewai_native import _discovery
from crewai_native.testing import HashEmbedder, ScriptedLLM, ScriptError, ToolCall
from crewai_native.testing.script import turn_of

REACT = "Use the following format:\nFinal Answer: the final answer"


def cosine(left, right):
    return sum(a * b for a, b in zip(left, right, strict=True))


class TestHashEmbedder:
    @pytest.mark.parametrize("dimension", [1, 2, 7, 256, 3072])
    @pytest.mark.parametrize("text", ["", " ", "!?", "word", "Ünï 🜂 text", "x" * 10_000])
    def test_vectors_have_length_one_and_the_dimension_asked_for(self, dimension, text):
        (vector,) = HashEmbedder(dimension)([text])
        assert len(vector) == dimension
        assert math.hypot(*vector) == pytest.approx(1.0)

    def test_every_process_gives_the_same_vector(self):
        code = (
            "import json\nfrom crewai_native.testing import HashEmbedder\n"
            "print(json.dumps(HashEmbedder(32).embed('the same everywhere')))"
        )
        here = HashEmbedder(32).embed("the same everywhere")
        for seed in ("0", "1"):
            done = subprocess.run(
                [sys.executable, "-c", code],
                env={"PYTHONHASHSEED": seed},
                capture_output=True,
                check=True,
            )
            assert json.loads(done.stdout) == here

    def test_similar_texts_are_near_and_others_far(self):
        embed = HashEmbedder(256).embed
        query = embed("When did the president sign the treaty?")
        near = embed("The president signed the treaty in 1803.")
        far = embed("Whales are mammals that live in oceans.")
        assert cosine(query, near) > 0.5
        assert cosine(query, far) < 0.3

    def test_a_dimension_that_means_nothing(self):
        with pytest.raises(ValueError, match="dimension is 0; it accepts 1 and more"):
            HashEmbedder(0)

    def test_crewai_builds_it_from_its_configuration(self):
        embedder = build_embedder(HashEmbedder(16).config())
        (vector,) = embedder(["text"])
        assert list(vector) == pytest.approx(HashEmbedder(16).embed("text"))


class TestScriptedLLM:
    def test_it_answers_by_turn_and_the_last_answer_repeats(self):
        llm = ScriptedLLM([ToolCall("add", {"a": 1}), "done"])
        history = [{"role": "user", "content": "add"}]
        (call,) = llm.call(history)
        assert call["function"] == {"name": "add", "arguments": '{"a": 1}'}
        for _ in range(2):
            history.append({"role": "assistant", "content": "said"})
            assert llm.call(history) == "done"
        assert [call.turn.number for call in llm.calls] == [0, 1, 2]

    def test_it_speaks_react_where_it_is_asked_to(self):
        llm = ScriptedLLM([ToolCall("add", {"a": 1}), "done"], native=False)
        history = [{"role": "system", "content": REACT}]
        assert llm.call(history).endswith('Action: add\nAction Input: {"a": 1}')
        history.append({"role": "assistant", "content": "…\nObservation: 2"})
        assert llm.call(history).endswith("Final Answer: done")
        assert llm.call("Summarise this") == llm.call("Summarise this")
        assert not llm.supports_function_calling()

    def test_results_of_tools_are_found_in_both_formats(self):
        native = [
            {"role": "user", "content": "add"},
            {"role": "assistant", "content": None, "tool_calls": []},
            {"role": "tool", "content": "3"},
        ]
        react = [
            {"role": "user", "content": [{"type": "text", "text": "add"}]},
            {"role": "assistant", "content": "Action: add\nObservation: 3"},
        ]
        for history in (native, react):
            turn = turn_of(history)
            assert (turn.prompt, turn.number, turn.results) == ("add", 1, ["3"])

    def test_a_script_may_go_by_the_prompt(self):
        llm = ScriptedLLM({"sky": ["blue"], r"gr[ae]ss": "green"})
        assert llm.call("What colour is grass?") == "green"
        with pytest.raises(ScriptError, match=r"nothing for the prompt 'What .* 'sky', 'gr\[ae\]"):
            llm.call("What colour is coal?")

    def test_it_raises_what_the_script_says_and_calls_what_it_names(self):
        llm = ScriptedLLM([KeyError("down"), lambda turn: turn.prompt.upper()])
        history = [{"role": "user", "content": "hello"}]
        with pytest.raises(KeyError, match="down"):
            llm.call(history)
        history.append({"role": "assistant", "content": "x"})
        assert llm.call(history) == "HELLO"

    def test_structures(self):
        class Point(BaseModel):
            x: int

        messages = [{"role": "user", "content": "where"}]
        for structured in (
            {"Point": {"x": 1}},
            {"Point": Point(x=1)},
            {"Point": lambda _: {"x": 1}},
        ):
            llm = ScriptedLLM(structured=structured)
            assert llm.call(messages, response_model=Point) == Point(x=1)
        assert ScriptedLLM('{"x": 1}').call(messages, response_model=Point) == Point(x=1)
        with pytest.raises(ScriptError, match=r"structured=\{'Point': …\}"):
            ScriptedLLM("no JSON").call(messages, response_model=Point)

    def test_a_script_without_steps_is_refused(self):
        with pytest.raises(ScriptError, match="'sky' has no steps"):
            ScriptedLLM({"sky": []})

    def test_awaiting_does_not_block_the_loop(self):
        llm = ScriptedLLM("done", latency=0.05)

        async def both():
            return await asyncio.gather(*(llm.acall("x") for _ in range(20)))

        async def ticks():
            work = asyncio.create_task(both())
            count = itertools.count()
            while not work.done():
                next(count)
                await asyncio.sleep(0)
            return await work, next(count)

        answers, ticked = asyncio.run(ticks())
        assert answers == ["done"] * 20
        assert ticked > 10

    def test_it_tells_crewai_of_its_calls(self):
        seen = []
        with crewai_event_bus.scoped_handlers():
            for event in (LLMCallStartedEvent, LLMCallCompletedEvent):
                crewai_event_bus.on(event)(lambda _, event: seen.append(event.type))
            llm = ScriptedLLM("done")
            llm.call("hello")
            crewai_event_bus.flush()
        assert sorted(seen) == ["llm_call_completed", "llm_call_started"]
        assert llm.get_token_usage_summary().successful_requests == 1

    @pytest.mark.parametrize("native", [True, False])
    def test_a_crew_with_memory_says_the_same_every_time(self, native, tmp_path, monkeypatch):
        monkeypatch.setenv("CREWAI_STORAGE_DIR", str(tmp_path))

        def run():
            llm = ScriptedLLM(
                ["The treaty was signed in 1803. It has twelve articles."], native=native
            )
            memory = Memory(llm=llm, embedder=HashEmbedder(64), storage=str(tmp_path / "store"))
            agent = Agent(role="r", goal="g", backstory="b", llm=llm)
            task = Task(description="d", expected_output="e", agent=agent)
            raw = Crew(agents=[agent], tasks=[task], memory=memory).kickoff().raw
            memory.drain_writes()
            found = memory.recall("How many articles has it?", depth="shallow")
            memory.reset()
            return raw, [(m.record.content, m.record.categories, m.record.scope) for m in found]

        first = run()
        assert first[1][0] == ("It has twelve articles.", ["articles", "twelve"], "/")
        assert len(first[1]) == 2
        assert run() == first


class TestFixtures:
    def test_a_site_is_seen_here_and_in_children(self, site, run):
        site.valid("acme-seen")
        code = "from crewai_native import _discovery\nanswer(sorted(o.name for o in "
        code += "_discovery.offers()[0]['memory.storage']))"
        assert "acme-seen" in run(code)
        assert "acme-seen" in [o.name for o in _discovery.offers()[0]["memory.storage"]]

    @pytest.mark.usefixtures("no_plugins")
    def test_no_plugins_hides_what_is_installed(self, site):
        site.valid("acme-hidden")
        offers, strangers = _discovery.offers()
        assert not any(offers.values())
        assert strangers == []

    def test_a_program_that_fails_fails_the_test(self, run):
        with pytest.raises(pytest.fail.Exception, match="exit status 1"):
            run("raise SystemExit(1)")
        assert run("raise SystemExit(3)", check=False).returncode == 3


BAD = """
import atexit, ctypes, os, threading
from crewai_native import hookimpl
from crewai_native.slots.serialization_messages import JsonCodec

home = os.getpid()
threading.Thread(target=threading.Event().wait, daemon=True).start()

class Codec(JsonCodec):
    def decode(self, data, format="json"):
        return {k: v for k, v in super().decode(data, format).items() if k != "further"}

    def encode_batch(self, messages, format="json"):
        if threading.current_thread() is not threading.main_thread():
            ctypes.PyDLL(None).usleep(2_500_000)  # a PyDLL keeps the GIL
        return super().encode_batch(messages, format)

    def decode_batch(self, data, format="json"):
        return super().decode_batch(data, format) if os.getpid() == home else []

@hookimpl
def crewai_native_serialization_messages():
    atexit.register(os._exit, 3)
    return Codec()

@hookimpl
def crewai_native_features():
    return {"serialization.messages": {"Not Plain"}}
"""


class TestContracts:
    """The kit as a product: told a distribution, it says which rules that one breaks."""

    @pytest.fixture
    def contracts(self, site, tmp_path):
        def contracts(*arguments):
            environment = {k: v for k, v in os.environ.items() if not k.startswith("CREWAI_NATIVE")}
            return subprocess.run(
                [
                    *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rfE"),
                    *("--pyargs", "crewai_native.testing.contract", *arguments),
                ],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )

        return contracts

    @pytest.mark.slow
    def test_a_bad_provider_is_told_by_rule_beside_stock(self, contracts, site):
        site.add("acme-bad", BAD, slots=["serialization.messages"])
        ended = contracts("--provider", "Acme_Bad")
        table = ended.stdout.partition("= contracts =")[2]
        rows = dict(re.findall(r"^  (\S.*?)  +((?:kept|-|FAILED)  .*)$", table, re.MULTILINE))
        outcomes = {rule: row.split() for rule, row in rows.items()}
        assert {rule for rule, (stock, _) in outcomes.items() if stock == "FAILED"} == set()
        assert {rule for rule, (_, bad) in outcomes.items() if bad == "FAILED"} == {
            "its features are plain words",
            "importing it starts nothing",
            "a process that bound it can fork",
            "a process that used it can fork",
            "other threads run while it works or waits",
            "the process ends as its program does",
            "messages come back equal in every format",
        }
        assert outcomes["importing it is cheap"] == ["-", "kept"]
        assert outcomes["threads can use it at once"] == ["kept", "kept"]
        assert "memory.storage" not in table

    def test_a_provider_that_is_not_there_is_refused(self, contracts):
        ended = contracts("--provider", "acme-nobody")
        assert ended.returncode == 4
        assert "--provider is 'acme-nobody', which serves no slot here; it accepts " in ended.stderr
