"""What the scripted model says in the demo's crew: it looks up, reads, recalls, and then quotes.

Each answer is made of what the tools and the memory gave it, so that two runs only end in the same
answer where tools and memory gave the same.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from crewai_native.testing import ScriptedLLM, ScriptError, ToolCall

if TYPE_CHECKING:
    from crewai_native.testing import Turn

_QUESTION: Final = re.compile(r"Question: (.+)")
_OBSERVATION: Final = re.compile(r"Observation:(.*)", re.DOTALL)
# CrewAI lists what it recalled as "- (score=0.71) text"; the score ages with the record.
_RECALLED: Final = re.compile(r"^- \(score=[\d.]+\) (.+)$", re.MULTILINE)
# Where the memory is told to keep what the agents found.
_FILED: Final = {"suggested_scope": "/answers", "categories": ["answer"], "importance": 0.5}


def model(*, native: bool) -> ScriptedLLM:
    """Return the crew's model.

    Args:
        native: Whether it calls functions natively; else it speaks ReAct.
    """
    return ScriptedLLM(
        {
            "You are Researcher": [_look_up, _read, _recall, _report],
            "You are Writer": [_recall, _answer],
        },
        native=native,
        structured={"MemoryAnalysis": _FILED},
    )


def _look_up(turn: Turn) -> ToolCall:
    return ToolCall("find_sections", {"words": _question(turn)})


def _read(turn: Turn) -> ToolCall:
    return ToolCall("read_section", {"heading": _results(turn)[-1].splitlines()[0]})


def _recall(turn: Turn) -> ToolCall:
    return ToolCall("search_memory", {"queries": [_question(turn)]})


def _report(turn: Turn) -> str:
    headings, passage, recalled = _results(turn)
    lines = [f"{headings.splitlines()[0]} says: {passage.splitlines()[0]}"]
    lines += [f"From memory: {text}" for text in _RECALLED.findall(recalled)[:2]]
    return "\n".join(lines)


def _answer(turn: Turn) -> str:
    read = re.search(r"^(.+) says: (.+)$", turn.prompt, re.MULTILINE)
    if read is None:
        raise ScriptError("the researcher's report is not in the writer's prompt")
    recalled = _RECALLED.findall(_results(turn)[-1])
    lines = [f"Read {read[1]} on this: {read[2]}"]
    lines += [f"See also {text}" for text in recalled[:2]]
    return "\n".join(lines)


def _question(turn: Turn) -> str:
    found = _QUESTION.search(turn.prompt)
    if found is None:
        raise ScriptError("the task asks no question")
    return found[1].strip()


def _results(turn: Turn) -> list[str]:
    """Return what the tools answered so far, first to last."""
    results = []
    for message in turn.messages:
        content = str(message.get("content") or "")
        if message.get("role") == "tool":
            results.append(content.strip())
        elif message.get("role") == "assistant" and (found := _OBSERVATION.search(content)):
            results.append(found[1].strip())
    return results
