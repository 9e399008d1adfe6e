"""Batches on one real worker of two processes."""

from __future__ import annotations

import http.server
import itertools
import json
import logging
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel

from crewai_native_celery import KickoffError, WorkerLostError
from crewai_native_tasks import (
    Cancelled,
    ItemState,
    aimap_crew,
    amap_crew,
    cancel_scope,
    imap_crew,
    map_crew,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

LAKES = Path(__file__).parent / "project" / "lakes"
numbers = itertools.count(1000)


def mapped(*inputs: Any, target: Any = "shop:doing", **options: Any) -> Any:
    return map_crew(target, list(inputs), engine="celery", **options)


def test_real_crews_come_back_in_order_and_with_their_tokens(cluster: Any) -> None:
    import shop

    topics = [{"topic": f"t{n}"} for n in range(4)]
    result = mapped(*topics, target=shop.crew_about)
    assert [output.raw for output in result.outputs] == ["t0", "t1", "t2", "t3"]
    # One model answers all kickoffs of a process, and each counts its own tokens.
    assert [item.usage.successful_requests for item in result] == [1] * 4
    assert result.usage.successful_requests == 4
    assert result.usage.total_tokens == sum(item.usage.total_tokens for item in result) > 0
    assert [item.attempts for item in result] == [1] * 4
    assert min(item.seconds for item in result) > 0


@pytest.mark.parametrize("target", ["shop:standing", "shop:Painters"])
def test_what_can_be_named_is_run(cluster: Any, target: str) -> None:
    result = mapped({"topic": "a"}, {"topic": "b"}, {"topic": "c"}, target=target)
    assert [output.raw for output in result.outputs] == ["a", "b", "c"]
    assert result.usage.successful_requests == 3


@pytest.fixture
def answering() -> Iterator[str]:
    """A model as OpenAI serves them, which answers with the word after "about"; its address."""

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            prompt = asked["messages"][-1]["content"]
            message = {"role": "assistant", "content": prompt.partition("about ")[2].split()[0]}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            usage = {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8}
            more = {"id": "1", "object": "chat.completion", "created": 1, "model": asked["model"]}
            body = json.dumps({**more, "choices": [choice], "usage": usage}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        serving.join()


def test_a_folder_of_yaml_is_run_by_a_worker(cluster: Any, answering: str, tmp_path: Path) -> None:
    lakes = tmp_path / "lakes"
    shutil.copytree(LAKES, lakes)
    with (lakes / "agents.yaml").open("a") as file:
        file.write(
            f"  llm: {{model: openai/gpt-4o-mini, api_key: none, base_url: '{answering}'}}\n"
        )
    topics = [{"topic": f"lake{n}"} for n in range(3)]
    result = mapped(*topics, target=lakes)
    assert [output.raw for output in result.outputs] == ["lake0", "lake1", "lake2"]
    assert [task.name for task in result[0].output.tasks_output] == ["sketch", "paint"]
    assert result.usage.successful_requests == 6
    assert result.usage.total_tokens == 6 * 8


def test_models_come_back_as_models(cluster: Any) -> None:
    import shop

    result = mapped({}, target=shop.fishing)
    assert result[0].output.pydantic == shop.Fish(name="pike")
    assert result[0].output.tasks_output[0].pydantic == shop.Fish(name="pike")


async def test_a_caller_on_an_event_loop_gets_the_same(cluster: Any) -> None:
    inputs = [{"n": n} for n in range(3)]
    result = await amap_crew("shop:doing", inputs, engine="celery")
    assert result.outputs == [0, 1, 2]
    batch = aimap_crew("shop:doing", inputs, engine="celery")
    assert sorted([item.index async for item in batch]) == [0, 1, 2]
    assert batch.counts[ItemState.DONE] == 3


def test_a_failure_says_what_happened_over_there(cluster: Any, tmp_path: Path) -> None:
    told = str(tmp_path / "told")
    result = mapped({"n": 1, "told": told, "fail": 9}, {"n": 2}, on_error="collect")
    assert [item.state for item in result] == [ItemState.FAILED, ItemState.DONE]
    error = result[0].error
    assert isinstance(error, KickoffError)
    assert (error.kind, str(error)) == ("builtins.KeyError", "KeyError: 1")
    assert "raise KeyError(n)" in error.traceback


def test_a_model_that_refuses_what_a_worker_has_made_is_a_failure(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shop

    class Stricter(BaseModel):
        name: str
        weight: float

    for item in mapped({}, None, target="shop:fishing"):
        assert item.output.pydantic == shop.Fish(name="pike")
    monkeypatch.setattr(shop, "Fish", Stricter)
    (item,) = mapped({}, target="shop:fishing", on_error="collect")
    assert item.state is ItemState.FAILED
    assert "the output of item 0 is a shop.Fish that does not come back: 1 validation" in str(
        item.error
    )


def test_retries_wait_and_then_succeed(cluster: Any, tmp_path: Path) -> None:
    told = str(tmp_path / "told")
    (item,) = mapped({"n": 1, "told": told, "fail": 2}, retries=2)
    assert (item.output, item.attempts) == (1, 3)


def test_raise_raises_the_first_and_cancels_the_rest(cluster: Any, tmp_path: Path) -> None:
    stuck, own = next(numbers), next(numbers)
    never = str(tmp_path / "never")
    inputs = [{"n": stuck, "after": never}, {"n": own, "told": str(tmp_path / "t"), "fail": 9}]
    with pytest.raises(KickoffError, match=f"KeyError: {own}"):
        mapped(*inputs)
    # What ran is stopped, with its process where nothing else helps, and others take its place.
    assert mapped({"n": 1}, {"n": 2}, {"n": 3}).outputs == [1, 2, 3]
    assert cluster.counted("end")[str(stuck)] == 0


def test_stop_begins_nothing_further(cluster: Any, tmp_path: Path) -> None:
    go, runs = tmp_path / "go", str(tmp_path / "runs")
    slow = {"n": next(numbers), "told": runs, "after": str(go)}
    # Brokers promise no order: the one that fails waits for the slow one to run, and those that
    # follow may come before both.
    failing = {"n": next(numbers), "after": runs, "told": str(tmp_path / "told"), "fail": 9}
    others = [{"n": next(numbers)} for _ in range(40)]
    with imap_crew(
        "shop:doing",
        [slow, failing, *others],
        engine="celery",
        on_error="stop",
    ) as batch:
        items = []
        for item in batch:
            items.append(item)
            if item.state is ItemState.FAILED:
                go.touch()
    states = {item.index: item.state for item in items}
    assert len(items) == len(states) == 42
    assert (states.pop(0), states.pop(1)) == (ItemState.DONE, ItemState.FAILED)
    begun = cluster.counted("begin")
    for index, state in states.items():
        done = begun[str(others[index - 2]["n"])]
        assert (state, done) in {(ItemState.DONE, 1), (ItemState.PENDING, 0)}
    assert ItemState.PENDING in states.values()


def test_the_time_limit_kills_what_never_returns(cluster: Any) -> None:
    spinning = next(numbers)
    result = mapped({"n": spinning, "spin": True}, {"n": 2}, timeout=2, on_error="collect")
    assert [item.state for item in result] == [ItemState.TIMED_OUT, ItemState.DONE]
    assert isinstance(result[0].error, TimeoutError)
    assert cluster.counted("begin")[str(spinning)] == 1
    assert cluster.counted("end")[str(spinning)] == 0


def test_a_process_that_dies_costs_one_more_run(cluster: Any, tmp_path: Path) -> None:
    n = next(numbers)
    (item,) = mapped({"n": n, "told": str(tmp_path / "told"), "die": 1})
    assert item.output == n
    assert (cluster.counted("begin")[str(n)], cluster.counted("end")[str(n)]) == (2, 1)


def test_what_kills_each_of_its_processes_is_given_up(cluster: Any, tmp_path: Path) -> None:
    n = next(numbers)
    told = str(tmp_path / "told")
    (item,) = mapped({"n": n, "told": told, "die": 99}, on_error="collect")
    assert item.state is ItemState.FAILED
    assert isinstance(item.error, WorkerLostError)
    assert cluster.counted("begin")[str(n)] == 3


def test_cancelling_stops_what_runs_and_what_waits(cluster: Any, tmp_path: Path) -> None:
    never = str(tmp_path / "never")
    ours = [next(numbers) for _ in range(6)]
    inputs = [{"n": next(numbers)}, *({"n": n, "after": never} for n in ours)]
    with imap_crew("shop:doing", inputs, engine="celery") as batch:
        assert next(batch).index == 0
        cluster.until(lambda: sum(cluster.counted("begin")[str(n)] for n in ours) == 2)
        assert batch.cancel() == []
        # It has waited until nothing of it runs any more.
        assert {item.state for item in batch} == {ItemState.CANCELLED}
        assert batch.counts[ItemState.CANCELLED] == 6
    assert mapped({"n": 1}).outputs == [1]
    assert sum(cluster.counted("begin")[str(n)] for n in ours) == 2
    assert sum(cluster.counted("end")[str(n)] for n in ours) == 0


def test_a_cancel_scope_around_it_ends_it(cluster: Any, tmp_path: Path) -> None:
    never, n = str(tmp_path / "never"), next(numbers)
    scope = cancel_scope()

    def stop() -> None:
        cluster.until(lambda: cluster.counted("begin")[str(n)])
        scope.cancel()

    stopping = threading.Thread(target=stop)
    stopping.start()
    with pytest.raises(Cancelled), scope:
        mapped({"n": n, "after": never})
    stopping.join()
    assert mapped({"n": 1}).outputs == [1]


def test_a_named_batch_goes_on_where_it_stood(cluster: Any, tmp_path: Path) -> None:
    ours = [next(numbers) for _ in range(3)]
    fail = {"n": ours[2], "told": str(tmp_path / "told"), "fail": 1}
    inputs = [{"n": ours[0]}, {"n": ours[1]}, fail]
    first = mapped(*inputs, resume="ours", on_error="collect")
    assert [item.state for item in first] == [ItemState.DONE, ItemState.DONE, ItemState.FAILED]
    again = mapped(*inputs, resume="ours", on_error="collect")
    assert again.outputs == ours
    assert [item.attempts for item in again] == [0, 0, 1]
    assert [cluster.counted("begin")[str(n)] for n in ours] == [1, 1, 2]
    # Other inputs are other items, and another name is another batch.
    assert mapped({"n": ours[1]}, resume="ours")[0].attempts == 1
    assert mapped({"n": ours[0]}, resume="theirs")[0].attempts == 1


def test_inputs_are_taken_as_there_is_room(cluster: Any) -> None:
    taken = []

    def endless() -> Iterator[dict[str, int]]:
        for n in itertools.count():
            taken.append(n)
            yield {"n": n}

    with imap_crew("shop:doing", endless(), engine="celery", concurrency=3) as batch:
        for _ in range(5):
            next(batch)
    assert len(taken) <= 5 + 3


def test_an_error_of_the_inputs_comes_after_what_has_begun(cluster: Any) -> None:
    def broken() -> Iterator[dict[str, int]]:
        yield {"n": 1}
        raise LookupError("no more")

    batch = imap_crew("shop:doing", broken(), engine="celery")
    assert next(batch).output == 1
    with pytest.raises(LookupError, match="no more"):
        next(batch)
    with pytest.raises(TypeError, match="inputs of engine celery are JSON"):
        mapped({"n": {1, 2}})


def test_progress_is_told(cluster: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "crewai_native.tasks")
    mapped({"n": 1}, {"n": 2}, progress=True)
    assert "batch: 2/2" in caplog.text
