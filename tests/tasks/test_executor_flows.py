"""Flows on the native executor, and the same on CrewAI's own runtime beside them."""

from __future__ import annotations

import asyncio
import contextvars
import enum
import itertools
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from crewai.flow.flow import Flow, and_, listen, or_, router, start
from crewai.flow.persistence.base import FlowPersistence
from crewai.hooks.dispatch import HookAborted, InterceptionPoint, scoped_hooks
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from crewai_native.slots import tasks_executor
from crewai_native.slots.tasks_executor import FlowRun
from crewai_native.testing.recording import recording
from crewai_native_tasks.executor import FlowExecutor, classes, steps
from crewai_native_tasks.executor import kickoff as kickoffs

variable: contextvars.ContextVar[Any] = contextvars.ContextVar("variable", default=None)


@pytest.fixture(scope="module")
def executor():
    return FlowExecutor(flows=True)


def run_on(executor, make, **options):
    """Run a flow on CrewAI's runtime, or on the executor, and return all that it did."""
    # Nothing of another run shows in an empty context: events are counted there.
    return contextvars.Context().run(run_here, executor, make, **options)


def run_here(executor, make, *, inputs=None, waited=False, hooks=True, restore=None):
    with recording(hooks=hooks) as recorded:
        flow = make()
        flow.trace = []
        run = FlowRun(flow, inputs, None, restore)
        if executor is not None:
            assert executor.drives(flow)
        try:
            if executor is None:
                arguments = {"inputs": inputs, "restore_from_state_id": restore}
                kickoff = flow.kickoff_async if waited else flow.kickoff
                output = asyncio.run(kickoff(**arguments)) if waited else kickoff(**arguments)
            else:
                output = asyncio.run(executor.akickoff(run)) if waited else executor.kickoff(run)
            outcome = ("returned", output)
        except Exception as error:  # noqa: BLE001 - compared
            outcome = ("raised", type(error), str(error))
    return {
        "outcome": outcome,
        "trace": flow.trace,
        "lines": recorded.lines,
        "outputs": flow.method_outputs,
        "completed": set(flow._completed_methods),
        "fired": set(flow._fired_or_listeners),
        "counts": dict(flow._method_execution_counts),
        "calls": dict(flow._method_call_counts),
    }


def compare(executor, make, **options):
    for waited in (False, True):
        stock = run_on(None, make, waited=waited, **options)
        native = run_on(executor, make, waited=waited, **options)
        for part in stock:
            assert native[part] == stock[part], (part, waited)
    return stock


# --- graphs -----------------------------------------------------------------------------------

LABELS = ["red", "green", "blue"]


@st.composite
def graphs(draw):
    """Methods in order: whether each starts, listens, routes; and what each answers, by its calls."""
    count = draw(st.integers(1, 6))
    names = [f"m{number}" for number in range(count)]
    events = st.sampled_from([*names, *LABELS])

    def nested(depth):
        if depth == 0:
            return events
        branches = st.lists(nested(depth - 1), min_size=1, max_size=3)
        combined = st.tuples(st.sampled_from(["and", "or"]), branches)
        return st.one_of(events, combined)

    methods = {}
    for number, name in enumerate(names):
        starts = number == 0 or draw(st.integers(0, 5)) == 0
        condition = draw(nested(2))
        starting = True if number == 0 else draw(st.one_of(st.just(value=True), events))
        answers = draw(
            st.lists(
                st.sampled_from([*LABELS, None, "", "nowhere", "m0", "m1"]), min_size=1, max_size=4
            )
        )
        methods[name] = {
            "start": starting if starts else None,
            "listen": None if starts and number == 0 else condition,
            "router": draw(st.booleans()),
            "awaited": draw(st.integers(0, 9)) == 0,
            "answers": answers,
            "takes": draw(st.booleans()),
            "raises": draw(st.integers(0, 19)) == 0,
        }
        if starts and number:
            methods[name]["listen"] = None
    return methods


def condition_of(described):
    if isinstance(described, str):
        return described
    operator, branches = described
    return (and_ if operator == "and" else or_)(*map(condition_of, branches))


def body(name, spec):
    def note(flow, given):
        # Each sees what came before in its own context, and nothing of what others set.
        flow.trace.append((name, given, variable.get()))
        variable.set(name)
        if spec["raises"]:
            raise KeyError(name)
        answers = flow.answers.setdefault(name, itertools.cycle(spec["answers"]))
        return next(answers)

    if spec["awaited"]:
        if spec["takes"]:

            async def method(self, given=None):
                return note(self, given)
        else:

            async def method(self):
                return note(self, None)
    elif spec["takes"]:

        def method(self, given=None):
            return note(self, given)
    else:

        def method(self):
            return note(self, None)

    method.__name__ = method.__qualname__ = name
    return method


def class_of(methods):
    namespace = {"__module__": __name__, "__annotations__": {}, "_skip_auto_memory": True}
    for name, spec in methods.items():
        function = body(name, spec)
        if spec["start"]:
            starting = () if spec["start"] is True else (condition_of(spec["start"]),)
            decorated = start(*starting)(function)
        elif spec["router"]:
            decorated = router(condition_of(spec["listen"]))(function)
        else:
            decorated = listen(condition_of(spec["listen"]))(function)
        namespace[name] = decorated
    return type("Generated", (Flow,), namespace)


# Threads of CrewAI's use it meanwhile.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module")
@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(methods=graphs(), silent=st.booleans())
def test_generated_flows(executor, methods, silent):
    try:
        cls = class_of(methods)
        cls()
    except ValidationError:
        reject()  # CrewAI refuses a method that listens to itself

    def make():
        flow = cls(max_method_calls=6, suppress_flow_events=silent)
        flow.answers = {}
        return flow

    groups = []
    stock_find = Flow._get_racing_group_for_listeners

    def noted(self, names):
        groups.append(len(names))
        return stock_find(self, names)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Flow, "_get_racing_group_for_listeners", noted)
        stock = run_on(None, make)
    native = run_on(executor, make)
    starts = [name for name, spec in methods.items() if spec["start"] is True]
    if len(starts) > 1 or any(size > 1 for size in groups):
        # Side by side they may end in any order, on both sides.
        return
    for part in stock:
        assert native[part] == stock[part], part


# --- shapes -----------------------------------------------------------------------------------


class Quiet(Flow):
    """A flow without a memory of its own."""

    _skip_auto_memory = True


class Colour(enum.Enum):
    RED = "red"


class Routed(Quiet):
    @start()
    def begin(self):
        return "begun"

    @router(begin)
    def choose(self, given):
        self.trace.append(given)
        return Colour.RED

    @listen("red")
    def paint(self, given):
        self.trace.append(given)
        return given


class Joined(Quiet):
    """Two starts side by side, and what waits for both."""

    @start()
    async def left(self):
        await asyncio.sleep(0)
        return "left"

    @start()
    async def right(self):
        return "right"

    @listen(and_(left, right))
    def both(self):
        self.trace.append(sorted(self.method_outputs))
        return "both"


class Fanned(Quiet):
    """One start, several listeners that meet, then one after another again."""

    @start()
    def begin(self):
        return 1

    @listen(begin)
    async def first(self, given):
        return given + 1

    @listen(begin)
    async def second(self, given):
        return given + 2

    @listen(and_(first, second))
    def meet(self):
        return sum(self.method_outputs)

    @listen(meet)
    def end(self, given):
        self.trace.append(given)
        return given


class Racing(Quiet):
    @start()
    def begin(self):
        self.gate = asyncio.Event()

    @listen(begin)
    async def quick(self):
        self.trace.append("quick")

    @listen(begin)
    async def slow(self):
        await self.gate.wait()
        self.trace.append("slow")

    @listen(or_(quick, slow))
    def first(self):
        self.trace.append("first")
        return "won"


class Circling(Quiet):
    rounds: int = 3

    @start()
    def begin(self):
        return "go"

    @router(or_(begin, "again"))
    def turn(self):
        self.trace.append(len(self.trace))
        return "again" if len(self.trace) < self.rounds else "done"

    @listen("done")
    def end(self):
        return len(self.trace)


class Failing(Quiet):
    @start()
    def begin(self):
        return 1

    @listen(begin)
    def fail(self):
        raise ValueError("no")

    @listen(fail)
    def never(self):
        self.trace.append("never")


class Later(Quiet):
    """A method that is no coroutine function, but returns a coroutine."""

    @start()
    def begin(self):
        async def later():
            await asyncio.sleep(0)
            return "later"

        return later()

    @listen(begin)
    def end(self, given):
        return given * 2


class Conditional(Quiet):
    @start()
    def begin(self):
        return "x"

    @router(begin)
    def choose(self):
        return "retry" if len(self.trace) < 2 else "stop"

    @start("retry")
    def again(self):
        self.trace.append("again")
        return "y"

    @router(again)
    def choose_again(self):
        return "retry" if len(self.trace) < 2 else "stop"

    @listen("stop")
    def end(self):
        return self.trace


@pytest.mark.parametrize(
    "cls", [Routed, Joined, Fanned, Racing, Circling, Failing, Later, Conditional]
)
def test_shapes(executor, cls):
    compare(executor, cls)


def test_too_many_calls(executor):
    did = compare(executor, lambda: Circling(rounds=10, max_method_calls=4))
    assert did["outcome"][1] is RecursionError


def test_a_long_loop_needs_no_stack(executor):
    flow = Circling(rounds=5000, max_method_calls=10_000, suppress_flow_events=True)
    flow.trace = []
    assert executor.kickoff(FlowRun(flow, None, None, None)) == 5000


def test_inputs_reach_the_state(executor):
    class Stated(Quiet):
        @start()
        def begin(self):
            self.state["seen"] = self.state["topic"]
            return dict(self.state)["seen"]

    did = compare(executor, Stated, inputs={"topic": "x", "id": "fixed"})
    assert did["outcome"] == ("returned", "x")


def test_a_structured_state(executor):
    class State(BaseModel):
        topic: str = ""
        count: int = 0

    class Stated(Quiet, Flow[State]):
        @start()
        def begin(self):
            self.state.count += 1
            return f"{self.state.topic} {self.state.count}"

    did = compare(executor, Stated, inputs={"topic": "x"})
    assert did["outcome"] == ("returned", "x 1")


def test_a_payload_reaches_the_start(executor):
    class Triggered(Quiet):
        @start()
        def begin(self, crewai_trigger_payload=None):
            return crewai_trigger_payload

    did = compare(executor, Triggered, inputs={"crewai_trigger_payload": {"a": 1}})
    assert did["outcome"] == ("returned", {"a": 1})


class Kept(FlowPersistence):
    """Remembers every state that it was given."""

    persistence_type: str = "kept"
    states: list[Any] = []  # noqa: RUF012 - pydantic copies it

    def init_db(self):
        pass

    def save_state(self, flow_uuid, method_name, state_data):
        data = state_data if isinstance(state_data, dict) else state_data.model_dump()
        self.states.append((flow_uuid, method_name, dict(data)))

    def load_state(self, flow_uuid):
        found = [state for uuid, _, state in self.states if uuid == flow_uuid]
        return found[-1] if found else None


def test_states_are_persisted_and_restored(executor):
    from crewai.flow.persistence import persist

    def run(native):
        kept = Kept()

        @persist(kept)
        class Persisted(Quiet):
            @start()
            def begin(self):
                self.state["count"] = self.state.get("count", 0) + 1

            @listen(begin)
            def more(self):
                self.state["count"] += 10
                return self.state["count"]

        answers = []
        for inputs, restore in (({"id": "one"}, None), ({"id": "one"}, None), (None, "one")):
            did = run_on(native, Persisted, inputs=inputs, restore=restore)
            answers.append((did["outcome"], did["lines"]))
        return answers, [(method, state["count"]) for _, method, state in kept.states]

    assert run(executor) == run(None)
    assert [outcome for outcome, _ in run(executor)[0]] == [
        ("returned", 11),
        ("returned", 22),
        ("returned", 33),
    ]


@pytest.mark.parametrize("point", ["execution_start", "input", "output", "execution_end"])
def test_a_hook_that_aborts(executor, point):
    def run(native):
        def abort(context):
            raise HookAborted("no", source="test")

        def scoped():
            with scoped_hooks({InterceptionPoint(point): [abort]}):
                return run_here(native, Routed)

        return contextvars.Context().run(scoped)

    assert run(executor) == run(None)


def test_a_hook_that_changes_steps(executor):
    def run(native):
        def change(context):
            if context.kind == "flow_method" and context.step_name == "paint":
                context.payload = {"_0": "changed"}

        def scoped():
            with scoped_hooks({InterceptionPoint.PRE_STEP: [change]}):
                return run_here(native, Routed)

        return contextvars.Context().run(scoped)

    assert run(executor) == run(None)
    assert run(executor)["trace"][-1] == "changed"


def test_a_flow_that_waits_for_a_human(executor):
    from crewai.flow.human_feedback import human_feedback

    class Provider:
        def request_feedback(self, context, flow):
            from crewai.flow.async_feedback.types import HumanFeedbackPending

            raise HumanFeedbackPending(context=context)

    class Reviewed(Quiet):
        @start()
        @human_feedback(message="well?", provider=Provider())
        def begin(self):
            return "draft"

        @listen(begin)
        def end(self, feedback):
            self.trace.append((feedback.output, feedback.feedback))
            return feedback.feedback

    pending = []

    class Pending(Kept):
        persistence_type: str = "pending"

        def save_pending_feedback(self, flow_uuid, context, state_data):
            pending.append((context.method_name, context.message, context.method_output))

    def make():
        return Reviewed(persistence=Pending())

    stock, native = (run_on(which, make) for which in (None, executor))
    assert native["lines"] == stock["lines"]
    assert [type(did["outcome"][1]).__name__ for did in (stock, native)] == [
        "HumanFeedbackPending"
    ] * 2
    assert pending == [("begin", "well?", "draft")] * 2


def test_a_human_who_answers(executor, monkeypatch):
    from crewai.flow.human_feedback import human_feedback

    class Provider:
        def request_feedback(self, context, flow):
            return ""

    class Reviewed(Quiet):
        @start()
        def begin(self):
            return "draft"

        @listen(begin)
        @human_feedback(message="?", provider=Provider(), emit=["yes", "no"], llm="x")
        def review(self, given):
            return given

        @listen("yes")
        def end(self, feedback):
            self.trace.append((feedback.output, feedback.outcome))
            return feedback.outcome

    monkeypatch.setattr("crewai.flow.runtime._resolve_llm_instance", lambda llm: llm)
    did = compare(executor, Reviewed)
    assert did["trace"] == [("draft", "yes")]


# --- where it runs ----------------------------------------------------------------------------


class Looking(Quiet):
    """Looks where it is."""

    @start()
    def begin(self):
        self.trace.append((threading.get_ident(), on_loop()))
        variable.set("begin")

    @listen(begin)
    def next(self):
        self.trace.append((threading.get_ident(), on_loop(), variable.get()))


def on_loop():
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def test_methods_run_on_the_thread_of_the_kickoff(executor):
    flow = Looking()
    flow.trace = []
    executor.kickoff(FlowRun(flow, None, None, None))
    here = threading.get_ident()
    assert flow.trace == [(here, False), (here, False, None)]
    assert variable.get() is None


def test_methods_never_block_a_loop(executor):
    flow = Looking()
    flow.trace = []

    async def main():
        executor.kickoff(FlowRun(flow, None, None, None))
        executor_of_the_loop = threading.get_ident()
        await executor.akickoff(FlowRun(flow, None, None, None))
        return executor_of_the_loop

    loops = asyncio.run(main())
    assert len(flow.trace) == 4
    assert all(ident != loops and not looping for ident, looping, *_ in flow.trace)


class Own(Quiet):
    """A flow like CrewAI's own, of whose methods nothing tells."""

    is_crewai_internal = True
    suppress_flow_events: bool = True


@pytest.mark.parametrize("base", [Quiet, Own])
def test_a_cancelled_kickoff_runs_nothing_more(executor, base):
    began, leave = threading.Event(), threading.Event()

    class Waiting(base):
        @start()
        def begin(self):
            began.set()
            leave.wait(60)

        @listen(begin)
        def never(self):
            self.trace.append("never")

    flow = Waiting()
    flow.trace = []

    async def main():
        task = asyncio.create_task(executor.akickoff(FlowRun(flow, None, None, None)))
        await asyncio.to_thread(began.wait, 60)
        task.cancel()
        leave.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert flow.trace == []


class Chain(Own):
    """Methods one after another, one of which needs the loop."""

    def note(self, name):
        self.trace.append((name, on_loop(), variable.get()))
        variable.set(name)

    @start()
    def begin(self):
        self.note("begin")

    @listen(begin)
    def second(self):
        self.note("second")

    @listen(second)
    async def awaited(self):
        self.note("awaited")

    @listen(awaited)
    def disguised(self):
        async def later():
            self.note("disguised")
            return "later"

        return later()

    @listen(disguised)
    def last(self, given):
        self.note("last")
        return f"after {given}"


def test_on_a_loop_methods_run_as_on_crewais_runtime(executor):
    traces, outputs = [], []
    for kickoff in (executor.akickoff, None):
        flow = Chain()
        flow.trace = []
        outputs.append(
            asyncio.run(
                flow.kickoff_async()
                if kickoff is None
                else kickoff(FlowRun(flow, None, None, None))
            )
        )
        traces.append(flow.trace)
    assert traces[0] == traces[1]
    assert outputs == ["after later", "after later"]
    assert [(name, looping) for name, looping, _ in traces[0]] == [
        ("begin", False),
        ("second", False),
        ("awaited", True),
        ("disguised", True),
        ("last", False),
    ]


def test_a_thread_is_asked_for_once_for_methods_that_take_no_time(executor, monkeypatch):
    asked = []
    stock = asyncio.to_thread

    async def to_thread(function, *args, **kwargs):
        asked.append(function)
        return await stock(function, *args, **kwargs)

    monkeypatch.setattr(asyncio, "to_thread", to_thread)
    monkeypatch.setattr(steps, "_STRETCH", 60.0)
    flow = Chain()
    flow.trace = []
    asyncio.run(executor.akickoff(FlowRun(flow, None, None, None)))
    stretches = [f for f in asked if f.__qualname__ == "_Course.stretch"]
    assert len(stretches) == 3


def test_a_method_that_takes_long_leaves_the_thread_to_others(executor, monkeypatch):
    """More runs than a loop has threads get on by turns."""
    monkeypatch.setattr(steps, "_STRETCH", 0.0)
    order = []

    class Turn(Own):
        @start()
        def begin(self):
            order.append((self.name, 0))

        @listen(begin)
        def next(self):
            order.append((self.name, 1))

    async def main():
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(max_workers=1))
        flows = [Turn(name=name) for name in "ab"]
        await asyncio.gather(*(executor.akickoff(FlowRun(f, None, None, None)) for f in flows))

    asyncio.run(main())
    assert [place for _, place in order] == [0, 0, 1, 1]


def test_what_a_method_on_a_thread_raises_is_raised_and_logged(executor, caplog):
    class Failing(Own):
        @start()
        def begin(self):
            return None

        @listen(begin)
        def fail(self):
            raise LookupError("nothing there")

    with pytest.raises(LookupError, match="nothing there"):
        asyncio.run(executor.akickoff(FlowRun(Failing(), None, None, None)))
    assert "Error executing listener fail: nothing there" in caplog.text


def test_each_step_can_be_refused(executor, monkeypatch):
    class Stop(BaseException):
        pass

    ended = []

    def check(flow):
        if len(flow.trace) == 2:
            raise Stop

    monkeypatch.setattr(tasks_executor, "around_step", [(check, lambda _: ended.append(1))])
    flow = Circling()
    flow.trace = []
    with pytest.raises(Stop):
        executor.kickoff(FlowRun(flow, None, None, None))
    assert flow.trace == [0, 1]
    assert len(ended) == 3


# --- whose it is ------------------------------------------------------------------------------


def test_users_flows_only_where_that_is_configured():
    from crewai.memory.recall_flow import RecallFlow

    narrow = FlowExecutor(flows=False)
    assert not narrow.drives(Circling())
    assert narrow.drives(RecallFlow(storage=None, llm=None, embedder=None))


def test_changed_runtimes_are_crewais(executor, monkeypatch):
    class Own(Quiet):
        @start()
        def begin(self):
            return 1

        async def _execute_method(self, *args, **kwargs):
            return await super()._execute_method(*args, **kwargs)

    assert not executor.drives(Own())
    flow = Circling()
    assert executor.drives(flow)
    object.__setattr__(flow, "_find_triggered_methods", lambda *_: [])
    assert not executor.drives(flow)
    flow = Circling()
    with monkeypatch.context() as patch:
        patch.setattr(Flow, "_execute_single_listener", lambda *_: None)
        assert not executor.drives(flow)
    assert executor.drives(flow)


def test_restored_flows_are_crewais(executor):
    flow = Circling()
    flow.checkpoint_completed_methods = {"begin"}
    flow._restore_from_checkpoint()
    assert not executor.drives(flow)
    flow = Circling()
    flow._pending_feedback_context = object()
    assert not executor.drives(flow)


# --- the state that the event of the end has -----------------------------------------------------


class Contents(BaseModel):
    """A state of anything."""

    value: Any = None


class Uncopyable:
    """What cannot be copied, and pydantic cannot write down."""

    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("no copies")


@pytest.mark.parametrize(
    "value",
    [
        [{"role": "user", "content": "x"}, {"nested": [1, (2, 3), {4}]}],
        Contents(value=Contents(value=[1.5, None, True, b"bytes"])),
        object(),
        Uncopyable(),
        {"deep": threading.Lock()},
    ],
    ids=["plain", "models", "object", "uncopyable", "lock"],
)
def test_the_state_of_the_event_is_what_crewai_writes_of_a_copy(value):
    class Internal(Flow[Contents]):
        is_crewai_internal = True
        _skip_auto_memory = True

        @start()
        def begin(self):
            return None

    flow = Internal()
    flow.state.value = value
    known = classes.Classes().of(flow)
    sides = []
    for write in (lambda: kickoffs._state_of(flow, known), flow._copy_and_serialize_state):
        try:
            sides.append(repr(write()))
        except Exception as error:  # noqa: BLE001 - compared
            sides.append(repr(error))
    assert re.sub("0x[0-9a-f]+", "", sides[0]) == re.sub("0x[0-9a-f]+", "", sides[1])
