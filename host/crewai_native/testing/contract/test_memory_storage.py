"""``memory.storage``: what CrewAI's ``Memory`` may rely on in its storage."""

from __future__ import annotations

import asyncio
import concurrent.futures
import datetime as dt
import os
import threading
import uuid
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from crewai_native.slots.memory_storage import PROTOCOL
from crewai_native.testing.contract.rules import SlotContract

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOW = dt.datetime(2026, 1, 1, 12, 0, 0)  # noqa: DTZ001 - CrewAI's own times are naive UTC
EAST, NORTH, UP = [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]
HOSTILE = ["it's", '"quoted"', "100%", "a_b", "back\\slash", "line\nbreak", "null\x00byte", "Ünï 🜂"]


CUTOFF = NOW + dt.timedelta(days=1)


def _deletion(gone: str, stock_defect: str | None = None, **conditions: Any) -> Any:
    """Return a case: the records of ``mixed`` that meet the conditions, and what stock does."""
    marks = [pytest.mark.stock_defect(stock_defect)] if stock_defect else []
    return pytest.param(conditions, gone, marks=marks, id="-".join(conditions) or "nothing")


DELETIONS = [
    _deletion("abcde"),
    _deletion("d", "deletes what lies in the root too", scope_prefix="/t"),
    _deletion("c", categories=["d", "absent"]),
    _deletion("ae", record_ids=["a", "e", "nobody"]),
    _deletion("acde", older_than=CUTOFF),
    _deletion("ce", metadata_filter={"m": 2}),
    _deletion("ade", categories=["c"], older_than=CUTOFF),
    _deletion("a", scope_prefix="/s", categories=["c"], older_than=CUTOFF),
    _deletion("ab", scope_prefix="/s", metadata_filter={"m": 1}),
    _deletion("ac", "deletes what lies in the root too", scope_prefix="/s", older_than=CUTOFF),
    _deletion("a", "ignores the scope", record_ids=["a", "d"], scope_prefix="/s"),
    _deletion("a", "ignores the age", record_ids=["a", "b"], older_than=CUTOFF),
    _deletion("a", "ignores the ids", record_ids=["a", "c"], categories=["c"]),
]


class TestMemoryStorage(SlotContract):
    """Runs on the storage that a ``Memory`` of the default spec gets."""

    slot: ClassVar = "memory.storage"
    stock_defects: ClassVar = {
        "test_a_process_that_used_it_can_fork": "LanceDB may hang in a forked child",
    }

    @staticmethod
    def exercise() -> Any:
        """Save a record and find it."""
        from crewai.memory.types import MemoryRecord
        from crewai.memory.unified_memory import Memory

        name = uuid.uuid4().hex
        storage = Memory()._storage  # noqa: SLF001 - what CrewAI's memory works on
        storage.save([MemoryRecord(id=name, content="text", embedding=EAST, scope=f"/{name}")])
        found = storage.search(EAST, scope_prefix=f"/{name}", limit=5)
        return [record.content for record, _ in found]

    @pytest.fixture
    def open_storage(self, provider: str) -> Iterator[Callable[[], Any]]:
        """Return a function that opens one more handle on the same store."""
        from crewai.memory.unified_memory import Memory

        opened = []

        def open_storage() -> Any:
            storage = Memory()._storage  # noqa: SLF001 - what CrewAI's memory works on
            opened.append(storage)
            return storage

        yield open_storage
        for storage in opened:
            close = getattr(storage, "close", None)
            if callable(close):
                close()

    @pytest.fixture
    def storage(self, open_storage: Callable[[], Any]) -> Any:
        """An empty store."""
        return open_storage()

    @pytest.fixture
    def record(self) -> Callable[..., Any]:
        """Return a function that makes a record, EAST unless told otherwise."""
        from crewai.memory.types import MemoryRecord

        def record(name: str, **fields: Any) -> Any:
            return MemoryRecord(
                **{"id": name, "content": f"about {name}", "embedding": EAST, **fields}
            )

        return record

    # --- saving and reading -------------------------------------------------------------------

    def test_it_has_the_whole_protocol(self, storage: Any) -> None:
        """CrewAI never checks, and fails at the first missing method in the middle of a run."""
        assert [name for name in PROTOCOL if not callable(getattr(storage, name, None))] == []

    def test_a_new_store_is_empty(self, storage: Any) -> None:
        """Reading before anything was saved is no error."""
        assert storage.count() == 0
        assert storage.search(EAST) == []
        assert storage.get_record("nobody") is None
        assert storage.list_records() == []
        assert storage.list_scopes() == []
        assert storage.list_categories() == {}
        assert storage.get_scope_info("/").record_count == 0
        assert storage.delete(record_ids=["nobody"]) == 0

    def test_a_record_comes_back_as_it_was_saved(self, storage: Any, record: Any) -> None:
        """Every field, the nested metadata and the microseconds too."""
        saved = record(
            "r",
            content="the content",
            scope="/company/team",
            categories=["a", "b"],
            metadata={"n": 1, "nested": {"list": [1, "two", None]}},
            importance=0.75,
            created_at=NOW + dt.timedelta(microseconds=123456),
            last_accessed=NOW,
            source="alice",
            private=True,
        )
        storage.save([saved])
        assert storage.get_record("r").model_dump() == saved.model_dump()

    @pytest.mark.parametrize("text", HOSTILE)
    def test_any_text_is_only_text(self, storage: Any, record: Any, text: str) -> None:
        """Quotes, wildcards and control characters mean nothing in any field."""
        storage.save([record("other"), record(text, content=text, categories=[text], source=text)])
        assert storage.get_record(text).content == text
        assert storage.list_categories() == {text: 1}
        assert storage.delete(record_ids=[text]) == 1
        assert [r.id for r in storage.list_records()] == ["other"]

    def test_updating_replaces_one_record(self, storage: Any, record: Any) -> None:
        """The others, and the number of records, stay as they were."""
        storage.save([record("a"), record("b")])
        storage.update(record("a", content="new", embedding=NORTH, categories=["c"]))
        assert storage.count() == 2
        assert storage.get_record("a").content == "new"
        assert storage.get_record("b").content == "about b"
        assert storage.search(NORTH, limit=1)[0][0].id == "a"

    def test_touching_changes_the_time_of_access_alone(self, storage: Any, record: Any) -> None:
        """CrewAI calls ``touch_records`` after each recall, where there is one."""
        saved = record("a", last_accessed=NOW, created_at=NOW)
        storage.save([saved])
        touch = getattr(storage, "touch_records", None)
        if touch is None:
            pytest.skip("the storage has no touch_records, which is optional")
        touch(["a", "nobody"])
        found = storage.get_record("a")
        assert found.last_accessed > NOW
        assert found.model_copy(update={"last_accessed": NOW}).model_dump() == saved.model_dump()

    # --- searching ----------------------------------------------------------------------------

    def test_the_nearest_comes_first(self, storage: Any, record: Any) -> None:
        """With scores that fall, between 0 and 1, and 1 for the vector itself."""
        storage.save(
            [
                record("far", embedding=UP),
                record("near", embedding=[0.9, 0.1, 0.0, 0.0]),
                record("same", embedding=EAST),
            ]
        )
        found = storage.search(EAST)
        assert [r.id for r, _ in found] == ["same", "near", "far"]
        scores = [score for _, score in found]
        assert scores == sorted(scores, reverse=True)
        assert scores[0] == pytest.approx(1.0)
        assert 0.0 <= scores[-1] < scores[0]

    def test_limit_and_least_score(self, storage: Any, record: Any) -> None:
        """Neither more than asked for, nor worse."""
        storage.save([record(f"r{n}", embedding=[1.0, n / 10, 0.0, 0.0]) for n in range(10)])
        assert len(storage.search(EAST, limit=3)) == 3
        scores = [score for _, score in storage.search(EAST, limit=10)]
        least = scores[4]
        assert [s for _, s in storage.search(EAST, limit=10, min_score=least)] == scores[:5]

    @pytest.mark.stock_defect("categories are filtered after the nearest 3 x limit were taken")
    def test_categories_are_filtered_before_ranking(self, storage: Any, record: Any) -> None:
        """What matches is found, however much that does not lies nearer."""
        near = [record(f"near{n}", categories=["noise"]) for n in range(50)]
        far = [record(f"far{n}", categories=["wanted"], embedding=NORTH) for n in range(5)]
        storage.save(near + far)
        assert len(storage.search(EAST, categories=["wanted", "absent"], limit=5)) == 5

    @pytest.mark.stock_defect("metadata is filtered after the nearest 3 x limit were taken")
    def test_metadata_is_filtered_before_ranking(self, storage: Any, record: Any) -> None:
        """As categories are; all keys must match."""
        near = [record(f"near{n}", metadata={"k": 1, "x": 0}) for n in range(50)]
        far = [record(f"far{n}", metadata={"k": 1, "x": 1}, embedding=NORTH) for n in range(5)]
        storage.save(near + far)
        assert len(storage.search(EAST, metadata_filter={"k": 1, "x": 1}, limit=5)) == 5

    def test_a_vector_of_another_length_is_refused(self, storage: Any, record: Any) -> None:
        """With CrewAI's own error, which tells the user that the embedder has changed."""
        storage.save([record("a")])
        with pytest.raises(ValueError, match="4"):
            storage.search([1.0, 0.0])
        with pytest.raises(ValueError, match="4"):
            storage.save([record("b", embedding=[1.0, 0.0])])
        assert storage.count() == 1

    # --- scopes -------------------------------------------------------------------------------

    @pytest.fixture
    def scoped(self, storage: Any, record: Any) -> Any:
        """A store with records in neighbouring scopes, one name being the other's beginning."""
        storage.save(
            [
                record("root", scope="/"),
                record("co3", scope="/co/3", categories=["x"]),
                record("co3a", scope="/co/3/a", categories=["x", "y"]),
                record("co30", scope="/co/30", categories=["y"]),
                record("under", scope="/c_/3"),
            ]
        )
        return storage

    @pytest.mark.stock_defect("a scope's prefix matches its neighbours: /co/3 finds /co/30")
    def test_a_scope_holds_itself_and_what_is_below(self, scoped: Any) -> None:
        """And nothing beside it: that is the wall between tenants."""
        inside = {"co3", "co3a"}
        assert {r.id for r, _ in scoped.search(EAST, scope_prefix="/co/3")} == inside
        assert {r.id for r in scoped.list_records("/co/3")} == inside
        assert scoped.count("/co/3") == 2
        assert scoped.get_scope_info("/co/3").record_count == 2
        assert scoped.list_categories("/co/3") == {"x": 2, "y": 1}

    def test_the_root_holds_everything(self, scoped: Any) -> None:
        """As no scope does."""
        for scope in (None, "/"):
            assert scoped.count(scope) == 5
            assert len(scoped.list_records(scope)) == 5
            assert len(scoped.search(EAST, scope_prefix=scope)) == 5

    def test_scopes_are_listed_one_level_down(self, scoped: Any) -> None:
        """Sorted, as whole paths."""
        assert scoped.list_scopes() == ["/c_", "/co"]
        assert scoped.list_scopes("/co") == ["/co/3", "/co/30"]
        assert scoped.list_scopes("/co/30") == []

    def test_wildcards_in_a_scope_are_plain_characters(self, scoped: Any) -> None:
        """``_`` and ``%`` are ordinary characters of a path."""
        assert [r.id for r in scoped.list_records("/c_")] == ["under"]
        assert scoped.list_records("/%") == []

    def test_a_scope_says_what_is_in_it(self, storage: Any, record: Any) -> None:
        """Its records, categories, times and children."""
        times = [NOW, NOW + dt.timedelta(days=1)]
        storage.save(
            [
                record("a", scope="/s", categories=["b"], created_at=times[1]),
                record("b", scope="/s/t", categories=["a"], created_at=times[0]),
            ]
        )
        info = storage.get_scope_info("/s")
        assert (info.path, info.record_count, info.categories) == ("/s", 2, ["a", "b"])
        assert (info.oldest_record, info.newest_record) == (times[0], times[1])
        assert info.child_scopes == ["/s/t"]

    def test_records_are_listed_newest_first_and_in_pages(self, storage: Any, record: Any) -> None:
        """Pages neither overlap nor leave anything out."""
        storage.save(
            [record(f"r{n}", created_at=NOW + dt.timedelta(seconds=n)) for n in (3, 1, 4, 0, 2)]
        )
        pages = [storage.list_records(limit=2, offset=offset) for offset in (0, 2, 4, 6)]
        assert [[r.id for r in page] for page in pages] == [["r4", "r3"], ["r2", "r1"], ["r0"], []]

    # --- deleting -----------------------------------------------------------------------------

    @pytest.fixture
    def mixed(self, storage: Any, record: Any) -> Any:
        """A store in which every condition of ``delete`` holds for some records."""
        old, new = NOW, NOW + dt.timedelta(days=30)
        storage.save(
            [
                record("a", scope="/s", categories=["c"], metadata={"m": 1}, created_at=old),
                record("b", scope="/s", categories=["c"], metadata={"m": 1}, created_at=new),
                record("c", scope="/s", categories=["d"], metadata={"m": 2}, created_at=old),
                record("d", scope="/t", categories=["c"], metadata={"m": 1}, created_at=old),
                record("e", scope="/", categories=["c"], metadata={"m": 2}, created_at=old),
            ]
        )
        return storage

    @pytest.mark.parametrize(("conditions", "gone"), DELETIONS)
    def test_delete_deletes_what_meets_every_condition(
        self, mixed: Any, conditions: dict[str, Any], gone: str
    ) -> None:
        """And no record more, and says how many."""
        assert mixed.delete(**conditions) == len(gone)
        assert {r.id for r in mixed.list_records()} == set("abcde") - set(gone)

    def test_resetting_a_scope_empties_it(self, scoped: Any) -> None:
        """And a reset of everything, everything; the store can be used on."""
        scoped.reset("/c_")
        assert scoped.count("/c_") == 0
        assert scoped.count() == 4
        scoped.reset()
        assert scoped.count() == 0

    def test_a_store_can_be_used_after_a_reset(self, storage: Any, record: Any) -> None:
        """With vectors of another length, even."""
        storage.save([record("a")])
        storage.reset()
        storage.save([record("b", embedding=[1.0, 0.0])])
        assert [r.id for r, _ in storage.search([1.0, 0.0])] == ["b"]

    # --- several at once ----------------------------------------------------------------------

    def test_the_asynchronous_methods_do_the_same(self, storage: Any, record: Any) -> None:
        """CrewAI's protocol has them."""

        async def work() -> tuple[int, int]:
            await storage.asave([record("a"), record("b", scope="/s")])
            found = await storage.asearch(EAST, limit=5)
            return len(found), await storage.adelete(record_ids=["b"])

        assert asyncio.run(work()) == (2, 1)
        assert storage.count() == 1

    def test_threads_lose_nothing(self, storage: Any, record: Any) -> None:
        """CrewAI saves, searches and touches from many threads."""
        barrier = threading.Barrier(8)

        def work(number: int) -> None:
            barrier.wait()
            for n in range(4):
                storage.save([record(f"{number}-{n}", scope=f"/t{number}")])
                assert storage.search(EAST, scope_prefix=f"/t{number}", limit=1)

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
        assert storage.count() == 32

    @pytest.mark.stock_defect("a handle does not see what another one has written since")
    def test_handles_on_one_store_see_each_other(
        self, open_storage: Callable[[], Any], record: Any
    ) -> None:
        """CrewAI opens one for each ``Memory``: a crew, its agents and its flows have several."""
        first, second = open_storage(), open_storage()
        first.save([record("a")])
        assert [r.id for r, _ in second.search(EAST)] == ["a"]
        second.save([record("b")])
        first.delete(record_ids=["a"])
        assert {r.id for r in second.list_records()} == {"b"}
        assert {r.id for r in first.list_records()} == {"b"}

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
    def test_a_forked_child_works_on_the_same_store(
        self, storage: Any, record: Any, provider: str
    ) -> None:
        """As web servers and Celery fork after a crew was built."""
        if provider == "stock":
            pytest.skip("LanceDB hangs in a forked child")
        storage.save([record("parent")])
        child = os.fork()
        if child == 0:
            status = 1
            try:
                if storage.get_record("parent") is not None:
                    storage.save([record("child")])
                    status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        assert {r.id for r, _ in storage.search(EAST)} == {"parent", "child"}

    def test_it_is_there_in_another_handle_after_closing(
        self, open_storage: Callable[[], Any], record: Any
    ) -> None:
        """Closing is no part of CrewAI's protocol; where there is one, it may be repeated."""
        first = open_storage()
        first.save([record("a")])
        close = getattr(first, "close", None)
        if callable(close):
            close()
            close()
        assert open_storage().get_record("a").content == "about a"
