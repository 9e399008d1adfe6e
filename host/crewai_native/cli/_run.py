"""``crewai-native run``: a program under settings given on the command line."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NoReturn

import typer

from crewai_native import _roster, _settings
from crewai_native._errors import ConfigurationError
from crewai_native._types import COMPONENTS
from crewai_native.cli import _console

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

# What a shell answers, for scripts that look at it.
_NOT_FOUND = 127
_NOT_RUNNABLE = 126


def environment(
    *,
    slots: Iterable[str] = (),
    off: Iterable[str] = (),
    only: Sequence[str] = (),
    stock: bool = False,
    strict: bool = False,
    verify: str | None = None,
    metrics: Path | None = None,
) -> dict[str, str]:
    """Return the environment variables that say the same as the options.

    Raises:
        ConfigurationError: An option means nothing.
    """
    found = {"CREWAI_NATIVE": "0" if stock else "1"}
    for choice in slots:
        slot, equals, provider = choice.partition("=")
        if not equals:
            raise ConfigurationError(f"--slot is {choice!r}; it accepts SLOT=PROVIDER")
        _settings.check_slot(slot, "--slot")
        found[f"CREWAI_NATIVE_SLOT_{slot.replace('.', '_').upper()}"] = provider
    off, only = _components(off, "--off"), _components(only, "--only")
    for component in COMPONENTS:
        if component in off or (only and component not in only):
            found[f"CREWAI_NATIVE_{component.upper()}"] = "0"
        elif component in only:
            found[f"CREWAI_NATIVE_{component.upper()}"] = "1"
    if strict:
        found["CREWAI_NATIVE_STRICT"] = "1"
    if verify is not None:
        found["CREWAI_NATIVE_VERIFY"] = verify
    if metrics is not None:
        found["CREWAI_NATIVE_METRICS"] = str(_settings.check_path(metrics, "--metrics").absolute())
    return found


def run(command: Sequence[str], variables: Mapping[str, str]) -> NoReturn:
    """Become the program.

    Raises:
        ConfigurationError: The settings that the program would read mean nothing.
        typer.Exit: There is no such program, or it cannot be run.
    """
    environ = {**os.environ, **variables}
    # Here it is one line; in the program it would be the traceback of its import of CrewAI.
    settings = _settings.load(environ)
    if settings.enabled:
        _roster.eligible(settings)
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execvpe(command[0], list(command), environ)  # noqa: S606 - what the user asked for
    except FileNotFoundError:
        _console.complain(f"there is no program {command[0]!r}")
        raise typer.Exit(_NOT_FOUND) from None
    except OSError as error:
        _console.complain(f"{command[0]!r} cannot be run: {error.strerror}")
        raise typer.Exit(_NOT_RUNNABLE) from None


def _components(names: Iterable[str], option: str) -> list[str]:
    found = list(names)
    for name in found:
        if name not in COMPONENTS:
            raise ConfigurationError(f"{option} is {name!r}; it accepts {', '.join(COMPONENTS)}")
    return found
