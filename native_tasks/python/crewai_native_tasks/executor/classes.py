"""What is known of a class of flows: its compiled graph, and whether CrewAI's runtime runs it as is."""

from __future__ import annotations

import asyncio
import inspect
import sys
import weakref
from typing import Any, Final, NamedTuple

from crewai.flow.flow_wrappers import FlowMethod
from crewai.flow.runtime import Flow

from crewai_native import _bind
from crewai_native.slots.tasks_executor import STOOD_IN_FOR
from crewai_native_tasks._native import FlowGraph

_INSTANCE_ONLY: Final = frozenset(STOOD_IN_FOR)


class Method(NamedTuple):
    """What is known of one method of a flow.

    Attributes:
        function: The function that it was found out of.
        takes_input: Whether it has parameters, so that it gets what its trigger gave.
        direct: Whether it can be called without a loop: it is no coroutine function, and no human
            is asked about its result.
        persisted: Whether the state may have to be persisted after it.
        plain: Whether calling it is calling the function with the flow.
    """

    function: Any
    takes_input: bool
    direct: bool
    persisted: bool
    plain: bool


class FlowClass:
    """What is known of one class of flows.

    Attributes:
        graph: Its compiled methods.
        internal: Whether it is CrewAI's own.
    """

    def __init__(self, flow: Any) -> None:
        definition = flow._definition  # noqa: SLF001 - the runtime's own attributes, here and below
        self.internal = bool(type(flow).is_crewai_internal)
        self._definitions = definition.methods
        # The entries too, as a table of methods can be changed in place.
        self._entries = list(definition.methods.values())
        self._persist = definition.persist is not None and definition.persist.enabled
        self._methods: dict[str, Method] = {}
        self.graph = FlowGraph(
            [
                (
                    name,
                    method.router,
                    method.is_start,
                    method.start if isinstance(method.start, str | dict) else None,
                    method.listen,
                )
                for name, method in definition.methods.items()
            ]
        )

    def fits(self, flow: Any) -> bool:
        """Whether this is what the flow is, and CrewAI's own code would run it from the start."""
        private = flow.__pydantic_private__
        definition = private["_definition"]
        return (
            definition.methods is self._definitions
            and list(definition.methods.values()) == self._entries
            and private["_pending_feedback_context"] is None
            and not private["_restored_from_checkpoint"]
            and not private["_is_execution_resuming"]
            and _INSTANCE_ONLY.isdisjoint(vars(flow))
        )

    def method(self, name: str, bound: Any) -> Method:
        """Return what is known of a method, by its name and as the flow has it."""
        try:
            function = bound._meth  # noqa: SLF001
        except AttributeError:
            function = getattr(bound, "__func__", bound)
        known = self._methods.get(name)
        if known is None or known.function is not function:
            definition = self._definitions[name]
            parameters = inspect.signature(bound).parameters.values()
            known = self._methods[name] = Method(
                function,
                any(parameter.name != "self" for parameter in parameters),
                not asyncio.iscoroutinefunction(bound) and definition.human_feedback is None,
                self._persist if definition.persist is None else definition.persist.enabled,
                type(bound).__call__ is FlowMethod.__call__,
            )
        return known


class Classes:
    """All that is known of classes, each found out once."""

    def __init__(self) -> None:
        self._runtime = {name: vars(Flow)[name] for name in STOOD_IN_FOR}
        self._known: weakref.WeakKeyDictionary[type, FlowClass | None] = weakref.WeakKeyDictionary()

    def of(self, flow: Any) -> FlowClass | None:
        """Return what is known of a flow's class, or None where CrewAI must run it."""
        cls = type(flow)
        for name, function in self._runtime.items():
            # A subclass, or somebody else, may have put a function of their own there.
            found = getattr(cls, name)
            if found is not function and not _hosts(found):
                return None
        try:
            return self._known[cls]
        except KeyError:
            # One that is built from a declaration, or completed by an extension, has its own methods.
            own = flow._definition.methods is cls.flow_definition().methods  # noqa: SLF001
            known = self._known[cls] = FlowClass(flow) if own else None
            return known


def _hosts(function: Any) -> bool:
    """Whether the host has put it there, for a slot: it does what CrewAI's function does."""
    code = getattr(function, "__code__", None)
    return code is not None and code.co_filename == sys.modules[_bind.__name__].__file__
