"""The live objects of a run as texts: events once each, and what does change anew each time.

An event refers to live objects (the agent, the task), and CrewAI dumps them within every event
that does, as they are by then. Here each object is dumped once for a checkpoint, as a *part* with a
number, and whatever it is a field of has the number. So an event's own text never changes.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import json
import operator
import types
import uuid
from typing import TYPE_CHECKING, Any, Final

from crewai.agents.agent_builder.base_agent import BaseAgent
from crewai.agents.agent_executor import AgentExecutor
from crewai.context import capture_execution_context
from crewai.crew import Crew
from crewai.state.runtime import _prepare_entities
from crewai.task import Task
from crewai.tools.base_tool import BaseTool
from crewai_core.version import get_crewai_version
from pydantic import BaseModel

from crewai_native_db.checkpoints.assembly import Parts
from crewai_native_db.checkpoints.placeholders import Placeholders
from crewai_native_db.checkpoints.settled import freeze, is_settled

if TYPE_CHECKING:
    from crewai.state.event_record import EventNode
    from crewai.state.runtime import RuntimeState

# How often an object is dumped again that another thread changes meanwhile.
_TRIES: Final = 50
# The fields whose objects are parts, and the class as which CrewAI dumps them: None for their own.
_NESTED: Final[dict[type, dict[str, type[BaseModel] | None]]] = {
    Crew: {"tasks": Task, "agents": BaseAgent},
    Task: {"agent": BaseAgent, "context": Task, "tools": None},
    BaseAgent: {"agent_executor": None, "tools": None},
}
_PLAIN: Final = (
    str,
    int,
    float,
    bool,
    bytes,
    types.NoneType,
    types.FunctionType,
    dt.date,
    dt.timedelta,
    uuid.UUID,
    enum.Enum,
    type,
)
_DOUBTS: Final = 3
_SCHEMAS: Final = ("args_schema", "result_schema")

# Whether the parts in a field came to what CrewAI dumps there, by (class, field, their classes):
# True once they did, or how often they did not.
_proofs: dict[tuple[Any, ...], bool | int] = {}


@dataclasses.dataclass(frozen=True, slots=True)
class Snapshot:
    """A run at a moment.

    Attributes:
        segments: What was ever added to its record, oldest first. It grows; the snapshot has the
            first ``count``.
        count: See ``segments``.
        document: What does change.
        version: CrewAI's.
        entities: The numbers of the parts that are the run's entities.
        parts: (dump, parts by field) by number.
        events: The number of events.
        named: Paths of objects without a JSON form that can be imported.
        lost: Names of those that cannot.
    """

    segments: list[bytes]
    count: int
    document: bytes
    version: str
    entities: list[int]
    parts: dict[int, Any]
    events: int
    named: frozenset[str]
    lost: frozenset[str]


class Recorder:
    """Takes the snapshots of one run. Not for several threads at once."""

    def __init__(self) -> None:
        self._placeholders = Placeholders()
        self._begin()

    def _begin(self) -> None:
        self._segments: list[bytes] = []
        self._known: list[EventNode] = []
        # How many edges of each kind a node is known to have.
        self._edges: dict[str, dict[str, int]] = {}
        # Numbers by what they stand for, which is kept alive: an id is unique only as long.
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._alive: list[Any] = []
        # Parts that events refer to, for ever: (class or None, object, field).
        self._lasting: dict[int, tuple[type[BaseModel], Any, str | None]] = {}
        self._parts: dict[int, Any] = {}
        # Of executors: their last dump, and what they were like before it; which are the same.
        self._executors: dict[int, tuple[dict[str, Any] | None, dict[str, Any] | None]] = {}
        self._settled: dict[int, dict[str, Any]] = {}
        # Dumps of the schemas of tools, by the classes of both.
        self._schemas: dict[tuple[Any, ...], dict[str, Any]] = {}

    def snapshot(self, state: RuntimeState) -> Snapshot:
        """Dump a run.

        Raises:
            PydanticSerializationError: A value cannot be dumped.
            RuntimeError: Other threads change it all the time.
        """
        if not self._continues(state):
            self._begin()
        self._parts = {}
        self._prepare(list(state.root))
        entities = [self._view(type(entity), entity) for entity in list(state.root)]
        self._record(state)
        for view, value, field in list(self._lasting.values()):
            if field is None:
                self._view(view, value)
            else:
                self._field_part(view, value, field)
        version = get_crewai_version()
        document = {"crewai_version": version, "entities": entities, "parts": self._parts}
        return Snapshot(
            segments=self._segments,
            count=len(self._segments),
            document=_json(document),
            version=version,
            entities=entities,
            parts=self._parts,
            events=len(self._known),
            named=frozenset(self._placeholders.named),
            lost=frozenset(self._placeholders.lost),
        )

    def _continues(self, state: RuntimeState) -> bool:
        """Whether the events are those that are known, and more: else it is another record."""
        nodes = state.event_record.all_nodes()
        return len(nodes) >= len(self._known) and all(map(operator.is_, self._known, nodes))

    def _prepare(self, entities: list[Any]) -> None:
        """Have CrewAI copy what is private into what is dumped, where there is anything new.

        The executors of agents are entities, each with its conversation, and remain so when
        their tasks are done.
        """
        self._settled = {}
        moved = []
        for entity in entities:
            body, frozen = self._executors.get(id(entity), (None, None))
            if body is not None and frozen is not None and is_settled(entity, frozen):
                entity.execution_context = capture_execution_context()
                self._settled[id(entity)] = body
                continue
            moved.append(entity)
            if type(entity) is AgentExecutor:
                self._executors[id(entity)] = (None, freeze(entity))
        _prepare_entities(moved)

    def _record(self, state: RuntimeState) -> None:
        """Add a segment of the events that are new."""
        record = state.event_record
        with record._lock.r_locked():  # noqa: SLF001 - its readers take it
            nodes = list(record.nodes.values())
            new = nodes[len(self._known) :]
            wiring = {node.event.event_id: _copied(node.edges) for node in new}
            grown = self._grown(record.nodes, wiring)
        if not new:
            return
        events = []
        for node in new:
            body, refs = self._event(node.event)
            events.append([node.event.event_id, body, refs, wiring[node.event.event_id]])
        self._segments.append(_json({"nodes": events, "edges": grown}))
        self._known = nodes
        for name, edges in wiring.items():
            self._edges[name] = {kind: len(ends) for kind, ends in edges.items()}
        for name, kind, start, more in grown:
            self._edges[name][kind] = start + len(more)

    def _grown(
        self, nodes: dict[str, EventNode], wiring: dict[str, Any]
    ) -> list[tuple[str, str, int, list[str]]]:
        """The edges that known nodes have got: only a new node gives them one, and has one back."""
        touched = {end for edges in wiring.values() for ends in edges.values() for end in ends}
        grown = []
        for name in sorted(touched & self._edges.keys()):
            known = self._edges[name]
            for kind, ends in nodes[name].edges.items():
                start = known.get(kind, 0)
                if len(ends) > start:
                    grown.append((name, str(kind), start, list(ends[start:])))
        return grown

    def _event(self, event: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        kind = type(event)
        live = {field for field, value in vars(event).items() if not _is_plain(value)}
        refs = {}
        for field in live:
            declared = kind.model_fields[field].annotation if field in kind.model_fields else None
            view = declared if isinstance(declared, type) and _is_model(declared) else None
            ref = self._ref(kind, event, field, view)
            if ref is None:
                number = self._number((event, field))
                self._lasting[number] = (kind, event, field)
                if not self._field_part(kind, event, field):
                    continue
                ref = number
            else:
                self._keep(ref, vars(event)[field], view)
            refs[field] = ref
        return self._dump(kind, event, exclude=live), refs

    def _keep(self, ref: Any, value: Any, view: type[BaseModel] | None) -> None:
        numbers, values = (ref, value) if isinstance(ref, list) else ([ref], [value])
        for number, one in zip(numbers, values, strict=True):
            self._lasting[number] = (view or type(one), one, None)

    def _field_part(self, view: type[BaseModel], value: Any, field: str) -> bool:
        """Dump a field that has live objects somewhere inside; say whether it is dumped at all."""
        dump = self._dump(view, value, include={field})
        if field not in dump:
            return False
        self._parts[self._number((value, field))] = (dump[field], {})
        return True

    def _view(self, view: type[BaseModel], value: Any) -> int:
        """Dump an object as one of a class; give the part's number."""
        number = self._number((value, view))
        if number not in self._parts:
            self._parts[number] = None
            refs = {}
            for field, nested in _nested(view).items():
                ref = self._ref(view, value, field, nested)
                if ref is not None:
                    refs[field] = ref
            if isinstance(value, Task):
                self._leave_out_guardrails(value)
            settled = self._settled.get(id(value))
            if isinstance(value, BaseTool):
                body = self._tool(view, value)
            elif settled is not None and view is type(value):
                body = settled | self._dump(view, value, include={"execution_context"})
            else:
                body = self._dump(view, value, exclude=set(refs))
            self._parts[number] = (body, refs)
            if view is AgentExecutor and id(value) in self._executors:
                self._executors[id(value)] = (body, self._executors[id(value)][1])
        elif self._parts[number] is None:
            raise ValueError(f"a {view.__name__} refers to itself and cannot be a checkpoint")
        return number

    def _leave_out_guardrails(self, task: Task) -> None:
        found = (task.guardrail, task.guardrails)
        for guardrail in (
            x for one in found for x in (one if isinstance(one, list | tuple) else [one])
        ):
            if callable(guardrail):
                self._placeholders.leave_out(guardrail)

    def _tool(self, view: type[BaseModel], tool: BaseTool) -> dict[str, Any]:
        """Dump a tool. What takes long is to describe its schemas, which are classes."""
        classes = {field: getattr(tool, field) for field in _SCHEMAS}
        key = (view, *classes.values())
        known = self._schemas.get(key, {})
        dump = self._dump(view, tool, exclude=set(known))
        self._schemas[key] = {field: dump.get(field) for field in _SCHEMAS} | known
        return self._placeholders.mark_tool(tool, dump | known)

    def _ref(
        self, view: type[BaseModel], value: Any, field: str, nested: type[BaseModel] | None
    ) -> int | list[int] | None:
        """Dump what is in a field as parts of their own, if that is what CrewAI dumps there."""
        inside = vars(value).get(field)
        many = isinstance(inside, list | tuple)
        items: list[Any] = list(inside) if isinstance(inside, list | tuple) else [inside]
        if not items or not all(isinstance(item, nested or BaseModel) for item in items):
            return None
        proof = (
            view,
            field,
            nested,
            *sorted({f"{type(i).__qualname__} {id(type(i))}" for i in items}),
        )
        known = _proofs.get(proof, 0)
        if known is not True and known >= _DOUBTS:
            return None
        numbers = [self._view(nested or type(item), item) for item in items]
        ref = numbers if many else numbers[0]
        if known is not True:
            try:
                direct = self._dump(view, value, include={field}).get(field)
            except ValueError:
                # CrewAI cannot dump it. A part of its own has placeholders.
                return ref
            if Parts(self._parts).expand(ref) != direct:
                _proofs[proof] = known + 1
                return None
            _proofs[proof] = True
        return ref

    def _number(self, key: tuple[Any, Any]) -> int:
        value, what = key
        found = self._numbers.get((id(value), what))
        if found is None:
            found = self._numbers[id(value), what] = len(self._alive)
            self._alive.append(value)
        return found

    def _dump(self, view: type[BaseModel], value: Any, **select: Any) -> Any:
        for last in (*[False] * _TRIES, True):
            try:
                return view.__pydantic_serializer__.to_python(
                    value, mode="json", fallback=self._placeholders, warnings=False, **select
                )
            except BaseException as error:
                # A panic of pydantic's is no Exception.
                if "changed size during iteration" not in str(error):
                    raise
                if last:
                    raise RuntimeError(
                        f"a {type(value).__name__} changes faster than it can be dumped"
                    ) from error
        raise AssertionError


def _nested(view: type) -> dict[str, type[BaseModel] | None]:
    return next((_NESTED[base] for base in view.__mro__ if base in _NESTED), {})


def _is_model(kind: type) -> bool:
    return issubclass(kind, BaseModel)


def _is_plain(value: Any) -> bool:
    """Whether a value has nothing inside that is known elsewhere and changes there."""
    if isinstance(value, _PLAIN):
        return True
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(_is_plain, value))
    return isinstance(value, dict) and all(map(_is_plain, value.values()))


def _copied(edges: Any) -> dict[str, list[str]]:
    return {str(kind): list(ends) for kind, ends in edges.items()}


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii")
