"""How calls end that the engine ends, and what every failure says of its call."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_LONGEST: Final = 300
"""Characters of one argument's value in a message."""
_DEEPEST: Final = 8
_MOST: Final = 100
"""Values of all arguments in a message."""
_REDACTED: Final = "<redacted>"


class ToolStopped(Exception):  # noqa: N818 - what has happened; its subclasses are the errors
    """The engine has ended a call, or has not let it start.

    Attributes:
        code: Which rule did it, by the name of the policy's field, or ``cancelled``.
        retryable: Whether the same call may succeed later.
        details: What is known of the call: ``tool``, ``call_id``, ``arguments`` (redacted),
            ``policy``, ``elapsed`` in seconds, and ``chain``, the tools that it was inside of.
    """

    def __init__(
        self, message: str, *, code: str, retryable: bool = False, details: Mapping[str, Any]
    ) -> None:
        super().__init__(message)
        self.code = code
        self.retryable = retryable
        self.details = dict(details)


class ToolTimeout(ToolStopped, TimeoutError):  # noqa: N818 - as its base
    """The caller's time was up. The tool may still be running: see ``cancelled()``."""


class ToolRefused(ToolStopped):
    """The tool was not run: a limit was reached."""


class ToolCancelled(ToolStopped):
    """Somebody cancelled the run."""


class RunStopped(ToolStopped):
    """The whole run must end: it goes round in circles, or its budget is spent."""


class ToolSkipped(Exception):  # noqa: N818 - what has happened
    """A call of ``execute_many`` was not made, because one that it depends on has failed."""


def redacted(arguments: Any, names: Iterable[str]) -> Any:
    """Return arguments as text by name, without the values of those that are secret.

    Args:
        arguments: By name; or JSON text; or anything else.
        names: Parts of the names of secret arguments, in lower case.
    """
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except (ValueError, RecursionError):
            parsed = None
        if not isinstance(parsed, dict):
            return _short(arguments)
        arguments = parsed
    if not isinstance(arguments, Mapping):
        return _short(arguments)
    return _Excerpt(tuple(names)).mapping(arguments, _DEEPEST)


class _Excerpt:
    """Values without those that are secret, and no more than a message can have."""

    def __init__(self, secrets: tuple[str, ...]) -> None:
        self._secrets = secrets
        self._left = _MOST

    def mapping(self, values: Mapping[Any, Any], depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in values.items():
            if self._left <= 0:
                found["…"] = f"{len(values) - len(found)} more"
                break
            found[str(name)] = self._value(name, value, depth)
        return found

    def _value(self, name: Any, value: Any, depth: int) -> Any:
        if isinstance(name, str) and any(secret in name.lower() for secret in self._secrets):
            return _REDACTED
        if isinstance(value, Mapping) and depth:
            return self.mapping(value, depth - 1)
        if isinstance(value, list | tuple) and depth:
            found: list[Any] = []
            for item in value:
                if self._left <= 0:
                    found.append(f"… {len(value) - len(found)} more")
                    break
                found.append(self._value(None, item, depth - 1))
            return found
        self._left -= 1
        return _short(value)


def _short(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    try:
        text = value if isinstance(value, str) else repr(value)
    except Exception as error:  # noqa: BLE001 - whatever a value's own code raises
        return f"<{type(value).__name__}, whose repr raises {type(error).__name__}>"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}… ({len(text)} characters)"


def describe(details: Mapping[str, Any]) -> str:
    """Return what is known of a call, in one line."""
    chain = " -> ".join(details["chain"])
    return (
        f"tool {details['tool']!r}, call {details['call_id']}, after {details['elapsed']:.3f} s, "
        f"chain {chain}, policy: {details['policy'] or 'none'}, arguments: {details['arguments']}"
    )
