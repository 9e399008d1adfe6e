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

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

_waiting: "dict[str, list[Callable[[], None]]]" = {}
"""What to call once a module has been imported, by the module's name."""


class _Finder:
    """A meta-path finder that finds nothing itself: it has a look when a module is executed."""

    @staticmethod
    def find_spec(
        name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        if name not in _waiting:
            return None
        # Ask the other finders, in their order. Somebody may only be looking whether there is
        # such a module, so we go on waiting until it really executes.
        for finder in list(sys.meta_path):
            if finder is _Finder or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                break
        else:
            return None
        execute = getattr(spec.loader, "exec_module", None)
        if execute is None:
            return spec

        def exec_and_tell(module: "ModuleType") -> None:
            execute(module)
            if module.__name__ != name:
                return  # a loader that serves several modules, as a zip file's does
            vars(spec.loader).pop("exec_module", None)
            # If one of them raises, the import has failed, and they wait for the next attempt: a
            # program that tries again must not run without what it asked for.
            for callback in list(_waiting.get(name, ())):
                callback()
            for callback in list(_waiting.get(name, ())):
                forget(name, callback)

        # On this one loader instance: its class serves every other module too.
        spec.loader.exec_module = exec_and_tell
        return spec


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
