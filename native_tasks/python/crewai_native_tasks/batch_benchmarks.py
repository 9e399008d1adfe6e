"""Cases for ``crewai-native bench tasks``: batches, and stopping them."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from crewai_native.bench import Case, Measured

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Run = Callable[[], Any]

_CREWS: Final = 100
_CALLS: Final = 3
_TASKS: Final = 2
_LATENCY: Final = 0.5
_MANY: Final = 1000
_AT_A_TIME: Final = 200
_TIME_LIMIT: Final = 1
# How long a model takes that nobody waits for: it answers before the next round begins.
_TOO_LONG: Final = 1.3
# What a batch may grow by, in bytes for each of its inputs: a crew that was kept takes many times that.
_GROWTH: Final = 32_768


def cases() -> Iterator[Case]:
    """Return the cases."""
    work = {"crews": _CREWS, "tasks": _TASKS, "calls": _CALLS, "latency": _LATENCY}
    yield Case(
        name="batch",
        group="tasks",
        slot="tasks.batch",
        description="one crew over many inputs, all at a time; each has to wait for its models 3 s",
        parameters=work,
        sides=("native",),
        setup=_batch,
        check=_answered,
        isolated=frozenset({"native"}),
        limit=6.0,
        timeout=600.0,
    )
    yield Case(
        name="batch-beside-stock",
        group="tasks",
        slot="tasks.batch",
        description="the same beside stock's fastest way, akickoff_for_each",
        parameters=work,
        setup=_batch,
        isolated=frozenset({"native"}),
        # 6 s, where stock takes 55.
        target=9.0,
        timeout=600.0,
    )
    yield Case(
        name="batch-many",
        group="tasks",
        slot="tasks.batch",
        description="an iterator of inputs, of which each is a crew with one call of a second",
        parameters={"crews": _MANY, "concurrency": _AT_A_TIME},
        sides=("native",),
        setup=_many,
        check=_flat,
        limit=3.0 * _MANY / _AT_A_TIME,
        timeout=600.0,
    )
    yield Case(
        name="cancel",
        group="tasks",
        slot="tasks.control",
        description="from the request to stop a batch until nothing of it runs",
        parameters={"crews": 20},
        sides=("native",),
        setup=_cancel,
        check=None,
        limit=0.1,
    )
    for way, setup in (("kickoff", _limit), ("akickoff", _awaited_limit)):
        yield Case(
            name="time-limit",
            group="tasks",
            slot="tasks.control",
            description="by how much a model that takes too long outruns max_execution_time",
            parameters={"way": way, "max_execution_time": _TIME_LIMIT},
            sides=("native",),
            setup=setup,
            check=_told,
            limit=0.1,
        )
    yield Case(
        name="interrupt",
        group="tasks",
        slot="tasks.batch",
        description="from Ctrl-C until a batch whose models answer a second later has ended",
        parameters={"crews": 20},
        sides=("native",),
        setup=_interrupt,
        check=_told,
        limit=1.0,
    )


@contextlib.contextmanager
def _bound(side: str, run: Run) -> Iterator[Run]:
    import crewai_native

    if side == "native":
        crewai_native.activate(enabled=True)
    try:
        yield run
    finally:
        if side == "native":
            crewai_native.deactivate()


def _crew(calls: int, tasks: int, latency: float) -> Any:
    import crewai
    from crewai.tools import BaseTool

    from crewai_native.testing import ScriptedLLM, ToolCall

    class Look(BaseTool):
        name: str = "look"
        description: str = "Looks things up."

        def _run(self, query: str) -> str:
            return f"found {query}"

    script: list[Any] = [ToolCall("look", {"query": str(n)}) for n in range(calls - 1)]
    script.append(lambda turn: turn.prompt.partition("about ")[2].split()[0])
    agent = crewai.Agent(
        role="r",
        goal="g",
        backstory="b",
        llm=ScriptedLLM(script, latency=latency),
        tools=[Look()] if calls > 1 else [],
    )
    work = [
        crewai.Task(description=f"task {n} about {{topic}} ", expected_output="e", agent=agent)
        for n in range(tasks)
    ]
    return crewai.Crew(agents=[agent], tasks=work)


def _batch(side: str) -> contextlib.AbstractContextManager[Run]:
    inputs = [{"topic": f"t{n}"} for n in range(_CREWS)]

    def run() -> list[str]:
        crew = _crew(_CALLS, _TASKS, _LATENCY)
        if side == "native":
            from crewai_native_tasks import map_crew

            outputs = map_crew(crew, inputs, concurrency=_CREWS).outputs
        else:
            outputs = asyncio.run(crew.akickoff_for_each(inputs))
        return [output.raw for output in outputs]

    return _bound(side, run)


def _answered(results: Mapping[str, Any]) -> str | None:
    outputs = results["native"]
    right = sum(output == f"t{n}" for n, output in enumerate(outputs))
    return None if right == _CREWS else f"{right} of {_CREWS} crews have the output of their input"


def _many(side: str) -> contextlib.AbstractContextManager[Run]:
    from crewai_native_tasks import imap_crew

    def run() -> Measured:
        crew = _crew(1, 1, 1.0)
        inputs = ({"topic": f"t{n}"} for n in range(_MANY))
        began, filled, done = time.perf_counter(), 0, 0
        for item in imap_crew(crew, inputs, concurrency=_AT_A_TIME):
            done += item.output.raw == f"t{item.index}"
            if done == 2 * _AT_A_TIME:
                filled = _peak()
        grown = (_peak() - filled) / (_MANY - 2 * _AT_A_TIME)
        return Measured(time.perf_counter() - began, {"done": done, "bytes_per_input": grown})

    return _bound(side, run)


def _peak() -> int:
    """Return the most memory that the process has had, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _flat(results: Mapping[str, Any]) -> str | None:
    seen = results["native"]
    if seen["done"] != _MANY:
        return f"{seen['done']} of {_MANY} items have the output of their input"
    if seen["bytes_per_input"] > _GROWTH:
        return f"memory grows by {seen['bytes_per_input']:.0f} bytes for each input"
    return None


def _cancel(side: str) -> contextlib.AbstractContextManager[Run]:
    from crewai_native_tasks import ItemState, imap_crew

    def run() -> Measured:
        crew = _crew(_CALLS, _TASKS, 0.01)
        batch = imap_crew(crew, ({"topic": f"t{n}"} for n in range(_MANY)), concurrency=20)
        for _ in range(3):
            next(batch)
        elapsed = 0.0

        def cancel() -> None:
            nonlocal elapsed
            began = time.perf_counter()
            batch.cancel()
            elapsed = time.perf_counter() - began

        canceller = threading.Thread(target=cancel)
        canceller.start()
        states = {item.state for item in batch}
        canceller.join()
        return Measured(elapsed, ItemState.CANCELLED in states)

    return _bound(side, run)


def _limit(side: str) -> contextlib.AbstractContextManager[Run]:
    def run() -> Measured:
        crew, began = _slow(), time.perf_counter()
        try:
            crew.kickoff()
        except TimeoutError as error:
            return Measured(time.perf_counter() - began - _TIME_LIMIT, str(error))
        raise _not_ended()

    return _bound(side, run)


def _awaited_limit(side: str) -> contextlib.AbstractContextManager[Run]:
    async def run() -> Measured:
        crew, began = _slow(), time.perf_counter()
        try:
            await crew.akickoff()
        except TimeoutError as error:
            return Measured(time.perf_counter() - began - _TIME_LIMIT, str(error))
        raise _not_ended()

    # The end of a loop waits for its threads, of which one is in the model.
    return _bound(side, lambda: asyncio.run(run()))


def _not_ended() -> RuntimeError:
    return RuntimeError(f"a model that takes {_TOO_LONG} s was waited for, not ended")


def _slow() -> Any:
    crew = _crew(1, 1, _TOO_LONG)
    crew.agents[0].max_execution_time = _TIME_LIMIT
    return crew


def _interrupt(side: str) -> contextlib.AbstractContextManager[Run]:
    from crewai_native_tasks import imap_crew

    def run() -> Measured:
        crew = _crew(_CALLS, _TASKS, 1.0)
        batch = imap_crew(crew, ({"topic": f"t{n}"} for n in range(_MANY)), concurrency=20)
        pressed = 0.0

        def press() -> None:
            nonlocal pressed
            pressed = time.perf_counter()
            signal.raise_signal(signal.SIGINT)

        key = threading.Timer(0.5, press)
        key.start()
        try:
            for _ in batch:
                pass
            said = ""
        except KeyboardInterrupt:
            said = "KeyboardInterrupt"
        key.join()
        return Measured(time.perf_counter() - pressed, said)

    return _bound(side, run)


def _told(results: Mapping[str, Any]) -> str | None:
    return None if results["native"] else "it came to its end as if nobody had stopped it"
