"""An ordinary CrewAI program: two agents answer questions on the Constitution, with a memory.

It imports CrewAI and nothing of crewai-native: this is what a user's program looks like, and the
same lines run on stock CrewAI and accelerated.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from crewai import Agent, Crew, Memory, Process, Task
from crewai.tools import tool

from crewai_native.demo.constitution import paragraphs

if TYPE_CHECKING:
    from collections.abc import Iterable


@tool("find_sections")
def find_sections(words: str) -> str:
    """Find the sections of the Constitution that hold the most of the given words."""
    wanted = {word.strip("?.,;:").lower() for word in words.split()}
    wanted = {word for word in wanted if len(word) > 3}  # noqa: PLR2004 - "the", "of", "may" are in all
    hits: dict[str, int] = {}
    for paragraph in paragraphs():
        text = paragraph.text.lower()
        hits[paragraph.heading] = hits.get(paragraph.heading, 0) + sum(w in text for w in wanted)
    best = sorted((heading for heading in hits if hits[heading]), key=lambda h: -hits[h])
    return "\n".join(best[:3]) or "No section holds any of these words."


@tool("read_section")
def read_section(heading: str) -> str:
    """Read a section of the Constitution, given its heading, such as 'Article I, Section 8'."""
    found = [paragraph.text for paragraph in paragraphs() if paragraph.heading == heading]
    return "\n".join(found) or f"There is no section {heading!r}."


def open_memory(llm: Any = None, embedder: Any = None, **settings: Any) -> Memory:
    """Open the memory in CrewAI's storage directory; None leaves model and embedder to CrewAI."""
    given = {"llm": llm, "embedder": embedder, **settings}
    return Memory(**{name: value for name, value in given.items() if value is not None})


def study(memory: Memory) -> int:
    """Remember the whole text, one section at a time, and return the number of paragraphs."""
    for (scope, heading), section in itertools.groupby(
        paragraphs(), key=lambda paragraph: (paragraph.scope, paragraph.heading)
    ):
        section_paragraphs = list(section)
        memory.remember_many(
            [f"{heading}: {paragraph.text}" for paragraph in section_paragraphs],
            scope=scope,
            categories=list(section_paragraphs[0].categories),
            importance=0.5,
        )
    memory.drain_writes()
    return len(paragraphs())


def build_crew(memory: Memory, llm: Any = None) -> Crew:
    """Return the crew: a researcher who looks things up and a writer who answers."""
    researcher = Agent(
        role="Researcher",
        goal="Find the passages of the Constitution that bear on a question",
        backstory="You look things up in the text and in your notes before you speak.",
        tools=[find_sections, read_section],
        llm=llm,
    )
    writer = Agent(
        role="Writer",
        goal="Answer questions on the Constitution briefly and with their source",
        backstory="You write for readers who are no lawyers.",
        llm=llm,
    )
    research = Task(
        description="Find what the Constitution says. Question: {question}",
        expected_output="The passages that bear on it, each with its place",
        agent=researcher,
    )
    answer = Task(
        description="Answer in a few sentences. Question: {question}",
        expected_output="The answer, with the place in the Constitution that it rests on",
        agent=writer,
        context=[research],
    )
    return Crew(
        name="constitution",
        agents=[researcher, writer],
        tasks=[research, answer],
        process=Process.sequential,
        memory=memory,
    )


def ask(memory: Memory, questions: Iterable[str], llm: Any = None) -> list[str]:
    """Put questions to a new crew, one kickoff each, and return its answers."""
    crew = build_crew(memory, llm)
    return [crew.kickoff(inputs={"question": question}).raw for question in questions]
