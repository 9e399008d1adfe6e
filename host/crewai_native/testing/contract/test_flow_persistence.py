"""``flow.persistence``: what CrewAI's flows may rely on where they keep their state."""

from __future__ import annotations

import concurrent.futures
import uuid
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from pydantic import BaseModel

from crewai_native.testing.contract.rules import SlotContract

if TYPE_CHECKING:
    from collections.abc import Callable


class _State(BaseModel):
    id: str = "flow"
    count: int = 0
    words: list[str] = []


class TestFlowPersistence(SlotContract):
    """Runs on what ``@persist`` gets when it is given nothing."""

    slot: ClassVar = "flow.persistence"

    @staticmethod
    def exercise() -> Any:
        """Save a state and load it."""
        from crewai.flow.persistence.factory import default_flow_persistence

        flow = uuid.uuid4().hex
        default_flow_persistence().save_state(flow, "method", {"id": "flow", "count": 1})
        return default_flow_persistence().load_state(flow)

    @pytest.fixture
    def open_store(self, provider: str) -> Callable[[], Any]:
        """Return a function that opens one more handle on the same store."""
        from crewai.flow.persistence.factory import default_flow_persistence

        return default_flow_persistence

    @pytest.fixture
    def store(self, open_store: Callable[[], Any]) -> Any:
        """An empty store."""
        return open_store()

    def test_nothing_is_known_of_a_flow_that_never_ran(self, store: Any) -> None:
        """None, and no error."""
        assert store.load_state("nobody") is None
        assert store.load_pending_feedback("nobody") is None

    @pytest.mark.parametrize("as_model", [False, True])
    def test_the_newest_state_of_a_flow_comes_back(self, store: Any, as_model: bool) -> None:
        """Given as a dictionary or as a model, and back as a dictionary."""
        for count in range(3):
            state = _State(count=count, words=["Ünï", "it's"])
            store.save_state("flow", f"method{count}", state if as_model else state.model_dump())
        assert store.load_state("flow") == {"id": "flow", "count": 2, "words": ["Ünï", "it's"]}

    def test_a_state_that_is_none_is_refused(self, store: Any) -> None:
        """With CrewAI's errors, and what was kept before stays."""
        store.save_state("flow", "m", {"id": "flow"})
        for state in ("text", [1]):
            with pytest.raises(ValueError, match="state_data"):
                store.save_state("flow", "m", state)
        with pytest.raises(TypeError, match="keys must be"):
            store.save_state("flow", "m", {("a", 1): 1})
        assert store.load_state("flow") == {"id": "flow"}

    def test_flows_do_not_see_each_other(self, store: Any) -> None:
        """Their ids tell them apart, whatever those are."""
        for flow in ("a", "A", "a'", "a%"):
            store.save_state(flow, "m", {"id": flow})
        assert [store.load_state(flow) for flow in ("a", "A", "a'", "a%", "_")] == [
            *({"id": flow} for flow in ("a", "A", "a'", "a%")),
            None,
        ]

    def test_handles_on_one_store_see_each_other(self, open_store: Callable[[], Any]) -> None:
        """CrewAI opens one for each decorated class and method."""
        open_store().save_state("flow", "m", {"id": "flow", "n": 1})
        assert open_store().load_state("flow") == {"id": "flow", "n": 1}

    def test_threads_lose_nothing(self, open_store: Callable[[], Any]) -> None:
        """Flows run side by side."""

        def work(number: int) -> Any:
            store = open_store()
            for n in range(5):
                store.save_state(f"flow{number}", "m", {"id": f"flow{number}", "n": n})
            return store.load_state(f"flow{number}")

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            assert [s["n"] for s in pool.map(work, range(4))] == [4] * 4

    def test_a_flow_takes_its_state_up_again(self, provider: str) -> None:
        """Through ``@persist``, as a program does."""
        from crewai.flow.flow import Flow, start
        from crewai.flow.persistence import persist

        @persist()
        class Counting(Flow[_State]):
            @start()
            def count(self) -> int:
                self.state.count += 1
                return self.state.count

        assert Counting().kickoff(inputs={"id": "counting"}) == 1
        assert Counting().kickoff(inputs={"id": "counting"}) == 2
