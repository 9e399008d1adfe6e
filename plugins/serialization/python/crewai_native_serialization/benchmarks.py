"""Cases for ``crewai-native bench serialization``."""

from __future__ import annotations

import copy
import functools
import importlib
import json
import time
from typing import TYPE_CHECKING, Any, Final

from crewai_native.bench import Case, Measured, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Run = Callable[[], Any]

_TEXT: Final = "the invoice of the customer from Zürich has been found and is attached to this "
_MESSAGES: Final = 60
_TURNS: Final = 40
_AGENT_MESSAGES: Final = 10_000


def cases() -> Iterator[Case]:
    """Return the cases."""
    for kind in ("text", "tools", "parts"):
        yield Case(
            name="history",
            group="serialization",
            slot="serialization.events",
            description="to_serializable of a history of messages",
            parameters={"kind": kind, "messages": _MESSAGES},
            setup=functools.partial(_history, kind=kind),
            target=10.0,
        )
    yield Case(
        name="event",
        group="serialization",
        slot="serialization.events",
        description="to_json of the event of an LLM call; pydantic's dump is part of it",
        parameters={"messages": _MESSAGES},
        setup=_event,
    )
    yield Case(
        name="turns",
        group="serialization",
        slot="serialization.events",
        description="processor time of all that a crew has serialized whose agent takes 40 turns",
        parameters={"turns": _TURNS},
        setup=_turns,
        target=10.0,
    )
    for name, setup in (("encode", _encode), ("decode", _decode)):
        for rival, target in (("stock", 8.0 if name == "encode" else None), ("orjson", 1.0)):
            yield Case(
                name=f"messages-{name}",
                group="serialization",
                slot="serialization.messages",
                description=f"{name} AgentMessages as one JSON array; {rival} does the same dicts",
                parameters={"messages": _AGENT_MESSAGES, "against": rival},
                sides=(rival, "native"),
                setup=setup,
                observe=_plain,
                target=target,
            )


def _text(number: int) -> str:
    return f"{number}: {_TEXT * (1 + number % 5)}"


def _messages(kind: str) -> list[dict[str, Any]]:
    if kind == "tools":
        called: list[list[dict[str, Any]]] = [
            [
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {
                            "id": f"call_{number}",
                            "type": "function",
                            "function": {"name": "search", "arguments": '{"query": "invoices"}'},
                        }
                    ],
                },
                {
                    "role": "tool",
                    "tool_call_id": f"call_{number}",
                    "name": "search",
                    "content": _text(number),
                },
            ]
            for number in range(_MESSAGES // 2)
        ]
        return [message for pair in called for message in pair]
    return [
        {
            "role": "assistant" if number % 2 else "user",
            "content": [{"type": "text", "text": _text(number)}]
            if kind == "parts"
            else _text(number),
        }
        for number in range(_MESSAGES)
    ]


def _function(side: str) -> Callable[..., Any]:
    """Return CrewAI's function, or ours in the guard that the host puts around it."""
    stock: Callable[..., Any] = importlib.import_module(
        "crewai.utilities.serialization"
    ).to_serializable
    if side == "stock":
        return stock
    from crewai_native._watch import Watch
    from crewai_native_serialization import to_serializable

    return Watch("serialization.events").guard(to_serializable, stock)


def _history(side: str, *, kind: str) -> Run:
    return functools.partial(_function(side), _messages(kind))


def _event(side: str) -> Run:
    from crewai.events.types.llm_events import LLMCallStartedEvent

    event = LLMCallStartedEvent(
        messages=_messages("tools"), call_id="1", model="m", event_id="1", timestamp="2026-01-01"
    )
    return functools.partial(_function(side), event)


def _turns(side: str) -> Run:
    function = _function(side)
    recorded = _recorded_turns()

    def run() -> Measured:
        last: Any = None
        start = time.process_time()
        # One after the other, as in a run: what becomes of a result is not what is measured.
        for value, rest, options in recorded:
            last = function(value, *rest, **options) or last
        return Measured(time.process_time() - start, [len(recorded), last])

    return run


@functools.cache
def _recorded_turns() -> list[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """Return what a crew gives to ``to_serializable`` in 40 turns, each value as it then was.

    A message that comes again unchanged is the same object again, as it is in the run.
    """
    import crewai
    from crewai.tools import BaseTool
    from crewai.utilities import serialization

    from crewai_native.testing import ScriptedLLM, ToolCall

    class Search(BaseTool):
        name: str = "search"
        description: str = "Looks things up."

        def _run(self, query: str) -> str:
            return f"{query}: {_text(len(query))}"

    recorded: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []
    stock = serialization.to_serializable
    # Objects, which are kept alive for their ids, and what they were like when last seen.
    seen: dict[int, tuple[Any, Any]] = {}

    def as_it_is(value: Any) -> Any:
        if type(value) is list:
            return [as_it_is(item) for item in value]
        known = seen.get(id(value))
        if known is None or known[1] != value:
            known = seen[id(value)] = value, copy.deepcopy(value)
        return known[1]

    def record(value: Any, *rest: Any, **options: Any) -> Any:
        # CrewAI's function finds itself by its name; only what is given to it from outside counts.
        serialization.to_serializable = stock
        try:
            recorded.append((as_it_is(value), rest, options))
            return stock(value, *rest, **options)
        finally:
            serialization.to_serializable = record

    script: list[Any] = [
        *(ToolCall("search", {"query": f"question {n}"}) for n in range(_TURNS - 1)),
        "Done.",
    ]
    agent = crewai.Agent(
        role="r",
        goal="g",
        backstory="b",
        llm=ScriptedLLM(script),
        tools=[Search()],
        max_iter=2 * _TURNS,
    )
    serialization.to_serializable = record
    try:
        task = crewai.Task(description="d", expected_output="e", agent=agent)
        crewai.Crew(agents=[agent], tasks=[task]).kickoff()
    finally:
        serialization.to_serializable = stock
    return recorded


def _agent_messages() -> list[dict[str, Any]]:
    return [
        {
            "id": f"{number:032x}",
            "sender": f"agent {number % 7}",
            "recipient": f"agent {number % 5}",
            "content": _text(number)
            if number % 3
            else {"text": _text(number), "score": number / 7, "tags": ["a", "b"], "tokens": number},
            "timestamp": "2026-01-01T00:00:00.123456+00:00",
        }
        for number in range(_AGENT_MESSAGES)
    ]


def _rival(side: str) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """Return how a side writes and reads dicts."""
    if side == "stock":
        return json.dumps, json.loads
    try:
        orjson = importlib.import_module("orjson")
    except ImportError as error:
        raise Unavailable("orjson is not installed") from error
    return orjson.dumps, orjson.loads


def _encode(side: str) -> Run:
    dicts = _agent_messages()
    if side == "native":
        from crewai_native_serialization import AgentMessage, Serializer

        messages = [AgentMessage(**message) for message in dicts]
        return functools.partial(Serializer().serialize_batch, messages)
    return functools.partial(_rival(side)[0], dicts)


def _decode(side: str) -> Run:
    data = json.dumps([{"schema": 1, **message} for message in _agent_messages()]).encode()
    if side == "native":
        from crewai_native_serialization import Serializer

        return functools.partial(Serializer().deserialize_batch, data)
    return functools.partial(_rival(side)[1], data)


def _plain(result: Any) -> Any:
    """Return messages as dicts, however a side gives them, without the envelope's schema."""
    found = json.loads(result) if isinstance(result, str | bytes) else result
    plain = [m if isinstance(m, dict) else m.to_dict() for m in found]
    return [{key: value for key, value in m.items() if key != "schema"} for m in plain]
