"""Many kickoffs at once: order, errors, limits, cancellation, and what must not get mixed up."""

from __future__ import annotations

import asyncio
import collections
import copy
import ctypes
import functools
import gc
import itertools
import logging
import threading
import time
import warnings
import weakref
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

import crewai_native
from crewai_native.testing import ScriptedLLM, ToolCall

with warnings.catch_warnings():
    # What CrewAI's dependencies say while they are imported is not what is tested here.
    warnings.simplefilter("ignore")
    from crewai import Agent, Crew, Task
    from crewai.events import crewai_event_bus
    from crewai.events.types.crew_events import CrewKickoffCompletedEvent, CrewKickoffStartedEvent
    from crewai.events.types.llm_events import LLMCallCompletedEvent
    from crewai.flow.flow import Flow, start
    from crewai.project import CrewBase, agent, crew, task
    from crewai.tools import tool

import crewai_native_tasks
from crewai_native_tasks import (
    Cancelled,
    ItemState,
    aimap_crew,
    amap_crew,
    batch_floor,
    cancel_scope,
    imap_crew,
    map_crew,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FOREVER = 60.0
DONE, FAILED, CANCELLED = ItemState.DONE, ItemState.FAILED, ItemState.CANCELLED
PENDING, TIMED_OUT = ItemState.PENDING, ItemState.TIMED_OUT


@pytest.fixture(autouse=True, scope="module")
def bound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CREWAI_STORAGE_DIR", str(tmp_path_factory.mktemp("crewai")))
        crewai_native.activate(enabled=True)
        yield
        crewai_native.deactivate()


@pytest.fixture
def one_slot() -> Iterator[None]:
    batch_floor.configure(1)
    yield
    batch_floor.configure(batch_floor.SLOTS)


class Doing:
    """In place of a crew, where it matters how kickoffs are run and not what they do."""

    usage_metrics = None

    def __init__(self, do: Callable[..., Any]) -> None:
        self.do = do

    def __call__(self) -> Doing:
        return self

    def kickoff(self, inputs: dict[str, Any]) -> Any:
        return self.do(**inputs)


class Foreign:
    """Code that can be waited for and let go."""

    def __init__(self) -> None:
        self.inside, self.go = threading.Semaphore(0), threading.Event()

    def __call__(self, **_: Any) -> str:
        self.inside.release()
        assert self.go.wait(FOREVER)
        return "back"


@pytest.fixture
def foreign() -> Iterator[Foreign]:
    made = Foreign()
    yield made
    made.go.set()


def numbers(count: int) -> list[dict[str, Any]]:
    return [{"n": n} for n in range(count)]


def topic(turn: Any) -> str:
    return str(turn.prompt.partition("about ")[2].split()[0])


def crew_about(script: Any = None, tools: Any = (), tasks: int = 1, **options: Any) -> Crew:
    agent = Agent(
        role="worker",
        goal="work",
        backstory="works",
        llm=ScriptedLLM(script or [topic]),
        tools=list(tools),
    )
    work = [
        Task(description=f"task {n} about {{topic}} ", expected_output="words", agent=agent)
        for n in range(tasks)
    ]
    return Crew(agents=[agent], tasks=work, **options)


@CrewBase
class Painters:
    agents_config: ClassVar[dict[str, Any]] = {}
    tasks_config: ClassVar[dict[str, Any]] = {}
    model = ScriptedLLM([topic], latency=0.01)

    @agent
    def painter(self) -> Agent:
        return Agent(role="painter of {topic}", goal="paint", backstory="paints", llm=self.model)

    @task
    def paint(self) -> Task:
        return Task(
            description="paint, about {topic} ", expected_output="a picture", agent=self.painter()
        )

    @crew
    def crew(self) -> Crew:
        return Crew(agents=self.agents, tasks=self.tasks)


def refuse_t1(output: Any) -> None:
    if output.raw == "t1":
        raise RuntimeError("callback")


class TestItems:
    def test_they_come_in_the_order_of_the_inputs_and_as_they_end(self, foreign: Foreign) -> None:
        def do(n: int) -> int:
            return n or (foreign() and n)

        batch = imap_crew(Doing(do), numbers(4), concurrency=4)
        ended = [next(batch).index for _ in range(3)]
        assert sorted(ended) == [1, 2, 3]
        foreign.go.set()
        assert [item.index for item in batch] == [0]
        assert map_crew(Doing(do), numbers(9), concurrency=4).outputs == list(range(9))

    def test_each_kickoff_gets_a_crew_of_its_own_and_counts_its_own_tokens(self) -> None:
        crew = crew_about()
        inputs = [{"topic": f"t{n}"} for n in range(5)]
        result = map_crew(crew, inputs, concurrency=3)
        assert [output.raw for output in result.outputs] == ["t0", "t1", "t2", "t3", "t4"]
        assert [item.usage.successful_requests for item in result] == [1] * 5
        assert result.usage.successful_requests == 5
        assert result.usage.total_tokens == sum(item.usage.total_tokens for item in result) > 0
        assert crew.tasks[0].output is None
        assert inputs == [{"topic": f"t{n}"} for n in range(5)]

    def test_and_so_do_crews_that_share_a_model(self) -> None:
        model = ScriptedLLM([topic], latency=0.005)
        together = threading.Barrier(3)

        def made(*, meet: bool = True) -> Crew:
            worker = Agent(role="worker", goal="work", backstory="works", llm=model)
            work = Task(description="about {topic} ", expected_output="words", agent=worker)
            if meet:
                work.callback = lambda _: together.wait(FOREVER)
            return Crew(agents=[worker], tasks=[work])

        inputs = [{"topic": f"t{n}"} for n in range(6)]
        result = map_crew(made, inputs, concurrency=3)
        assert [item.usage.successful_requests for item in result] == [1] * 6
        assert [item.output.token_usage for item in result] == [item.usage for item in result]
        whole = model.get_token_usage_summary()
        assert whole.total_tokens == result.usage.total_tokens
        assert whole.successful_requests == 6
        again = copy.deepcopy(model._token_usage)
        assert (type(again), again) == (dict, {**model._token_usage})
        # Copies of such a crew, too.
        assert map_crew(made(meet=False), inputs[:2]).usage.successful_requests == 2
        assert model.get_token_usage_summary().successful_requests == 8

    # As `kickoff_for_each` warns of such a crew's own callbacks.
    @pytest.mark.filterwarnings("ignore:function callbacks cannot be serialized")
    @pytest.mark.parametrize(
        "target", [Painters, Painters(), Painters().crew, Painters().crew()], ids=repr
    )
    def test_kickoffs_of_a_crews_class_share_nothing(self, target: Any) -> None:
        inputs = [{"topic": f"t{n}"} for n in range(24)]
        result = map_crew(target, inputs, concurrency=6)
        assert [output.raw for output in result.outputs] == [f"t{n}" for n in range(24)]
        assert [item.usage.successful_requests for item in result] == [1] * 24

    def test_an_earlier_kickoff_of_a_crew_leaves_no_trace(self) -> None:
        crew = crew_about()
        crew.agents[0].role = "worker on {topic}"
        assert crew.kickoff({"topic": "old"}).raw == "old"
        assert [item.output.raw for item in map_crew(crew, [{"topic": "new"}])] == ["new"]

    def test_a_function_whose_crews_share_agents_is_named(self) -> None:
        others = threading.Semaphore(0)

        def wait(turn: Any) -> str:
            assert others.acquire(timeout=FOREVER)
            return topic(turn)

        crew = crew_about([wait])
        inputs = [{"topic": f"t{n}"} for n in range(3)]

        def made() -> Crew:
            return Crew(agents=crew.agents, tasks=crew.tasks)

        batch = imap_crew(made, inputs, concurrency=3, on_error="collect")
        for _ in range(2):
            assert "made returned a crew that shares" in str(next(batch).error)
        others.release(4)
        assert next(batch).state is DONE
        result = map_crew(made, inputs, concurrency=1)
        assert [output.raw for output in result.outputs] == ["t0", "t1", "t2"]

    def test_an_error_in_the_middle_of_a_thousand_costs_one(self) -> None:
        def do(n: int) -> int:
            if n == 500:
                raise KeyError(n)
            return n

        result = map_crew(Doing(do), numbers(1000), concurrency=16, on_error="collect")
        assert [item.index for item in result.failed] == [500]
        assert isinstance(result[500].error, KeyError)
        assert result.outputs[499:502] == [499, None, 501]

    def test_raise_raises_the_first_and_cancels_the_rest(self, foreign: Foreign) -> None:
        def do(n: int) -> str:
            if n == 2:
                foreign.inside.acquire()
                foreign.inside.acquire()
                raise KeyError(n)
            return foreign()

        with pytest.raises(KeyError):
            map_crew(Doing(do), numbers(9), concurrency=3)

    def test_stop_lets_those_end_that_run(self, foreign: Foreign) -> None:
        def do(n: int) -> str:
            if n == 1:
                raise KeyError(n)
            return foreign()

        batch = imap_crew(Doing(do), numbers(9), concurrency=2, on_error="stop")
        failed = next(batch)
        assert (failed.index, failed.state) == (1, FAILED)
        foreign.go.set()
        rest = {item.index: item.state for item in batch}
        assert rest[0] is DONE
        assert set(rest.values()) <= {DONE, PENDING}
        assert PENDING in rest.values()

    def test_a_list_of_inputs_has_an_item_for_each(self) -> None:
        def do(n: int) -> int:
            return 1 // n

        result = map_crew(Doing(do), numbers(50), concurrency=1, on_error="stop")
        assert [item.state for item in result][:1] == [FAILED]
        assert [item.index for item in result] == list(range(50))
        assert result[49].state is PENDING
        assert result[49].attempts == 0

    def test_what_fails_is_tried_again(self) -> None:
        tries: collections.Counter[int] = collections.Counter()

        def do(n: int) -> int:
            tries[n] += 1
            if tries[n] <= n:
                raise ValueError(tries[n])
            return n

        result = map_crew(Doing(do), numbers(4), retries=2, on_error="collect", concurrency=2)
        assert [item.state for item in result] == [DONE, DONE, DONE, FAILED]
        assert [item.attempts for item in result] == [1, 2, 3, 3]

    def test_and_gets_the_inputs_as_they_were(self) -> None:
        lock, seen = threading.Lock(), []

        def do(items: list[int], guard: Any) -> None:
            items.append(1)
            seen.append((list(items), guard is lock))
            raise ValueError

        map_crew(Doing(do), [{"items": [], "guard": lock}], retries=2, on_error="collect")
        assert seen == [([1], True)] * 3

    @pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
    def test_whatever_is_raised_is_the_items(self, error: BaseException) -> None:
        def do(n: int) -> int:
            if n == 1:
                raise error
            return n

        result = map_crew(Doing(do), numbers(3), on_error="collect", concurrency=1)
        assert [item.state for item in result] == [DONE, FAILED, DONE]
        assert result[1].error is error

    def test_what_takes_too_long_is_left_behind(self, foreign: Foreign) -> None:
        def do(n: int) -> Any:
            return foreign() if n == 1 else n

        result = map_crew(
            Doing(do), numbers(4), timeout=0.3, concurrency=1, on_error="collect", retries=1
        )
        assert [item.state for item in result] == [DONE, TIMED_OUT, DONE, DONE]
        assert result[1].attempts == 2
        with pytest.raises(TimeoutError, match=r"item 1 took longer than 0\.3 seconds"):
            raise result[1].error

    def test_an_error_of_a_callback_is_the_items(self) -> None:
        crew = crew_about()
        crew.tasks[0].callback = refuse_t1
        result = map_crew(crew, [{"topic": f"t{n}"} for n in range(3)], on_error="collect")
        assert [item.state for item in result] == [DONE, FAILED, DONE]
        assert "callback" in str(result[1].error)

    def test_flows_run_too(self) -> None:
        class Double(Flow):
            @start()
            def double(self) -> int:
                return int(self.state["n"]) * 2

        for target in (Double, Double(), functools.partial(Double)):
            assert map_crew(target, numbers(3)).outputs == [0, 2, 4]

    def test_those_like_a_flow_have_its_state(self) -> None:
        class Count(Flow):
            def __init__(self, **fields: Any) -> None:
                super().__init__(**fields)
                self.lock, self.seen, self.made = threading.Lock(), [], time.perf_counter()

            @start()
            def count(self) -> Any:
                self.seen.append(self.state["n"])
                self.state["known"].append(self.state["n"])
                return self.state["known"], self.seen

        flow = Count()
        flow.state["known"] = [9]
        result = map_crew(flow, numbers(3))
        assert result.outputs == [([9, n], [n]) for n in range(3)]
        assert flow.state["known"] == [9]

        class Known(BaseModel):
            n: int = 0
            known: int = 0

        class Typed(Flow[Known]):
            @start()
            def add(self) -> Any:
                return self.state.n + self.state.known, self.flow_id

        typed = Typed()
        typed.state.known = 5
        outputs = map_crew(typed, numbers(3)).outputs
        assert [total for total, _ in outputs] == [5, 6, 7]
        assert len({typed.flow_id, *(flow_id for _, flow_id in outputs)}) == 4

    def test_or_are_refused_where_they_would_lack_something(self) -> None:
        class Given(Flow):
            def __init__(self, client: Any = None, **fields: Any) -> None:
                super().__init__(**fields)
                self.client = client

            @start()
            def ask(self) -> Any:
                return self.client

        class Needing(Flow):
            def __init__(self, client: Any) -> None:
                super().__init__()
                self.client = client

            @start()
            def ask(self) -> Any:
                return self.client

        with pytest.raises(TypeError, match=r"Given has another client than .* a function"):
            map_crew(Given("one"), numbers(1))
        with pytest.raises(TypeError, match=r"Needing cannot be made like another .* a function"):
            map_crew(Needing("one"), numbers(1))
        assert map_crew(lambda: Needing("one"), numbers(2)).outputs == ["one"] * 2
        assert map_crew(Given(), numbers(2)).outputs == [None] * 2


class TestInputs:
    def test_none_is_one_like_others(self) -> None:
        crew = crew_about("Done.")
        crew.tasks[0].description = "task about nothing "
        result = map_crew(crew, [None, {}, None])
        assert [output.raw for output in result.outputs] == ["Done."] * 3

    def test_what_is_none_is_crewais_to_refuse(self) -> None:
        result = map_crew(crew_about(), [{"topic": "t0"}, "abc", 5], on_error="collect")
        assert [item.state for item in result] == [DONE, FAILED, FAILED]
        assert str(result[1].error) == "inputs must be a dict or Mapping, got str"
        assert str(result[2].error) == "inputs must be a dict or Mapping, got int"

    def test_they_are_taken_as_there_is_room(self) -> None:
        taken = []

        def inputs() -> Iterator[dict[str, Any]]:
            for n in itertools.count():
                taken.append(n)
                yield {"n": n}

        batch = imap_crew(Doing(lambda n: n), inputs(), concurrency=3)
        for given_out in range(1, 200):
            next(batch)
            # Twice the concurrency may be out at a time.
            assert len(taken) <= given_out + 6
        batch.close()

    def test_they_are_taken_on_the_callers_thread(self) -> None:
        def inputs() -> Iterator[dict[str, Any]]:
            for _ in range(20):
                yield {"n": threading.get_ident()}

        result = map_crew(Doing(lambda n: n), inputs())
        assert set(result.outputs) == {threading.get_ident()}

    def test_their_error_comes_after_what_has_begun(self) -> None:
        def inputs() -> Iterator[dict[str, Any]]:
            yield from numbers(3)
            raise LookupError("no more")

        batch = imap_crew(Doing(lambda n: n), inputs(), concurrency=2)
        given_out = []
        with pytest.raises(LookupError, match="no more"):
            given_out.extend(item.index for item in batch)
        assert len(given_out) == 0 or sorted(given_out) == [0, 1, 2]

    def test_nothing_of_finished_items_is_kept(self) -> None:
        class Output:
            pass

        seen: list[weakref.ref[Output]] = []

        def do(n: int) -> Output:
            output = Output()
            seen.append(weakref.ref(output))
            return output

        batch = imap_crew(Doing(do), numbers(300), concurrency=4)
        for _ in batch:
            pass
        del _
        gc.collect()
        assert sum(ref() is not None for ref in seen) == 0

    def test_options_that_mean_nothing_are_named(self) -> None:
        inputs = numbers(1)
        for options, message in (
            ({"concurrency": 0}, "concurrency is 0"),
            ({"concurrency": (5, 2)}, r"concurrency is \(5, 2\)"),
            ({"on_error": "shrug"}, "on_error is 'shrug'; it accepts raise, collect or stop"),
            ({"timeout": 0}, "timeout is 0"),
            ({"concurrency": (1, 2, 3)}, r"concurrency is \(1, 2, 3\)"),
            ({"concurrency": "4"}, "concurrency is '4'"),
            ({"timeout": "5"}, "timeout is '5'; it accepts seconds above 0"),
            ({"timeout": True}, "timeout is True"),
            ({"timeout": float("inf")}, "timeout is inf"),
            ({"priority": "x"}, "priority is 'x'"),
            ({"priority": 2**70}, "priority is 1180591620717411303424"),
            ({"retries": -1}, "retries is -1"),
            ({"retries": None}, "retries is None; it accepts a number from 0"),
            ({"retries": 1.5}, "retries is 1.5"),
            ({"resume": ""}, "resume is empty"),
            ({"engine": "cluster"}, "engine is 'cluster'; it accepts .*local"),
        ):
            with pytest.raises(ValueError, match=message):
                map_crew(Doing(lambda n: n), inputs, **options)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"a batch runs a Crew.*this is a int"):
            map_crew(3, inputs)


OUTCOMES = st.lists(st.sampled_from(["good", "bad", "late good"]), max_size=12)


@settings(max_examples=40, deadline=None)
@given(
    outcomes=OUTCOMES,
    concurrency=st.integers(1, 5),
    retries=st.integers(0, 2),
    on_error=st.sampled_from(["raise", "collect", "stop"]),
)
def test_a_batch_does_what_a_loop_does(
    outcomes: list[str], concurrency: int, retries: int, on_error: Any
) -> None:
    tries: collections.Counter[int] = collections.Counter()

    def do(n: int) -> int:
        tries[n] += 1
        if outcomes[n] == "bad" or (outcomes[n] == "late good" and tries[n] == 1):
            raise ValueError(n)
        return n

    expected = [
        DONE if outcome == "good" or (outcome == "late good" and retries) else FAILED
        for outcome in outcomes
    ]
    inputs = numbers(len(outcomes))
    call = {"concurrency": concurrency, "retries": retries, "on_error": on_error}
    if on_error == "raise" and FAILED in expected:
        with pytest.raises(ValueError):  # noqa: PT011 - its number depends on who comes first
            map_crew(Doing(do), inputs, **call)
        return
    states = [item.state for item in map_crew(Doing(do), inputs, **call)]
    if on_error == "stop" and FAILED in expected:
        assert FAILED in states
        assert all(
            state in {wanted, PENDING} for state, wanted in zip(states, expected, strict=True)
        )
    else:
        assert states == expected
        assert all(tries[n] <= retries + 1 for n in tries)


class TestConcurrency:
    def test_no_more_run_at_a_time_than_may(self) -> None:
        lock, now, most = threading.Lock(), 0, 0

        def do(n: int) -> None:
            nonlocal now, most
            with lock:
                now += 1
                most = max(most, now)
            time.sleep(0.001)
            with lock:
                now -= 1

        map_crew(Doing(do), numbers(60), concurrency=5)
        assert 1 <= most <= 5

    def test_batches_within_batches_do_not_wait_for_each_other(self, one_slot: None) -> None:
        def inner(n: int) -> int:
            return sum(map_crew(Doing(lambda n: n), numbers(n), concurrency=2).outputs)

        def outer(n: int) -> int:
            return sum(map_crew(Doing(inner), numbers(n), concurrency=2).outputs)

        assert map_crew(Doing(outer), numbers(5), concurrency=3).outputs == [0, 0, 0, 1, 4]

    def test_nor_does_a_batch_in_a_tool_in_a_batch(self, one_slot: None) -> None:
        inner = crew_about()

        @tool("ask")
        def ask(text: str) -> str:
            """Ask."""
            result = map_crew(inner, [{"topic": f"{text}{n}"} for n in range(2)], concurrency=1)
            return "+".join(output.raw for output in result.outputs)

        two = [ToolCall("ask", {"text": "a"}), ToolCall("ask", {"text": "b"})]
        outer = crew_about([two, lambda turn: " ".join(turn.results)], tools=[ask])
        result = map_crew(outer, [{"topic": f"t{n}"} for n in range(3)], concurrency=2)
        assert [output.raw for output in result.outputs] == ["a0+a1 b0+b1"] * 3

    def test_nor_does_one_that_is_awaited(self, one_slot: None) -> None:
        def outer(n: int) -> list[int]:
            result = asyncio.run(amap_crew(Doing(lambda n: n), numbers(n), concurrency=2))
            return result.outputs

        assert map_crew(Doing(outer), numbers(3), concurrency=3).outputs == [[], [0], [0, 1]]

    def test_the_higher_priority_goes_first(self, one_slot: None, foreign: Foreign) -> None:
        order: list[str] = []
        holding = imap_crew(Doing(foreign), numbers(1))
        holder = threading.Thread(target=lambda: list(holding))
        holder.start()
        foreign.inside.acquire()

        def worked(name: str, priority: int) -> threading.Thread:
            def run() -> None:
                map_crew(Doing(lambda n: order.append(name)), numbers(2), priority=priority)

            thread = threading.Thread(target=run)
            thread.start()
            return thread

        low = worked("low", 0)
        deadline = time.monotonic() + FOREVER
        while len(batch_floor.hall()._batches) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        high = worked("high", 9)
        while len(batch_floor.hall()._batches) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        foreign.go.set()
        for thread in (low, high, holder):
            thread.join(FOREVER)
        assert order.index("high") < order.index("low") or order[0] == "low"
        assert sorted(order) == ["high", "high", "low", "low"]

    def test_it_adapts_to_models_that_refuse(self) -> None:
        answers = itertools.count()

        def say(turn: Any) -> str:
            if next(answers) in {30, 31}:
                raise RuntimeError("429 too many requests")
            return topic(turn)

        crew = crew_about([say])
        batch = imap_crew(
            crew, [{"topic": f"t{n}"} for n in range(40)], concurrency=(2, 32), on_error="collect"
        )
        widest = narrowest = 2
        for item in batch:
            assert item.state is DONE
            window = batch._run._floor.counts(batch._run.number)[4]
            if window < widest:
                narrowest = window
            widest = max(widest, window)
        assert widest > 4
        assert narrowest < widest

    def test_a_crews_max_rpm_is_that_of_all_its_copies(self) -> None:
        crew = crew_about(max_rpm=2)
        batch = imap_crew(crew, [{"topic": f"t{n}"} for n in range(5)], concurrency=5)
        assert [next(batch).state for _ in range(2)] == [DONE, DONE]
        # The others wait for the next minute.
        left = batch.cancel()
        assert left == []
        assert {item.state for item in batch} == {CANCELLED}


class TestCancelling:
    def test_what_has_not_ended_comes_out_as_cancelled(self, foreign: Foreign) -> None:
        def do(n: int) -> Any:
            return foreign() if n else n

        batch = imap_crew(Doing(do), numbers(9), concurrency=3)
        assert next(batch).state is DONE
        for _ in range(3):
            foreign.inside.acquire()
        batch.cancel()
        rest = list(batch)
        # Those at work, and those taken ahead.
        assert 3 <= len(rest) <= 8
        assert {item.state for item in rest} == {CANCELLED}
        assert batch.counts[DONE] == 1

    def test_from_another_thread_while_it_is_waited_for(self, foreign: Foreign) -> None:
        crew = crew_about([lambda _: foreign()], tasks=2)
        batch = imap_crew(crew, [{"topic": "a"}, {"topic": "b"}], concurrency=2)
        left: list[Any] = []

        def cancel() -> None:
            foreign.inside.acquire()
            foreign.inside.acquire()
            left.extend(batch.cancel())

        canceller = threading.Thread(target=cancel)
        canceller.start()
        assert [item.state for item in batch] == [CANCELLED] * 2
        canceller.join(FOREVER)
        assert [place.what for place in left] == ["model call"] * 2
        calls = len(crew.agents[0].llm.calls)
        foreign.go.set()
        assert calls == 0

    def test_a_crew_that_has_only_just_been_made_is_not_kicked_off(self) -> None:
        kicked: list[int] = []

        def kick(n: int) -> None:
            kicked.append(n)

        def make() -> Doing:
            canceller.start()
            deadline = time.monotonic() + FOREVER
            while not batch._run.scope.ended and time.monotonic() < deadline:
                time.sleep(0.001)
            return Doing(kick)

        batch = imap_crew(make, numbers(1))
        canceller = threading.Thread(target=batch.cancel)
        assert [item.state for item in batch] == [CANCELLED]
        canceller.join(FOREVER)
        assert not kicked

    def test_a_scope_around_ends_it(self, foreign: Foreign) -> None:
        scope = cancel_scope()

        def do(n: int) -> None:
            scope.cancel()

        with pytest.raises(Cancelled), scope:
            map_crew(Doing(do), numbers(9), concurrency=2)

    def test_a_batch_that_nobody_reads_any_more_ends(self, foreign: Foreign) -> None:
        batch = imap_crew(Doing(foreign), numbers(50), concurrency=2)
        reader = threading.Thread(target=next, args=(batch, None), daemon=True)
        reader.start()
        foreign.inside.acquire()
        run = weakref.ref(batch._run)
        batch.close()
        reader.join(FOREVER)
        foreign.go.set()
        del batch, reader
        deadline = time.monotonic() + FOREVER
        while run() is not None and time.monotonic() < deadline:
            gc.collect()
            time.sleep(0.01)
        assert run() is None


class TestAwaiting:
    async def test_the_loop_goes_on_meanwhile(self, foreign: Foreign) -> None:
        batch = aimap_crew(Doing(lambda n: n or foreign()), numbers(3), concurrency=3)
        first = [(await anext(batch)).index for _ in range(2)]
        assert sorted(first) == [1, 2]
        foreign.go.set()
        assert [item.output async for item in batch] == ["back"]
        result = await amap_crew(Doing(lambda n: n), numbers(20))
        assert result.outputs == list(range(20))

    async def test_a_cancelled_task_cancels_the_batch(self, foreign: Foreign) -> None:
        task = asyncio.create_task(amap_crew(Doing(foreign), numbers(9), concurrency=2))
        await asyncio.to_thread(foreign.inside.acquire)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    def test_a_loop_that_is_closed_ends_the_batch(self, foreign: Foreign) -> None:
        begun: list[int] = []

        def do(n: int) -> Any:
            begun.append(n)
            return foreign()

        batch = aimap_crew(Doing(do), numbers(9), concurrency=1)

        loop = asyncio.new_event_loop()
        asking = loop.create_task(batch.__anext__())
        asking._log_destroy_pending = False  # type: ignore[attr-defined]
        loop.run_until_complete(asyncio.sleep(0))
        loop.run_until_complete(asyncio.sleep(0.2))
        assert foreign.inside.acquire(timeout=FOREVER)
        asking.cancel()
        loop.close()
        foreign.go.set()
        run = batch._run
        assert run is not None
        deadline = time.monotonic() + FOREVER
        while run.number in batch_floor.hall()._batches and time.monotonic() < deadline:
            time.sleep(0.01)
        # The task still waits, and may be kept by what the collector leaves alone.
        assert run.number not in batch_floor.hall()._batches
        assert run.scope.ended
        assert asking in asyncio.all_tasks(loop)
        # The next one may have begun just before its end could be told of to a loop that is closed.
        assert begun in ([0], [0, 1])

    def test_it_can_be_cancelled_when_its_loop_has_been_closed(self, foreign: Foreign) -> None:
        batch = aimap_crew(Doing(lambda n: n or foreign()), numbers(9), concurrency=2)
        loop = asyncio.new_event_loop()
        assert loop.run_until_complete(anext(batch)).index == 1
        loop.close()
        batch.cancel()
        assert batch._run is not None
        assert batch._run.scope.ended
        assert batch._run.number not in batch_floor.hall()._batches

    def test_a_closed_loop_is_not_replaced_by_another(self, foreign: Foreign) -> None:
        batch = aimap_crew(Doing(lambda n: n or foreign()), numbers(2), concurrency=2)
        # Without `asyncio.run`, which would have the batch closed.
        loop = asyncio.new_event_loop()
        assert loop.run_until_complete(anext(batch)).index == 1
        loop.close()
        with pytest.raises(RuntimeError, match="another event loop"):
            asyncio.run(batch.__anext__())


class TestThreads:
    def test_an_attempt_whose_thread_is_ended_from_outside_fails(self) -> None:
        threads: dict[int, int] = {}
        begun = threading.Event()

        def do(n: int) -> int:
            if n == 1:
                threads[n] = threading.get_ident()
                begun.set()
                deadline = time.monotonic() + FOREVER
                while time.monotonic() < deadline:
                    time.sleep(0.001)
            return n

        def kill() -> None:
            begun.wait(FOREVER)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(threads[1]), ctypes.py_object(SystemExit)
            )

        killer = threading.Thread(target=kill)
        killer.start()
        result = map_crew(Doing(do), numbers(3), on_error="collect", concurrency=2)
        killer.join(FOREVER)
        assert [item.state for item in result] == [DONE, FAILED, DONE]

    def test_a_thread_that_dies_between_two_lines_of_ours_fails_its_item(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from crewai_native_tasks.batch_run import Run

        attempt = Run._attempt

        def dying(self: Run, job: Any, ticket: int) -> None:
            if job.index == 1:
                raise SystemExit
            attempt(self, job, ticket)

        died = threading.Event()
        monkeypatch.setattr(threading, "excepthook", lambda _: died.set())
        monkeypatch.setattr(Run, "_attempt", dying)
        result = map_crew(Doing(lambda n: n), numbers(3), on_error="collect", concurrency=1)
        assert [item.state for item in result] == [DONE, FAILED, DONE]
        assert "has died" in str(result[1].error)
        assert died.wait(FOREVER)


def set_aside() -> bool:
    """Whether more is frozen than the few objects that Python 3.12 freezes by itself."""
    return gc.get_freeze_count() > 1000


class TestCollector:
    """What was there before a batch is none of the collector's business until it is over."""

    @pytest.fixture(autouse=True)
    def nothing_aside(self) -> Iterator[None]:
        gc.collect()
        assert not set_aside()
        yield
        gc.unfreeze()

    def test_the_heap_is_set_aside_while_any_batch_runs(self) -> None:
        def counting(n: int) -> bool:
            return set_aside()

        with imap_crew(Doing(counting), numbers(3), concurrency=1) as outer:
            assert next(outer).output
            assert all(map_crew(Doing(counting), numbers(2)).outputs)
            assert set_aside()
            assert all(item.output for item in outer)
        assert not set_aside()

    def test_it_is_taken_back_where_a_batch_fails_is_left_or_is_forgotten(self) -> None:
        def fail(n: int) -> None:
            raise ValueError(n)

        with pytest.raises(ValueError, match="0"):
            map_crew(Doing(fail), numbers(1))
        assert not set_aside()
        with imap_crew(Doing(lambda n: n), numbers(3)) as left:
            next(left)
        assert not set_aside()
        forgotten = imap_crew(Doing(lambda n: n), numbers(3))
        next(forgotten)
        del forgotten
        gc.collect()
        assert not set_aside()

    def test_a_batch_that_is_forgotten_with_what_was_there_before_is_found(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Holder:
            batch: Any

            def __init__(self) -> None:
                self.me = self

        monkeypatch.setattr(batch_floor, "_PATIENCE", 0.01)
        # A floor of its own, whose threads have that patience.
        monkeypatch.setattr(batch_floor, "_hall", batch_floor.Hall(2))
        holder = Holder()
        holder.batch = imap_crew(Doing(lambda n: n), numbers(9), concurrency=1)
        next(holder.batch)
        run = weakref.ref(holder.batch._run)
        del holder
        deadline = time.monotonic() + FOREVER
        while run() is not None and time.monotonic() < deadline:
            gc.collect()
            time.sleep(0.01)
        assert run() is None
        assert not set_aside()

    def test_garbage_of_the_batch_itself_is_collected(self) -> None:
        class Ring:
            def __init__(self) -> None:
                self.me = self

        rings: list[weakref.ref[Ring]] = []

        def make(n: int) -> int:
            rings.append(weakref.ref(Ring()))
            gc.collect()
            return sum(ring() is not None for ring in rings)

        assert map_crew(Doing(make), numbers(3), concurrency=1).outputs == [0, 0, 0]

    def test_an_application_that_has_set_things_aside_keeps_them_there(self) -> None:
        gc.freeze()
        before = gc.get_freeze_count()
        map_crew(Doing(lambda n: n), numbers(3))
        # Objects that are freed leave by themselves; a batch's end gives nothing back.
        assert gc.get_freeze_count() > before // 2


class TestContexts:
    def test_events_of_a_hundred_crews_stay_with_their_runs(self) -> None:
        count = 100
        lock = threading.Lock()
        started: dict[str, str] = {}
        completed: dict[str, Any] = {}
        parents: collections.Counter[str] = collections.Counter()
        sequences: dict[str, list[int]] = collections.defaultdict(list)
        kept: list[Any] = []
        roots: dict[str, str] = {}

        def sink(source: Any, event: Any) -> None:
            with lock:
                kept.append(event)

        with crewai_event_bus.scoped_handlers():
            from crewai.events.stream_context import add_stream_sink, reset_stream_sinks

            token = add_stream_sink(sink)
            try:
                result = map_crew(
                    crew_about(tasks=2),
                    [{"topic": f"t{n}"} for n in range(count)],
                    concurrency=count,
                )
            finally:
                reset_stream_sinks(token)
        assert [output.raw for output in result.outputs] == [f"t{n}" for n in range(count)]
        for event in kept:
            parent = event.parent_event_id
            roots[event.event_id] = roots.get(parent, event.event_id) if parent else event.event_id
            if isinstance(event, CrewKickoffStartedEvent):
                started[event.event_id] = event.inputs["topic"]
            elif isinstance(event, CrewKickoffCompletedEvent):
                completed[event.started_event_id] = event.output.raw
            elif isinstance(event, LLMCallCompletedEvent):
                root = roots[event.event_id]
                parents[root] += 1
                assert event.response == started[root]
            sequences[roots.get(event.parent_event_id or "", event.event_id)].append(
                event.emission_sequence
            )
        assert len(started) == count
        assert completed == started
        assert parents == dict.fromkeys(started, 2)
        for root in started:
            numbered = sequences[root]
            assert sorted(numbered) == sorted(set(numbered))


METHODS = ["kickoff_for_each", "kickoff_for_each_async", "akickoff_for_each"]


class TestForEach:
    @pytest.fixture(autouse=True)
    def taking_over(self) -> Iterator[None]:
        crewai_native.deactivate()
        crewai_native.activate(enabled=True, tasks={"for_each_concurrency": 3})
        yield
        crewai_native.deactivate()
        crewai_native.activate(enabled=True)

    def test_crewais_own_methods_run_side_by_side(self) -> None:
        barrier = threading.Barrier(3)

        def meet(turn: Any) -> str:
            barrier.wait(FOREVER)
            return topic(turn)

        inputs = [{"topic": f"t{n}"} for n in range(6)]
        crew = crew_about([meet])
        for answer in (
            crew.kickoff_for_each(inputs),
            asyncio.run(crew.kickoff_for_each_async(inputs)),
            asyncio.run(crew.akickoff_for_each(inputs)),
        ):
            assert [output.raw for output in answer] == [f"t{n}" for n in range(6)]
            assert crew.usage_metrics.successful_requests == 6
        assert crew.agents[0].llm.get_token_usage_summary().successful_requests == 18

    @pytest.mark.parametrize("method", METHODS)
    def test_whatever_the_inputs_are(self, method: str) -> None:
        crew = crew_about("Done.")

        def run(inputs: Any) -> list[str]:
            called = getattr(crew, method)(inputs)
            outputs = called if method == "kickoff_for_each" else asyncio.run(called)
            assert crew.usage_metrics.successful_requests == len(outputs)
            return [output.raw for output in outputs]

        assert run([]) == []
        assert run({"topic": n} for n in range(3)) == ["Done."] * 3
        with pytest.raises(TypeError, match="inputs must be a dict or Mapping, got str"):
            run([{"topic": 1}, "abc"])
        crew.tasks[0].description = "task about nothing "
        assert run([None, None]) == ["Done."] * 2

    def test_their_errors_are_as_they_were(self) -> None:
        def say(turn: Any) -> str:
            if topic(turn) == "t1":
                raise KeyError("model")
            return topic(turn)

        inputs = [{"topic": f"t{n}"} for n in range(6)]
        crew = crew_about([say])
        with pytest.raises(KeyError, match="model"):
            crew.kickoff_for_each(inputs)
        for method in (crew.kickoff_for_each_async, crew.akickoff_for_each):
            with pytest.raises(KeyError, match="model"):
                asyncio.run(method(inputs))


class TestProgress:
    def test_lines_go_to_the_log(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.INFO, "crewai_native.tasks"):
            map_crew(
                Doing(lambda n: 1 // n),
                numbers(4),
                on_error="collect",
                progress=True,
                concurrency=1,
            )
        (line,) = caplog.messages
        assert line.startswith("batch: 4/4, ")
        assert "1 failed" in line

    def test_a_terminal_gets_a_bar(self) -> None:
        import io

        from rich.console import Console

        from crewai_native_tasks.batch_run import BatchRun
        from crewai_native_tasks.progress import Progress

        crew = crew_about()
        output = io.StringIO()
        console = Console(file=output, force_terminal=True, width=120)
        batch = imap_crew(crew, [{"topic": f"t{n}"} for n in range(3)])
        list(BatchRun(batch._run, Progress(3, console)))
        assert "3/3" in output.getvalue()
        assert "tokens" in output.getvalue()

    def test_the_time_left_follows_from_the_rate(self) -> None:
        from crewai_native_tasks.progress import Progress

        progress = Progress(10_000)
        progress._finished = 100
        assert progress.line(8, 50.0) == "100/10000, 8 running, 2.0/s, 1:22:30 left"


def test_the_package_says_what_it_has() -> None:
    for name in crewai_native_tasks.__all__:
        assert getattr(crewai_native_tasks, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'map_crews'"):
        crewai_native_tasks.map_crews  # noqa: B018
