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
    target: dict[str, Any],
    inputs: Mapping[str, Any],
) -> None:
    """Kick off, unless this attempt was begun before; write what becomes of it into the ledger."""
    verdict = ledger.begin(session, key, token)
    if verdict is Verdict.WORN:
        message = f"its process died {MOST_LOST} times"
        ledger.finish(key, token, {"state": "lost", "message": message})
    if verdict is not Verdict.GO:
        _logger.info("%s is not run: %s", key, verdict.value)
        return
    with _Watch(ledger, session, key, token, beat) as watch:
        outcome = _outcome(target, inputs, watch)
    ledger.finish(key, token, outcome)


def _outcome(target: dict[str, Any], inputs: Mapping[str, Any], watch: _Watch) -> Outcome:
    from crewai_native_tasks import Cancelled, outputs

    began = time.perf_counter()
    outcome: Outcome
    try:
        with watch.scope:
            output, usage = targets.target_of(target).kickoff(inputs)
        plain = outputs.plain(output)
        outcome = {
            "state": DONE,
            "output": plain,
            "usage": None if usage is None else usage.model_dump(mode="json"),
        }
    except Cancelled:
        outcome = {"state": "cancelled"}
    except BaseException as error:  # noqa: BLE001 - it is the item's, whatever it is
        kind = type(error)
        outcome = {
            "state": "failed",
            "kind": f"{kind.__module__}.{kind.__qualname__}",
            "message": str(error),
            "traceback": "".join(traceback.format_exception(error)),
        }
    return outcome | {"seconds": time.perf_counter() - began}


class _Watch:
    """Gives signs of life for a kickoff, and stops it when it is not wanted any more."""

    def __init__(self, ledger: Ledger, session: str, key: str, token: str, beat: float) -> None:
        from crewai_native_tasks import cancel_scope

        self.scope = cancel_scope()
        self._ledger = ledger
        self._entry = session, key, token
        self._beat = beat
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="crewai-native-watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _work(self) -> None:
        while not self._over.wait(self._beat):
            try:
                wanted = self._ledger.renew(*self._entry)
            except Exception:
                # A full disk, say. Should it last, the lease lapses, and whoever sent this decides.
                _logger.exception("no sign of life of %s could be given", self._entry[1])
                continue
            if wanted:
                continue
            self.scope.cancel()
            if not self._over.wait(GRACE):
                # Inside of a model's call or a tool, which nothing else ends.
                _, key, token = self._entry
                _logger.warning("%s does not stop; its process is killed", key)
                self._ledger.finish(key, token, {"state": "cancelled"})
                os.kill(os.getpid(), signal.SIGKILL)
            return
