"""How many requests and tokens models may be asked for in a minute.

The limits of ``[tool.crewai-native.tasks]`` hold for all crews of the process and, through a small
file, for all processes that share CrewAI's storage directory. A batch adds its crew's ``max_rpm``,
which CrewAI would grant to each copy of the crew anew.
"""

from __future__ import annotations

import contextvars
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from crewai_native_tasks._native import Limiter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crewai_native_tasks.options import Options

# What a call is expected to use before any has reported: a short prompt and its answer.
_FIRST_GUESS: Final = 1000
# The weight of one report in what is expected.
_WEIGHT: Final = 0.1


class Limit:
    """One limit.

    Args:
        requests: Requests in a minute, or None.
        tokens: Tokens in a minute, as far as models report them, or None.
        path: File through which processes share the counts, or None.
    """

    def __init__(
        self, *, requests: int | None, tokens: int | None = None, path: Path | None = None
    ) -> None:
        self._limiter = Limiter(requests=requests, tokens=tokens, path=path)
        self._expected = 0.0 if tokens is None else min(_FIRST_GUESS, tokens / 10)

    def admit(self) -> tuple[_Admitted | None, float]:
        """Count a request, or say for how many seconds to wait."""
        expected = round(self._expected)
        when, wait = self._limiter.admit(expected)
        return (None if when is None else _Admitted(self, when, expected)), wait

    def withdraw(self, admitted: _Admitted) -> None:
        """Forget a request that was not made."""
        self._limiter.withdraw(admitted.when, admitted.expected)

    def settle(self, admitted: _Admitted, tokens: int) -> None:
        """Note what a request has used."""
        self._limiter.settle(admitted.when, admitted.expected, tokens)
        self._expected += (tokens - self._expected) * _WEIGHT


class _Admitted(NamedTuple):
    limit: Limit
    when: int
    expected: int


class Admission:
    """A model call that was admitted, until it is settled."""

    def __init__(self, admitted: Sequence[_Admitted]) -> None:
        self._admitted = admitted
        self._token = _admission.set(self)
        self.tokens = 0

    def settle(self, *, failed: bool) -> None:
        """Count what was used. A model that reports nothing is taken to have used what others do."""
        _admission.reset(self._token)
        for admitted in self._admitted:
            if self.tokens or failed:
                admitted.limit.settle(admitted, self.tokens)


_admission: Final[contextvars.ContextVar[Admission | None]] = contextvars.ContextVar(
    "crewai_native_tasks_admission", default=None
)
of_batch: Final[contextvars.ContextVar[tuple[Limit, ...]]] = contextvars.ContextVar(
    "crewai_native_tasks_limits", default=()
)
_configured: tuple[Limit, ...] | None = ()
_options: Options | None = None
_lock: Final = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
    )


def configure(options: Options) -> None:
    """Take the limits of the settings; their file is opened at the first model call."""
    global _configured, _options  # noqa: PLW0603 - one set of limits for the process
    with _lock:
        _options = options
        limited = options.requests_per_minute or options.tokens_per_minute
        _configured = None if limited else ()


def in_force() -> tuple[Limit, ...]:
    """Return the limits that hold here."""
    configured = _configured
    return (_open() if configured is None else configured) + of_batch.get()


def _open() -> tuple[Limit, ...]:
    global _configured  # noqa: PLW0603 - as above
    with _lock:
        if _configured is None and _options is not None:
            path = _options.limits_path or default_path()
            path.parent.mkdir(parents=True, exist_ok=True)
            limit = Limit(
                requests=_options.requests_per_minute,
                tokens=_options.tokens_per_minute,
                path=path,
            )
            _configured = (limit,)
        return _configured or ()


def default_path() -> Path:
    """Return the file that processes share where none is configured."""
    from crewai_core.paths import db_storage_path

    return Path(db_storage_path()) / "native" / "limits"


def admit(limits: Sequence[Limit]) -> tuple[Admission | None, float]:
    """Count a request with all limits, or with none and say for how many seconds to wait."""
    admitted: list[_Admitted] = []
    for limit in limits:
        one, wait = limit.admit()
        if one is None:
            for other in admitted:
                other.limit.withdraw(other)
            return None, wait
        admitted.append(one)
    return Admission(admitted), 0.0


def used(tokens: int) -> None:
    """Note tokens that a model call of the current context has reported."""
    if (admission := _admission.get()) is not None:
        admission.tokens += tokens
