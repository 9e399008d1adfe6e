"""Loads plug-ins and calls their hooks one by one, so that one failing takes no other with it."""

from __future__ import annotations

import difflib
import importlib
import inspect
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pluggy

from crewai_native import hookspecs
from crewai_native._errors import ProviderError

if TYPE_CHECKING:
    from collections.abc import Callable

    from crewai_native._discovery import Offer

_PREFIX: Final = "crewai_native_"


class Plugin(NamedTuple):
    """An imported, validated plug-in.

    Attributes:
        distribution: The distribution that it came from.
        version: Its version.
        value: Its entry-point value.
        hooks: Its implementations by hook name, each taking keyword arguments.
    """

    distribution: str
    version: str
    value: str
    hooks: dict[str, Callable[..., Any]]

    def hook(self, name: str) -> Callable[..., Any]:
        """Return its implementation of a hook.

        Raises:
            ProviderError: It has none.
        """
        try:
            return self.hooks[name]
        except KeyError:
            raise ProviderError(
                f"{self.distribution} {self.version} declares the slot, and {self.value} "
                f"implements no {name}"
            ) from None

    def call(self, hook: str, default: Any = None, **arguments: Any) -> Any:
        """Call one of its hooks, or return ``default`` where it does not implement it."""
        implementation = self.hooks.get(hook)
        return default if implementation is None else implementation(**arguments)


class Plugins:
    """The plug-ins loaded so far, by entry-point value."""

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager("crewai_native")
        self._manager.add_hookspecs(hookspecs)
        self._loaded: dict[str, Plugin] = {}
        self._failed: dict[str, BaseException] = {}

    def __iter__(self) -> Any:
        return iter(list(self._loaded.values()))

    def load(self, offer: Offer) -> Plugin:
        """Import and register a plug-in, once; one that failed is not tried again.

        Raises:
            pluggy.PluginValidationError: A hook does not fit its specification.
            BaseException: Whatever the import raised.
        """
        if offer.value in self._failed:
            raise self._failed[offer.value]
        if offer.value not in self._loaded:
            try:
                hooks = self._register(offer.value)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                self._failed[offer.value] = error
                raise
            self._loaded[offer.value] = Plugin(
                offer.candidate.distribution, offer.candidate.version, offer.value, hooks
            )
        return self._loaded[offer.value]

    def _register(self, value: str) -> dict[str, Callable[..., Any]]:
        module, _, attribute = value.partition(":")
        found: Any = importlib.import_module(module)
        for name in attribute.split(".") if attribute else ():
            found = getattr(found, name)
        try:
            self._manager.register(found, name=value)
            return self._implementations(found)
        except pluggy.PluginValidationError as error:
            self._manager.unregister(name=value)
            accepted = [
                f"{name} accepts {', '.join(inspect.signature(spec).parameters) or 'no argument'}"
                for name, spec in vars(hookspecs).items()
                if f"'{name}'" in str(error)
            ]
            raise pluggy.PluginValidationError(found, "; ".join([str(error), *accepted])) from error

    def _implementations(self, plugin: object) -> dict[str, Callable[..., Any]]:
        found = {}
        for caller in self._manager.get_hookcallers(plugin) or ():
            for implementation in caller.get_hookimpls():
                if implementation.plugin is not plugin:
                    continue
                if caller.spec is None and not implementation.optionalhook:
                    raise pluggy.PluginValidationError(plugin, _no_hook(caller.name))
                if implementation.wrapper or implementation.hookwrapper:
                    raise pluggy.PluginValidationError(
                        plugin, f"{caller.name}: this host calls no hook wrappers"
                    )
                if caller.spec is not None:
                    found[caller.name] = _by_keyword(implementation, caller.spec.argnames)
        return found


def _no_hook(name: str) -> str:
    # What all of them begin with makes none of them alike.
    hooks = [hook.removeprefix(_PREFIX) for hook in vars(hookspecs) if hook.startswith(_PREFIX)]
    near = difflib.get_close_matches(name.removeprefix(_PREFIX), hooks, n=1)
    meant = f" (did you mean {_PREFIX}{near[0]}?)" if near else ""
    there_are = "" if near else f"; there are: {', '.join(_PREFIX + hook for hook in hooks)}"
    return f"{name} is no hook of this host's contract{meant}{there_are}"


def _by_keyword(implementation: pluggy.HookImpl, offered: tuple[str, ...]) -> Callable[..., Any]:
    """Return the function itself, or one that drops the arguments it does not take."""
    function: Callable[..., Any] = implementation.function
    accepted = implementation.argnames
    if set(offered) <= set(accepted):
        return function

    def fitting(**arguments: Any) -> Any:
        return function(**{name: arguments[name] for name in accepted})

    return fitting
