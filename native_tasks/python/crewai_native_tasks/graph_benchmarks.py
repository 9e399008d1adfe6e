"""Cases for graphs and plans."""

from __future__ import annotations

import concurrent.futures
import contextlib
import graphlib
import time
from typing import TYPE_CHECKING, Any, Final

from crewai_native.bench import Case, Measured

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Run = Callable[[], Any]

_DISTRIBUTION: Final = "crewai-native-tasks"
_TASKS: Final = 10
_LATENCY: Final = 0.5
_NODES: Final = 10_000
_FAN: Final = 100


def cases() -> Iterator[Case]:
    """Return the cases."""
    yield Case(
        name="graph",
        group="tasks",
        slot="tasks.graph",
        description="a kickoff of independent tasks",
        parameters={"tasks": _TASKS, "latency": _LATENCY},
        setup=_crew,
        isolated=frozenset({"native"}),
        # Tasks of 0.5 s, one after the other, take 5 s at least; side by side they may take 1.2 s.
        target=_TASKS * _LATENCY / 1.2,
    )
    yield Case(
        name="plan",
        group="tasks",
        description="a plan of tasks that do nothing, on threads: 50,000 a second",
        parameters={"nodes": _NODES},
        sides=("native",),
        setup=_plan,
        check=_all_done,
        limit=_NODES / 50_000,
    )
    yield Case(
        name="plan-rival",
        group="tasks",
        description="the same beside graphlib.TopologicalSorter with a ThreadPoolExecutor",
        parameters={"nodes": _NODES},
        sides=("graphlib", "native"),
        setup=_plan,
    )


@contextlib.contextmanager
def _crew(side: str) -> Iterator[Run]:
    import crewai

    import crewai_native
    from crewai_native.testing import ScriptedLLM

    agents = [
        crewai.Agent(
            role=f"worker {number}",
            goal="g",
            backstory="b",
            llm=ScriptedLLM(f"answer {number}", latency=_LATENCY),
        )
        for number in range(_TASKS)
    ]
    tasks = [
        crewai.Task(description=f"task {n}", expected_output="e", agent=agent, context=[])
        for n, agent in enumerate(agents)
    ]
    crew = crewai.Crew(agents=agents, tasks=tasks)

    def run() -> Measured:
        start = time.perf_counter()
        output = crew.kickoff()
        return Measured(time.perf_counter() - start, [task.raw for task in output.tasks_output])

    if side == "native":
        slots = {"tasks.graph": _DISTRIBUTION}
        crewai_native.activate(enabled=True, slots=slots, tasks={"graph": True})
    try:
        yield run
    finally:
        if side == "native":
            crewai_native.deactivate()


def _order() -> list[list[int]]:
    """Return a graph of layers: each task waits for two of the layer before."""
    return [
        [n - _FAN, n - _FAN + (1 if n % _FAN < _FAN - 1 else 0)] if n >= _FAN else []
        for n in range(_NODES)
    ]


def _plan(side: str) -> Run:
    order = _order()
    if side == "graphlib":
        return lambda: _sorted(order)
    from crewai_native_tasks import Plan, PlanTask

    plan = Plan(
        PlanTask(str(number), _nothing, tuple(str(other) for other in own))
        for number, own in enumerate(order)
    )
    return lambda: len(plan.run("parallel", concurrency=8).results)


def _nothing(_: object) -> None:
    """Do what a node of the benchmark does."""


def _sorted(order: list[list[int]]) -> int:
    sorter: graphlib.TopologicalSorter[int] = graphlib.TopologicalSorter(dict(enumerate(order)))
    sorter.prepare()
    done = 0
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        running: dict[concurrent.futures.Future[None], int] = {}
        while sorter.is_active():
            running |= {pool.submit(_nothing, None): node for node in sorter.get_ready()}
            ended, _ = concurrent.futures.wait(
                running, return_when=concurrent.futures.FIRST_COMPLETED
            )
            for future in ended:
                future.result()
                sorter.done(running.pop(future))
                done += 1
    return done


def _all_done(results: Mapping[str, Any]) -> str | None:
    done = results["native"]
    return None if done == _NODES else f"{done} of {_NODES} tasks were done"
