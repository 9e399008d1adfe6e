"""What a language model answers when CrewAI's memory asks it to analyse a text, by plain rules.

Memory asks for four structures (``crewai/memory/analyze.py``). A model with function calling gets
the structure's class with the question, another one must be recognised by the system prompt and
answers in JSON. The rules look at the words of the text alone, so the same text always gives the
same answer.
"""

from __future__ import annotations

import ast
import collections
import functools
import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_SENTENCE: Final = re.compile(r"[^.!?\n]+[.!?]?")
_WORD: Final = re.compile(r"[^\W\d_]{5,}")
_NAME: Final = re.compile(r"(?<=[a-z,;] )[A-Z]\w+(?: [A-Z]\w+)*")
_DATE: Final = re.compile(r"\b\d{4}(?:-\d{2}-\d{2})?\b")
_RECORD: Final = re.compile(r"^- id=(\S+) \|.*\n  content: (.*)$", re.MULTILINE)
_MOST_MEMORIES: Final = 5
_MOST_TOPICS: Final = 3
_FEWEST_WORDS: Final = 3


def answer(structure: str, question: str) -> dict[str, Any] | None:
    """Return the answer to a question of CrewAI's memory.

    Args:
        structure: Name of the class of the structure that is asked for.
        question: The user's message.

    Returns:
        The structure's fields, or None if memory asks for no such structure.
    """
    rule = _RULES.get(structure)
    return None if rule is None else rule(question)


@functools.lru_cache(maxsize=64)  # a model asks with the prompt of each of its calls
def structure_of(system: str) -> str | None:
    """Return the name of the structure that a system prompt of CrewAI's memory asks for."""
    from crewai.utilities.i18n import I18N_DEFAULT

    for structure, key in _PROMPTS.items():
        if system == I18N_DEFAULT.memory(key):
            return structure
    return None


def _memories(question: str) -> dict[str, Any]:
    content = _between(question, "Content:\n", "\n\nExtract memory statements")
    # An agent's work comes as "Task: … Result: …"; what is worth keeping is the result.
    result = content.rpartition("\nResult: ")[2].rpartition("Final Answer: ")[2]
    sentences = [found.strip() for found in _SENTENCE.findall(result)]
    kept = [text for text in sentences if len(text.split()) >= _FEWEST_WORDS]
    return {"memories": list(dict.fromkeys(kept))[:_MOST_MEMORIES]}


def _save(question: str) -> dict[str, Any]:
    content = _between(question, "Content to store:\n", "\n\nExisting scopes:")
    scopes = _listed(question, "Existing scopes: ")
    topics = _topics(content)
    fitting = [s for s in scopes if set(re.split(r"[/_-]", s.lower())) & set(topics)]
    return {
        # The deepest existing scope that is about it, else the root: never a new one.
        "suggested_scope": max(sorted(fitting), key=len, default="/"),
        "categories": topics[:2],
        "importance": min(1.0, 0.3 + len(content.split()) / 100),
        "extracted_metadata": {
            "entities": sorted(set(_NAME.findall(content))),
            "dates": sorted(set(_DATE.findall(content))),
            "topics": topics,
        },
    }


def _query(question: str) -> dict[str, Any]:
    query = _between(question, "Query: ", "\n\nAvailable scopes:")
    sentences = [found.strip() for found in _SENTENCE.findall(query) if found.strip()]
    return {
        "keywords": _topics(query),
        "suggested_scopes": [],
        "complexity": "simple",
        "recall_queries": sentences[:_MOST_TOPICS] or [query],
        "time_filter": None,
    }


def _consolidation(question: str) -> dict[str, Any]:
    content = _between(question, "to consider storing:\n", "\n\nExisting similar memories:")
    records = _RECORD.findall(question)
    return {
        "actions": [
            {"action": "keep", "record_id": record, "new_content": None, "reason": "still true"}
            for record, _ in records
        ],
        "insert_new": all(text.casefold() != content.casefold() for _, text in records),
        "insert_reason": "unless it is there word for word",
    }


def _topics(text: str) -> list[str]:
    counts = collections.Counter(word.lower() for word in _WORD.findall(text))
    return sorted(counts, key=lambda word: (-counts[word], word))[:_MOST_TOPICS]


def _between(text: str, start: str, end: str) -> str:
    return text.partition(start)[2].partition(end)[0].strip()


def _listed(question: str, label: str) -> list[str]:
    found: list[str] = ast.literal_eval(question.partition(label)[2].partition("\n")[0] or "[]")
    return found


_RULES: Final[dict[str, Callable[[str], dict[str, Any]]]] = {
    "ExtractedMemories": _memories,
    "MemoryAnalysis": _save,
    "QueryAnalysis": _query,
    "ConsolidationPlan": _consolidation,
}
_PROMPTS: Final = {
    "ExtractedMemories": "extract_memories_system",
    "MemoryAnalysis": "save_system",
    "QueryAnalysis": "query_system",
    "ConsolidationPlan": "consolidation_system",
}
