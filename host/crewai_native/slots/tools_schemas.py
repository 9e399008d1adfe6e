"""``tools.schemas``: names, schemas and descriptions of tools, which CrewAI computes per call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

from crewai_native.slots._base import Repair, Slot, Target

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from crewai_native._bind import Binding
    from crewai_native.slots._base import Provider


class ToolSchemas(Protocol):
    """Answers what CrewAI's functions of the same signature answer, to the byte.

    A provider may leave methods out; CrewAI's own functions then stand. Where a method raises,
    CrewAI's function answers that call. All are called from several threads at once.
    """

    def generate_model_description(
        self, model: type[Any], *, strip_null_types: bool = True
    ) -> dict[str, Any]:
        """Return a pydantic model's JSON schema for language models.

        Every call returns a structure of its own, down to the leaves: CrewAI's callers take keys
        out of it. A model can change after its first use (``model_rebuild``).
        """

    def sanitize_tool_name(self, name: str, max_length: int = 64) -> str:
        """Return a tool's name as providers of language models accept it."""

    def format_description_for_llm(
        self, name: str, args_schema: type[Any] | None, description: str
    ) -> str:
        """Return the block that describes a tool in a prompt."""

    def select_tool(self, tools: Sequence[Any], tool_name: str) -> Any | None:
        """Return the tool that a text-based agent means by a name, or None.

        Of the tools whose sanitized name equals the name's, or resembles it by a
        ``SequenceMatcher`` ratio above 0.85, the one with the highest ratio, the first among
        equals. None leaves it to CrewAI, which reports that there is no such tool.
        """

    def argument_names(self, model: type[Any]) -> Collection[str]:
        """Return the names of the properties in a model's JSON schema, as pydantic generates it.

        Asked of providers with the feature ``arguments``, at each call of a tool by a text-based
        agent. Raises what generating the schema raises, or ``KeyError`` where it has no properties.
        """


_FUNCTIONS: Final = {
    "generate_model_description": "crewai.utilities.pydantic_schema_utils",
    "sanitize_tool_name": "crewai.utilities.string_utils",
    "format_description_for_llm": "crewai.tools.structured_tool",
}
PROTOCOL: Final = (*_FUNCTIONS, "select_tool")


class _Described:
    """A tool for as long as ``ToolUsage._use`` uses it, which wants its schema for names alone."""

    __slots__ = ("_tool", "args_schema")

    def __init__(self, tool: Any, names: Callable[[Any], Collection[str]]) -> None:
        self._tool = tool
        self.args_schema = _Schema(tool.args_schema, names)

    @property  # type: ignore[misc] # what isinstance and events see
    def __class__(self) -> type[Any]:
        return type(self._tool)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tool, name)


class _Schema:
    __slots__ = ("_model", "_names")

    def __init__(self, model: Any, names: Callable[[Any], Collection[str]]) -> None:
        self._model = model
        self._names = names

    def model_json_schema(self) -> dict[str, Any]:
        return {"properties": dict.fromkeys(self._names(self._model))}


def _names_without_schemas(binding: Binding, provider: Provider) -> None:
    from crewai.tools.structured_tool import CrewStructuredTool
    from crewai.tools.tool_usage import ToolUsage

    names = getattr(binding.served, "argument_names", None)
    if not callable(names):
        raise provider.wrong_type(binding.served, "a ToolSchemas with argument_names")
    known = binding.watch.guard(
        names,
        lambda model: model.model_json_schema()["properties"],
        lambda mine, theirs: list(mine) == list(theirs),
    )

    def make(stock: Callable[..., str]) -> Callable[..., str]:
        def use(usage: Any, tool_string: str, tool: Any, calling: Any) -> str:
            # A user's class of tools may look at its own schema while it is used.
            if type(tool) is CrewStructuredTool and tool.args_schema is not None:
                tool = _Described(tool, known)
            return stock(usage, tool_string, tool, calling)

        return use

    binding.stand_in(ToolUsage, "_use", make)


class ToolsSchemas(Slot):
    """Serves what CrewAI tells language models about tools."""

    name: ClassVar = "tools.schemas"
    summary: ClassVar = "names and schemas of tools"
    how: ClassVar = f"{', '.join(_FUNCTIONS)}, ToolUsage._select_tool"
    targets: ClassVar = (
        *(Target(f"{module}:{name}", wrapped=True) for name, module in _FUNCTIONS.items()),
        Target("crewai.tools.tool_usage:ToolUsage._select_tool", wrapped=True),
    )
    repairs: ClassVar = (
        Repair(
            name="names-without-schemas",
            summary="each call of a tool by a text-based agent generates the tool's JSON schema to "
            "learn the names of its arguments",
            targets=(
                Target("crewai.tools.tool_usage:ToolUsage._use", wrapped=True, passes_on=True),
                Target(
                    "crewai.tools.tool_usage:ToolUsage.on_tool_use_finished",
                    wrapped=True,
                    passes_on=True,
                ),
                Target(
                    "crewai.tools.tool_usage:ToolUsage.on_tool_error", wrapped=True, passes_on=True
                ),
            ),
            feature="arguments",
            bind=_names_without_schemas,
        ),
    )

    def bind(self, binding: Binding, provider: Provider) -> None:
        """Put the provider's methods in the place of CrewAI's functions."""
        import importlib

        from crewai.tools.tool_usage import ToolUsage

        schemas = binding.served = provider.call()
        served = [name for name in PROTOCOL if callable(getattr(schemas, name, None))]
        if not served:
            raise provider.wrong_type(schemas, f"a ToolSchemas (any of: {', '.join(PROTOCOL)})")
        replacements = []
        for name in served:
            if name == "select_tool":
                make = _make_select(binding.watch.guard, schemas.select_tool)
                binding.stand_in(ToolUsage, "_select_tool", make)
            else:
                stock = getattr(importlib.import_module(_FUNCTIONS[name]), name)
                native = binding.watch.guard(getattr(schemas, name), stock)
                replacements.append((stock, native))
        binding.replace_functions(replacements)
        if missing := [name for name in PROTOCOL if name not in served]:
            binding.notes.append(f"without {', '.join(missing)}")


def _make_select(guard: Callable[..., Any], select: Callable[..., Any]) -> Callable[[Any], Any]:
    def make(stock: Any) -> Any:
        # Finding none is no result to compare: CrewAI is asked for it below, once, because it
        # reports it with an event.
        find = guard(
            lambda usage, name: select(usage.tools, name),
            stock,
            lambda mine, theirs: mine is None or mine is theirs,
        )

        def select_tool(usage: Any, tool_name: str) -> Any:
            tool = find(usage, tool_name)
            return stock(usage, tool_name) if tool is None else tool

        return select_tool

    return make


SLOT: Final = ToolsSchemas()
