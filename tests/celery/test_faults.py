"""Workers that are killed, many kickoffs shared, a broker that restarts, messages that are lost."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from crewai_native_tasks import ItemState, imap_crew, map_crew


@pytest.mark.slow
def test_two_workers_share_200_kickoffs_and_one_is_killed(idle: Any, tmp_path: Path) -> None:
    """What was finished is not run again, and what the dead worker had is."""
    doomed, _ = idle.worker(), idle.worker()
    idle.ready()
    gate = tmp_path / "gate"
    # From the 80th on they wait until one of the workers is dead.
    inputs = [{"n": n, "after": str(gate) if n >= 80 else None} for n in range(200)]
    with imap_crew("shop:doing", inputs, engine="celery", on_error="collect") as batch:
        items = {item.index: item for item in (next(batch) for _ in range(80))}
        # Each of the four processes is inside of one.
        idle.until(lambda: len(idle.notes("begin")) == 84)
        finished = idle.counted("end")
        idle.kill(doomed)
        gate.touch()
        items |= {item.index: item for item in batch}
    assert [items[n].output for n in range(200)] == list(range(200))
    began = idle.counted("begin")
    assert len(finished) == 80
    assert [began[n] for n in finished] == [1] * 80
    # The two that were lost, and no other, were begun anew; and everything ended once.
    assert sum(began.values()) == 202
    assert [items[n].attempts for n in range(200) if began[str(n)] == 2] == [2, 2]
    assert set(idle.counted("end").values()) == {1}
    workers = {pid for _, pid in idle.notes("end")}
    assert len(workers) >= 4


@pytest.mark.slow
def test_what_the_broker_loses_is_sent_again(idle: Any) -> None:
    """And what it delivers twice is run once."""
    for worker in idle.workers:
        idle.kill(worker)
    queue = Path(idle.options["celery_broker"].removeprefix("filesystem://")) / "queue"
    told: list[Any] = []
    inputs = [{"n": n} for n in range(300, 303)]
    work = threading.Thread(
        target=lambda: told.append(map_crew("shop:doing", inputs, engine="celery"))
    )
    work.start()
    first, second, _ = idle.until(lambda: (m := sorted(queue.glob("*.msg"))) and len(m) == 3 and m)
    first.unlink()
    shutil.copy(second, queue / f"9{second.name}")
    idle.worker()
    work.join()
    assert told[0].outputs == [300, 301, 302]
    assert [idle.counted("begin")[str(n)] for n in range(300, 303)] == [1, 1, 1]


@pytest.mark.slow
def test_redis_restarts_during_a_batch(on_redis: Any, redis: Any, tmp_path: Path) -> None:
    """It is the broker, and has the results; killed and started again with what it had."""
    on_redis.worker()
    on_redis.ready()
    gate = tmp_path / "gate"
    inputs = [{"n": n, "after": str(gate) if n >= 10 else None} for n in range(30)]
    with imap_crew("shop:doing", inputs, engine="celery") as batch:
        items = [next(batch) for _ in range(10)]
        on_redis.until(lambda: len(on_redis.notes("begin")) == 12)
        redis.kill()
        gate.touch()
        # Those that ran end meanwhile, and have nowhere to say so.
        on_redis.until(lambda: len(on_redis.notes("end")) == 12)
        redis.start()
        items += list(batch)
    assert {item.index: item.output for item in items} == {n: n for n in range(30)}
    assert {item.state for item in items} == {ItemState.DONE}
    assert set(on_redis.counted("begin").values()) == {1}


def test_redis_forgets_nothing_of_a_named_batch(on_redis: Any) -> None:
    inputs = [{"n": n} for n in range(100, 104)]
    first = map_crew("shop:doing", inputs, engine="celery", resume="named")
    again = map_crew("shop:doing", inputs, engine="celery", resume="named")
    assert first.outputs == again.outputs == [100, 101, 102, 103]
    assert [item.attempts for item in again] == [0] * 4


@pytest.fixture(autouse=True)
def fresh_log(request: pytest.FixtureRequest) -> None:
    for name in ("idle", "on_redis"):
        if name in request.fixturenames:
            request.getfixturevalue(name).log.unlink(missing_ok=True)
