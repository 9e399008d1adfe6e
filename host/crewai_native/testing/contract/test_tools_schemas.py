"""``tools.schemas``: to the byte what CrewAI tells language models about tools."""

from __future__ import annotations

import enum
import json
from typing import Any, ClassVar, Literal

import pytest
from pydantic import BaseModel, Field

import crewai_native
from crewai_native.testing.contract.rules import SlotContract


class _Kind(enum.StrEnum):
    A = "a"


class _Inner(BaseModel):
    x: int | None = None
    kind: _Kind = _Kind.A


class _Arguments(BaseModel):
    """Arguments of a tool."""

    text: str = Field(description="Some text: it's 100%.")
    numbers: list[float] = Field(default_factory=list, max_length=3)
    inner: _Inner = Field(default_factory=_Inner)
    choice: Literal["one", "two"] | None = None
    free: dict[str, Any] = {}


NAMES = [
    "plain",
    "With Spaces",
    "camelCaseName",
    "HTTPServer2Go",
    "Ünïcödé",
    "a.b-c/d",
    "__x__",
    "1st",
    "",
    "x" * 100,
]


class TestToolsSchemas(SlotContract):
    """Compares with what stock CrewAI answers."""

    slot: ClassVar = "tools.schemas"

    @staticmethod
    def exercise() -> Any:
        """Describe a model and name a tool."""
        from crewai.utilities import pydantic_schema_utils, string_utils

        name = string_utils.sanitize_tool_name("HTTPServer 2 Go")
        return [name, pydantic_schema_utils.generate_model_description(_Arguments)]

    @pytest.mark.parametrize("strip", [True, False])
    @pytest.mark.parametrize("model", [_Arguments, _Inner])
    def test_a_models_description_is_crewais(
        self, provider: str, model: type[BaseModel], strip: bool
    ) -> None:
        """Keys in the same order, too: models are sent it as text."""
        from crewai.utilities import pydantic_schema_utils as utils

        native = utils.generate_model_description(model, strip_null_types=strip)
        crewai_native.deactivate()
        stock = utils.generate_model_description(model, strip_null_types=strip)
        assert json.dumps(native) == json.dumps(stock)

    def test_every_answer_is_a_structure_of_its_own(self, provider: str) -> None:
        """CrewAI's callers take keys out of it."""
        from crewai.utilities.pydantic_schema_utils import generate_model_description

        first: Any = generate_model_description(_Arguments)
        whole = json.dumps(first)
        first["json_schema"]["schema"].clear()
        assert json.dumps(generate_model_description(_Arguments)) == whole

    @pytest.mark.parametrize("name", NAMES)
    def test_a_tools_name_is_crewais(self, provider: str, name: str) -> None:
        """Cut and cleaned the same way."""
        from crewai.utilities import string_utils

        def outcome() -> str:
            try:
                return string_utils.sanitize_tool_name(name)
            except ValueError as error:
                return repr(error)

        native = outcome()
        crewai_native.deactivate()
        assert native == outcome()

    def test_a_text_based_call_passes_the_arguments_that_the_schema_names(
        self, provider: str
    ) -> None:
        """Others that a model made up are left out, as CrewAI does."""
        given, handed = self._called()
        assert given == [{"text": "t", "free": {"a": 1}}]
        assert "made_up" in json.dumps(handed)

    @staticmethod
    def _called() -> tuple[list[dict[str, Any]], list[Any]]:
        import crewai
        from crewai.events import ToolUsageFinishedEvent, crewai_event_bus
        from crewai.tools import BaseTool

        from crewai_native.testing import ScriptedLLM, ToolCall

        given: list[dict[str, Any]] = []
        handed: list[Any] = []

        class Taker(BaseTool):
            name: str = "taker"
            description: str = "Takes arguments."
            args_schema: type[BaseModel] = _Arguments

            def _run(self, **arguments: Any) -> str:
                given.append({name: arguments[name] for name in ("text", "free")})
                return "taken"

        arguments = {"text": "t", "free": {"a": 1}, "made_up": True}
        llm = ScriptedLLM([ToolCall("taker", arguments), "Done."], native=False)
        agent = crewai.Agent(role="r", goal="g", backstory="b", llm=llm, tools=[Taker()])
        task = crewai.Task(description="d", expected_output="e", agent=agent)
        with crewai_event_bus.scoped_handlers():

            @crewai_event_bus.on(ToolUsageFinishedEvent)
            def finished(_source: Any, event: Any) -> None:
                handed.append([event.tool_class, event.tool_args, event.output])

            crewai.Crew(agents=[agent], tasks=[task]).kickoff()
            crewai_event_bus.flush()
        assert [(name, output) for name, _, output in handed] == [("CrewStructuredTool", "taken")]
        return given, handed
