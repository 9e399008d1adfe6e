"""What the demo times, and what it compares: one function for each phase of a session.

A phase returns what a user would see, free of ids and times, so that the results of two runs can
be compared with ``==``.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Final

from crewai_native.demo.constitution import paragraphs

if TYPE_CHECKING:
    from collections.abc import Callable

    from crewai import Memory

QUESTIONS: Final = (
    "Who has the power to declare war?",
    "How old must a Senator be?",
    "How is a treaty made?",
    "May soldiers be quartered in a house in time of peace?",
    "What is the penalty for treason?",
    "Who fills a vacancy in the Senate?",
    "How many terms may a President serve?",
    "What happens when the President is unable to discharge his duties?",
    "Who may vote at the age of eighteen?",
    "How is the Constitution amended?",
    "What may no State do without the consent of Congress?",
    "When does a bill become a law?",
)
"""Short questions: CrewAI's deep recall embeds them as they are, without asking the model."""

NOTES: Final = 12
REVISED: Final = 4
PLACES: Final = (
    "/constitution/article-01",
    "/constitution/article-02",
    "/constitution/article-03",
    "/constitution/amendment-14",
)
PAGE: Final = 50
LIMIT: Final = 5


@dataclasses.dataclass(slots=True)
class Session:
    """A memory in a storage directory of its own, and the models that work with it.

    Attributes:
        memory: The memory.
        calling: Model that calls tools natively; None for CrewAI's default model.
        reasoning: Model that calls them in its text (ReAct); None where there is none.
    """

    memory: Memory
    calling: Any
    reasoning: Any


@dataclasses.dataclass(frozen=True, slots=True)
class Phase:
    """A timed step of a session.

    Attributes:
        name: Its name between processes.
        title: Its name for the reader.
        compares: What it returns, for the reader.
        run: Does it.
    """

    name: str
    title: str
    compares: str
    run: Callable[[Session], Any]


def _study(session: Session) -> Any:
    from crewai_native.demo import crew

    return crew.study(session.memory)


def _note(session: Session) -> Any:
    for number, question in enumerate(QUESTIONS[:NOTES], start=1):
        session.memory.remember(
            f"A reader asked: {question}",
            scope=f"/notes/note-{number:02}",
            categories=["question"],
            importance=0.5,
        )
    return len(QUESTIONS[:NOTES])


def _recall_shallow(session: Session) -> Any:
    return {
        question: texts(session.memory.recall(question, limit=LIMIT, depth="shallow"))
        for question in QUESTIONS
    }


def _recall_deep(session: Session) -> Any:
    return {
        question: texts(session.memory.recall(question, limit=LIMIT, depth="deep"))
        for question in QUESTIONS
    }


def _recall_in_place(session: Session) -> Any:
    return {
        f"{place}: {question}": texts(
            session.memory.recall(question, scope=place, limit=LIMIT, depth="shallow")
        )
        for place in PLACES
        for question in QUESTIONS[: len(QUESTIONS) // 2]
    }


def _browse(session: Session) -> Any:
    memory = session.memory
    total = memory.info("/").record_count
    pages = [
        [(record.scope, record.content) for record in memory.list_records(limit=PAGE, offset=start)]
        for start in range(0, total, PAGE)
    ]
    scopes = memory.list_scopes("/constitution")
    return {
        "records": total,
        "pages": pages,
        "scopes": scopes,
        "tree": memory.tree(max_depth=2),
        "categories": dict(sorted(memory.list_categories().items())),
        "scope counts": {scope: memory.info(scope).record_count for scope in scopes},
    }


def _kickoff_calling(session: Session) -> Any:
    from crewai_native.demo import crew

    return crew.ask(session.memory, QUESTIONS[:2], session.calling)


def _kickoff_reasoning(session: Session) -> Any:
    from crewai_native.demo import crew

    return crew.ask(session.memory, QUESTIONS[2:4], session.reasoning)


def _revise(session: Session) -> Any:
    memory = session.memory
    notes = memory.list_records("/notes", limit=NOTES)
    for note in notes[:REVISED]:
        memory.update(note.id, content=f"{note.content} (answered)")
    memory.forget(record_ids=[note.id for note in notes[REVISED : 2 * REVISED]])
    return {
        "notes": [note.content for note in memory.list_records("/notes", limit=NOTES)],
        "kept by the crew": [record.content for record in memory.list_records("/answers")],
        "recalled": texts(memory.recall(QUESTIONS[0], limit=LIMIT, depth="shallow")),
    }


def texts(matches: list[Any]) -> list[str]:
    """Return what was recalled, best first."""
    return [match.record.content for match in matches]


PHASES: Final = (
    Phase("study", f"remember {len(paragraphs())} paragraphs", "paragraphs", _study),
    Phase("note", f"remember {NOTES} notes singly", "notes", _note),
    Phase(
        "recall",
        f"recall x {len(QUESTIONS)}, shallow",
        "texts recalled, in order",
        _recall_shallow,
    ),
    Phase(
        "recall-deep",
        f"recall x {len(QUESTIONS)}, deep",
        "texts recalled, in order",
        _recall_deep,
    ),
    Phase(
        "recall-scope",
        f"recall x {len(PLACES) * (len(QUESTIONS) // 2)}, in a scope",
        "texts recalled, in order",
        _recall_in_place,
    ),
    Phase(
        "browse",
        "browse",
        "lists, tree, counts, categories",
        _browse,
    ),
    Phase("kickoff", "kickoff x 2, function calling", "final answers", _kickoff_calling),
    Phase("kickoff-react", "kickoff x 2, ReAct", "final answers", _kickoff_reasoning),
    Phase(
        "revise",
        f"update x {REVISED}, forget x {REVISED}",
        "what is left, what agents kept",
        _revise,
    ),
)
