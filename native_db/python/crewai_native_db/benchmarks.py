"""Benchmark cases: what CrewAI's files cost, and what ours do.

Both sides do the same work as durably. Where a case compares them at ``synchronous=normal``, its
parameters say so, and stock still syncs: it has no such setting.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crewai_native.bench import Case, Elapsed

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
        description="bytes on disk after 300 saves of a state that grows to 150 kB (as µs)",
        setup=_flow("normal", _history_bytes),
        target=20.0,
        fresh=True,
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


def _history_bytes(store: Any, file: Path) -> Callable[[], Any]:
    chance = random.Random(2)
    messages: list[dict[str, str]] = []

    def run() -> Elapsed:
        for turn in range(_TURNS):
            messages.append({"role": "user", "content": _text(chance, 470)})
            store.save_state("chat", "method", {"turn": turn, "messages": messages})
        last = store.load_state("chat")
        if hasattr(store, "close"):
            store.close()
        size = sum(path.stat().st_size for path in file.parent.iterdir())
        return Elapsed(size / 1e6, last)

    return run
