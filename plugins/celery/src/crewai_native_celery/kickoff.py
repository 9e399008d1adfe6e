"""One kickoff, in a worker's child process."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any, Final, Self

from crewai_native_celery import targets
from crewai_native_celery.ledger import DONE, MOST_LOST, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crewai_native_celery.ledger import Ledger, Outcome

GRACE: Final = 3.0
"""Seconds after which a kickoff that was to stop, and is inside of foreign code, is killed."""
_logger = logging.getLogger("crewai_native.celery")


def run(
    ledger: Ledger,
    *,
    beat: float,
    session: str,
    key: str,
    token: str,
    limit: float,
    target: dict[str, Any],
    inputs: Mapping[str, Any] | None,
) -> None:
    """Kick off, unless this attempt was begun before; write what becomes of it into the ledger.

    Args:
        ledger: Where it is written.
        beat: Seconds between signs of life.
        session: The batch.
        key: The item.
        token: The attempt.
        limit: Seconds that it may take; then the process is killed.
        target: What to run.
        inputs: The inputs.
    """
    verdict = ledger.begin(session, key, token)
    if verdict is Verdict.WORN:
        message = f"its process died {MOST_LOST} times"
        ledger.finish(key, token, {"state": "lost", "message": message})
    if verdict is not Verdict.GO:
        _logger.info("%s is not run: %s", key, verdict.value)
        return
    with _Watch(ledger, (session, key, token), beat, limit) as watch:
        outcome = _outcome(target, inputs, watch)
    ledger.finish(key, token, outcome)


def _outcome(target: dict[str, Any], inputs: Mapping[str, Any] | None, watch: _Watch) -> Outcome:
    from crewai_native_tasks import Cancelled, outputs

    began = time.perf_counter()
    outcome: Outcome
    try:
        with watch.scope:
            output, usage = targets.target_of(target).kickoff(inputs)
        plain = outputs.plain(output, {})
        outcome = {
            "state": DONE,
            "output": plain,
            "usage": None if usage is None else usage.model_dump(mode="json"),
        }
    except Cancelled:
        outcome = {"state": "cancelled"}
    except BaseException as error:  # noqa: BLE001 - it is the item's, whatever it is
        kind = type(error)
        said = traceback.TracebackException.from_exception(error)  # also where its `__str__` fails
        outcome = {
            "state": "failed",
            "kind": f"{kind.__module__}.{kind.__qualname__}",
            "message": str(said),
            "traceback": "".join(said.format()),
        }
    return outcome | {"seconds": time.perf_counter() - began}


class _Watch:
    """Gives signs of life for a kickoff, and ends it when it is not wanted any more or takes too long.

    Only while the kickoff runs does it kill the process, which Celery, from outside, could not be sure
    of: a process that is killed while it waits for its next kickoff may hold the lock of the queue that
    it shares with the others, and none would get a kickoff any more.
    """

    def __init__(
        self, ledger: Ledger, entry: tuple[str, str, str], beat: float, limit: float
    ) -> None:
        from crewai_native_tasks import cancel_scope

        self.scope = cancel_scope()
        self._ledger = ledger
        self._session, self._key, self._token = entry
        self._beat = beat
        self._limit = limit
        self._over = threading.Event()
        self._ending = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="crewai-native-watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._ending:
            self._over.set()

    def _work(self) -> None:
        end = time.monotonic() + self._limit
        while not self._over.wait(min(self._beat, max(end - time.monotonic(), 0.0))):
            if time.monotonic() >= end:
                _logger.warning("%s took longer than %g seconds", self._key, self._limit)
                self._kill({"state": "timed-out", "seconds": self._limit})
                return
            try:
                wanted = self._ledger.renew(self._session, self._key, self._token)
            except Exception:
                # A full disk, say. Should it last, the lease lapses, and whoever sent this decides.
                _logger.exception("no sign of life of %s could be given", self._key)
                continue
            if wanted:
                continue
            self.scope.cancel()
            if not self._over.wait(GRACE):
                # Inside of a model's call or a tool, which nothing else ends.
                _logger.warning("%s does not stop; its process is killed", self._key)
                self._kill({"state": "cancelled"})
            return

    def _kill(self, outcome: Outcome) -> None:
        self._ledger.finish(self._key, self._token, outcome)
        with self._ending:
            if not self._over.is_set():
                os.kill(os.getpid(), signal.SIGKILL)
