"""The settings: the entries of ``[tool.crewai-native.tasks]`` that begin with ``celery_``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from crewai_native import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PREFIX: Final = "celery_"


class Options(NamedTuple):
    """How the cluster is reached, the same for workers and for whoever sends them batches.

    Attributes:
        celery_broker: The broker's URL, any of Celery's; or ``filesystem:///folder``. Without it
            ``CELERY_BROKER_URL`` in the environment.
        celery_results: Where items' states and outputs lie: ``redis://…``, ``rediss://…`` or
            ``sqlite:///file``. Without it the broker, if that is Redis.
        celery_queue: The queue.
        celery_config: A module or object with further settings of Celery, by its import path.
        celery_time_limit: Seconds that one kickoff may take at most; its process is killed then.
        celery_lost_after: Seconds without a sign of life after which a kickoff's process is taken
            to be dead.
        celery_keep: Seconds for which outputs are kept.
    """

    celery_broker: str | None = None
    celery_results: str | None = None
    celery_queue: str = "crewai-native"
    celery_config: str | None = None
    celery_time_limit: float = 3600.0
    celery_lost_after: float = 30.0
    celery_keep: float = 7 * 86_400.0

    @property
    def broker(self) -> str:
        """The broker's URL.

        Raises:
            ConfigurationError: There is none.
        """
        found = self.celery_broker or os.environ.get("CELERY_BROKER_URL")
        if not found:
            raise ConfigurationError(
                "tasks.celery_broker is not set; it accepts the URL of Celery's broker, such as "
                "redis://localhost"
            )
        return found

    @property
    def results(self) -> str:
        """The URL of where items' states and outputs lie.

        Raises:
            ConfigurationError: There is none.
        """
        found = self.celery_results or self.broker
        if not found.startswith(("redis://", "rediss://", "sqlite:///")):
            raise ConfigurationError(
                "tasks.celery_results is needed beside a broker that is not Redis; it accepts "
                "redis://…, rediss://… or sqlite:///file"
            )
        return found


def read(options: Mapping[str, Any]) -> Options:
    """Check the options that are this wheel's; others of ``tasks`` are for other plug-ins.

    Raises:
        ConfigurationError: One is unknown or means nothing.
    """
    own = {name: value for name, value in options.items() if name.startswith(PREFIX)}
    for name in own:
        if name not in _READERS:
            known = ", ".join(_READERS)
            raise ConfigurationError(
                f"tasks has no option {name!r}; of crewai-native-celery it has {known}"
            )
    return Options(**{name: _READERS[name](name, value) for name, value in own.items()})


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ConfigurationError(f"tasks.{name} is {value!r}; it accepts a text")
    return value.strip()


def _results(name: str, value: Any) -> str:
    text = _text(name, value)
    if not text.startswith(("redis://", "rediss://", "sqlite:///")):
        raise ConfigurationError(
            f"tasks.{name} is {value!r}; it accepts redis://…, rediss://… or sqlite:///file"
        )
    return text


def _seconds(name: str, value: Any) -> float:
    try:
        seconds = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        seconds = float("nan")
    if not 0 < seconds < float("inf"):
        raise ConfigurationError(f"tasks.{name} is {value!r}; it accepts seconds above 0")
    return seconds


# How each option is read: from its name and the value as written.
_READERS: Final[dict[str, Callable[[str, Any], Any]]] = {
    "celery_broker": _text,
    "celery_results": _results,
    "celery_queue": _text,
    "celery_config": _text,
    "celery_time_limit": _seconds,
    "celery_lost_after": _seconds,
    "celery_keep": _seconds,
}
