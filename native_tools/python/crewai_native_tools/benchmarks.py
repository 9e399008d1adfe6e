"""Cases for ``crewai-native bench tools``."""

from __future__ import annotations

import contextlib
import functools
import importlib
import threading
import time
import types
from typing import TYPE_CHECKING, Any, Final

from crewai_native.bench import Case, Measured

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from crewai_native_tools import Policy

    Run = Callable[[], Any]

_DISTRIBUTION: Final = "crewai-native-tools"
_CALLS: Final = 10
_CALLERS: Final = 100
_SAMPLE: Final = 1000
_WAIT: Final = 0.1
_RESULTS: Final = 1_000_000
_BOUND: Final = 100_000_000


def cases() -> Iterator[Case]:
    """Return the cases."""
    yield Case(
        name="describe",
        group="tools",
        slot="tools.schemas",
        description="the prompt's description of every tool, as at each call of a text-based agent",
        parameters={"tools": 20},
        setup=_describe,
    )
    yield Case(
        name="select",
        group="tools",
        slot="tools.schemas",
        description="the tool that a name means",
        parameters={"tools": 20},
        setup=functools.partial(_select, wanted="tool_number_7"),
    )
    yield Case(
        name="select-misspelt",
        group="tools",
        slot="tools.schemas",
        description="the tool that a misspelt name means",
        parameters={"tools": 20},
        setup=functools.partial(_select, wanted="toolnumber_7"),
    )
    yield Case(
        name="cache-hit",
        group="tools",
        slot="tools.cache",
        description="a kept result of a tool call is read again",
        setup=_hit,
        limit=5e-6,
    )
    yield Case(
        name="cache-bounded",
        group="tools",
        slot="tools.cache",
        description="results go through a cache that may hold part of them",
        parameters={"results": _RESULTS, "max_bytes": _BOUND},
        sides=("native",),
        setup=_bounded,
        check=_within_bound,
    )
    yield Case(
        name="isolation",
        group="tools",
        description="an idle tool is called in a worker process that has loaded it",
        sides=("native",),
        setup=_isolated,
        limit=3e-3,
    )
    yield Case(
        name="guard",
        group="tools",
        slot="tools.guard",
        description="median call of a tool that does nothing, under every policy but processes",
        setup=_guarded,
        isolated=frozenset({"native"}),
        limit=25e-6,
    )
    yield Case(
        name="guard-p99",
        group="tools",
        slot="tools.guard",
        description="99th percentile of the same, beside callers whose tools wait and come back",
        parameters={"callers": _CALLERS},
        sides=("native",),
        setup=_guarded_among_others,
        isolated=frozenset({"native"}),
        check=None,
        limit=1e-3,
    )
    yield Case(
        name="many",
        group="tools",
        description="tools of 0.5 s of waiting each, with deadlines, at once",
        parameters={"tools": 100},
        sides=("native",),
        setup=_many,
        check=None,
        limit=0.65,
    )
    yield Case(
        name="batch",
        group="tools",
        slot="tools.guard",
        description="a kickoff with 8 calls of 0.2 s in one batch, one tool with max_usage_count",
        parameters={"calls": 8},
        setup=_batch,
        isolated=frozenset({"native"}),
        target=2.0,
    )
    for name, native, tools, target in (("react", False, 20, 3.0), ("kickoff", True, 30, 1.5)):
        way = "native calling" if native else "text-based calling"
        yield Case(
            name=name,
            group="tools",
            slot="tools.schemas",
            description=f"processor time of a kickoff with {_CALLS} calls of idle tools, {way}",
            parameters={"tools": tools},
            setup=functools.partial(_crew, native=native, tools=tools),
            # Binding a slot is for the whole process.
            isolated=frozenset({"native"}),
            target=target,
        )


@contextlib.contextmanager
def _with_guard(side: str, policy: Policy | None = None) -> Iterator[None]:
    """Bind the guard for the native side, with nothing else of ours."""
    import crewai_native
    from crewai_native_tools import configure

    if side != "native":
        yield
        return
    crewai_native.activate(
        enabled=True, plugins=[_DISTRIBUTION], slots={"tools.guard": _DISTRIBUTION}
    )
    configure(default=policy)
    try:
        yield
    finally:
        configure()
        crewai_native.deactivate()


def _everything() -> Policy:
    from crewai_native_tools import Policy

    return Policy(
        timeout=60,
        max_calls=10**9,
        rate="1000000/s",
        max_concurrency=1000,
        max_recursion_depth=16,
        max_output="64 kB",
        retry=2,
        run_budget={"tool_calls": 10**9},
    )


def _percentile(call: Callable[[], Any], share: float) -> Measured:
    """Return how long a call takes that is longer than this share of many."""
    times = []
    for _ in range(_SAMPLE):
        start = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - start)
    return Measured(sorted(times)[int(share * _SAMPLE)], result)


@contextlib.contextmanager
def _guarded(side: str) -> Iterator[Run]:
    from crewai.tools import tool

    def nothing() -> str:
        """Do nothing."""
        return "done"

    with _with_guard(side, _everything()):
        yield functools.partial(_percentile, tool(nothing).run, 0.5)


@contextlib.contextmanager
def _guarded_among_others(side: str) -> Iterator[Run]:
    from crewai.tools import tool

    over = threading.Event()

    def wait() -> bool:
        """Wait."""
        return over.wait(_WAIT)

    def call(wait: Run) -> None:
        while not over.is_set():
            wait()

    def nothing() -> str:
        """Do nothing."""
        return "done"

    with _with_guard(side, _everything()):
        others = [threading.Thread(target=call, args=(tool(wait).run,)) for _ in range(_CALLERS)]
        for other in others:
            other.start()
        try:
            yield functools.partial(_percentile, tool(nothing).run, 0.99)
        finally:
            over.set()
            for other in others:
                other.join()


def _many(_: str) -> Run:
    from crewai_native_tools import ToolEngine

    engine = ToolEngine(timeout_seconds=60)
    engine.register("wait", lambda: time.sleep(0.5))
    return lambda: engine.execute_many([("wait", None)] * 100)


@contextlib.contextmanager
def _batch(side: str) -> Iterator[Run]:
    import crewai
    from crewai.tools import tool

    from crewai_native.testing import ScriptedLLM, ToolCall

    def look(number: int) -> str:
        """Look something up."""
        time.sleep(0.2)
        return f"found {number}"

    def once(number: int) -> str:
        """Look something up, once."""
        return look(number)

    script: list[Any] = [
        [*(ToolCall("look", {"number": n}) for n in range(7)), ToolCall("once", {"number": 7})],
        lambda turn: " ".join(turn.results),
    ]

    def run() -> str:
        tools = [tool(look), tool("once", max_usage_count=1)(once)]
        agent = crewai.Agent(
            role="r", goal="g", backstory="b", llm=ScriptedLLM(script), tools=tools
        )
        task = crewai.Task(description="d", expected_output="e", agent=agent)
        return str(crewai.Crew(agents=[agent], tasks=[task]).kickoff().raw)

    with _with_guard(side):
        yield run


def _models(count: int) -> list[Any]:
    from pydantic import BaseModel, Field, create_model

    class Period(BaseModel):
        """A period of time."""

        first: str = Field(description="ISO date")
        last: str | None = None

    return [
        create_model(
            f"Arguments{number}",
            query=(str, Field(description=f"what to look for in source {number}")),
            limit=(int | None, 10),
            tags=(list[str], Field(default_factory=list)),
            period=(Period | None, None),
        )
        for number in range(count)
    ]


def _module(side: str) -> Any:
    """Return CrewAI's functions, or ours."""
    if side == "native":
        from crewai_native_tools.schemas import NativeSchemas

        return NativeSchemas()
    return importlib.import_module("crewai.tools.structured_tool")


def _describe(side: str) -> Run:
    models, module = _models(20), _module(side)

    def run() -> str:
        return "\n".join(
            module.format_description_for_llm(f"Tool Number {number}", model, "Looks things up.")
            for number, model in enumerate(models)
        )

    return run


def _select(side: str, *, wanted: str) -> Run:
    tools = [types.SimpleNamespace(name=f"Tool Number {number}") for number in range(20)]
    if side == "native":
        native = _module(side)
        return lambda: native.select_tool(tools, wanted).name
    from crewai.tools.tool_usage import ToolUsage

    usage: Any = types.SimpleNamespace(tools=tools)
    return lambda: ToolUsage._select_tool(usage, wanted).name  # noqa: SLF001 - what is replaced


def _hit(side: str) -> Run:
    if side == "native":
        from crewai_native_tools.cache import result_cache
        from crewai_native_tools.options import Options

        cache: Any = result_cache(Options(cache_max_bytes=_BOUND))
    else:
        from crewai.agents.cache.cache_handler import CacheHandler

        cache = CacheHandler()
    arguments = '{"query": "what to look for", "limit": 10, "tags": ["a", "b"]}'
    cache.add("search", arguments, "x" * 1000)
    return lambda: cache.read("search", arguments)


def _bounded(_: str) -> Run:
    from crewai_native_tools.cache import result_cache
    from crewai_native_tools.options import Options

    def run() -> dict[str, int]:
        cache: Any = result_cache(Options(cache_max_bytes=_BOUND))
        for number in range(_RESULTS):
            cache.add("search", f'{{"n": {number}}}', "result")
        stats: dict[str, int] = cache.stats()
        return stats

    return run


def _within_bound(results: Mapping[str, Any]) -> str | None:
    stats = results["native"]
    if stats["bytes"] > _BOUND:
        return f"{stats['bytes']} bytes are held"
    if stats["entries"] + stats["evictions"] != _RESULTS:
        return f"{stats['entries']} entries and {stats['evictions']} evictions are not {_RESULTS}"
    return None


def echo(text: str, limit: int) -> str:
    """Return a text: what the case ``isolation`` calls."""
    return text[:limit]


@contextlib.contextmanager
def _isolated(_: str) -> Iterator[Run]:
    from crewai_native_tools import isolation

    with isolation.Pool(max_workers=1) as pool:
        target = isolation.check_transferable(echo)
        pool.warm(target)
        yield lambda: pool.run(target, (), {"text": "x" * 1000, "limit": 500}, timeout=60)


@contextlib.contextmanager
def _crew(side: str, *, native: bool, tools: int) -> Iterator[Run]:
    import crewai
    from crewai.tools import BaseTool

    import crewai_native
    from crewai_native.testing import ScriptedLLM, ToolCall

    class Source(BaseTool):
        name: str = "source"
        description: str = "Looks things up in a source."

        def _run(self, query: str, **_: Any) -> str:
            return f"found {query}"

    sources = [
        Source(name=f"source {number}", args_schema=model)
        for number, model in enumerate(_models(tools))
    ]
    script: list[Any] = [
        *(ToolCall(f"source_{number}", {"query": f"q{number}"}) for number in range(_CALLS)),
        lambda turn: str(turn.results[-1]),
    ]

    def run() -> Measured:
        start = time.process_time()
        agent = crewai.Agent(
            role="r", goal="g", backstory="b", llm=ScriptedLLM(script, native=native), tools=sources
        )
        task = crewai.Task(description="d", expected_output="e", agent=agent)
        raw = crewai.Crew(agents=[agent], tasks=[task]).kickoff().raw
        return Measured(time.process_time() - start, raw)

    if side == "native":
        crewai_native.activate(enabled=True, slots={"tools.schemas": _DISTRIBUTION})
    try:
        yield run
    finally:
        if side == "native":
            crewai_native.deactivate()
