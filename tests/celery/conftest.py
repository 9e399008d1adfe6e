"""Clusters for the tests: real workers, on a folder as the broker or on a Redis of the test's own."""

from __future__ import annotations

import collections
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import crewai_native

with warnings.catch_warnings():
    # What CrewAI's dependencies say while they are imported is not what is tested here.
    warnings.simplefilter("ignore")
    import crewai  # noqa: F401

if TYPE_CHECKING:
    from collections.abc import Iterator

PROJECT = Path(__file__).parent / "project"
FOREVER = 90.0
LOST_AFTER = 6.0


class Cluster:
    """A broker, results, and workers.

    Args:
        folder: Where everything of it lies.
        broker: The broker's URL.
        results: Where results lie.
    """

    def __init__(self, folder: Path, broker: str, results: str) -> None:
        self.folder = folder
        self.options = {
            "celery_broker": broker,
            "celery_results": results,
            "celery_lost_after": LOST_AFTER,
            "celery_time_limit": 120.0,
        }
        self.log = folder / "shop.log"
        self.workers: list[subprocess.Popen[bytes]] = []

    def worker(self, concurrency: int = 2) -> subprocess.Popen[bytes]:
        """Start a worker."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("CREWAI_NATIVE")}
        environment |= {
            "SHOP_LOG": str(self.log),
            "CREWAI_STORAGE_DIR": str(self.folder / "storage"),
            "CREWAI_NATIVE_CACHE_DIR": str(self.folder / "cache"),
        }
        environment |= {
            f"CREWAI_NATIVE_TASKS_{name.upper()}": str(value)
            for name, value in self.options.items()
        }
        number = len(self.workers)
        command = [sys.executable, "-m", "crewai_native", "celery", "worker", "-C", str(PROJECT)]
        command += ["-c", str(concurrency), "-n", f"w{number}@%h"]
        with (self.folder / f"worker{number}.log").open("wb") as log:
            worker = subprocess.Popen(
                command,
                env=environment,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.workers.append(worker)
        return worker

    @staticmethod
    def until(condition: Any) -> Any:
        """Wait until something holds, and return it."""
        end = time.monotonic() + FOREVER
        while not (found := condition()):
            assert time.monotonic() < end
            time.sleep(0.05)
        return found

    def ready(self) -> None:
        """Wait for all workers to be up."""
        for number, worker in enumerate(self.workers):
            log = self.folder / f"worker{number}.log"
            self.until(
                lambda log=log, w=worker: b" ready." in log.read_bytes() or w.poll() is not None
            )
            assert worker.poll() is None, log.read_text()

    def kill(self, worker: subprocess.Popen[bytes]) -> None:
        """Kill a worker and its children, as a power cut would."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()

    def close(self) -> None:
        """Kill everything."""
        for worker in self.workers:
            self.kill(worker)

    def notes(self, what: str) -> list[tuple[str, str]]:
        """Return the numbers that something happened to, and the processes where it did."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        split = [line.split() for line in lines]
        return [(n, pid) for word, n, pid in split if word == what]

    def counted(self, what: str) -> collections.Counter[str]:
        """Return how often something happened, by number."""
        return collections.Counter(n for n, _ in self.notes(what))


@pytest.fixture(scope="module", autouse=True)
def project() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PROJECT))
        yield
        sys.modules.pop("shop", None)
        crewai_native.deactivate()


@contextlib.contextmanager
def bound(cluster: Cluster) -> Iterator[Cluster]:
    """Use a cluster in this process."""
    crewai_native.activate(enabled=True, tasks=cluster.options)
    try:
        yield cluster
    finally:
        crewai_native.deactivate()
        cluster.close()


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster without workers, whose broker is a folder."""
    folder = tmp_path_factory.mktemp("cluster")
    broker, results = f"filesystem://{folder / 'broker'}", f"sqlite://{folder / 'results.db'}"
    with bound(Cluster(folder, broker, results)) as made:
        yield made


@pytest.fixture(scope="module")
def cluster(idle: Cluster) -> Cluster:
    """The same with a worker of two processes."""
    idle.worker()
    idle.ready()
    return idle


@pytest.fixture(scope="module")
def on_redis(redis: Redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster without workers, whose broker is Redis."""
    with bound(Cluster(tmp_path_factory.mktemp("cluster"), redis.url, redis.url)) as made:
        yield made


class Redis:
    """A server of the test's own, which keeps what it has acknowledged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self) -> None:
        """Start it, with what it had."""
        kept = ["--dir", str(self.folder), "--appendonly", "yes", "--appendfsync", "always"]
        self.process = subprocess.Popen(
            ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", *kept],
            stdout=subprocess.DEVNULL,
        )
        Cluster.until(self._answers)

    def _answers(self) -> bool:
        import redis

        with contextlib.suppress(redis.RedisError), redis.Redis.from_url(self.url) as client:
            return bool(client.ping())
        return False

    def kill(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    if shutil.which("redis-server") is None:
        pytest.skip("there is no redis-server on this machine")
    server = Redis(tmp_path_factory.mktemp("redis"))
    yield server
    server.kill()
