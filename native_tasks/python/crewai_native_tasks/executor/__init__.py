"""Drives flows: CrewAI's own, which every agent is, and the user's where that is configured.

CrewAI runs a flow as coroutines on an event loop, with two thread hops for each of its methods. Here
a compiled graph says which method is next (:mod:`.steps`), and it is called where the kickoff was
called. What needs a loop gets one, when it comes to that, and from then on the rest of the run is on
it: coroutines, listeners side by side, feedback from a human.

:mod:`.kickoff` is what surrounds the methods, :mod:`.classes` what is known of a class of flows.
"""

from __future__ import annotations

import asyncio
import contextvars
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from crewai.events.event_bus import crewai_event_bus

from crewai_native_tasks.executor import classes
from crewai_native_tasks.executor.ground import Ground, go_on

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from crewai_native.slots.tasks_executor import FlowRun


class FlowExecutor:
    """Serves ``tasks.executor``. Made before the slot is bound: it looks at CrewAI's own methods.

    Args:
        flows: Whether the user's flows are driven too.
    """

    def __init__(self, *, flows: bool) -> None:
        self._flows = flows
        self._classes = classes.Classes()

    def drives(self, flow: Any) -> bool:
        """Whether kickoffs of this flow come here."""
        if not (self._flows or type(flow).is_crewai_internal):
            return False
        known = self._classes.of(flow)
        return known is not None and known.fits(flow)

    def kickoff(self, run: FlowRun) -> Any:
        """Run a flow for ``Flow.kickoff``."""
        scope = crewai_event_bus._enter_runtime_scope()  # noqa: SLF001 - as CrewAI's runtime does
        try:
            context = contextvars.copy_context()
            if not _on_loop():
                return self._here(run, context)
            # Methods must not find the loop that they would block.
            with ThreadPoolExecutor(max_workers=1) as pool:
                return pool.submit(self._here, run, context).result()
        finally:
            crewai_event_bus._exit_runtime_scope(scope)  # noqa: SLF001

    async def akickoff(self, run: FlowRun) -> Any:
        """Run a flow for ``Flow.kickoff_async`` and ``Flow.akickoff``."""
        return await self._whole(run, Ground(on_loop=True))

    def _here(self, run: FlowRun, context: contextvars.Context) -> Any:
        whole = self._whole(run, Ground(on_loop=False))
        try:
            context.run(whole.send, None)
        except StopIteration as ended:
            return ended.value
        # It has come to something that needs a loop.
        with asyncio.Runner() as runner:
            return runner.run(go_on(whole), context=context)

    def _whole(self, run: FlowRun, ground: Ground) -> Coroutine[Any, Any, Any]:
        # It needs parts of CrewAI that CrewAI too imports only when a flow runs.
        from crewai_native_tasks.executor import kickoff

        known = self._classes.of(run.flow)
        if known is None:
            raise TypeError(f"{type(run.flow).__qualname__} is not driven here")
        return kickoff.whole(run, ground, known)


def _on_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
