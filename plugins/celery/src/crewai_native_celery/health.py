"""Checks for ``crewai-native doctor``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from crewai_native import ConfigurationError
from crewai_native.health import error, ok

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crewai_native.health import Check
    from crewai_native_celery.options import Options

_SECONDS: Final = 3.0


def checks(options: Options) -> Iterator[Check]:
    """Try the broker and the results."""
    from kombu.utils.url import maybe_sanitize_url

    from crewai_native_celery import app, store

    try:
        broker, results = options.broker, options.results
    except ConfigurationError as missing:
        yield ok("celery", f"not set up: {missing}")
        return
    try:
        with app.made(options).connection_for_write(connect_timeout=_SECONDS) as connection:
            connection.ensure_connection(max_retries=1, timeout=_SECONDS)
    except Exception as failure:  # noqa: BLE001 - each transport has its own
        yield error("celery broker", f"{maybe_sanitize_url(broker)}: {failure}")
    else:
        yield ok("celery broker", maybe_sanitize_url(broker))
    try:
        store.opened(results, keep=1, attempts=0).read(["health"])
    except Exception as failure:  # noqa: BLE001 - as above
        yield error("celery results", f"{maybe_sanitize_url(results)}: {failure}")
    else:
        yield ok("celery results", maybe_sanitize_url(results))
