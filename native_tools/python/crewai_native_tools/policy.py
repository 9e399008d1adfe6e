"""What may be said about the calls of a tool, and which of several sayings counts.

A :class:`Policy` says some things and leaves the others open (None). Sayings come from layers, from
the narrowest to the widest: one tool, an agent, a crew, everything; in each layer what code says
goes before the environment and ``pyproject.toml``. For each field the narrowest layer that says
something counts. ``inf`` (``math.inf``, or ``"off"`` in text) says that there is no limit, whatever
a wider layer says.

Without any saying a call has no limits; only loops are watched for, see :data:`DEFAULTS`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

_MOST_SECONDS: Final = 10 * 366 * 86_400
_MOST: Final = 2**63 - 1
_UNITS: Final = {"s": 1.0, "second": 1.0, "min": 60.0, "minute": 60.0, "h": 3600.0, "hour": 3600.0}
_BYTES: Final = {"": 1, "B": 1, "kB": 1000, "KiB": 1024, "MB": 10**6, "MiB": 2**20}
_OFF: Final = frozenset({"off", "inf", "none"})


class Rate(NamedTuple):
    """So many calls in so much time.

    Attributes:
        calls: How many, at least 1. So many may start at once after a pause.
        seconds: In how many seconds, above 0.
    """

    calls: int
    seconds: float

    def __str__(self) -> str:
        """Return it as it is written in settings."""
        unit = {1.0: "s", 60.0: "min", 3600.0: "h"}.get(self.seconds, f"{self.seconds:g} s")
        return f"{self.calls}/{unit}"


class Size(NamedTuple):
    """How long a result may be.

    Attributes:
        amount: How many, at least 1.
        unit: Of what.
    """

    amount: int
    unit: Literal["bytes", "tokens"]


class Retry(NamedTuple):
    """How often a call that fails is tried.

    Attributes:
        attempts: Executions in all, at least 1.
        backoff: Seconds before the second; doubled before each one after it.
        on: Names of the exceptions, or of classes that they derive from, after which it is tried
            again.
    """

    attempts: int
    backoff: float = 0.5
    on: tuple[str, ...] = ("Exception",)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What may be spent; None where it is not limited.

    Attributes:
        tool_calls: Calls of tools.
        llm_calls: Calls of language models.
        tokens: Tokens of language models, in and out.
        seconds: Seconds of wall clock since the first call of a tool or of a model.
        money: In the currency of the option ``prices``.
    """

    tool_calls: int | None = None
    llm_calls: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    money: float | None = None

    @property
    def only_tool_calls(self) -> bool:
        """Whether nothing else is limited."""
        return self.llm_calls is self.tokens is self.seconds is self.money is None

    def __post_init__(self) -> None:
        """Refuse what means nothing.

        Raises:
            ValueError: A limit is not a number above 0.
        """
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is None:
                continue
            whole = field.name in {"tool_calls", "llm_calls", "tokens"}
            number = _whole(value) if whole else _positive(value)
            if number is None:
                kind = "a whole number" if whole else "a number"
                raise ValueError(f"{field.name} is {value!r}; it accepts {kind} above 0")
            object.__setattr__(self, field.name, number)


def _plain_number(value: Any) -> float | int | None:
    if isinstance(value, str):
        text = value.strip()
        if len(text) > 40 or not text.isascii():  # noqa: PLR2004 - longer than any number here
            return None
        try:
            value = int(text) if text.isdigit() else float(text)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value


def _positive(value: Any) -> float | None:
    number = _plain_number(value)
    return float(number) if number is not None and 0 < number <= _MOST_SECONDS else None


def _whole(value: Any) -> int | None:
    number = _plain_number(value)
    if number is None or not 0 < number <= _MOST or number != int(number):
        return None
    return int(number)


def _unlimited(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip().lower() in _OFF
    return isinstance(value, float) and value == math.inf


def _limit(number: Callable[[Any], float | None]) -> Callable[[Any], Any]:
    return lambda value: math.inf if _unlimited(value) else number(value)


def _one_of(*accepted: str) -> Callable[[Any], Any]:
    return lambda value: value if isinstance(value, str) and value in accepted else None


def _switch(value: Any) -> bool | None:
    if isinstance(value, str):
        return {"1": True, "true": True, "0": False, "false": False}.get(value.strip().lower())
    return value if isinstance(value, bool) else None


def _rate(value: Any) -> Any:
    if isinstance(value, Rate) or _unlimited(value):
        return value if isinstance(value, Rate) else math.inf
    if not isinstance(value, str):
        return None
    found = re.fullmatch(r"\s*(\d{1,9})\s*/\s*(\d{0,9}(?:\.\d{1,9})?)\s*([a-z]+?)\s*", value)
    if found is None or found[3] not in _UNITS:
        return None
    calls, seconds = int(found[1]), float(found[2] or 1) * _UNITS[found[3]]
    return Rate(calls, seconds) if calls and seconds else None


def _size(value: Any) -> Any:
    if isinstance(value, Size) or _unlimited(value):
        return value if isinstance(value, Size) else math.inf
    if isinstance(value, str):
        found = re.fullmatch(r"\s*(\d{1,18})\s*([A-Za-z]*)\s*", value)
        if found is None or not int(found[1]):
            return None
        if found[2] == "tokens":
            return Size(int(found[1]), "tokens")
        factor = _BYTES.get(found[2])
        return None if factor is None else Size(int(found[1]) * factor, "bytes")
    number = _whole(value)
    return None if number is None else Size(number, "bytes")


def _retry(value: Any) -> Any:
    if isinstance(value, Retry):
        value = value._asdict()
    if isinstance(value, Mapping):
        attempts, backoff, on = (
            value.get(name, default)
            for name, default in (("attempts", None), ("backoff", 0.5), ("on", ("Exception",)))
        )
        names = _names(on)
        wait = 0.0 if backoff == 0 else _positive(backoff)
        number = _whole(attempts)
        if set(value) - {"attempts", "backoff", "on"} or None in {number, wait} or not names:
            return None
        return Retry(number, wait, names)  # type: ignore[arg-type]
    number = _whole(value)
    return None if number is None else Retry(number)


def _names(value: Any) -> tuple[str, ...] | None:
    if isinstance(value, str):
        return tuple(name.strip() for name in value.split(",") if name.strip())
    if not isinstance(value, Iterable) or isinstance(value, Mapping):
        return None
    names = tuple(value)
    return names if all(isinstance(name, str) for name in names) else None


def _budget(value: Any) -> Any:
    if isinstance(value, Budget) or _unlimited(value):
        return value if isinstance(value, Budget) else math.inf
    if isinstance(value, str):
        parts = [part.partition("=") for part in value.split(",") if part.strip()]
        value = {name.strip(): text.strip() for name, _, text in parts}
    if not isinstance(value, Mapping) or not value:
        return None
    try:
        return Budget(**value)
    except (TypeError, ValueError):
        return None


class _Kind(NamedTuple):
    """How a field is read: ``parse`` gives None for what means nothing."""

    parse: Callable[[Any], Any]
    accepts: str


_SECONDS: Final = f"seconds, above 0 and up to {_MOST_SECONDS}"
_COUNT: Final = "a whole number above 0"
_BUDGET: Final = (
    "a table of limits (tool_calls, llm_calls, tokens, seconds, money), or "
    '"tool_calls=50,tokens=100000"'
)
MOST_ROUNDS: Final = 100
"""The most rounds of a loop that are told apart."""
_ROUNDS: Final = f"a whole number from 2 to {MOST_ROUNDS}"


def _rounds(value: Any) -> int | None:
    number = _whole(value)
    return number if number is not None and 1 < number <= MOST_ROUNDS else None


_KINDS: Final[Mapping[str, _Kind]] = {
    "timeout": _Kind(_limit(_positive), _SECONDS),
    "max_calls": _Kind(_limit(_whole), _COUNT),
    "rate": _Kind(_rate, 'calls in a time, such as "10/s", "100/min" or "5/2 s"'),
    "rate_excess": _Kind(_one_of("wait", "refuse"), '"wait" or "refuse"'),
    "max_concurrency": _Kind(_limit(_whole), _COUNT),
    "max_recursion_depth": _Kind(_limit(_whole), _COUNT),
    "loop": _Kind(_limit(_rounds), _ROUNDS),
    "loop_abort": _Kind(_limit(_rounds), _ROUNDS),
    "loop_near": _Kind(_limit(_rounds), _ROUNDS),
    "max_output": _Kind(_size, 'a number of bytes, or text such as "64 kB" or "4000 tokens"'),
    "retry": _Kind(_retry, "a number of attempts, or a table of attempts, backoff and on"),
    "side_effects": _Kind(_switch, "true or false"),
    "isolation": _Kind(_one_of("thread", "process"), '"thread" or "process"'),
    "cpu_seconds": _Kind(_limit(_positive), _SECONDS),
    "memory_mb": _Kind(_limit(_whole), _COUNT),
    "open_files": _Kind(_limit(_whole), _COUNT),
    "file_size": _Kind(_limit(_whole), "a whole number of bytes, above 0"),
    "run_budget": _Kind(_budget, _BUDGET),
    "agent_budget": _Kind(_budget, _BUDGET),
    "redact": _Kind(_names, "a list of names of arguments"),
}

FIELDS: Final = tuple(_KINDS)
"""The names of a policy's fields."""
NOT_FOR_A_TOOL: Final = frozenset({"run_budget", "agent_budget"})
"""Fields that say nothing about one tool."""


def parse(field: str, value: Any) -> Any:
    """Return a field's value as it is kept.

    Raises:
        ValueError: It means nothing; the message says what is accepted.
    """
    kind = _KINDS[field]
    found = kind.parse(value)
    if found is None:
        raise ValueError(f"{value!r}; it accepts {kind.accepts}")
    return found


def accepts(field: str) -> str:
    """Return what a field accepts, in words."""
    return _KINDS[field].accepts


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What is said about calls of tools; None: nothing.

    Limits accept ``math.inf``: no limit, whatever a wider layer says. Counts are counted per tool;
    what an agent's or a crew's layer says is counted for that agent or crew alone.

    Attributes:
        timeout: Seconds of wall clock after which the caller has its answer, time in queues
            included.
        max_calls: Executions in one run: of a crew, or of an agent that was started without one;
            in an engine, in one of its runs.
        rate: Executions in a time, such as ``"10/s"``; over the whole process.
        rate_excess: Whether a call beyond ``rate`` waits, within its timeout, or is refused.
        max_concurrency: Executions at the same time, over the whole process; others wait.
        max_recursion_depth: How many tools may be inside each other, this one included.
        loop: Rounds of the same calls with the same results after which the agent is told.
        loop_abort: Rounds after which the run is stopped.
        loop_near: Calls with nearly the same arguments and one and the same result after which
            the agent is told; after twice as many the run is stopped. Not looked for by default:
            honest work in bulk looks the same.
        max_output: How long a result may be: bytes, or text such as ``"64 kB"``,
            ``"4000 tokens"``.
        retry: Attempts, or a :class:`Retry`.
        side_effects: Whether the tool changes something outside: a call that succeeded is then not
            run again in the same run.
        isolation: ``"process"`` runs the tool in a process that can be killed.
        cpu_seconds: Processor time of such a process for one call.
        memory_mb: Its memory, in MiB.
        open_files: Its open files.
        file_size: Bytes of the largest file that it may write.
        run_budget: What a run may spend in all; not for a tool.
        agent_budget: What each agent may spend in a run; not for a tool.
        redact: Names of arguments whose values appear in no message. Compared without regard to
            case; an argument whose name contains one is meant, too.
    """

    timeout: float | None = None
    max_calls: float | None = None
    rate: Rate | str | float | None = None
    rate_excess: str | None = None
    max_concurrency: float | None = None
    max_recursion_depth: float | None = None
    loop: float | None = None
    loop_abort: float | None = None
    loop_near: float | None = None
    max_output: Size | str | float | None = None
    retry: Retry | Mapping[str, Any] | int | None = None
    side_effects: bool | None = None
    isolation: str | None = None
    cpu_seconds: float | None = None
    memory_mb: float | None = None
    open_files: float | None = None
    file_size: float | None = None
    run_budget: Budget | Mapping[str, Any] | float | None = None
    agent_budget: Budget | Mapping[str, Any] | float | None = None
    redact: Iterable[str] | None = None

    def __post_init__(self) -> None:
        """Bring every value into the form in which it is kept.

        Raises:
            ValueError: A value means nothing; the message names it and what is accepted.
        """
        for field in FIELDS:
            value = getattr(self, field)
            if value is not None:
                try:
                    object.__setattr__(self, field, parse(field, value))
                except ValueError as error:
                    raise ValueError(f"{field} is {error}") from None

    def said(self) -> dict[str, Any]:
        """Return what it says, by field."""
        return {field: value for field in FIELDS if (value := getattr(self, field)) is not None}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """The sayings of one source.

    Attributes:
        default: About everything.
        tools: About tools by name, in whatever spelling: compared as CrewAI's
            ``sanitize_tool_name`` writes it.
        agents: About what an agent calls, by its role.
        crews: About what a crew's agents call, by the crew's name.
    """

    default: Policy = dataclasses.field(default_factory=Policy)
    tools: Mapping[str, Policy] = dataclasses.field(default_factory=dict)
    agents: Mapping[str, Policy] = dataclasses.field(default_factory=dict)
    crews: Mapping[str, Policy] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse budgets of tools, and what is no policy.

        Raises:
            TypeError: Something else stands in a policy's place.
            ValueError: A tool's policy says something that is not for a tool.
        """
        check_policy("default", self.default)
        for field in ("tools", "agents", "crews"):
            policies = getattr(self, field)
            if not isinstance(policies, Mapping):
                raise TypeError(f"{field} is {policies!r}; it accepts a mapping of names to Policy")
            for name, policy in policies.items():
                check_policy(f"{field}[{name!r}]", policy)
        for name, policy in self.tools.items():
            if wrong := sorted(NOT_FOR_A_TOOL & policy.said().keys()):
                raise ValueError(
                    f"the policy of the tool {name!r} has {', '.join(wrong)}; a budget is for "
                    "everything, for an agent or for a crew"
                )


def check_policy(where: str, policy: object) -> None:
    """Refuse what is no policy.

    Raises:
        TypeError: It is something else.
    """
    if not isinstance(policy, Policy):
        raise TypeError(f"{where} is {policy!r}; it accepts a Policy, such as Policy(timeout=30)")


class Saying(NamedTuple):
    """What counts for a field.

    Attributes:
        value: The value; None where the field has none.
        owner: Whose layer said it, as ``("agent", role)`` or ``("crew", name)``; None where it
            was a tool's or everybody's. Counts are kept apart by it.
    """

    value: Any
    owner: tuple[str, str] | None


def resolve(
    sources: Iterable[Layers], tool: str, agent: str | None, crew: str | None
) -> dict[str, Saying]:
    """Return what counts for calls of a tool by an agent of a crew, by field.

    Args:
        sources: The nearest first. Names of tools are compared as they stand.
        tool: The tool's name.
        agent: The agent's role.
        crew: The crew's name.
    """
    sources = list(sources)
    layers: list[tuple[tuple[str, str] | None, Policy | None]] = []
    layers += [(None, source.tools.get(tool)) for source in sources]
    if agent is not None:
        layers += [(("agent", agent), source.agents.get(agent)) for source in sources]
    if crew is not None:
        layers += [(("crew", crew), source.crews.get(crew)) for source in sources]
    layers += [(None, source.default) for source in sources]
    layers.append((None, DEFAULTS))
    found = {field: Saying(None, None) for field in FIELDS}
    for owner, policy in reversed(layers):
        if policy is not None:
            found.update(
                (field, Saying(None if value == math.inf else value, owner))
                for field, value in policy.said().items()
            )
    return found


DEFAULTS: Final = Policy(
    rate_excess="wait",
    loop=4,
    # Where CrewAI itself stops a run of identical calls.
    loop_abort=5,
    isolation="thread",
    side_effects=False,
    redact=("password", "passwd", "secret", "token", "api_key", "apikey", "authorization"),
)
"""What counts where no layer says anything."""
