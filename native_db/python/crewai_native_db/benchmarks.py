"""Benchmark cases: what CrewAI's files cost, and what ours do.

Both sides do the same work as durably. Where a case compares them at ``synchronous=normal``, its
parameters say so, and stock still syncs: it has no such setting.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from crewai_native.bench import Case, Measured, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_WORDS = [
    "the",
    "of",
    "and",
    "invoice",
    "river",
    "please",
    "Berlin",
    "seven",
    "order",
    "about",
    "customer",
    "was",
    "not",
    "yet",
]
_STATE_BYTES = 10_000
_THREADS = 16
_TURNS = 300


def cases() -> Iterator[Case]:
    """Return every case."""
    for level, target in (("full", 6.0), ("normal", 20.0)):
        yield Case(
            name="save_state",
            group="db",
            slot="flow.persistence",
            description="save a 10 kB state of a flow",
            setup=_flow(level, _save),
            parameters={"synchronous": level},
            target=target,
        )
    yield Case(
        name="save_state",
        group="db",
        slot="flow.persistence",
        description="save 10 kB states of 16 flows on 16 threads",
        setup=_flow("full", _save_by_threads),
        parameters={"synchronous": "full", "threads": _THREADS},
        target=15.0,
    )
    yield Case(
        name="load_state",
        group="db",
        slot="flow.persistence",
        description="load the newest state of a flow that has saved 20 of 10 kB",
        setup=_flow("full", _load),
        target=5.0,
    )
    yield Case(
        name="history-bytes",
        group="db",
        slot="flow.persistence",
        description="bytes on disk after 300 saves of a state that grows to 150 kB",
        setup=_flow("normal", _history_bytes),
        unit="B",
        target=20.0,
        fresh=True,
    )

    for level in ("full", "normal"):
        for tasks in (1, 100):
            yield Case(
                name="replay-log",
                group="db",
                slot="replay.store",
                description="log the output of a task after others of its crew",
                setup=_replay(level, tasks - 1),
                parameters={"synchronous": level, "task": tasks},
                target=15.0,
            )
    for wheels in ("db", "all"):
        yield Case(
            name="checkpoint-kickoff",
            group="db",
            slot="checkpoint.writer",
            description="a kickoff with checkpoints over the same without; what is quick without "
            "them shows their cost",
            sides=("native",),
            setup=_checkpoints(_overhead, alone=wheels == "db"),
            parameters={"tasks": 10, "calls": 10, "wheels": wheels},
            check=None,
            unit="x",
            limit=1.15,
        )
    yield Case(
        name="checkpointed-kickoff",
        group="db",
        slot="checkpoint.writer",
        description="a kickoff of ten tasks with ten tool calls each that writes checkpoints",
        setup=_checkpoints(_checkpointed),
        parameters={"tasks": 10, "calls": 10},
        # Serving changes CrewAI for a whole process.
        isolated=frozenset({"native"}),
    )
    yield Case(
        name="checkpoint-bytes",
        group="db",
        slot="checkpoint.writer",
        description="bytes on disk for each checkpoint of such a kickoff",
        setup=_checkpoints(_checkpoint_bytes),
        parameters={"tasks": 10, "calls": 10},
        # Serving changes CrewAI for a whole process.
        isolated=frozenset({"native"}),
        unit="B",
        target=8.0,
    )
    yield Case(
        name="checkpoint-growth",
        group="db",
        slot="checkpoint.writer",
        description="processor time of the last tenth of checkpoints over the first",
        sides=("native",),
        setup=_checkpoints(_checkpoint_growth),
        parameters={"tasks": 40, "calls": 2, "events": "all"},
        check=None,
        unit="x",
        limit=1.5,
    )
    yield Case(
        name="lock",
        group="db",
        slot="locks",
        description="take and release a lock that nobody wants",
        setup=_lock,
        target=3.0,
    )
    yield Case(
        name="lock-handover",
        group="db",
        slot="locks",
        description="from the release by one thread until another one has it",
        sides=("native",),
        setup=_handover,
        check=None,
        limit=0.2e-3,
    )
    yield Case(
        name="lock-handover",
        group="db",
        slot="locks",
        description="from the release by one process until another one has it",
        sides=("native",),
        parameters={"processes": 2},
        setup=_handover_to_process,
        check=None,
        limit=5e-3,
    )


def _flow(level: str, work: Callable[[Any, Path], Callable[[], Any]]) -> Any:
    @contextlib.contextmanager
    def setup(side: str) -> Iterator[Callable[[], Any]]:
        with tempfile.TemporaryDirectory(prefix="crewai-native-bench-") as place:
            file = Path(place) / "flows.db"
            if side == "stock":
                from crewai.flow.persistence.sqlite import SQLiteFlowPersistence

                yield work(SQLiteFlowPersistence(str(file)), file)
            else:
                from crewai_native_db.persistence import NativeFlowPersistence

                store = NativeFlowPersistence(str(file), synchronous=level)
                yield work(store, file)
                store.close()

    return setup


def _text(chance: random.Random, size: int) -> str:
    text = ""
    while len(text) < size:
        text += f"{chance.choice(_WORDS)} "
    return text


def _state(seed: int) -> dict[str, Any]:
    chance = random.Random(seed)
    return {
        "id": f"flow{seed}",
        "turn": 0,
        "messages": [
            {"role": "user", "content": _text(chance, 200)} for _ in range(_STATE_BYTES // 240)
        ],
    }


def _save(store: Any, _: Path) -> Callable[[], Any]:
    state = _state(1)

    def run() -> Any:
        state["turn"] += 1
        store.save_state("flow1", "method", state)

    return run


def _save_by_threads(store: Any, _: Path) -> Callable[[], Any]:
    states = [_state(number) for number in range(_THREADS)]
    pool = ThreadPoolExecutor(_THREADS)

    def save(number: int) -> None:
        states[number]["turn"] += 1
        store.save_state(f"flow{number}", "method", states[number])

    def run() -> Any:
        list(pool.map(save, range(_THREADS)))

    return run


def _load(store: Any, _: Path) -> Callable[[], Any]:
    state = _state(1)
    for turn in range(20):
        state["turn"] = turn
        store.save_state("flow1", "method", state)
    return lambda: store.load_state("flow1")


def _replay(level: str, before: int) -> Any:
    output = {"raw": "word " * 100, "messages": [{"role": "user", "content": "word " * 400}] * 4}
    task = SimpleNamespace(id="", key="key", expected_output="words")

    @contextlib.contextmanager
    def setup(side: str) -> Iterator[Callable[[], Any]]:
        with tempfile.TemporaryDirectory(prefix="crewai-native-bench-") as place:
            file = str(Path(place) / "latest.db")
            if side == "stock":
                from crewai.memory.storage import kickoff_task_outputs_storage as stock
                from crewai.utilities.task_output_storage_handler import TaskOutputStorageHandler

                handler = TaskOutputStorageHandler.__new__(TaskOutputStorageHandler)
                handler.storage = stock.KickoffTaskOutputsSQLiteStorage(file)

                def add(index: int) -> None:
                    logged = SimpleNamespace(**{**vars(task), "id": str(index)})
                    handler.update(
                        index, {"task": logged, "output": output, "task_index": index, "inputs": {}}
                    )

                close: Callable[[], Any] = list
            else:
                from crewai_native_db.replay import ReplayStore

                store = ReplayStore(Path(place) / "replay.db", durable=level == "full")
                log = store.open(file)

                def add(index: int) -> None:
                    log.add(
                        task_id=str(index),
                        task_key="key",
                        expected_output="words",
                        output=output,
                        task_index=index,
                        inputs={},
                        was_replayed=False,
                    )

                close = store.close
            for index in range(before):
                add(index)
            yield lambda: add(before)
            close()

    return setup


def _checkpoints(work: Callable[[Path], Callable[[], Any]], *, alone: bool = False) -> Any:
    others = ("memory", "tools", "tasks", "serialization") if alone else ()

    @contextlib.contextmanager
    def setup(side: str) -> Iterator[Callable[[], Any]]:
        import crewai_native

        with tempfile.TemporaryDirectory(prefix="crewai-native-bench-") as place:
            if side == "native":
                served = {"checkpoint.writer": "crewai-native-db"}
                off: Any = {name: {"enabled": False} for name in others}
                crewai_native.activate(enabled=True, slots=served, **off)
            try:
                yield work(Path(place))
            finally:
                if side == "native":
                    crewai_native.deactivate()

    return setup


def _kickoff(tasks: int, calls: int, checkpoint: Any) -> Any:
    """Run a crew of scripted models, each of which calls a tool so many times."""
    from crewai import Agent, Crew, Task
    from crewai.tools import BaseTool

    from crewai_native.testing import ScriptedLLM, ToolCall

    class Look(BaseTool):
        name: str = "look"
        description: str = "Looks something up."

        def _run(self, query: str) -> str:
            return f"what {query} gave"

    agents = [
        Agent(
            role=f"worker {number}",
            goal="work",
            backstory="works",
            max_iter=calls + 5,
            tools=[Look()],
            llm=ScriptedLLM(
                [*(ToolCall("look", {"query": f"q{n}"}) for n in range(calls)), f"answer {number}"]
            ),
        )
        for number in range(tasks)
    ]
    crew = Crew(
        agents=agents,
        tasks=[
            Task(description=f"task {number}", expected_output="words", agent=agent)
            for number, agent in enumerate(agents)
        ],
        checkpoint=checkpoint,
    )
    begun = time.perf_counter()
    result = crew.kickoff()
    return time.perf_counter() - begun, result.raw


def _saved_in(place: Path) -> Any:
    from crewai.state.checkpoint_config import CheckpointConfig

    return CheckpointConfig(location=tempfile.mkdtemp(dir=place))


def _overhead(place: Path) -> Callable[[], Measured]:
    def run() -> Measured:
        seconds = {True: 0.0, False: 0.0}
        # In this order a machine that gets slower or faster meanwhile favours neither.
        for saved in (False, True, True, False):
            config = _saved_in(place) if saved else None
            # What the one before has left behind is not collected at the cost of the next.
            gc.collect()
            took, raw = _kickoff(10, 10, config)
            seconds[saved] += took
        return Measured(seconds[True] / seconds[False], raw)

    return run


def _checkpointed(place: Path) -> Callable[[], Measured]:
    return lambda: Measured(*_kickoff(10, 10, _saved_in(place)))


def _checkpoint_bytes(place: Path) -> Callable[[], Measured]:
    def run() -> Measured:
        config = _saved_in(place)
        _, raw = _kickoff(10, 10, config)
        files = [path for path in Path(config.location).rglob("*") if path.is_file()]
        # CrewAI fails to write some of them.
        count = sum(path.suffix == ".json" for path in files)
        return Measured(sum(path.stat().st_size for path in files) / count, raw)

    return run


def _checkpoint_growth(place: Path) -> Callable[[], Measured]:
    from crewai.events.event_bus import crewai_event_bus
    from crewai.events.types.checkpoint_events import CheckpointCompletedEvent

    from crewai_native_db import plugin

    def run() -> Measured:
        config = _saved_in(place)
        config.on_events = ["*"]
        spent: list[int] = []

        def note(*_: Any) -> None:
            counts = plugin.crewai_native_metrics()
            spent.append(
                int(counts["db.checkpoint.snapshot_us"] + counts["db.checkpoint.store_us"])
            )

        crewai_event_bus.on(CheckpointCompletedEvent)(note)
        try:
            _, raw = _kickoff(40, 2, config)
        finally:
            crewai_event_bus.off(CheckpointCompletedEvent, note)
        spent.sort()
        tenth = len(spent) // 10
        first, last = spent[2 * tenth] - spent[tenth], spent[-1] - spent[-1 - tenth]
        return Measured(last / max(first, 1), raw)

    return run


def _named(name: str, timeout: float) -> Any:
    from crewai_native_db.locks import NamedLock

    return NamedLock(name, timeout)


@contextlib.contextmanager
def _lock(side: str) -> Iterator[Callable[[], Any]]:
    from crewai_core import lock_store

    from crewai_native_db.locks import NamedLock

    name = f"crewai-native-bench-{os.getpid()}"
    backend = NamedLock if side == "native" else None

    def take() -> None:
        # The two sides take turns in one process.
        lock_store.set_lock_backend(backend)
        with lock_store.lock(name, timeout=10):
            pass

    yield take
    lock_store.set_lock_backend(None)


def _handover(_: str) -> Callable[[], Measured]:
    name = f"crewai-native-bench-{os.getpid()}-threads"

    def run() -> Measured:
        taken: list[float] = []

        def wait() -> None:
            with _named(name, 10):
                taken.append(time.perf_counter())

        waiter = threading.Thread(target=wait)
        lock = _named(name, 10)
        with lock:
            waiter.start()
            # Long enough for the other thread to wait; what is timed begins after it.
            time.sleep(0.005)
            released = time.perf_counter()
        waiter.join()
        return Measured(taken[0] - released)

    return run


_WAITER = """
import sys, time
from crewai_native_db.locks import NamedLock
for line in sys.stdin:
    print("waiting", flush=True)
    with NamedLock(sys.argv[1], 10):
        print(time.monotonic(), flush=True)
"""


@contextlib.contextmanager
def _handover_to_process(_: str) -> Iterator[Callable[[], Measured]]:
    name = f"crewai-native-bench-{os.getpid()}-processes"
    with subprocess.Popen(  # noqa: S603 - this interpreter, running the text above
        [sys.executable, "-c", _WAITER, name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as other:
        if other.stdin is None or other.stdout is None:
            raise Unavailable("the other process has no pipes")
        said, told = other.stdout, other.stdin

        def run() -> Measured:
            with _named(name, 10):
                told.write("go\n")
                said.readline()
                time.sleep(0.01)
                released = time.monotonic()
            return Measured(float(said.readline()) - released)

        yield run
        told.close()


def _history_bytes(store: Any, file: Path) -> Callable[[], Any]:
    chance = random.Random(2)
    messages: list[dict[str, str]] = []

    def run() -> Measured:
        for turn in range(_TURNS):
            messages.append({"role": "user", "content": _text(chance, 470)})
            store.save_state("chat", "method", {"turn": turn, "messages": messages})
        last = store.load_state("chat")
        if hasattr(store, "close"):
            store.close()
        size = sum(path.stat().st_size for path in file.parent.iterdir())
        return Measured(size, last)

    return run
