"""``tasks.executor``: what drives a flow, which every agent run is."""

from __future__ import annotations

import contextvars
import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

from crewai_native.slots._base import Slot, Target
from crewai_native.slots.executor_repairs import REPAIRS

if TYPE_CHECKING:
    from collections.abc import Callable

    from crewai_native._bind import Binding
    from crewai_native._watch import Watch
    from crewai_native.slots._base import Provider

PROTOCOL: Final = ("drives", "kickoff", "akickoff")

STOOD_IN_FOR: Final = (
    "kickoff_async",
    "_emit_flow_failed",
    "_execute_listeners",
    "_execute_method",
    "_execute_single_listener",
    "_execute_start_method",
    "_find_triggered_methods",
    "_condition_met",
    "_inject_trigger_payload_for_start_method",
    "_open_flow_scope",
    "_rearm_or_listeners_for_trigger",
    "_start_condition_triggered_by",
)
"""The methods of CrewAI's ``Flow`` whose part a driver takes."""

around_step: Final[list[tuple[Callable[[Any], None], Callable[[Any], None]]]] = []
"""What is called with the flow before and after each of its methods, in the method's context, for as
long as ``tasks.control`` is served. CrewAI's own ``Flow._execute_method`` does so by itself."""


@dataclasses.dataclass(slots=True, eq=False)
class FlowRun:
    """One kickoff of a flow.

    Attributes:
        flow: The flow. ``type(flow).is_crewai_internal`` tells CrewAI's own (agents, memory) from
            the user's.
        inputs: The kickoff's inputs, or None.
        input_files: Its files, or None.
        restore_from_state_id: The persisted state that the run starts from, or None.
        begun: Whether :meth:`begin` was called.
    """

    flow: Any
    inputs: dict[str, Any] | None
    input_files: Any
    restore_from_state_id: str | None
    begun: bool = False

    def begin(self) -> None:
        """Say that something that others can see comes next: an event, a hook, a changed state.

        Until then CrewAI's code can still take the run over. A run with effects must not be
        repeated, so from then on what the driver raises is what the kickoff raises.
        """
        self.begun = True

    def step(self) -> None:
        """Say that a method of the flow comes next that ``Flow._execute_method`` does not run.

        It raises where the run is to end. Called in the context of the method.
        """
        for before, _ in around_step:
            before(self.flow)

    def stepped(self) -> None:
        """Say that the method has ended, whether it returned or raised."""
        for _, after in around_step:
            after(self.flow)


class FlowDriver(Protocol):
    """Runs flows, with the events, hooks, order, contexts and errors of CrewAI's own runtime.

    Streaming kickoffs and those from a checkpoint arrive here as the plain kickoffs that CrewAI
    makes of them. A flow that resumes after human feedback is CrewAI's.
    """

    def drives(self, flow: Any) -> bool:
        """Whether kickoffs of this flow come here; asked for each."""

    def kickoff(self, run: FlowRun) -> Any:
        """Run a flow for ``Flow.kickoff`` and return its output.

        The thread may have a running event loop, on which nobody can wait here.
        """

    async def akickoff(self, run: FlowRun) -> Any:
        """Run a flow for ``Flow.kickoff_async`` and ``Flow.akickoff``."""


# The flow that CrewAI's own code drives: its kickoff calls kickoff_async, which must not come to
# the driver after all.
_stock_drives: contextvars.ContextVar[Any] = contextvars.ContextVar(
    "crewai_native_stock_drives", default=None
)


class TasksExecutor(Slot):
    """Serves the kickoff of flows: the user's, agents' and memory's."""

    name: ClassVar = "tasks.executor"
    summary: ClassVar = "what drives agents and flows"
    how: ClassVar = "Flow.kickoff, .kickoff_async"
    targets: ClassVar = (
        Target("crewai.flow.runtime:Flow.kickoff", wrapped=True),
        *(Target(f"crewai.flow.runtime:Flow.{name}", wrapped=True) for name in STOOD_IN_FOR),
    )

    repairs: ClassVar = REPAIRS

    def bind(self, binding: Binding, provider: Provider) -> None:
        """Put the provider in the place of the flow runtime's kickoff."""
        from crewai.flow.runtime import Flow

        driver = provider.require(provider.call(), PROTOCOL, "a FlowDriver")
        offer = _Offer(driver, binding.watch)
        binding.stand_in(Flow, "kickoff", offer.make_kickoff)
        binding.stand_in(Flow, "kickoff_async", offer.make_kickoff_async)


class _Offer:
    """Offers each kickoff to the driver and falls back on CrewAI's before a run has begun."""

    def __init__(self, driver: Any, watch: Watch) -> None:
        self._watch = watch
        self._drives = driver.drives
        self._kickoff = watch.meter(driver.kickoff)
        self._akickoff = watch.meter(driver.akickoff)

    def _run(
        self, flow: Any, inputs: Any, input_files: Any, from_checkpoint: Any, state_id: Any
    ) -> FlowRun | None:
        """Return the run to offer, or None where it is CrewAI's."""
        if from_checkpoint is not None or flow.stream or _stock_drives.get() is flow:
            return None
        try:
            offered = self._drives(flow)
        except Exception as error:  # noqa: BLE001 - whatever it is, CrewAI can run the flow
            self._watch.fell_back(error)
            return None
        return FlowRun(flow, inputs, input_files, state_id) if offered else None

    def make_kickoff(self, stock: Any) -> Any:
        def kickoff(
            flow: Any,
            inputs: Any = None,
            input_files: Any = None,
            from_checkpoint: Any = None,
            restore_from_state_id: Any = None,
        ) -> Any:
            arguments = (inputs, input_files, from_checkpoint, restore_from_state_id)
            run = self._run(flow, *arguments)
            if run is None:
                return stock(flow, *arguments)
            try:
                output = self._kickoff(run)
            except Exception as error:
                if run.begun:
                    raise
                self._watch.fell_back(error)
            else:
                self._watch.failures_in_a_row = 0
                return output
            token = _stock_drives.set(flow)
            try:
                return stock(flow, *arguments)
            finally:
                _stock_drives.reset(token)

        return kickoff

    def make_kickoff_async(self, stock: Any) -> Any:
        async def kickoff_async(
            flow: Any,
            inputs: Any = None,
            input_files: Any = None,
            from_checkpoint: Any = None,
            restore_from_state_id: Any = None,
        ) -> Any:
            arguments = (inputs, input_files, from_checkpoint, restore_from_state_id)
            run = self._run(flow, *arguments)
            if run is None:
                return await stock(flow, *arguments)
            try:
                output = await self._akickoff(run)
            except Exception as error:
                if run.begun:
                    raise
                self._watch.fell_back(error)
            else:
                self._watch.failures_in_a_row = 0
                return output
            return await stock(flow, *arguments)

        return kickoff_async


SLOT: Final = TasksExecutor()
