"""A language model that plays a script. Imports CrewAI."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from crewai.events.types.llm_events import LLMCallType
from crewai.llms.base_llm import BaseLLM, llm_call_context
from pydantic import BaseModel, PrivateAttr

from crewai_native.testing import memory_answers
from crewai_native.testing.script import (
    Call,
    Script,
    ScriptError,
    ToolCall,
    Turn,
    conversation_of,
    turn_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

_CONTEXT_WINDOW: Final = 128_000
_CHARACTERS_PER_TOKEN: Final = 4


class ScriptedLLM(BaseLLM):
    """Plays a script, in CrewAI's ReAct text format or with native function calls.

    What it says depends on the conversation alone, namely on its prompt and on how often the model
    has spoken in it, never on time or on other conversations: crews may run in parallel and over
    again. It emits CrewAI's events and runs CrewAI's hooks as its own models do.

    What memory asks for when it analyses texts is answered by rules (see
    :mod:`crewai_native.testing.memory_answers`) and needs no script.

    Copies, which CrewAI makes, share the record of calls.

    Example:
        >>> from crewai_native.testing import ScriptedLLM, ToolCall
        >>> llm = ScriptedLLM([ToolCall("add", {"a": 1, "b": 2}), lambda turn: turn.results[-1]])

    Args:
        script: Answers by turn, or a mapping of such by a regular expression that is searched in
            the prompt. A single text stands for a script of that one answer.
        native: Whether the model calls functions natively; else it speaks ReAct.
        latency: Seconds that each call takes.
        structured: Answers by the name of the pydantic model that is asked for: an instance, a
            mapping of its fields, or a function of the turn that returns one of them.
        **fields: Further fields of ``BaseLLM``.
    """

    model: str = "scripted"

    _script: Mapping[str, Sequence[Any]] = PrivateAttr()
    _native: bool = PrivateAttr()
    _latency: float = PrivateAttr()
    _structured: Mapping[str, Any] = PrivateAttr()
    _calls: list[Call] = PrivateAttr(default_factory=list)
    _usage_lock: Any = PrivateAttr(default_factory=threading.Lock)

    def __init__(
        self,
        script: Script = "Done.",
        *,
        native: bool = True,
        latency: float = 0.0,
        structured: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> None:
        super().__init__(**{"model": "scripted", **fields})
        by_prompt = script if isinstance(script, Mapping) else {"": script}
        self._script = {
            pattern: [steps] if isinstance(steps, str) else steps
            for pattern, steps in by_prompt.items()
        }
        self._native = native
        self._latency = latency
        self._structured = dict(structured or {})
        for pattern, steps in self._script.items():
            if not steps:
                raise ScriptError(f"the script for {pattern!r} has no steps")

    @property
    def calls(self) -> list[Call]:
        """The calls so far, in the order in which they ended; a copy."""
        return list(self._calls)

    def call(  # noqa: PLR0917 - CrewAI's signature
        self,
        messages: Any,
        tools: Any = None,
        callbacks: Any = None,
        available_functions: Any = None,
        from_task: Any = None,
        from_agent: Any = None,
        response_model: type[BaseModel] | None = None,
        **_: Any,
    ) -> Any:
        """Answer a conversation; see ``BaseLLM.call``.

        Raises:
            ScriptError: The script says nothing for it.
        """
        with llm_call_context():
            self._begin(
                messages=messages,
                tools=tools,
                callbacks=callbacks,
                available_functions=available_functions,
                from_task=from_task,
                from_agent=from_agent,
            )
            if self._latency:
                time.sleep(self._latency)
            return self._end(messages, tools, from_task, from_agent, response_model)

    async def acall(  # noqa: PLR0917 - CrewAI's signature
        self,
        messages: Any,
        tools: Any = None,
        callbacks: Any = None,
        available_functions: Any = None,
        from_task: Any = None,
        from_agent: Any = None,
        response_model: type[BaseModel] | None = None,
        **_: Any,
    ) -> Any:
        """Answer a conversation without blocking the event loop; see :meth:`call`."""
        with llm_call_context():
            self._begin(
                messages=messages,
                tools=tools,
                callbacks=callbacks,
                available_functions=available_functions,
                from_task=from_task,
                from_agent=from_agent,
            )
            # Without a latency too: others get their turn, as they do while a real model answers.
            await asyncio.sleep(self._latency)
            return self._end(messages, tools, from_task, from_agent, response_model)

    def supports_function_calling(self) -> bool:
        """Return whether tools are called natively."""
        return self._native

    def get_context_window_size(self) -> int:
        """Return a window that a test does not fill by accident, in tokens."""
        return _CONTEXT_WINDOW

    def get_input_tokens_count(self, messages: Any, *_: Any, **__: Any) -> int:
        """Return an estimate, without the warning that ``BaseLLM`` logs each time."""
        lengths = [len(str(m.get("content"))) for m in conversation_of(messages)]
        return sum(lengths) // _CHARACTERS_PER_TOKEN

    def _begin(self, **request: Any) -> None:
        self._emit_call_started_event(**request)
        conversation = list(conversation_of(request["messages"]))
        if not self._invoke_before_llm_call_hooks(conversation, request["from_agent"]):
            raise ValueError("LLM call blocked by before_llm_call hook")

    def _end(
        self,
        messages: Any,
        tools: Any,
        from_task: Any,
        from_agent: Any,
        response_model: type[BaseModel] | None,
    ) -> Any:
        turn = turn_of(messages)
        try:
            answer = self._answer(turn, response_model)
        except Exception as error:
            self._emit_call_failed_event(str(error), from_task, from_agent)
            raise
        names = tuple(_name_of(tool) for tool in tools or ())
        self._calls.append(Call(turn, names, getattr(response_model, "__name__", None), answer))
        calls_tools = isinstance(answer, list)
        # Copies count into the same dictionary, and agents run on several threads.
        with self._usage_lock:
            self._track_token_usage_internal(
                {
                    "prompt_tokens": self.get_input_tokens_count(messages),
                    "completion_tokens": len(str(answer)) // _CHARACTERS_PER_TOKEN,
                }
            )
        self._emit_call_completed_event(
            response=answer,
            call_type=LLMCallType.TOOL_CALL if calls_tools else LLMCallType.LLM_CALL,
            from_task=from_task,
            from_agent=from_agent,
            messages=messages,
        )
        return answer

    def _answer(self, turn: Turn, response_model: type[BaseModel] | None) -> Any:
        system = next((m.get("content") for m in turn.messages if m.get("role") == "system"), "")
        structure = memory_answers.structure_of(str(system))
        if response_model is not None and (
            structure is None or response_model.__name__ in self._structured
        ):
            return self._structure(turn, response_model)
        if structure is not None:
            question = next(str(m["content"]) for m in turn.messages if m.get("role") == "user")
            fields = memory_answers.answer(structure, question)
            return json.dumps(fields) if response_model is None else response_model(**fields or {})
        return self._say(turn, self._step(turn))

    def _structure(self, turn: Turn, response_model: type[BaseModel]) -> BaseModel:
        name = response_model.__name__
        if name not in self._structured:
            # A script may hold the structure as JSON, as a model would write it.
            step = self._step(turn)
            try:
                return response_model.model_validate_json(step)
            except ValueError as error:
                raise ScriptError(
                    f"the model was asked for a {name} and the script has no JSON of one; "
                    f"pass structured={{{name!r}: …}}"
                ) from error
        answer = self._structured[name]
        if callable(answer) and not isinstance(answer, BaseModel):
            answer = answer(turn)
        return response_model.model_validate(answer)

    def _step(self, turn: Turn) -> Any:
        for pattern, steps in self._script.items():
            if re.search(pattern, turn.prompt):
                step = steps[min(turn.number, len(steps) - 1)]
                if callable(step):
                    step = step(turn)
                if isinstance(step, BaseException):
                    raise step
                return step
        raise ScriptError(
            f"the script has nothing for the prompt {turn.prompt[:200]!r}; "
            f"it has: {', '.join(map(repr, self._script))}"
        )

    def _say(self, turn: Turn, step: Any) -> Any:
        calls = [step] if isinstance(step, ToolCall) else step
        if isinstance(calls, str):
            # Only an agent that works by ReAct wants the marks of that format around the answer.
            if "Final Answer:" in turn.prompt and not self._native:
                return f"Thought: I now know the final answer\nFinal Answer: {calls}"
            return calls
        if self._native:
            return [
                {
                    "id": f"call_{turn.number}_{place}",
                    "type": "function",
                    "function": {"name": call.name, "arguments": json.dumps(dict(call.arguments))},
                }
                for place, call in enumerate(calls)
            ]
        if len(calls) != 1:
            raise ScriptError("ReAct calls one tool at a time; the script has a list of several")
        return (
            f"Thought: I should use {calls[0].name}\nAction: {calls[0].name}\n"
            f"Action Input: {json.dumps(dict(calls[0].arguments))}"
        )


def _name_of(tool: Any) -> str:
    # For each of the tools of each call, so what nearly all are goes first.
    if type(tool) is dict or isinstance(tool, Mapping):
        return str(tool.get("function", tool).get("name", ""))
    return str(getattr(tool, "name", tool))
