"""Tells crewai-native when a module has been imported, CrewAI first of all.

The line in ``crewai_native.pth`` imports this module at interpreter start-up. It must cost next
to nothing and must never fail: it only puts a finder in front of the import system, which answers
for the names that somebody waits for, and steps aside when there is none left.

PYTEST_DONT_REWRITE: pytest would rewrite the modules of a distribution that has an entry point for
it, and warn in every session that this one was imported too early for that.
"""

# No `from __future__ import annotations`: nothing else loads that module at start-up, and it is a
# fifth of what this one costs. What an annotation would have to import stands in quotes.
import os
import sys
from _thread import get_ident

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

_waiting: "dict[str, list[Callable[[], None]]]" = {}
"""What to call once a module has been imported, by the module's name."""


_asking: "set[tuple[int, str]]" = set()
"""Which thread asks the other finders for which module."""


class _Finder:
    """A meta-path finder that finds nothing itself: it has a look when a module is executed."""

    @staticmethod
    def find_spec(
        name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        asking = get_ident(), name
        # Other finders ask all others as well, this one included.
        if name not in _waiting or asking in _asking:
            return None
        _asking.add(asking)
        try:
            spec = _ask_those_behind(name, path, target)
        finally:
            _asking.discard(asking)
        # Somebody may only be looking whether there is such a module, so we go on waiting until it
        # really executes.
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _Loader(spec)  # type: ignore[assignment]  # it is no subclass
        return spec


def _ask_those_behind(
    name: str, path: "Sequence[str] | None", target: "ModuleType | None"
) -> "ModuleSpec | None":
    finders = list(sys.meta_path)
    # Those in front have been asked, or ask us themselves.
    start = finders.index(_Finder) + 1 if _Finder in finders else 0
    for finder in finders[start:]:
        if hasattr(finder, "find_spec"):
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                return spec
    return None


class _Loader:
    """The loader of one module, and what is to be called once it has executed it.

    It stands in for the loader only until then, and is otherwise like it: somebody may only want to
    know of the module where its code is.
    """

    def __init__(self, spec: "ModuleSpec") -> None:
        self._spec: Any = spec
        self._loader: Any = spec.loader

    def __getattr__(self, name: str) -> "Any":
        if name == "_loader":  # not there yet, as in a copy that is being made
            raise AttributeError(name)
        return getattr(self._loader, name)

    def create_module(self, spec: "ModuleSpec") -> "ModuleType | None":
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: "ModuleType") -> None:
        if self._spec.loader is self:
            self._spec.loader = self._loader
        if getattr(module, "__loader__", None) is self:
            module.__loader__ = self._loader
        self._loader.exec_module(module)
        name = module.__name__
        # If one of them raises, the import has failed, and they wait for the next attempt: a
        # program that tries again must not run without what it asked for.
        called = list(_waiting.get(name, ()))
        for callback in called:
            callback()
        for callback in called:
            forget(name, callback)


def when_imported(name: str, callback: "Callable[[], None]") -> None:
    """Call something each time that a module has been executed, until it returns normally."""
    _waiting.setdefault(name, []).append(callback)
    if _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)


def forget(name: str, callback: "Callable[[], None]") -> None:
    """Stop waiting, if it still does."""
    callbacks = _waiting.get(name, [])
    if callback in callbacks:
        callbacks.remove(callback)
    if not callbacks:
        _waiting.pop(name, None)
    if not _waiting and _Finder in sys.meta_path:
        sys.meta_path.remove(_Finder)


def _activate() -> None:
    from crewai_native import _start

    _start.activate()


if os.environ.get("CREWAI_NATIVE", "1").strip().lower() not in {"0", "false", "off", "no"}:
    when_imported("crewai", _activate)
