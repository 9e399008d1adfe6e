"""tools.guard, tools.cache and tools.schemas: around real agents that call real tools."""

from __future__ import annotations

import asyncio
import copy
import gc
import os
import signal
import sys
import threading
import types
import warnings
import weakref

import pytest
from crewai import Agent, Crew, Task
from crewai.agents.cache.cache_handler import CacheHandler
from crewai.tools import BaseTool, tool
from crewai.tools.structured_tool import CrewStructuredTool, ToolUsageLimitExceededError
from crewai.tools.tool_usage import ToolUsage
from crewai.utilities import pydantic_schema_utils, string_utils
from pydantic import BaseModel, ConfigDict

from crewai_native import slots
from crewai_native._bind import Binding
from crewai_native._errors import ProviderError
from crewai_native._watch import Watch
from crewai_native.testing import ScriptedLLM, ToolCall

NATIVE = pytest.mark.parametrize("native", [True, False], ids=["native", "react"])


def failures():
    """Return the module of declared failures, which CrewAI has since 1.15.9."""
    return pytest.importorskip("crewai.tools.tool_failure")


class Guard:
    """Lets every call through and writes it down."""

    def __init__(self):
        self.calls = []
        self.answer = None

    def run(self, call, proceed):
        self.calls.append(call)
        return proceed() if self.answer is None else self.answer

    async def arun(self, call, proceed):
        self.calls.append(call)
        return await proceed() if self.answer is None else self.answer


class Adder(BaseTool):
    name: str = "Add Numbers"
    description: str = "Adds"

    def _run(self, a: int, b: int) -> int:
        return a + b

    async def _arun(self, a: int, b: int) -> int:
        return a + b


def crew_with(tools, script, *, native, **options):
    llm = ScriptedLLM(script, native=native)
    agent = Agent(role="worker", goal="work", backstory="works", llm=llm, tools=tools)
    task = Task(description="do it", expected_output="a number", agent=agent)
    return Crew(agents=[agent], tasks=[task], **options)


ADD = [ToolCall("add_numbers", {"a": 1, "b": 2}), lambda turn: f"is {turn.results[-1]}"]


class TestGuard:
    @NATIVE
    def test_an_agents_call_comes_once_with_what_surrounds_it(self, serve, native):
        adder = Adder()
        stock = crew_with([adder], ADD, native=native).kickoff().raw
        guard = Guard()
        binding = serve("tools.guard", lambda: guard)
        crew = crew_with([adder], ADD, native=native)
        assert crew.kickoff().raw == stock == "is 3"
        (call,) = guard.calls
        assert (call.name, call.arguments, call.args) == ("Add Numbers", {"a": 1, "b": 2}, ())
        assert call.path == ("native" if native else "react")
        assert not call.asynchronous
        assert call.author_tool is adder
        assert (call.agent.role, call.task.description) == ("worker", "do it")
        assert call.crew is not None
        assert call.crew.id == crew.id
        assert binding.watch.metrics().calls == 1

    @NATIVE
    def test_what_it_returns_is_the_tools_result(self, serve, native):
        guard = Guard()
        guard.answer = "no adding today"
        serve("tools.guard", lambda: guard)
        assert crew_with([Adder()], ADD, native=native).kickoff().raw == "is no adding today"

    def test_a_failure_is_told_to_a_react_agent_once(self, serve):
        guard = Guard()
        guard.answer = failures().ToolFailure(message="out of order")
        serve("tools.guard", lambda: guard)
        assert "out of order" in crew_with([Adder()], ADD, native=False).kickoff().raw
        assert len(guard.calls) == 1

    def test_mcp_tools_use_the_clients_that_it_lends(self, serve):
        mcp_native_tool = pytest.importorskip("crewai.tools.mcp_native_tool")
        events = []

        class Client:
            def __init__(self, name):
                self.name = name

            async def connect(self):
                events.append(f"{self.name} connected")

            async def disconnect(self):
                events.append(f"{self.name} disconnected")

            async def call_tool_result(self, name, arguments):
                return types.SimpleNamespace(content=f"{name} {arguments}", is_error=False)

        guard, ended = Guard(), threading.Event()
        guard.mcp_client = lambda make: Client(f"in place of {make().name}")

        def run_ended(run):
            events.append(run)
            ended.set()

        guard.mcp_run_ended = run_ended
        serve("tools.guard", lambda: guard, features=("mcp-connections",))
        look = mcp_native_tool.MCPNativeTool(lambda: Client("stock"), "look", {}, "server")
        script = [ToolCall("server_look", {}), lambda turn: turn.results[-1]]
        crew = crew_with([look], script, native=True)
        assert crew.kickoff().raw == "look {}"
        assert ended.wait(60)
        assert events == [
            "in place of stock connected",
            "in place of stock disconnected",
            str(crew.id),
        ]
        # A parameter of the tool may be called as ours would be.
        assert look.run(tool="drill") == "look {'tool': 'drill'}"
        # The tool itself is as it was.
        assert look._client_factory().name == "stock"

    def test_code_that_runs_a_tool_comes_too(self, serve):
        guard = Guard()
        serve("tools.guard", lambda: guard)

        @tool("Double")
        def double(n: int) -> int:
            """Double."""
            return 2 * n

        assert double.run(n=4) == 8
        assert double.run(5) == 10
        structured = double.to_structured_tool()
        assert structured.invoke('{"n": 6}') == 12
        assert structured.invoke(input={"n": 7}, config={}) == 14
        assert [(c.args, c.arguments, c.path) for c in guard.calls] == [
            ((), {"n": 4}, "native"),
            ((5,), {}, "native"),
            ((), '{"n": 6}', "react"),
            ((), {"n": 7}, "react"),
        ]
        assert all(c.author_tool is double for c in guard.calls)
        assert all((c.agent, c.task, c.crew) == (None, None, None) for c in guard.calls)

    @pytest.mark.parametrize("nonsense", [None, 5, ["a"], '{"a": '])
    def test_arguments_that_make_no_sense_are_refused_by_crewai(self, serve, nonsense):
        structured = Adder().to_structured_tool()
        with pytest.raises(ValueError, match=r".") as stock:
            structured.invoke(nonsense)
        guard = Guard()
        serve("tools.guard", lambda: guard)
        with pytest.raises(ValueError, match=r".") as ours:
            structured.invoke(nonsense)
        assert str(ours.value) == str(stock.value)
        assert guard.calls[0].arguments == nonsense

    def test_awaited_calls_come_too(self, serve):
        guard = Guard()
        serve("tools.guard", lambda: guard)

        @tool("Later")
        async def later(n: int) -> int:
            """Later."""
            return n

        structured = CrewStructuredTool.from_function(later.func, name="later")

        async def run():
            return [
                await Adder().arun(a=1, b=2),
                await later.arun(n=3),
                await structured.ainvoke({"n": 4}),
            ]

        assert asyncio.run(run()) == [3, 3, 4]
        assert [c.asynchronous for c in guard.calls] == [True] * 3

    def test_an_override_that_calls_super_comes_once(self, serve):
        guard = Guard()

        class Loud(Adder):
            def run(self, *args, **kwargs):
                return super().run(*args, **kwargs) * 10

        serve("tools.guard", lambda: guard)

        class Late(Loud):
            def run(self, *args, **kwargs):
                return super().run(*args, **kwargs) + 1

            async def arun(self, *args, **kwargs):
                return -1

        assert Loud().run(a=1, b=2) == 30
        assert Late().run(a=1, b=2) == 31
        assert asyncio.run(Late().arun()) == -1
        assert [type(c.tool) for c in guard.calls] == [Loud, Late, Late]

    def test_a_structured_tool_around_a_tools_run_comes_once(self, serve):
        guard = Guard()
        serve("tools.guard", lambda: guard)
        adder = Adder()
        structured = CrewStructuredTool(
            name="s", description="d", args_schema=adder.args_schema, func=adder.run
        )
        assert structured.invoke({"a": 1, "b": 2}) == 3
        assert [c.tool for c in guard.calls] == [structured]
        assert adder.run(a=1, b=2) == 3
        assert len(guard.calls) == 2

    def test_a_tool_that_calls_itself_comes_each_time(self, serve):
        guard = Guard()
        serve("tools.guard", lambda: guard)

        class Factorial(BaseTool):
            name: str = "factorial"
            description: str = "n!"

            def _run(self, n: int) -> int:
                return n * self.run(n=n - 1) if n else 1

        assert Factorial().run(n=4) == 24
        assert [c.arguments["n"] for c in guard.calls] == [4, 3, 2, 1, 0]

    def test_a_tools_tool_is_seen_with_the_agent_that_called(self, serve):
        guard = Guard()
        serve("tools.guard", lambda: guard)
        inner = Adder()

        class Outer(BaseTool):
            name: str = "outer"
            description: str = "uses another"

            def _run(self, a: int) -> int:
                return inner.run(a=a, b=a)

        script = [ToolCall("outer", {"a": 2}), lambda turn: turn.results[-1]]
        assert crew_with([Outer()], script, native=True).kickoff().raw == "4"
        assert [(c.name, c.agent.role) for c in guard.calls] == [
            ("outer", "worker"),
            ("Add Numbers", "worker"),
        ]
        # The call is over: nothing of the crew is kept for the next.
        inner.run(a=1, b=1)
        assert guard.calls[-1].agent is None

    @NATIVE
    def test_parameters_have_any_name(self, serve, native):
        @tool("rent")
        def rent(tool: str, call: str, args: str) -> str:
            """Rent a tool."""
            return f"{tool} {call} {args}"

        guard = Guard()
        serve("tools.guard", lambda: guard)
        arguments = {"tool": "drill", "call": "1", "args": "2"}
        script = [ToolCall("rent", arguments), lambda turn: turn.results[-1]]
        assert crew_with([rent], script, native=native).kickoff().raw == "drill 1 2"
        assert [call.arguments for call in guard.calls] == [arguments]

    def test_what_takes_no_tool_or_is_not_awaited_is_left_alone(self, serve):
        class Static(Adder):
            @staticmethod
            def run(a=1):
                return ("static", a)

            def arun(self, **kwargs):
                return "at once"

        class OfClass(Adder):
            @classmethod
            def run(cls, a=1):
                return (cls.__name__, a)

            def arun(self, **kwargs):
                return super().arun(**kwargs)

        def results():
            at_once, awaited = Static().arun(), asyncio.run(OfClass().arun(a=1, b=2))
            return Static().run(a=3), Static.run(5), OfClass().run(a=3), at_once, awaited

        stock = results()
        guard = Guard()
        serve("tools.guard", lambda: guard)
        assert results() == stock == (("static", 3), ("static", 5), ("OfClass", 3), "at once", 3)
        assert [call.asynchronous for call in guard.calls] == [True]

    def test_a_class_that_goes_is_not_kept(self, serve):
        guard = Guard()
        binding = serve("tools.guard", lambda: guard)

        def made():
            class Loud(Adder):
                def run(self, *args, **kwargs):
                    return super().run(*args, **kwargs) * 10

            assert Loud().run(a=1, b=2) == 30
            return Loud

        gone, stays = weakref.ref(made()), made()
        guard.calls.clear()
        gc.collect()
        assert gone() is None
        assert binding.in_force()
        ours = vars(stays)["run"]
        binding.undo()
        assert vars(stays)["run"] is ours.__wrapped__
        assert stays().run(a=1, b=2) == 30
        assert guard.calls == []

    def test_a_bound_method_taken_while_bound_runs_stock_afterwards(self, serve):
        guard = Guard()
        binding = serve("tools.guard", lambda: guard)
        run, arun = Adder().run, Adder().arun
        binding.undo()
        assert run(a=1, b=2) == 3
        assert asyncio.run(arun(a=1, b=2)) == 3
        assert guard.calls == []

    def test_a_wrong_type_names_the_distribution(self, serve):
        with pytest.raises(ProviderError, match=r"fake-dist 1\.2.*a ToolGuard \(missing: arun\)"):
            serve("tools.guard", lambda: types.SimpleNamespace(run=print))

    @pytest.mark.parametrize(
        "repaired",
        [
            pytest.param(
                False, marks=pytest.mark.xfail(strict=True, reason="stock counts ReAct calls twice")
            ),
            True,
        ],
    )
    def test_a_react_agent_gets_as_many_uses_as_were_granted(self, serve, repaired):
        serve("tools.guard", Guard, features=("exact-usage-count",) if repaired else ())
        ran = []

        class Limited(BaseTool):
            name: str = "limited"
            description: str = "four times"
            max_usage_count: int | None = 4

            def _run(self, n: int) -> int:
                ran.append(n)
                return n

        script = [ToolCall("limited", {"n": n}) for n in range(6)]
        crew_with([Limited()], [*script, "done"], native=False).kickoff()
        assert ran == [0, 1, 2, 3]

    def test_the_repair_keeps_the_limit_of_invoke(self, serve):
        serve("tools.guard", Guard, features=("exact-usage-count",))
        limited = Adder(max_usage_count=2).to_structured_tool()
        for _ in range(2):
            limited.invoke({"a": 1, "b": 2})
        with pytest.raises(ToolUsageLimitExceededError):
            limited.invoke({"a": 1, "b": 2})

    def test_the_repair_counts_what_a_tools_own_invoke_runs(self, serve):
        ran = []

        class Traced(CrewStructuredTool):
            def invoke(self, input, config=None, **kwargs):  # noqa: A002
                ran.append(input)
                return self.func(**input)

        class Limited(Adder):
            max_usage_count: int | None = 2

            def to_structured_tool(self):
                traced = Traced(**dict(super().to_structured_tool()))
                traced._original_tool = self
                return traced

        script = [ToolCall("add_numbers", {"a": n, "b": n}) for n in range(4)]
        serve("tools.guard", Guard, features=("exact-usage-count",))
        limited = Limited()
        crew_with([limited], [*script, "done"], native=False).kickoff()
        assert [arguments["a"] for arguments in ran] == [0, 1]
        assert limited.current_usage_count == 2

    @NATIVE
    def test_the_repair_lets_a_tool_try_others(self, serve, native):
        def primary(q: str) -> str:
            """Break."""
            raise ConnectionError("primary down")

        def backup(q: str) -> str:
            """Help."""
            return f"backup {q}"

        class Search(BaseTool):
            name: str = "search"
            description: str = "s"

            def _run(self, q: str) -> str:
                try:
                    return CrewStructuredTool.from_function(primary).invoke({"q": q})
                except ConnectionError:
                    return CrewStructuredTool.from_function(backup).invoke({"q": q})

        serve("tools.guard", Guard, features=("exact-usage-count",))
        script = [ToolCall("search", {"q": "x"}), lambda turn: turn.results[-1]]
        assert crew_with([Search()], script, native=native).kickoff().raw == "backup x"

    @NATIVE
    def test_the_repair_leaves_alone_what_hooks_and_programs_invoke(self, serve, native):
        from crewai.hooks import tool_hooks

        guard, kept, up = Guard(), [], []

        class Fetch(Adder):
            def _run(self, a: int, b: int) -> int:
                if not up:
                    raise ConnectionError("down")
                return a + b

        fetch = Fetch()
        own = fetch.to_structured_tool()

        def after(context):
            if "down" in str(context.tool_result):
                up.append(True)
                return str(context.tool.invoke({"a": 1, "b": 2}))
            return None

        serve("tools.guard", lambda: guard, features=("exact-usage-count",))
        tool_hooks.register_before_tool_call_hook(kept.append)
        tool_hooks.register_after_tool_call_hook(after)
        try:
            assert crew_with([fetch], ADD, native=native).kickoff().raw == "is 3"
        finally:
            tool_hooks.unregister_before_tool_call_hook(kept.append)
            tool_hooks.unregister_after_tool_call_hook(after)
        assert own.invoke({"a": 1, "b": 2}) == 3
        # The call is over: nothing of the crew is kept for these two, although its context is.
        assert [call.agent is None for call in guard.calls] == [False, True, True]
        assert len(kept) == 1

    @pytest.mark.parametrize(
        ("extra", "expected"), [("allow", [[], ["city"]]), ("ignore", [[]]), ("forbid", [[]])]
    )
    @pytest.mark.parametrize("awaited", [False, True])
    @pytest.mark.parametrize("schemas", [False, True])
    def test_the_repair_runs_a_tool_with_what_was_left_out_where_that_differs(
        self, serve, extra, expected, awaited, schemas
    ):
        ran, told = [], []

        class Units(BaseModel):
            model_config = ConfigDict(extra=extra)
            units: str = "C"

        class Weather(BaseTool):
            name: str = "weather"
            description: str = "w"
            args_schema: type[BaseModel] = Units

            def _run(self, units: str, **more) -> str:
                ran.append(list(more))
                raise ValueError(f"no weather {more}")

        serve("tools.guard", Guard, features=("exact-usage-count",))
        if schemas:
            # It lends ToolUsage something that stands in for the tool.
            provider = Schemas()
            provider.argument_names = lambda model: list(model.model_fields)
            serve("tools.schemas", lambda: provider, features=("arguments",))
        script = [
            ToolCall("weather", {"city": "Paris"}),
            lambda turn: told.append(turn.results[-1]) or "done",
        ]
        crew = crew_with([Weather()], script, native=False)
        if awaited:
            asyncio.run(crew.akickoff())
        else:
            crew.kickoff()
        assert ran == expected
        assert "no weather" in told[0]
        assert ("'city': 'Paris'" in told[0].partition("no weather")[2]) == (extra == "allow")

    @pytest.mark.parametrize("awaited", [False, True])
    def test_the_repair_leaves_tools_alone_that_cannot_be_invoked(self, monkeypatch, awaited):
        used = []

        async def ause(usage, tool_string, tool, calling):
            used.append(tool)

        monkeypatch.setattr(
            ToolUsage, "_use", lambda usage, tool_string, tool, calling: used.append(tool)
        )
        monkeypatch.setattr(ToolUsage, "_ause", ause)
        guard_slot = slots.load("tools.guard")
        repair = next(r for r in guard_slot.repairs if r.name == "exact-usage-count")
        binding = Binding(Watch("tools.guard"))
        repair.bind(binding, None)
        usage, own = ToolUsage.__new__(ToolUsage), Adder()
        try:
            # A program that calls ToolUsage itself may give it a tool as it is.
            if awaited:
                asyncio.run(usage._ause("", own, None))
            else:
                usage._use("", own, None)
        finally:
            binding.undo()
        assert used == [own]


class DictCache:
    def __init__(self):
        self.kept = {}

    def add(self, tool, input, output):  # noqa: A002
        self.kept[tool, input] = output

    def read(self, tool, input):  # noqa: A002
        return self.kept.get((tool, input))


class TestCache:
    @NATIVE
    def test_a_crew_finds_its_results_there(self, serve, native):
        ran, caches = [], []

        @tool("Look Up")
        def look_up(key: str) -> str:
            """Look up."""
            ran.append(key)
            return key.upper()

        other = Adder()
        script = [
            ToolCall("look_up", {"key": "a"}),
            ToolCall("add_numbers", {"a": 1, "b": 2}),
            ToolCall("look_up", {"key": "a"}),
            lambda turn: ", ".join(turn.results),
        ]
        stock = crew_with([look_up, other], script, native=native, cache=True).kickoff().raw
        assert ran == ["a"]

        def hook(handler):
            caches.append(DictCache())
            return caches[-1]

        serve("tools.cache", hook)
        ran.clear()
        crew = crew_with([look_up, other], script, native=native, cache=True)
        assert crew.kickoff().raw == stock
        assert ran == ["a"]
        (used,) = [cache for cache in caches if cache.kept]
        assert used.kept[("look_up", '{"key": "a"}')] == "A"

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    def test_a_child_waits_for_no_cache_that_its_parent_makes(self, serve):
        making, go = threading.Event(), threading.Event()

        def hook(handler):
            if threading.current_thread() is not threading.main_thread():
                making.set()
                go.wait(60)
            return DictCache()

        serve("tools.cache", hook)
        thread = threading.Thread(target=CacheHandler().read, args=("t", "1"))
        thread.start()
        assert making.wait(60)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            signal.alarm(20)
            handler = CacheHandler()
            handler.add("t", "1", "one")
            os._exit(0 if handler.read("t", "1") == "one" else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        go.set()
        thread.join()

    def test_failures_never_come_there(self, serve):
        cache = DictCache()
        serve("tools.cache", lambda handler: cache)
        handler = CacheHandler()
        handler.add("t", "1", failures().ToolFailure(message="broken"))
        assert handler.read("t", "1") is None
        assert cache.kept == {}

    def test_a_handler_from_before_keeps_what_it_has(self, serve):
        handler = CacheHandler()
        handler.add("t", "old", "old")
        handler.add("t", "both", "stale")
        binding = serve("tools.cache", lambda handler: DictCache())
        handler.add(tool="t", input="both", output="fresh")
        handler.add("t", "new", "new")
        assert [handler.read("t", key) for key in ("old", "both", "new")] == ["old", "fresh", "new"]
        binding.undo()
        # What the provider kept is a miss; the stale result must not come back.
        assert [handler.read("t", key) for key in ("old", "both", "new")] == ["old", None, None]
        handler.add("t", "after", "after")
        assert handler.read("t", "after") == "after"

    def test_another_binding_begins_afresh(self, serve):
        handler = CacheHandler()
        serve("tools.cache", lambda handler: DictCache()).undo()
        first = serve("tools.cache", lambda handler: DictCache())
        handler.add("t", "1", "one")
        first.undo()
        serve("tools.cache", lambda handler: DictCache())
        assert handler.read("t", "1") is None

    def test_handlers_have_caches_of_their_own_and_copies_share_them(self, serve):
        serve("tools.cache", lambda handler: DictCache())
        one, two = CacheHandler(), CacheHandler()
        one.add("t", "1", "one")
        assert two.read("t", "1") is None
        assert copy.copy(one).read("t", "1") == "one"
        assert one.model_copy().read("t", "1") == "one"
        assert one.model_dump() == {}

    def test_a_cache_goes_with_its_handler(self, serve):
        serve("tools.cache", lambda handler: DictCache())
        handler = CacheHandler()
        handler.add("t", "1", "one")
        (cache,) = [v for v in handler.__pydantic_private__.values() if isinstance(v, DictCache)]
        gone = weakref.ref(cache)
        del handler, cache
        gc.collect()
        assert gone() is None

    def test_stock_answers_where_the_provider_fails(self, serve, caplog):
        class Broken:
            def add(self, tool, input, output):  # noqa: A002
                raise OSError("disk")

            def read(self, tool, input):  # noqa: A002
                raise OSError("disk")

        binding = serve("tools.cache", lambda handler: Broken())
        handler = CacheHandler()
        handler.add("t", "1", "one")
        assert handler.read("t", "1") == "one"
        assert binding.watch.metrics().fallbacks == 2
        for _ in range(5):
            handler.read("t", "1")
        assert binding.watch.reverted is not None
        assert handler.read("t", "1") == "one"

    def test_a_wrong_type_names_the_distribution(self, serve):
        with pytest.raises(ProviderError, match=r"fake-dist 1\.2 returned 'dict'.*a ToolCache"):
            serve("tools.cache", lambda handler: {})

    def test_a_class_is_no_object_of_it(self, serve):
        class Cache:
            def add(self, *what): ...
            def read(self, *what): ...

        class Static:
            add = read = staticmethod(lambda *_: None)

        with pytest.raises(ProviderError, match=r"the class 'Cache'.*an object, not its class"):
            serve("tools.cache", lambda handler: Cache)
        serve("tools.cache", lambda handler: Static)


class Arguments(BaseModel):
    first: int
    second: str | None = None


class Schemas:
    """Answers as stock does, from functions taken before anything was bound."""

    def __init__(self):
        from crewai.tools import structured_tool

        self.asked = []
        self._model = pydantic_schema_utils.generate_model_description
        self._name = string_utils.sanitize_tool_name
        self._tool = structured_tool.format_description_for_llm

    def generate_model_description(self, model, *, strip_null_types=True):
        self.asked.append("model")
        return self._model(model, strip_null_types=strip_null_types)

    def sanitize_tool_name(self, name, max_length=64):
        self.asked.append("name")
        return self._name(name, max_length)

    def format_description_for_llm(self, name, args_schema, description):
        self.asked.append("tool")
        return self._tool(name, args_schema, description)

    def select_tool(self, tools, tool_name):
        self.asked.append("select")
        wanted = self._name(tool_name)
        return next((t for t in tools if self._name(t.name) == wanted), None)


class TestSchemas:
    @NATIVE
    def test_an_agents_run_is_as_before(self, serve, check_targets, native):
        check_targets(slots.load("tools.schemas").targets)
        adder = Adder()
        stock = crew_with([adder], ADD, native=native)
        expected = stock.kickoff().raw
        schemas = Schemas()
        binding = serve("tools.schemas", lambda: schemas, verify=1.0)
        crew = crew_with([adder], ADD, native=native)
        assert crew.kickoff().raw == expected
        assert set(schemas.asked) >= ({"name", "model"} if native else {"name", "tool", "select"})
        assert binding.watch.reverted is None
        before, now = stock.agents[0].llm.calls, crew.agents[0].llm.calls
        assert [(c.tools, c.turn.prompt) for c in now] == [(c.tools, c.turn.prompt) for c in before]

    def test_functions_are_replaced_by_every_name_and_restored(self, serve):
        from crewai.tools import base_tool

        stock = string_utils.sanitize_tool_name
        assert base_tool.sanitize_tool_name is stock
        binding = serve("tools.schemas", Schemas)
        assert string_utils.sanitize_tool_name is not stock
        assert base_tool.sanitize_tool_name is string_utils.sanitize_tool_name
        # A module that is imported while the slot is bound copies the replacement.
        late = types.ModuleType("crewai.late_test_module")
        late.sanitize_tool_name = kept = string_utils.sanitize_tool_name
        sys.modules[late.__name__] = late
        try:
            binding.undo()
            assert late.sanitize_tool_name is stock
            assert string_utils.sanitize_tool_name is stock
            assert kept("My Tool") == "my_tool"
            assert binding.watch.metrics().calls == 0
        finally:
            del sys.modules[late.__name__]

    def test_no_tool_found_is_reported_by_crewai(self, serve):
        class Nothing:
            def select_tool(self, tools, tool_name):
                return None

        binding = serve("tools.schemas", Nothing)
        assert any("without generate_model_description" in note for note in binding.notes)
        script = [ToolCall("no_such_tool", {}), "done"]
        assert crew_with([Adder()], script, native=False).kickoff().raw == "done"
        assert binding.watch.metrics().calls > 0
        assert binding.watch.metrics().fallbacks == 0

    def test_stock_answers_where_the_provider_fails(self, serve):
        class Broken:
            def generate_model_description(self, model, *, strip_null_types=True):
                raise RuntimeError("bug")

        expected = pydantic_schema_utils.generate_model_description(Arguments)
        binding = serve("tools.schemas", Broken)
        assert pydantic_schema_utils.generate_model_description(Arguments) == expected
        assert binding.watch.metrics().fallbacks == 1

    def test_a_difference_reverts_the_slot(self, serve):
        class Wrong(Schemas):
            def sanitize_tool_name(self, name, max_length=64):
                return "x"

        binding = serve("tools.schemas", Wrong, verify=1.0)
        assert string_utils.sanitize_tool_name("My Tool") == "my_tool"
        assert "'x' is not 'my_tool'" in binding.watch.reverted

    def test_a_wrong_type_names_the_distribution(self, serve):
        with pytest.raises(ProviderError, match=r"fake-dist 1\.2.*sanitize_tool_name"):
            serve("tools.schemas", object)

    def test_the_error_of_a_bad_argument_is_crewais(self, serve):
        binding = serve("tools.schemas", Schemas)
        with pytest.raises(AttributeError, match="model_json_schema"):
            pydantic_schema_utils.generate_model_description(int)
        assert binding.watch.metrics().fallbacks == 0
