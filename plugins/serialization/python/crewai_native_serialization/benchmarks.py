"""Cases for ``crewai-native bench serialization``."""

from __future__ import annotations

import copy
import functools
import importlib
import time
from typing import TYPE_CHECKING, Any, Final

from crewai_native.bench import Case, Elapsed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Run = Callable[[], Any]

_TEXT: Final = "the invoice of the customer from Zürich has been found and is attached to this "
_MESSAGES: Final = 60
_TURNS: Final = 40


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

    def run() -> Elapsed:
        last: Any = None
        start = time.process_time()
        # One after the other, as in a run: what becomes of a result is not what is measured.
        for value, rest, options in recorded:
            last = function(value, *rest, **options) or last
        return Elapsed(time.process_time() - start, [len(recorded), last])

    return run


@functools.cache
def _recorded_turns() -> list[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """Return what a crew gives to ``to_serializable`` in 40 turns, each value as it then was."""
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

    def record(value: Any, *rest: Any, **options: Any) -> Any:
        # CrewAI's function finds itself by its name; only what is given to it from outside counts.
        serialization.to_serializable = stock
        try:
            recorded.append((copy.deepcopy(value), rest, options))
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
