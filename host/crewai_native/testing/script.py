"""The words in which a script for :class:`~crewai_native.testing.llm.ScriptedLLM` is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

_OBSERVATION: Final = "\nObservation: "


class ScriptError(AssertionError):
    """The script says nothing for what the language model was asked."""


@dataclasses.dataclass(frozen=True)
class ToolCall:
    """The model wants a tool to be called.

    Attributes:
        name: The tool's name as the model sees it: lower case, words joined by underscores.
        arguments: Its arguments.
    """

    name: str
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Turn:
    """What the model sees when it is its turn.

    Attributes:
        number: How often it has spoken in this conversation, 0 at first.
        prompt: The system's and the user's words before it first spoke.
        messages: The whole conversation.
    """

    number: int
    prompt: str
    messages: Sequence[Mapping[str, Any]]

    @property
    def results(self) -> list[str]:
        """The results of the tools called so far, as texts, in order."""
        found = []
        for message in self.messages:
            text = text_of(message)
            if message.get("role") == "tool":
                found.append(text)
            elif message.get("role") == "assistant" and _OBSERVATION in text:
                # CrewAI adds a tool's result to what an agent that works by ReAct said.
                found.append(text.partition(_OBSERVATION)[2])
        return found


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of the model, for tests to look at.

    Attributes:
        turn: What it saw.
        tools: Names of the tools that it was offered.
        response_model: Name of the structure that was asked for, or None.
        answer: What it answered.
    """

    turn: Turn
    tools: tuple[str, ...]
    response_model: str | None
    answer: Any


Step = (
    str
    | ToolCall
    | Sequence[ToolCall]
    | BaseException
    | Callable[[Turn], "str | ToolCall | Sequence[ToolCall] | BaseException"]
)
"""One answer: a text (a final answer), tool calls, an error to raise, or a function that decides."""

Script = Sequence[Step] | Mapping[str, Sequence[Step] | str] | str
"""Answers by turn; the last one repeats, and a text stands for one of them. A mapping has them by a regular expression that is searched
in the prompt, the first that is found deciding."""


def text_of(message: Mapping[str, Any]) -> str:
    """Return the text of a message, whose content may be in parts."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text", "") for part in content if isinstance(part, Mapping))


def conversation_of(messages: str | Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Return a conversation as messages; a text is the user's only one."""
    return [{"role": "user", "content": messages}] if isinstance(messages, str) else messages


def turn_of(messages: str | Sequence[Mapping[str, Any]]) -> Turn:
    """Return the turn that a conversation has come to."""
    messages = conversation_of(messages)
    spoken = [place for place, m in enumerate(messages) if m.get("role") == "assistant"]
    opening = messages[: spoken[0]] if spoken else messages
    return Turn(len(spoken), "\n\n".join(map(text_of, opening)), list(messages))
