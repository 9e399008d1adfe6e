"""One side of the demo, in a process of its own: obeys one JSON line after the other.

Run as ``python -m crewai_native.demo.worker``. The environment says whether the process runs stock
CrewAI or accelerated; this module does not know and does not care. Each line on standard input is
``{"do": name, …arguments}``; each is answered by a line ``{"result": …}`` or ``{"error": …}``. What
CrewAI prints goes to standard error.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

import crewai_native
from crewai_native import _roster
from crewai_native._host import HOST

if TYPE_CHECKING:
    from crewai import Memory

    from crewai_native.demo.phases import Session

EMBEDDING_DIMENSION = 1536
"""Length of the vectors: that of ``text-embedding-3-small``, half of CrewAI's default."""


class Worker:
    """Does what the demo asks of one side.

    Args:
        live: Use CrewAI's default model and embedder instead of the scripted ones.
    """

    def __init__(self, *, live: bool) -> None:
        self._live = live
        self._calling: Any = None
        self._reasoning: Any = None
        self._embedder: Any = None
        self._session: Session | None = None

    def start(self) -> dict[str, Any]:
        """Import CrewAI, as any program does, and say how long it took and who serves."""
        started = time.perf_counter()
        import crewai

        seconds = time.perf_counter() - started
        if not self._live:
            from crewai_native.demo import script
            from crewai_native.testing import HashEmbedder

            self._calling, self._reasoning = script.model(native=True), script.model(native=False)
            self._embedder = HashEmbedder(EMBEDDING_DIMENSION)
        return {"crewai": crewai.__version__, "import_seconds": seconds, **self.status()}

    def status(self) -> dict[str, Any]:
        """Say who serves each slot, what they have done, and how they were built."""
        return {
            "status": crewai_native.status().as_json(),
            "metrics": [metrics._asdict() for metrics in crewai_native.metrics()],
            "builds": {
                module: build
                for plugin in HOST.plugins()
                for module, build in _roster.builds(plugin.value).items()
            },
        }

    def session(self, storage: str) -> float:
        """Open a memory in a storage directory, in place of the last; return the seconds it took."""
        from crewai_native.demo.phases import Session

        if self._session is not None:
            self._session.memory.close()
        os.environ["CREWAI_STORAGE_DIR"] = storage
        started = time.perf_counter()
        memory = self._open_memory()
        seconds = time.perf_counter() - started
        self._session = Session(memory, self._calling, self._reasoning)
        return seconds

    def phase(self, name: str) -> dict[str, Any]:
        """Run a phase; return its output, its duration and the number of model calls in it."""
        from crewai_native.demo.phases import PHASES

        (phase,) = (phase for phase in PHASES if phase.name == name)
        calls = self._model_calls()
        started = time.perf_counter()
        output = phase.run(self._opened())
        seconds = time.perf_counter() - started
        return {"output": output, "seconds": seconds, "model_calls": self._model_calls() - calls}

    def recall(self, question: str) -> dict[str, Any]:
        """Answer one question from memory; return what was recalled and the duration."""
        from crewai_native.demo.phases import LIMIT, texts

        started = time.perf_counter()
        matches = self._opened().memory.recall(question, limit=LIMIT, depth="shallow")
        return {"output": texts(matches), "seconds": time.perf_counter() - started}

    def check(self, name: str) -> dict[str, Any]:
        """Try one of the checks that take no other process."""
        from crewai_native.demo.checks import CHECKS

        (check,) = (check for check in CHECKS if check.name == name)
        return dataclasses.asdict(check.run(self._open_memory))

    def filtered(self) -> dict[str, Any]:
        """Try a recall under a filter, in the memory that holds the text."""
        from crewai_native.demo import checks

        return dataclasses.asdict(checks.filtered(self._opened().memory))

    def remember(self, content: str) -> None:
        """Remember one line under ``/shared``."""
        self._opened().memory.remember(
            content, scope="/shared", categories=["line"], importance=0.5
        )

    def shared(self) -> list[str]:
        """Return the lines under ``/shared``, sorted."""
        return sorted(
            r.content for r in self._opened().memory.list_records("/shared", limit=10_000)
        )

    def remember_until_killed(self) -> None:
        """Remember numbered lines, acknowledging each on standard output, without end."""
        number = 0
        while True:
            self.remember(f"line {number}")
            _answer({"result": number})
            number += 1

    def _opened(self) -> Session:
        if self._session is None:
            raise RuntimeError("no session has been opened")
        return self._session

    def _open_memory(self, **settings: Any) -> Memory:
        from crewai_native.demo import crew

        return crew.open_memory(self._calling, self._embedder, **settings)

    def _model_calls(self) -> int:
        return sum(len(model.calls) for model in (self._calling, self._reasoning) if model)


# CrewAI prints to standard output; the answers go to a duplicate, and the rest to standard error.
_answers = os.fdopen(os.dup(1), "w")


def _answer(line: dict[str, Any]) -> None:
    _answers.write(json.dumps(line) + "\n")
    _answers.flush()


def main() -> None:
    """Obey until standard input ends."""
    os.dup2(2, 1)
    worker = Worker(live="--live" in sys.argv[1:])
    for line in sys.stdin:
        request = json.loads(line)
        try:
            result = getattr(worker, request.pop("do"))(**request)
        except Exception as error:
            # Everything goes back to the driver, which ends the demo with it.
            _answer({"error": f"{type(error).__name__}: {error}"})
            raise
        _answer({"result": result})


if __name__ == "__main__":
    main()
