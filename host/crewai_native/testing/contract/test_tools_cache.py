"""``tools.cache``: what CrewAI may rely on in the results that it keeps of tool calls."""

from __future__ import annotations

import concurrent.futures
import copy
import gc
import weakref
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

import crewai_native
from crewai_native.testing.contract.crews import tool
from crewai_native.testing.contract.rules import SlotContract, alone

if TYPE_CHECKING:
    from collections.abc import Callable


class TestToolsCache(SlotContract):
    """Runs on ``CacheHandler``, as crews use it."""

    slot: ClassVar = "tools.cache"

    @staticmethod
    def exercise() -> Any:
        """Keep a result and read it."""
        from crewai.agents.cache.cache_handler import CacheHandler

        cache = CacheHandler()
        cache.add("add", '{"a": 1}', "one")
        return [cache.read("add", '{"a": 1}'), cache.read("add", '{"a": 2}')]

    @pytest.fixture
    def open_cache(self, provider: str) -> Callable[[], Any]:
        """Return a function that makes a crew's cache."""
        from crewai.agents.cache.cache_handler import CacheHandler

        return CacheHandler

    @pytest.fixture
    def cache(self, open_cache: Callable[[], Any]) -> Any:
        """An empty cache."""
        return open_cache()

    def test_what_was_never_added_is_a_miss(self, cache: Any) -> None:
        """None, and no error."""
        assert cache.read("add", "{}") is None

    def test_a_result_is_read_under_its_tool_and_input(self, cache: Any) -> None:
        """And under no other."""
        cache.add("add", '{"a": 1}', "one")
        cache.add("add", '{"a": 2}', "two")
        cache.add("sub", '{"a": 1}', "three")
        assert cache.read(tool="add", input='{"a": 1}') == "one"
        assert cache.read("add", '{"a": 2}') == "two"
        assert cache.read("sub", '{"a": 1}') == "three"
        assert cache.read("add", '{"a": 3}') is None

    @pytest.mark.stock_defect("the tool's name and the input are joined by a dash and run together")
    def test_names_and_inputs_do_not_run_together(self, cache: Any) -> None:
        """``a-b`` called with ``c`` is not ``a`` called with ``b-c``."""
        cache.add("a-b", "c", "one")
        assert cache.read("a", "b-c") is None

    def test_the_newest_result_counts(self, cache: Any) -> None:
        """Adding again replaces."""
        cache.add("add", "", "old")
        cache.add("add", "", "new")
        assert cache.read("add", "") == "new"

    @pytest.mark.parametrize("result", [0, "", False, [], {"k": [1]}, ("a", 1), 1.5, b"bytes"])
    def test_any_result_comes_back_as_it_was(self, cache: Any, result: Any) -> None:
        """With its type; tools return more than text."""
        cache.add("tool", "{}", result)
        found = cache.read("tool", "{}")
        assert (type(found), found) == (type(result), result)

    def test_an_object_comes_back_itself_or_equal(self, cache: Any) -> None:
        """Objects that nothing can serialise too."""
        lock_like = object()
        cache.add("tool", "{}", lock_like)
        assert cache.read("tool", "{}") is lock_like

    @pytest.mark.parametrize("text", ["", "it's", "null\x00byte", "Ünï 🜂", "x" * 100_000])
    def test_any_text_is_an_input(self, cache: Any, text: str) -> None:
        """Long ones and strange ones."""
        cache.add("tool", text, "found")
        assert cache.read("tool", text) == "found"

    def test_a_declared_failure_is_not_kept(self, cache: Any) -> None:
        """Replaying it would make a passing trouble permanent."""
        failure = pytest.importorskip("crewai.tools.tool_failure").ToolFailure(message="down")
        cache.add("tool", "{}", failure)
        assert cache.read("tool", "{}") is None

    def test_caches_do_not_share_results(self, open_cache: Callable[[], Any]) -> None:
        """Each crew has its own; results may be secrets of one user."""
        first, second = open_cache(), open_cache()
        first.add("tool", "{}", "secret")
        assert second.read("tool", "{}") is None
        assert first == first  # noqa: PLR0124 - a handler can be compared
        assert copy.copy(first).read("tool", "{}") == "secret"

    def test_a_cache_goes_when_its_handler_goes(self, open_cache: Callable[[], Any]) -> None:
        """A process that builds crews for ever must not grow."""

        class Result:
            pass

        result = Result()
        alive = weakref.ref(result)
        cache = open_cache()
        cache.add("tool", "{}", result)
        del cache, result
        gc.collect()
        assert alive() is None

    def test_threads_lose_nothing(self, cache: Any) -> None:
        """Tools of one turn run in parallel."""

        def work(number: int) -> bool:
            for n in range(50):
                cache.add(f"tool{number}", str(n), (number, n))
                cache.read(f"tool{(number + 1) % 8}", str(n))
            return all(cache.read(f"tool{number}", str(n)) == (number, n) for n in range(50))

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            assert all(pool.map(work, range(8)))

    def test_what_was_kept_before_binding_is_found_or_a_miss(self, provider: str) -> None:
        """Never something else; and the same after unbinding."""
        from crewai.agents.cache.cache_handler import CacheHandler

        crewai_native.deactivate()
        cache = CacheHandler()
        cache.add("tool", "{}", "before")
        crewai_native.activate(enabled=True, slots=alone(self.slot, provider))
        assert cache.read("tool", "{}") in {"before", None}
        cache.add("tool", "{}", "bound")
        assert cache.read("tool", "{}") == "bound"
        crewai_native.deactivate()
        assert cache.read("tool", "{}") in {"bound", None}

    def test_a_project_remembers_its_agents_themselves(self, provider: str) -> None:
        """``@agent`` keeps what it made in a handler too, and a copy of it would be another one."""
        from crewai import Agent
        from crewai.project import agent

        from crewai_native.testing import ScriptedLLM

        class Project:
            @agent
            def reader(self) -> Agent:
                return Agent(role="r", goal="g", backstory="b", llm=ScriptedLLM(["x"]))

        project = Project()
        assert project.reader() is project.reader()

    def test_a_crew_runs_a_tool_once_for_the_same_call(self, provider: str) -> None:
        """Through an agent that calls it twice with the same arguments."""
        from crewai import Agent, Crew, Task

        from crewai_native.testing import ScriptedLLM, ToolCall

        calls = []

        def double(number: int) -> int:
            """Double a number."""
            calls.append(number)
            return number * 2

        call = ToolCall("double", {"number": 21})
        agent = Agent(
            role="r",
            goal="g",
            backstory="b",
            llm=ScriptedLLM([call, call, lambda turn: ", ".join(turn.results)]),
            tools=[tool(double)],
        )
        task = Task(description="d", expected_output="e", agent=agent)
        assert Crew(agents=[agent], tasks=[task], cache=True).kickoff().raw == "42, 42"
        assert calls == [21]
