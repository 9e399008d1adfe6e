"""What every engine of ``tasks.batch`` does: one item for each input, whatever becomes of it."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

import pytest

from crewai_native.slots.tasks_batch import PROTOCOL, BatchItem, BatchOptions, ItemState
from crewai_native.testing.contract.crews import fresh, halves

if TYPE_CHECKING:
    from collections.abc import Iterator


class EngineContract:
    """The rules of an engine. Subclasses have a fixture ``engine``."""

    def test_each_input_has_its_item(self, engine: Any) -> None:
        """Once, under its number, as it ends."""
        items = sorted(engine.map(halves, numbers(0, 2, 4, 6, 8), options()), key=_index)
        assert [item.index for item in items] == [0, 1, 2, 3, 4]
        assert [item.output for item in items] == [0, 1, 2, 3, 4]
        assert {(item.state, item.attempts, item.error) for item in items} == {
            (ItemState.DONE, 1, None)
        }

    def test_an_awaiting_caller_gets_the_same(self, engine: Any) -> None:
        """On the event loop."""

        async def collect() -> list[BatchItem]:
            return [item async for item in engine.amap(halves, numbers(2, 4), options())]

        items = sorted(asyncio.run(collect()), key=_index)
        assert [(item.index, item.output) for item in items] == [(0, 1), (1, 2)]

    def test_a_crew_counts_its_own_tokens(self, engine: Any) -> None:
        """And its output is CrewAI's."""
        inputs = [{"topic": "x"}, {"topic": "y"}]
        for item in engine.map(fresh, inputs, options()):
            assert item.output.raw == "Done."
            assert item.usage.successful_requests == 1

    def test_one_error_does_not_lose_the_others(self, engine: Any) -> None:
        """It is its item's, and says what happened."""
        items = sorted(
            engine.map(halves, numbers(2, 3, 4), options(on_error="collect")), key=_index
        )
        assert [item.state for item in items] == [ItemState.DONE, ItemState.FAILED, ItemState.DONE]
        assert isinstance(items[1].error, Exception)
        assert "3 has no half" in str(items[1].error)

    def test_an_error_is_raised_where_that_is_asked_for(self, engine: Any) -> None:
        """By the iterator, which is over then."""
        batch = engine.map(halves, numbers(3), options(on_error="raise"))
        with pytest.raises(Exception, match="3 has no half"):
            next(batch)
        assert list(batch) == []

    def test_nothing_is_begun_after_an_error_where_that_is_asked_for(self, engine: Any) -> None:
        """What was not come to is pending, or has no item."""
        batch = engine.map(halves, numbers(3, *[2] * 30), options(on_error="stop", concurrency=1))
        states = [item.state for item in batch]
        assert states.count(ItemState.FAILED) == 1
        # Another may have been begun before the error was seen, and ends.
        assert states.count(ItemState.DONE) < 5
        assert set(states) <= {ItemState.FAILED, ItemState.DONE, ItemState.PENDING}

    def test_what_failed_is_tried_again(self, engine: Any) -> None:
        """As often as was said, and no item comes twice."""
        (item,) = engine.map(halves, numbers(3), options(on_error="collect", retries=1))
        assert (item.state, item.attempts) == (ItemState.FAILED, 2)

    def test_inputs_are_taken_as_there_is_room(self, engine: Any) -> None:
        """They may have no end; closing gives no more items."""
        taken = []

        def endless() -> Iterator[dict[str, int]]:
            for n in itertools.count():
                taken.append(n)
                yield {"n": 2 * n}

        batch = engine.map(halves, endless(), options(concurrency=2))
        items = [next(batch) for _ in range(3)]
        assert len({item.index for item in items}) == 3
        batch.close()
        assert len(taken) < 30
        assert list(batch) == []

    def test_an_option_that_it_does_not_have_is_named(self, engine: Any) -> None:
        """Before anything is begun."""
        with pytest.raises(ValueError, match="no-such-option"):
            next(engine.map(halves, numbers(2), options(engine={"no-such-option": 1})))

    def test_it_is_whole(self, engine: Any) -> None:
        """A short name, and everything of the protocol."""
        assert engine.name.islower()
        assert isinstance(engine.takes_over, bool)
        assert all(callable(getattr(engine, method)) for method in PROTOCOL)


def numbers(*found: int) -> list[dict[str, int]]:
    """Return inputs."""
    return [{"n": n} for n in found]


def options(**chosen: Any) -> BatchOptions:
    """Return options."""
    return BatchOptions(**chosen)


def _index(item: BatchItem) -> int:
    return item.index
