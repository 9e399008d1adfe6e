"""The live objects of a run as texts: events once each, other objects when they have changed.

An event refers to live objects (the agent, the task), and CrewAI dumps them within every event
that does, as they are by then. Here each object is dumped as a *part* with a number, once and then
when it has changed, and whatever it is a field of has the number. So an event's own text never
changes, and a checkpoint costs what has changed since the one before it.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import json
import operator
import types
import uuid
import weakref
from typing import TYPE_CHECKING, Any, Final

from crewai.agents.agent_builder.base_agent import BaseAgent
from crewai.agents.agent_executor import AgentExecutor
from crewai.context import ExecutionContext, capture_execution_context
from crewai.crew import Crew
from crewai.events.base_events import BaseEvent
from crewai.state.runtime import _sync_checkpoint_fields
from crewai.task import Task
from crewai.tasks.task_output import TaskOutput
from crewai.tools.base_tool import BaseTool
from crewai_core.version import get_crewai_version
from pydantic import BaseModel

from crewai_native_db import _native
from crewai_native_db.checkpoints.assembly import HEAD, Parts
from crewai_native_db.checkpoints.classes import once
from crewai_native_db.checkpoints.likeness import likeness
from crewai_native_db.checkpoints.placeholders import Placeholders
from crewai_native_db.checkpoints.settled import REFERRED, classify, fields_of, is_transparent
from crewai_native_db.checkpoints.shapes import plan

if TYPE_CHECKING:
    from crewai.state.event_record import EventNode
    from crewai.state.runtime import RuntimeState

# How often an object is dumped again that another thread changes meanwhile.
_TRIES: Final = 50
# The fields whose objects are parts, and the class as which CrewAI dumps them: None for their own.
_NESTED: Final[dict[type, dict[str, type[BaseModel] | None]]] = {
    Crew: {"tasks": Task, "agents": BaseAgent},
    Task: {"agent": BaseAgent, "context": Task, "tools": None, "output": TaskOutput},
    BaseAgent: {"agent_executor": None, "tools": None},
}
# Never the same object for two checkpoints, and one for all entities of one.
_CONTEXT: Final = "execution_context"
# Where CrewAI takes the fields of executors from that exist for checkpoints only.
_PRIVATE: Final = (
    "_completed_methods",
    "_method_outputs",
    "_method_execution_counts",
    "_state",
)
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
# True once they did, or how often they did not. Of classes there are references, so that they are
# let go, and that another at the same address is not taken for one.
_proofs: dict[tuple[Any, ...], bool | int] = {}
_MOST_PROOFS: Final = 10_000


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Part:
    """The dump of an object. Another one is made when the object has changed.

    Attributes:
        body: The dump, without the fields in ``refs``.
        refs: The number, or list of numbers, of the parts that belong there, by field.
        like: The number of the first part of its class.
        text: Both as JSON.
    """

    body: Any
    refs: dict[str, Any]
    like: int
    text: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Snapshot:
    """A run at a moment.

    Attributes:
        segments: What was ever added to its record, oldest first. It grows; the snapshot has the
            first ``count``.
        count: See ``segments``.
        version: CrewAI's.
        entities: The numbers of the parts that are the run's entities.
        parts: What does change, by number, in ``HEAD`` what is said of the checkpoint as a whole.
        events: The number of events.
        named: Paths of objects without a JSON form that can be imported.
        lost: Names of those that cannot.
    """

    segments: list[bytes]
    count: int
    version: str
    entities: list[int]
    parts: dict[int, Part]
    events: int
    named: frozenset[str]
    lost: frozenset[str]


@dataclasses.dataclass(frozen=True, slots=True)
class _Source:
    """What a part is a dump of: an object as one of a class, or only a field of it."""

    view: type[BaseModel]
    value: Any
    field: str | None = None


class Recorder:
    """Takes the snapshots of one run. Not for several threads at once."""

    def __init__(self) -> None:
        self._placeholders = Placeholders()
        self._begin()

    def _begin(self) -> None:
        self._segments: list[bytes] = []
        self._known: list[EventNode] = []
        self._events = _native.Events(plan)
        # Numbers by what they stand for, which is kept alive: an id is unique only as long.
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._alive: list[Any] = []
        self._sources: dict[int, _Source] = {}
        # None while the part is being dumped.
        self._parts: dict[int, Part | None] = {}
        self._likes: dict[Any, int] = {}
        self._watch = _native.Watch(classify)
        # Those of which it cannot be told whether they have changed.
        self._doubtful: set[int] = set()
        # What was taken of executors before they were prepared.
        self._executors = _native.Watch(classify)
        self._context: ExecutionContext | None = None
        self._contextual: set[int] = set()
        # What ``_proofs`` has of this run.
        self._proven: set[tuple[Any, ...]] = set()
        # Of which CrewAI leaves out the functions: by the id of the task or agent.
        self._guardrails: dict[str, Any] = {}
        # Dumps of the schemas of tools, by the likenesses of both.
        self._schemas: dict[tuple[Any, ...], dict[str, Any]] = {}

    def snapshot(self, state: RuntimeState) -> Snapshot:
        """Dump of a run what has changed.

        Raises:
            PydanticSerializationError: A value cannot be dumped.
            RuntimeError: Other threads change it all the time.
        """
        if not self._continues(state):
            self._begin()
        root = list(state.root)
        self._prepare(root)
        # What an object refers to has a higher number than it, unless it was known before.
        for number in sorted(self._changed(), reverse=True):
            self._renew(number)
        entities = [self._view(type(entity), entity) for entity in root]
        self._record(state)
        version = get_crewai_version()
        head = {"crewai_version": version, "entities": entities, "guardrails": self._guardrails}
        self._put(HEAD, head, {}, HEAD)
        return Snapshot(
            segments=self._segments,
            count=len(self._segments),
            version=version,
            entities=entities,
            parts={number: part for number, part in self._parts.items() if part is not None},
            events=len(self._known),
            named=frozenset(self._placeholders.named),
            lost=frozenset(self._placeholders.lost),
        )

    def _continues(self, state: RuntimeState) -> bool:
        """Whether the events are those that are known, and more: else it is another record."""
        nodes = state.event_record.all_nodes()
        return len(nodes) >= len(self._known) and all(map(operator.is_, self._known, nodes))

    def _changed(self) -> set[int]:
        moved = (number for number in self._contextual if not self._is_in_context(number))
        return {*self._watch.changed(), *self._doubtful, *moved}

    def _is_in_context(self, number: int) -> bool:
        part = self._parts[number]
        current = vars(self._sources[number].value).get(_CONTEXT) is self._context
        return part is not None and current == (_CONTEXT in part.refs)

    def _prepare(self, entities: list[Any]) -> None:
        """Copy what is private into what is dumped, as CrewAI does, where there is anything new.

        The executors of agents are entities, each with its conversation, and remain so when
        their tasks are done.
        """
        changed = set(self._executors.changed())
        context = capture_execution_context()
        self._put(
            self._number((ExecutionContext, _CONTEXT)), self._dump(ExecutionContext, context), {}
        )
        self._context = context
        for entity in entities:
            entity.execution_context = context
            if type(entity) is not AgentExecutor:
                _sync_checkpoint_fields(entity)
                continue
            number = self._number((entity, AgentExecutor))
            if number in changed or number not in self._parts:
                look = self._executors.look(
                    [
                        (entity, "__dict__", _lasting_fields_of(AgentExecutor), True),
                        (entity, "__pydantic_private__", _PRIVATE, True),
                    ]
                )
                _sync_checkpoint_fields(entity)
                self._executors.keep(number, [look])

    def _record(self, state: RuntimeState) -> None:
        """Add a segment of the events that are new."""
        record = state.event_record
        with record._lock.r_locked():  # noqa: SLF001 - its readers take it
            nodes = list(record.nodes.values())
            new = self._events.wire(record.nodes, len(self._known))
        if not new:
            return
        events = [node.event for node in nodes[len(self._known) :]]
        self._segments.append(self._events.segment(events, self._rest))
        self._known = nodes

    def _rest(self, event: Any, left: list[str] | None) -> tuple[bytes | None, bytes]:
        """Dump of an event what has no text yet, as ``_native.Events.segment`` has it."""
        kind = type(event)
        fields = vars(event)
        if left is not None:
            live, _ = _native.live_fields({name: fields[name] for name in left}, _PLAIN)
            if len(live) == len(left):
                return None, _json(self._refs(kind, event, live))
        live, exact = _native.live_fields(fields, _PLAIN)
        refs = self._refs(kind, event, live)
        return self._text(kind, event, set(live), exact=exact), _json(refs)

    def _refs(self, kind: type[BaseModel], event: Any, live: list[str]) -> dict[str, Any]:
        """Dump what is in some fields of an event as parts."""
        refs = {}
        for field in live:
            declared = kind.model_fields[field].annotation if field in kind.model_fields else None
            view = declared if isinstance(declared, type) and _is_model(declared) else None
            ref = self._ref(kind, event, field, view)
            if ref is None:
                ref = self._number((event, field))
                self._sources[ref] = _Source(kind, event, field)
                if not self._renew(ref):
                    continue
            refs[field] = ref
        return refs

    def _text(self, kind: type[BaseModel], event: Any, live: set[str], *, exact: bool) -> bytes:
        """Dump an event's own fields as text."""
        if exact:
            try:
                return kind.__pydantic_serializer__.to_json(
                    event, exclude=live, fallback=self._placeholders, warnings=False
                )
            except (ValueError, UnicodeError):
                # Text that is no Unicode, for one, which only Python writes.
                pass
        return _json(self._dump(kind, event, exclude=live))

    def _view(self, view: type[BaseModel], value: Any) -> int:
        """Return the number of an object, seen as one of a class; dump it if it is new."""
        number = self._number((value, view))
        if number not in self._parts:
            self._sources[number] = _Source(view, value)
            self._renew(number)
        elif self._parts[number] is None:
            raise ValueError(f"a {view.__name__} refers to itself and cannot be a checkpoint")
        return number

    def _renew(self, number: int) -> bool:
        """Dump what a number stands for; say whether it is dumped at all."""
        source = self._sources[number]
        before = self._parts.get(number)
        self._parts[number] = None
        try:
            if source.field is None:
                body, refs = self._object(number, source.view, source.value)
            else:
                fields = (source.field,)
                look = self._watch.look([(source.value, "__dict__", fields, True)])
                dump = self._dump(source.view, source.value, include={source.field})
                body, refs = dump.get(source.field), {}
                if source.field in dump:
                    self._watch.keep(number, [look])
            self._refuse_circles(number, refs)
        except BaseException:
            # It is changed still.
            self._doubtful.add(number)
            self._restore(number, before)
            raise
        self._restore(number, before)
        if source.field is not None and source.field not in dump:
            self._parts.pop(number, None)
            return False
        self._put(number, body, refs, self._likes.setdefault(_alike(source), number))
        return True

    def _restore(self, number: int, before: Part | None) -> None:
        if before is None:
            del self._parts[number]
        else:
            self._parts[number] = before

    def _put(self, number: int, body: Any, refs: dict[str, Any], like: int | None = None) -> None:
        text = _json([body, refs])
        before = self._parts.get(number)
        if before is None or before.text != text:
            self._parts[number] = Part(body, refs, number if like is None else like, text)

    def _object(self, number: int, view: type[BaseModel], value: Any) -> tuple[Any, dict[str, Any]]:
        """Dump an object, and remember what it was like before that."""
        nested = _nested(view)
        look = self._watch.look([(value, "__dict__", (*nested, *REFERRED), False)])
        refs = {}
        for field, kind in nested.items():
            ref = self._ref(view, value, field, kind)
            if ref is not None:
                refs[field] = ref
        if _CONTEXT in view.model_fields:
            self._contextual.add(number)
            if vars(value).get(_CONTEXT) is self._context:
                refs[_CONTEXT] = self._number((ExecutionContext, _CONTEXT))
        names = _fields_but(view, frozenset(refs))
        self._watch.keep(number, [look, self._watch.look([(value, "__dict__", names, True)])])
        if is_transparent(view):
            self._doubtful.discard(number)
        else:
            self._doubtful.add(number)
        if isinstance(value, Task | BaseAgent):
            self._guardrails.pop(str(value.id), None)
            if found := self._placeholders.guardrails(value):
                self._guardrails[str(value.id)] = found
        if isinstance(value, BaseTool):
            return self._tool(view, value), refs
        return self._dump(view, value, exclude=set(refs)), refs

    def _refuse_circles(self, number: int, refs: dict[str, Any]) -> None:
        if number in self._within(refs):
            raise ValueError("an object refers to itself and cannot be a checkpoint")

    def _within(self, refs: dict[str, Any]) -> set[int]:
        """Return the numbers of all parts that belong into fields, and into theirs."""
        seen: set[int] = set()
        ahead = [refs]
        while ahead:
            for ref in ahead.pop().values():
                for number in ref if isinstance(ref, list) else [ref]:
                    if number in seen:
                        continue
                    seen.add(number)
                    part = self._parts.get(number)
                    if part is not None:
                        ahead.append(part.refs)
        return seen

    def _tool(self, view: type[BaseModel], tool: BaseTool) -> dict[str, Any]:
        """Dump a tool. What takes long is to describe its schemas, which are classes."""
        key = (view, *(likeness(getattr(tool, field)) for field in _SCHEMAS))
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
        case = view, field, nested, frozenset(map(type, items))
        known: bool | int = case in self._proven
        if not known:
            if not items or not all(isinstance(item, nested or BaseModel) for item in items):
                return None
            kinds = frozenset(map(weakref.ref, case[-1]))
            inside = None if nested is None else weakref.ref(nested)
            proof = (weakref.ref(view), field, inside, kinds)
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
            if Parts(self._bodies()).expand(ref) != direct:
                # What differs only because the run went on between the two says nothing.
                if not self._watch.moved(self._within({field: ref})):
                    _note(proof, known + 1)
                return None
            _note(proof, True)
        self._proven.add(case)
        if issubclass(view, BaseEvent):
            self._events.refer(view, field, items, many, _json(ref))
        return ref

    def _bodies(self) -> dict[int, Any]:
        return {
            number: (part.body, part.refs)
            for number, part in self._parts.items()
            if part is not None
        }

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


def _note(proof: tuple[Any, ...], found: bool | int) -> None:
    if len(_proofs) >= _MOST_PROOFS:
        _proofs.clear()  # those of classes that are gone among them
    _proofs[proof] = found


@once
def _nested(view: Any) -> dict[str, type[BaseModel] | None]:
    return next((_NESTED[base] for base in view.__mro__ if base in _NESTED), {})


@once
def _fields_but(view: type[BaseModel], left_out: frozenset[str]) -> tuple[str, ...]:
    return tuple(name for name in fields_of(view) if name not in left_out)


def _is_model(kind: type) -> bool:
    return issubclass(kind, BaseModel)


def _alike(source: _Source) -> Any:
    return source.view, source.field, type(source.value)


def _lasting_fields_of(view: type[BaseModel]) -> tuple[str, ...]:
    """The fields that do not exist for checkpoints only."""
    lasting = (name for name in fields_of(view) if not name.startswith("checkpoint_"))
    return tuple(name for name in lasting if name != _CONTEXT)


# Made once: `json.dumps` makes one for each text that is not written in its own style.
_encode: Final = json.JSONEncoder(separators=(",", ":")).encode


def _json(value: Any) -> bytes:
    native = _native.dumps_compact(value)
    if native is not None:
        return native
    text = _encode(value)
    if "NaN" in text or "Infinity" in text:
        # CrewAI dumps a checkpoint twice over, and pydantic makes null of them the second time.
        text = _encode(json.loads(text, parse_constant=lambda _: None))
    return text.encode("ascii")
