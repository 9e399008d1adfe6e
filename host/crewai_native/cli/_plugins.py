"""Sub-commands that plug-ins add."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

from crewai_native import _settings
from crewai_native._errors import CrewAINativeError
from crewai_native.cli import _console

if TYPE_CHECKING:
    from typer.core import TyperCommand


class Group(TyperGroup):
    """The host's commands, and after them those of plug-ins.

    Plug-ins are imported only where their commands can matter: for the help, and for a command
    that is not one of the host's.
    """

    _added: dict[str, Any] | None = None

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command by its name, or None."""
        own = super().get_command(ctx, cmd_name)
        return own if own is not None else self._of_plugins().get(cmd_name)

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all commands."""
        return [*super().list_commands(ctx), *self._of_plugins()]

    def _of_plugins(self) -> dict[str, Any]:
        if self._added is None:
            self._added = _commands(frozenset(self.commands))
        return self._added


def _commands(taken: frozenset[str]) -> dict[str, TyperCommand]:
    """Return what the plug-ins add, leaving out and reporting what cannot be had."""
    from crewai_native import _roster
    from crewai_native._plugins import Plugins

    added: dict[str, Any] = {}
    try:
        settings = _settings.load()
        roster = _roster.roster(settings)
    except CrewAINativeError as error:
        _console.warn(f"no sub-commands of plug-ins: {error}")
        return added
    for distribution, problem in roster.problems:
        _console.warn(f"{distribution}: {problem}")
    plugins = Plugins()
    for offer in roster.sound:
        name = offer.candidate.distribution
        try:
            app = typer.Typer()
            _roster.configured(plugins, offer, settings).call("crewai_native_cli", app=app)
            commands = get_group(app).commands
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - it ends no command that is not its own
            _console.warn(f"{name}: its sub-commands: {type(error).__name__}: {error}")
            continue
        for command, found in commands.items():
            if command in taken or command in added:
                _console.warn(f"{name}: there is a command {command!r} already")
            else:
                added[command] = found
    return added
