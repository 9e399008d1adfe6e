"""What each of CrewAI's events costs on its way into the record of a run, and need not.

Each of these leaves exactly what CrewAI's own code leaves. They belong to ``tasks.executor``, as those in
:mod:`.executor_repairs` do.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from crewai_native._errors import Declined
from crewai_native.slots._base import Repair, Target
from crewai_native.slots.kickoff_repairs import FRUGAL, OF_A_MODEL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from crewai_native._bind import Binding
    from crewai_native.slots._base import Provider


# --- identifiers ------------------------------------------------------------------------------

_IDS_AT_ONCE: Final = 128
_VARIANT: Final = "89ab" * 4
_ids: Final[list[str]] = []
if hasattr(os, "register_at_fork"):
    # Else both processes went on with the same ones.
    os.register_at_fork(after_in_child=_ids.clear)


def event_id() -> str:
    """Return a random UUID, version 4, as text."""
    try:
        return _ids.pop()
    except IndexError:
        pass
    digits = os.urandom(16 * _IDS_AT_ONCE).hex()
    # Asking the system for randomness is what costs; one request serves many.
    made = [
        f"{d[:8]}-{d[8:12]}-4{d[13:16]}-{_VARIANT[int(d[16], 16)]}{d[17:20]}-{d[20:]}"
        for d in (digits[place : place + 32] for place in range(0, len(digits), 32))
    ]
    own = made.pop()
    _ids.extend(made)
    return own


def _event_id() -> str:
    # Runs in place of CrewAI's factory, with the globals of its module.
    from crewai_native.slots import event_repairs  # noqa: PLW0406 - those are not this module's

    return event_repairs.event_id()


def _llm_call_context() -> Iterator[str]:
    # Runs in place of CrewAI's generator, with the globals of its module.
    from crewai_native.slots import event_repairs  # noqa: PLW0406 - those are not this module's

    call_id = event_repairs.event_id()
    token = _current_call_id.set(call_id)  # type: ignore[name-defined] # noqa: F821
    try:
        yield call_id
    finally:
        _current_call_id.reset(token)  # type: ignore[name-defined] # noqa: F821


def _identifiers_made_together(binding: Binding, _provider: Provider) -> None:
    from crewai.events.base_events import BaseEvent
    from crewai.llms import base_llm

    context: Any = base_llm.llm_call_context

    factory: Any = BaseEvent.model_fields["event_id"].default_factory
    if factory.__code__.co_names != ("str", "uuid", "uuid4"):
        raise Declined("CrewAI makes the identifiers of events in some other way")
    binding.replace_body(factory, _event_id)
    binding.replace_body(context.__wrapped__, _llm_call_context)


# --- what the bus adds to an event ------------------------------------------------------------

_FINDERS: Final = frozenset({"pydantic.main", "crewai_native.slots.kickoff_repairs"})
_ALWAYS: Final = ("previous_event_id", "triggered_by_event_id", "emission_sequence")
_STAMPED: Final = frozenset({*_ALWAYS, "parent_event_id", "started_event_id"})


def _stamped_at_once(binding: Binding, _provider: Provider) -> None:
    from crewai.events.event_bus import CrewAIEventsBus

    binding.stand_in(CrewAIEventsBus, "_prepare_event", lambda stock: _Stamps(stock).make())


class _Stamps:
    """What the bus does to each event before anybody sees it."""

    def __init__(self, stock: Callable[..., None]) -> None:
        from crewai.events import event_context
        from pydantic import BaseModel

        self._stock = stock
        self._context = event_context
        self._set_attribute = BaseModel.__setattr__
        # Kinds of events whose fields pydantic itself sets by writing them down and nothing else.
        self._plain: set[type] = set()

    def make(self) -> Callable[..., None]:
        """Return what stands for ``CrewAIEventsBus._prepare_event``."""
        from crewai.events import base_events, event_bus, stream_context

        context, plain, enclose = self._context, self._plain, self._enclose
        next_sequence = base_events.get_next_emission_sequence
        last_of, trigger_of = context._last_event_id, context._triggering_event_id  # noqa: SLF001
        known_of, state_of = event_bus._registered_entity_ids_var, event_bus._runtime_state_var  # noqa: SLF001
        sinks_of = stream_context._stream_sinks  # noqa: SLF001
        # Classes of what is neither a flow nor a crew nor an agent, such as models: to find that out
        # of each object, pydantic raises and catches.
        strangers: set[type] = set()

        def prepare(bus: Any, source: Any, event: Any) -> None:
            if type(event) not in plain:
                self._stock(bus, source, event)
                self._examine(type(event))
                return
            if type(source) not in strangers:
                known = known_of.get()
                if known is None or id(source) not in known:
                    bus._register_source(source)  # noqa: SLF001
                if _lacks(type(source), "entity_type"):
                    strangers.add(type(source))
            fields, named = event.__dict__, event.__pydantic_fields_set__
            named.update(_ALWAYS)
            fields["previous_event_id"] = last_of.get()
            fields["triggered_by_event_id"] = trigger_of.get()
            fields["emission_sequence"] = next_sequence()
            if fields["parent_event_id"] is None:
                enclose(fields, named, event)
            last_of.set(fields["event_id"])
            for sink in sinks_of.get():
                sink(source, event)
            state = state_of.get()
            if state is not None:
                state.event_record.add(event)

        return prepare

    def _examine(self, kind: Any) -> None:
        """Find out how a kind of event is written on, of which CrewAI's code has just stamped one."""
        set_field = _setter_of_fields()
        setters = getattr(kind, "__pydantic_setattr_handlers__", {})
        # pydantic keeps how a field of a class is set from the first time that it was.
        seen = [setters[name] for name in _STAMPED if name in setters]
        if (
            set_field is not None
            and kind.__setattr__ is self._set_attribute
            and len(seen) >= len(_ALWAYS)
            and all(setter is set_field for setter in seen)
        ):
            self._plain.add(kind)

    def _enclose(self, fields: dict[str, Any], named: set[str], event: Any) -> None:
        """Put an event into the scope that it is in, begins or ends."""
        context, name = self._context, event.type
        stack = context._event_id_stack.get()  # noqa: SLF001
        named.add("parent_event_id")
        if name not in context.SCOPE_ENDING_EVENTS:
            fields["parent_event_id"] = stack[-1][0] if stack else None
            if name in context.SCOPE_STARTING_EVENTS:
                context.push_event_scope(event.event_id, name)
            return
        fields["parent_event_id"] = stack[-2][0] if len(stack) > 1 else None
        popped = context.pop_event_scope()
        if popped is None:
            context.handle_empty_pop(name)
            return
        named.add("started_event_id")
        fields["started_event_id"], began = popped
        expected = context.VALID_EVENT_PAIRS.get(name)
        if expected and began and began != expected:
            context.handle_mismatch(name, began, expected)


def _lacks(kind: type, name: str) -> bool:
    """Whether no object of a class has an attribute, for sure."""
    from pydantic import BaseModel

    return (
        issubclass(kind, BaseModel)
        and kind.model_config.get("extra") != "allow"
        and kind.__getattribute__ is object.__getattribute__
        and name not in kind.model_fields
        and name not in kind.__private_attributes__
        and not any(name in vars(cls) for cls in kind.__mro__)
        # Else one that a program has written may know of it.
        and all(
            vars(cls)["__getattr__"].__module__ in _FINDERS
            for cls in kind.__mro__
            if "__getattr__" in vars(cls)
        )
    )


def _setter_of_fields() -> Any:
    """Return what pydantic sets plain fields with, or None where it has no such function."""
    from pydantic import main

    return getattr(main, "_model_field_setattr_handler", None)


# --- the record -------------------------------------------------------------------------------


# Where an event says which other it belongs to; the edge there, and the edge back.
_EDGES: Final = (
    ("parent_event_id", "parent", "child"),
    ("triggered_by_event_id", "triggered_by", "trigger"),
    ("previous_event_id", "previous", "next"),
    ("started_event_id", "started", "completed_by"),
)


def _link(nodes: Any, node: Any, event: Any) -> None:
    """Put the edges between an event and those that it names."""
    fields, edges = event.__dict__, node.edges
    own = fields["event_id"]
    for name, forth, back in _EDGES:
        there = fields[name]
        if there and (other := nodes.get(there)) is not None:
            edges.setdefault(forth, []).append(there)
            others = other.edges
            if back in others:
                others[back].append(own)
            else:
                others[back] = [own]


def _recorded_at_once(binding: Binding, _provider: Provider) -> None:
    from crewai.events.base_events import BaseEvent
    from crewai.state.event_record import EventNode, EventRecord

    new, put = object.__new__, object.__setattr__

    def node_of(event: Any) -> Any:
        # What validation makes of an event that is one already.
        node = new(EventNode)
        put(node, "__dict__", {"event": event, "edges": {}})
        put(node, "__pydantic_fields_set__", {"event"})
        put(node, "__pydantic_extra__", None)
        put(node, "__pydantic_private__", None)
        return node

    probe = BaseEvent(type="probe")
    expected, made = EventNode(event=probe), node_of(probe)
    if any(getattr(made, name) != getattr(expected, name) for name in OF_A_MODEL):
        raise Declined("CrewAI's nodes of the record have other fields")

    def make(stock: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        def add(record: Any, event: Any) -> Any:
            if isinstance(event, BaseEvent):
                lock = record.__pydantic_private__["_lock"]
                # Readers and writers all come past the condition: whoever holds it while there are
                # none is alone.
                condition = lock._cond  # noqa: SLF001
                condition.acquire()
                try:
                    if not lock._readers and not lock._writer:  # noqa: SLF001
                        node = node_of(event)
                        nodes = record.nodes
                        nodes[event.event_id] = node
                        _link(nodes, node, event)
                        return node
                finally:
                    condition.release()
            return stock(record, event)

        return add

    binding.stand_in(EventRecord, "add", make)


_BUS: Final = "crewai.events.event_bus:CrewAIEventsBus"
_CONTEXT: Final = "crewai.events.event_context"
_RECORD: Final = "crewai.state.event_record"

REPAIRS: Final = (
    Repair(
        name="identifiers-together",
        summary="the system is asked for randomness for the identifier of each event and model call",
        targets=(
            Target("crewai.events.base_events:BaseEvent"),
            Target("crewai.llms.base_llm:llm_call_context", wrapped=True),
        ),
        feature=FRUGAL,
        bind=_identifiers_made_together,
    ),
    Repair(
        name="events-stamped-at-once",
        summary="what the bus writes on an event goes through pydantic field by field",
        targets=(
            Target(f"{_BUS}._prepare_event", wrapped=True),
            Target(f"{_BUS}._register_source", wrapped=True),
            Target(f"{_BUS}._record_event", wrapped=True),
            Target("crewai.events.base_events:get_next_emission_sequence", wrapped=True),
            Target("crewai.events.stream_context:publish_stream_event", wrapped=True),
            Target(f"{_CONTEXT}:get_current_parent_id", wrapped=True),
            Target(f"{_CONTEXT}:get_enclosing_parent_id", wrapped=True),
            Target(f"{_CONTEXT}:pop_event_scope", wrapped=True),
            Target(f"{_CONTEXT}:push_event_scope", wrapped=True),
        ),
        feature=FRUGAL,
        bind=_stamped_at_once,
    ),
    Repair(
        name="events-recorded-at-once",
        summary="each event is validated again for the record, under a lock of two dozen steps",
        targets=(
            Target(f"{_RECORD}:EventRecord.add", wrapped=True),
            Target(f"{_RECORD}:EventNode.add_edge", wrapped=True),
            *(
                Target(f"crewai.utilities.rw_lock:RWLock.{name}", wrapped=True)
                for name in ("r_acquire", "r_release", "w_acquire", "w_release")
            ),
        ),
        feature=FRUGAL,
        bind=_recorded_at_once,
    ),
)
