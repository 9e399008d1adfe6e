"""Both slots around a crew that runs: what its model is told is what stock tells it, to the byte."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.matrix

CREW = """
import warnings
warnings.simplefilter("ignore")
import crewai, crewai_native
from crewai.tools import BaseTool, tool
from crewai_native.testing import ScriptedLLM, ToolCall
from pydantic import BaseModel, Field

ran = []

class Place(BaseModel):
    "Where."
    city: str
    country: str | None = None

class Arguments(BaseModel):
    "What to look up."
    place: Place
    days: int = Field(1, description="how many")

class Weather(BaseTool):
    name: str = "Weather Report"
    description: str = "Tells the weather."
    args_schema: type[BaseModel] = Arguments

    def _run(self, place, days=1):
        ran.append(days)
        return {"days": days, "sky": ["grey"]}

@tool("Größe/Size")
def size(text: str, tags: list[str] = []) -> int:
    "Size of a text."
    ran.append(text)
    return len(text)

here = {"city": "Ulm", "country": "DE"}
script = [
    ToolCall("weather_report", {"place": here, "days": 2}),
    ToolCall("groe_size", {"text": "abc"}),
    ToolCall("weather_report", {"days": 2, "place": dict(reversed(here.items()))}),
    lambda turn: " / ".join(turn.results),
]

def kickoff(native):
    llm = ScriptedLLM(script, native=native)
    agent = crewai.Agent(
        role="r", goal="g", backstory="b", llm=llm, tools=[Weather(), size]
    )
    task = crewai.Task(description="d", expected_output="e", agent=agent)
    raw = crewai.Crew(agents=[agent], tasks=[task], cache=True).kickoff().raw
    return [raw, *(repr((call.tools, call.turn.prompt)) for call in llm.calls)]

told = [kickoff(native) for native in (True, False)]
status = crewai_native.status()
slots = ["tools.schemas", "tools.cache"]
answer({
    "told": told,
    "ran": ran,
    "providers": [status[slot].provider for slot in slots],
    "reasons": [str(status[slot].reason) for slot in slots],
})
"""


def test_a_crew_is_told_what_stock_tells_it(run):
    stock = run(CREW, CREWAI_NATIVE="0")
    native = run(CREW, CREWAI_NATIVE_VERIFY="1")
    if "does not exist" in native["reasons"][0]:
        pytest.skip("tools.schemas is not for this CrewAI")
    assert native["providers"] == ["crewai-native-tools"] * 2
    assert native["told"] == stock["told"]
    # The same call with its arguments in another order, which stock takes for another.
    assert stock["ran"] == [2, "abc", 2] * 2
    assert native["ran"] == [2, "abc"] * 2
