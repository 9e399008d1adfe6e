"""``locks``: what CrewAI's stores may rely on in the lock that they take turns by."""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import portalocker
import pytest

from crewai_native.testing.contract.rules import SlotContract

if TYPE_CHECKING:
    from collections.abc import Callable


class TestLocks(SlotContract):
    """Runs on ``crewai_core.lock_store.lock``."""

    slot: ClassVar = "locks"

    @staticmethod
    def exercise() -> Any:
        """Hold a lock that others want, too."""
        from crewai_core.lock_store import lock

        name = f"contract:{os.environ['CREWAI_STORAGE_DIR']}"
        for _ in range(10):
            with lock(name):
                pass
        return True

    @pytest.fixture
    def lock(self, provider: str) -> Callable[..., Any]:
        """Return CrewAI's function."""
        from crewai_core.lock_store import lock

        return lock

    @pytest.fixture
    def name(self, tmp_path: Path) -> str:
        """A name that no other test uses."""
        return f"contract:{tmp_path}"

    def test_it_can_be_taken_again_and_again(self, lock: Any, name: str) -> None:
        """Also after the block has raised."""
        for _ in range(3):
            with lock(name):
                pass
            with pytest.raises(ZeroDivisionError), lock(name):
                raise ZeroDivisionError

    def test_threads_take_turns(self, lock: Any, name: str) -> None:
        """Nobody is inside with somebody else."""
        inside, most = 0, 0

        def work(_: int) -> None:
            nonlocal inside, most
            with lock(name):
                inside += 1
                most = max(most, inside)
                inside -= 1

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(8)))
        assert (inside, most) == (0, 1)

    def test_other_names_do_not_wait(self, lock: Any, name: str) -> None:
        """Each name is a lock of its own."""
        with lock(name), lock(f"{name}:other", timeout=5):
            pass

    def test_waiting_ends_with_crewais_error(self, lock: Any, name: str) -> None:
        """After the time that was given, not at once and not never."""
        with lock(name), concurrent.futures.ThreadPoolExecutor(1) as pool:
            start = time.monotonic()

            def wait() -> None:
                with lock(name, timeout=0.5):
                    pass

            with pytest.raises(portalocker.exceptions.LockException):
                pool.submit(wait).result()
            assert time.monotonic() - start >= 0.5

    def test_it_may_be_left_on_another_thread(self, lock: Any, name: str) -> None:
        """As CrewAI's Chroma client does, through an event loop's executor."""
        held = lock(name)

        def on_another_thread(function: Callable[..., Any], *args: Any) -> None:
            thread = threading.Thread(target=function, args=args)
            thread.start()
            thread.join()

        on_another_thread(held.__enter__)
        on_another_thread(held.__exit__, None, None, None)
        with lock(name, timeout=5):
            pass

    def test_it_excludes_a_process_without_it(
        self, lock: Any, name: str, run: Callable[..., Any]
    ) -> None:
        """Which locks the file that CrewAI's own code locks."""
        digest = hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()
        path = Path(tempfile.gettempdir()) / f"crewai:{digest}.lock"
        attempt = f"""
        import portalocker
        try:
            with portalocker.Lock({str(path)!r}, timeout=0, fail_when_locked=True):
                answer("free")
        except portalocker.exceptions.LockException:
            answer("held")
        """
        with lock(name):
            assert run(attempt) == "held"
        assert run(attempt) == "free"
