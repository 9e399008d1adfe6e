"""Records what a run does, in words that are the same for every run that does the same."""

from __future__ import annotations

import contextlib
import logging
import re
from typing import TYPE_CHECKING, Any, Final

from crewai.events.event_bus import crewai_event_bus
from crewai.hooks.dispatch import InterceptionPoint, register, unregister

if TYPE_CHECKING:
    from collections.abc import Iterator

_IDENTIFIERS = (
    "event_id",
    "parent_event_id",
    "previous_event_id",
    "triggered_by_event_id",
    "started_event_id",
)
_PLAIN = (
    "type",
    "emission_sequence",
    "flow_name",
    "method_name",
    "params",
    "state",
    "result",
    "output",
    "inputs",
    "tool_name",
    "tool_args",
    "agent_role",
    "messages",
    "response",
    "call_type",
    "step_number",
    "plan",
    "error",
    "usage",
    "interception_point",
    "outcome",
)


# Identifiers, times of day and durations.
_CHANGING: Final = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
    r"|\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:\d\d)?"
    r"|\d+\.\d{4,}"
)


class Recording:
    """The events, hooks, log records and outcome of runs, in order.

    Identifiers are numbered as they first appear, so that two recordings can be compared.
    """

    def __init__(self) -> None:
        self.lines: list[Any] = []
        self._numbers: dict[str, int] = {}

    def _number(self, identifier: str | None) -> int | None:
        if identifier is None:
            return None
        return self._numbers.setdefault(identifier, len(self._numbers))

    def event(self, source: Any, event: Any) -> None:
        """Take down an event as it was emitted."""
        fields = {name: self._number(getattr(event, name, None)) for name in _IDENTIFIERS}
        for name in _PLAIN:
            value = getattr(event, name, None)
            if value is not None:
                fields[name] = _plain(value)
        self.lines.append(("event", type(source).__name__, fields))

    def hook(self, point: Any, context: Any) -> None:
        """Take down a call of an interception hook."""
        self.lines.append(
            ("hook", point.value, getattr(context, "step_name", None), _plain(context.payload))
        )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        # These differ from run to run.
        return {
            key: _plain(item) for key, item in value.items() if key not in {"id", "execution_time"}
        }
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return _CHANGING.sub("#", value)
    if isinstance(value, float):
        return round(value, 3)  # scores that depend on the age of a memory
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {value}"
    plain = value is None or isinstance(value, int)
    return value if plain else getattr(value, "value", type(value).__name__)


class _Log(logging.Handler):
    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self._recording = recording

    def emit(self, record: logging.LogRecord) -> None:
        self._recording.lines.append(("log", record.levelname, record.getMessage()))


@contextlib.contextmanager
def recording(*, hooks: bool = True) -> Iterator[Recording]:
    """Record everything that happens meanwhile."""
    made = Recording()
    bus = crewai_event_bus
    stock = bus._prepare_event  # noqa: SLF001 - what comes before the handlers, in the order of emission

    def prepare(source: Any, event: Any) -> None:
        stock(source, event)
        made.event(source, event)

    registered = []
    if hooks:
        for point in InterceptionPoint:
            if "model" in point.value or "tool" in point.value:
                continue

            def hook(context: Any, point: Any = point) -> None:
                made.hook(point, context)

            register(point, hook)
            registered.append((point, hook))
    log = _Log(made)
    logger = logging.getLogger("crewai.flow.runtime")
    logger.addHandler(log)
    bus._prepare_event = prepare  # noqa: SLF001
    try:
        yield made
    finally:
        del bus._prepare_event  # noqa: SLF001
        logger.removeHandler(log)
        for point, hook in registered:
            unregister(point, hook)
