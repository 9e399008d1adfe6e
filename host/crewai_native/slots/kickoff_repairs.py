"""What CrewAI finds out over and over while it sets up agents and runs them, and could know.

Each of these gives exactly what CrewAI's own code gives. They belong to ``tasks.executor``, as those in
:mod:`.executor_repairs` do.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from typing import TYPE_CHECKING, Any, Final

from crewai_native._errors import Declined
from crewai_native.slots._base import Repair, Target

if TYPE_CHECKING:
    from collections.abc import Callable

    from crewai_native._bind import Binding
    from crewai_native.slots._base import Provider

FRUGAL: Final = "frugal"
"""What a driver of flows calls itself that wants these left out."""

OF_A_MODEL: Final = (
    "__dict__",
    "__pydantic_fields_set__",
    "__pydantic_extra__",
    "__pydantic_private__",
)
"""Where an instance of a pydantic model keeps all that it has."""


# --- attributes -------------------------------------------------------------------------------


# The classes whose private attributes are read at every step: where they are, and their names.
_READ_OFTEN: Final = (
    ("crewai.flow.runtime", "Flow"),
    ("crewai.agents.agent_executor", "AgentExecutor"),
    ("crewai.agents.agent_builder.base_agent", "BaseAgent"),
    ("crewai.crew", "Crew"),
    ("crewai.task", "Task"),
    ("crewai.llms.base_llm", "BaseLLM"),
    ("crewai.tools.base_tool", "BaseTool"),
    ("crewai.tools.structured_tool", "CrewStructuredTool"),
    ("crewai.state.event_record", "EventRecord"),
    ("crewai.state.runtime", "RuntimeState"),
    ("crewai.utilities.i18n", "I18N"),
)


# Of those, the attributes that are read most: several times a step, or for each tool.
_READ_MOST: Final = frozenset(
    {
        "_deferred_file_aliases",
        "_definition",
        "_event_record",
        "_fired_or_listeners",
        "_guardrails",
        "_lock",
        "_memory",
        "_method_outputs",
        "_or_listeners_lock",
        "_original_backstory",
        "_original_goal",
        "_original_role",
        "_original_tool",
        "_prompts",
        "_state",
        "_token_process",
        "_token_usage",
        "_tool_call_counts",
        "_usage_aggregation_handler",
        "_usage_lock",
    }
)


def _private_attributes_at_once(binding: Binding, _provider: Provider) -> None:
    import importlib

    for module, name in _READ_OFTEN:
        cls = getattr(importlib.import_module(module), name)
        if "__getattr__" not in vars(cls):
            binding.replace(cls, "__getattr__", _getattr_of(cls))
        for attribute in _READ_MOST & cls.__private_attributes__.keys():
            declared = cls.__private_attributes__[attribute].default
            if attribute not in vars(cls) and not hasattr(declared, "__get__"):
                binding.replace(cls, attribute, _Private(attribute))


class _Private:
    """A private attribute of a pydantic model, found without a detour over what is not there.

    No data descriptor: what somebody has put on an instance itself goes first, as ever.
    """

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type[Any]) -> Any:
        if instance is None:
            return owner.__private_attributes__[self.name]
        try:
            return instance.__pydantic_private__[self.name]
        except (KeyError, TypeError):
            # Python then asks __getattr__, which has pydantic's words for it.
            raise AttributeError(self.name) from None


def _getattr_of(cls: type[Any]) -> Callable[[Any, str], Any]:
    def __getattr__(self: Any, name: str) -> Any:  # noqa: N807 - it is one
        attribute = type(self).__private_attributes__.get(name)
        # One that was declared with a descriptor, such as a function, is what that makes of it.
        if attribute is not None and not hasattr(attribute.default, "__get__"):
            private = self.__pydantic_private__
            if private is not None and name in private:
                return private[name]
        return super(cls, self).__getattr__(name)

    return __getattr__


def _fields_without_warnings(binding: Binding, _provider: Provider) -> None:
    from crewai.flow.runtime import Flow

    base: Any = super(Flow, Flow)

    def make(_stock: Callable[..., None]) -> Callable[..., None]:
        def set_attribute(flow: Any, name: str, value: Any) -> None:
            cls = type(flow)
            if name in cls.model_fields or name in cls.__private_attributes__:
                base.__setattr__(flow, name, value)
            else:
                object.__setattr__(flow, name, value)

        return set_attribute

    binding.stand_in(Flow, "__setattr__", make)


# --- methods of flows -------------------------------------------------------------------------


def _methods_bound_once_examined(binding: Binding, _provider: Provider) -> None:
    from crewai.flow.flow_wrappers import FlowMethod

    examine = FlowMethod.__init__

    def make(stock: Callable[..., Any]) -> Callable[..., Any]:
        def bind(method: Any, instance: Any, owner: Any = None) -> Any:
            cls = type(method)
            if (
                instance is None
                or cls.__init__ is not examine
                or not getattr(type(instance), "is_crewai_internal", False)
            ):
                return stock(method, instance, owner)
            # All that CrewAI finds out of the function again is known from when it was decorated.
            bound = object.__new__(cls)
            known = vars(bound)
            known.update(vars(method))
            known["_instance"] = known["__self__"] = instance
            return bound

        return bind

    binding.stand_in(FlowMethod, "__get__", make)


_SCHEMAS_KEPT: Final = 256


# --- loggers ----------------------------------------------------------------------------------


def _loggers_without_validation(binding: Binding, _provider: Provider) -> None:
    from crewai.tools.structured_tool import CrewStructuredTool
    from crewai.utilities.logger import Logger

    declared = CrewStructuredTool.__private_attributes__["_logger"]
    if declared.default_factory is not Logger or Logger.__private_attributes__:
        raise Declined("tools get their loggers in some other way")
    fields = dict(vars(Logger()))
    new, put = object.__new__, object.__setattr__

    def logger() -> Any:
        made = new(Logger)
        put(made, "__dict__", fields.copy())
        put(made, "__pydantic_fields_set__", set())
        put(made, "__pydantic_extra__", None)
        put(made, "__pydantic_private__", None)
        return made

    declared.default_factory = logger

    def restore() -> None:
        declared.default_factory = Logger

    binding.on_undo(restore)


# --- tools ------------------------------------------------------------------------------------


def _signatures_checked_once(binding: Binding, _provider: Provider) -> None:
    from crewai.tools.structured_tool import CrewStructuredTool

    # Functions that fit a schema, and what both were then. Those that do not are an error each time.
    fitting: weakref.WeakKeyDictionary[Any, dict[int, tuple[Any, ...]]]
    fitting = weakref.WeakKeyDictionary()

    def make(stock: Callable[[Any], None]) -> Callable[[Any], None]:
        def validate(tool: Any) -> None:
            schema = tool.args_schema
            function = getattr(tool.func, "__func__", tool.func)
            if not schema or not inspect.isfunction(function) or hasattr(function, "__wrapped__"):
                return stock(tool)
            bound = tool.func is not function
            now = (
                weakref.ref(schema),
                tuple(schema.model_fields),
                bound,
                function.__code__,
                function.__defaults__,
                function.__kwdefaults__ and dict(function.__kwdefaults__),
                getattr(function, "__signature__", None),
            )
            known = fitting.setdefault(function, {})
            if known.get(id(schema)) != now:
                stock(tool)
                if (
                    len(known) >= _SCHEMAS_KEPT
                ):  # one function may serve the tools of a whole server
                    known.clear()
                known[id(schema)] = now
            return None

        return validate

    binding.stand_in(CrewStructuredTool, "_validate_function_signature", make)


def _structured_without_validation(binding: Binding, _provider: Provider) -> None:
    from crewai.tools.base_tool import BaseTool

    binding.stand_in(BaseTool, "to_structured_tool", lambda stock: _Structured(stock).make())


class _Structured:
    """Makes of a tool what an agent calls: a model that holds the tool's own, validated, values."""

    def __init__(self, stock: Callable[[Any], Any]) -> None:
        from crewai.tools.base_tool import EnvVar, Tool
        from crewai.tools.structured_tool import CrewStructuredTool
        from crewai.tools.tool_failure import ToolFailurePolicy
        from pydantic import BaseModel

        self._stock = stock
        self._class = CrewStructuredTool
        self._policy = ToolFailurePolicy
        self._model = BaseModel
        self._logger = CrewStructuredTool.__private_attributes__["_logger"]

        tool = Tool(name="probe", description="probe", args_schema=EnvVar, func=lambda: None)
        expected, made = stock(tool), self._filled(tool)
        validators = CrewStructuredTool.__pydantic_decorators__
        if (
            made is None
            or list(vars(made).items()) != list(vars(expected).items())
            or any(getattr(made, name) != getattr(expected, name) for name in OF_A_MODEL)
            or validators.field_validators
            or validators.root_validators
            or validators.validators
            or set(validators.model_validators) != {"_validate_func"}
        ):
            raise Declined("what agents call of a tool has other fields")

    def make(self) -> Callable[[Any], Any]:
        """Return what stands for ``BaseTool.to_structured_tool``."""
        stock, filled = self._stock, self._filled

        def to_structured_tool(tool: Any) -> Any:
            tool._set_args_schema()  # noqa: SLF001 - as CrewAI's own does
            made = filled(tool)
            if made is None:
                return stock(tool)
            try:
                made._validate_func()  # noqa: SLF001
            except Exception:  # noqa: BLE001 - pydantic has words around it
                return stock(tool)
            return made

        return to_structured_tool

    def _filled(self, tool: Any) -> Any:
        """Return the model, or None where pydantic has to look at the tool's values."""
        arguments, result, policy = tool.args_schema, tool.result_schema, tool.tool_failure_policy
        most, uses = tool.max_usage_count, tool.current_usage_count
        fields = {
            "name": tool.name,
            "description": tool.description,
            "args_schema": arguments,
            "result_schema": result,
            "func": tool._run,  # noqa: SLF001
            "result_as_answer": tool.result_as_answer,
            "max_usage_count": most,
            "current_usage_count": uses,
            "tool_failure_policy": policy,
            "cache_function": tool.cache_function,
        }
        if not (
            type(fields["name"]) is type(fields["description"]) is str
            and type(fields["result_as_answer"]) is bool
            and type(uses) is int
            and (most is None or type(most) is int)
            and (policy is None or type(policy) is self._policy)
            and all(
                schema is None or (isinstance(schema, type) and issubclass(schema, self._model))
                for schema in (arguments, result)
            )
        ):
            return None
        made, put = object.__new__(self._class), object.__setattr__
        put(made, "__dict__", fields)
        put(made, "__pydantic_fields_set__", set(fields))
        put(made, "__pydantic_extra__", None)
        private = {"_logger": self._logger.get_default(), "_original_tool": tool}
        put(made, "__pydantic_private__", private)
        return made


def _formats_without_inspection(binding: Binding, _provider: Provider) -> None:
    from crewai.tools.base_tool import BaseTool
    from crewai.tools.tool_failure import ToolFailure
    from crewai.utilities import agent_utils

    stock, watch = agent_utils.format_native_tool_output_for_agent, binding.watch

    @functools.wraps(stock)
    def format_output(tool: Any, raw_result: Any) -> str:
        # Its class says that it has one, which CrewAI finds out from all that there is of the tool.
        if (
            not watch.serving
            or not isinstance(tool, BaseTool)
            or isinstance(raw_result, ToolFailure)
        ):
            return stock(tool, raw_result)
        of_tool = getattr(tool, "format_output_for_agent", None)
        return str(of_tool(raw_result) if callable(of_tool) else raw_result)

    binding.replace_functions([(stock, format_output)])


# --- prompts ----------------------------------------------------------------------------------


class _Prompts:
    """CrewAI's own prompts, which are a file of its distribution."""

    def __init__(self) -> None:
        self.stock: Any = None
        self.known: dict[str, dict[str, Any]] | None = None


_prompts: Final = _Prompts()


def load_prompts(i18n: Any) -> Any:
    """Do what ``I18N.load_prompts`` does."""
    if i18n.prompt_file:
        return _prompts.stock(i18n)
    if _prompts.known is None:
        _prompts.stock(i18n)
        _prompts.known = _copied(i18n._prompts)  # noqa: SLF001
    else:
        i18n._prompts = _copied(_prompts.known)  # noqa: SLF001
    return i18n


def _copied(prompts: dict[str, Any]) -> dict[str, Any]:
    return {
        kind: {name: _copied(text) if isinstance(text, dict) else text for name, text in of.items()}
        if isinstance(of, dict)
        else of
        for kind, of in prompts.items()
    }


def _load_prompts(self: Any) -> Any:
    # Runs in place of CrewAI's validator, with the globals of its module.
    from crewai_native.slots import kickoff_repairs  # noqa: PLW0406 - those are not this module's

    return kickoff_repairs.load_prompts(self)


def _prompts_read_once(binding: Binding, _provider: Provider) -> None:
    from crewai.utilities.i18n import I18N

    _prompts.stock = binding.replace_body(I18N.load_prompts, _load_prompts)
    _prompts.known = None


_FLOW_METHOD: Final = "crewai.flow.flow_wrappers:FlowMethod"
_STRUCTURED: Final = "crewai.tools.structured_tool"

REPAIRS: Final = (
    Repair(
        name="private-attributes-at-once",
        summary="each look at a private attribute raises and catches three exceptions",
        targets=tuple(Target(f"{module}:{name}") for module, name in _READ_OFTEN),
        feature=FRUGAL,
        bind=_private_attributes_at_once,
    ),
    Repair(
        name="fields-without-warnings",
        summary="each attribute that is set on a flow warns of deprecated use, which CrewAI hides",
        targets=(Target("crewai.flow.runtime:Flow.__setattr__", wrapped=True),),
        feature=FRUGAL,
        bind=_fields_without_warnings,
    ),
    Repair(
        name="methods-examined-once",
        summary="each agent inspects the signatures of all methods of its flow, and again at each "
        "access",
        targets=(
            Target(f"{_FLOW_METHOD}.__get__", wrapped=True),
            Target(f"{_FLOW_METHOD}.__init__", wrapped=True),
        ),
        feature=FRUGAL,
        bind=_methods_bound_once_examined,
    ),
    Repair(
        name="signatures-checked-once",
        summary="the signature of each tool is compared with its schema twice for each task",
        targets=(
            Target(
                "crewai.tools.structured_tool:CrewStructuredTool._validate_function_signature",
                wrapped=True,
            ),
        ),
        feature=FRUGAL,
        bind=_signatures_checked_once,
    ),
    Repair(
        name="tools-without-validation",
        summary="what agents call of each tool is validated for each task, as the tool was",
        targets=(
            Target("crewai.tools.base_tool:BaseTool.to_structured_tool", wrapped=True),
            Target(f"{_STRUCTURED}:CrewStructuredTool._validate_func", wrapped=True),
            Target(f"{_STRUCTURED}:_deserialize_schema", wrapped=True),
        ),
        feature=FRUGAL,
        bind=_structured_without_validation,
    ),
    Repair(
        name="formats-without-inspection",
        summary="each result of a tool has the tool searched for what formats it",
        targets=(
            Target(
                "crewai.utilities.agent_utils:format_native_tool_output_for_agent", wrapped=True
            ),
            Target("crewai.tools.base_tool:BaseTool.format_output_for_agent", wrapped=True),
        ),
        feature=FRUGAL,
        bind=_formats_without_inspection,
    ),
    Repair(
        name="loggers-without-validation",
        summary="each tool of each task validates the settings of a logger of its own, which has none",
        targets=(
            Target("crewai.utilities.logger:Logger"),
            Target("crewai.tools.structured_tool:CrewStructuredTool.from_function", wrapped=True),
        ),
        feature=FRUGAL,
        bind=_loggers_without_validation,
    ),
    Repair(
        name="prompts-read-once",
        summary="each copy of an agent reads and parses the file of prompts",
        targets=(Target("crewai.utilities.i18n:I18N.load_prompts", wrapped=True),),
        feature=FRUGAL,
        bind=_prompts_read_once,
    ),
)
