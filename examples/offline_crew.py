"""A crew that runs offline: a scripted model, a hashing embedder, CrewAI's memory.

    python examples/offline_crew.py

Nothing in it is about acceleration: with crewai-native and an accelerator installed, importing
CrewAI is enough. Take the two classes of `crewai_native.testing` for tests of your own crews.
"""

import tempfile

from crewai import Agent, Crew, Memory, Task
from crewai.tools import tool

from crewai_native.testing import HashEmbedder, ScriptedLLM, ToolCall


@tool("add")
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


llm = ScriptedLLM([ToolCall("add", {"a": 17, "b": 25}), "17 and 25 make 42."])
memory = Memory(llm=llm, embedder=HashEmbedder(), storage=tempfile.mkdtemp())
clerk = Agent(role="Clerk", goal="Add up", backstory="You never guess.", tools=[add], llm=llm)
task = Task(description="Add 17 and 25.", expected_output="The sum", agent=clerk)

answer = Crew(agents=[clerk], tasks=[task], memory=memory).kickoff()
print(answer.raw)

# The crew has remembered what its agent found.
(remembered,) = memory.recall("What do 17 and 25 make?", limit=1)
print("remembered:", remembered.record.content)
memory.close()

assert answer.raw == "17 and 25 make 42."
assert "42" in remembered.record.content
