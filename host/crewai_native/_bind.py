"""Changes to CrewAI that can be taken back exactly.

A :class:`Binding` records each change of one slot and undoes them in reverse order. It replaces
attributes of existing modules and classes, never a class itself: a class is known by name in
dozens of modules, and instances, ``isinstance`` and pickles must keep meaning the same one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import inspect
import logging
import os
import sys
import threading
import types
import weakref
from typing import TYPE_CHECKING, Any, Final

import _crewai_native_hook

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from crewai_native._watch import Watch

    _Place = tuple[types.ModuleType, str, Any]

_logger = logging.getLogger("crewai_native")
_ABSENT: Final = object()
_MOST_LAYERS: Final = 1000
_METHODS: Final = (types.MethodType, staticmethod, classmethod)

# What stood where a function stands that was put there, by that function.
_stood: Final[weakref.WeakKeyDictionary[Any, Any]] = weakref.WeakKeyDictionary()

# A factory meters what a provider hands out, on whichever thread CrewAI calls it. One lock for all
# bindings: changes are rare. Nothing is imported under it: a thread that imports a module which
# somebody waits for holds that module's lock, and wants this one. A fork waits for it, so that no
# child inherits it locked by a thread that it does not have.
_lock: Final = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
    )


@dataclasses.dataclass(slots=True, eq=False)
class _Change:
    owner: Any
    name: str
    before: Any
    after: Any

    def in_force(self) -> bool:
        return vars(self.owner).get(self.name) is self.after

    def wrappers(self) -> list[Any] | None:
        """Return what wraps it since, outermost first, or None where something else stands there."""
        ours = _function(self.after)
        found: list[Any] = []
        for layer in layers(vars(self.owner).get(self.name)):
            if layer is ours:
                return found
            found.append(layer)
        return None

    def undo(self) -> None:
        with _lock:
            upper = self._leave_pile()
            if upper is not None and upper.before is self.after:
                # Another binding's, made on top of this one: it gives back what stood there before both.
                upper.before = self.before
                _relink(_function(upper.after), _function(self.after))
            else:
                self._give_back()

    def _leave_pile(self) -> _Change | None:
        """Forget the change; return the next one that was made in the same place."""
        place = id(self.owner), self.name
        pile = _piles.get(place, [])
        if self not in pile:
            return None
        at = pile.index(self)
        del pile[at]
        if not pile:
            del _piles[place]
        return pile[at] if at < len(pile) else None

    def _give_back(self) -> None:
        if not self.in_force():
            where = getattr(self.owner, "__qualname__", None) or getattr(
                self.owner, "__name__", repr(self.owner)
            )
            _logger.warning(
                "%s.%s was replaced by other code after crewai-native had set it; left as it is",
                where,
                self.name,
            )
        elif self.before is _ABSENT:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, self.before)


# All changes of a place, in the order in which they were made. They keep its owner alive.
_piles: Final[dict[tuple[int, str], list[_Change]]] = {}


class Binding:
    """The changes that serve one slot.

    Attributes:
        watch: Counts and times the slot's calls, and reverts the slot when it keeps failing.
        notes: What the user should know about how the slot was bound.
        served: What the provider handed over, where the slot's repairs need it.
    """

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.notes: list[str] = []
        self.served: Any = None
        self._changes: list[_Change] = []
        # Of classes that may go before the binding does: what stood there, and what stands there now.
        # Weak, as functions know the class that they are defined in; ours keeps the one before.
        self._passing: weakref.WeakKeyDictionary[
            type, dict[str, tuple[weakref.ref[Any], weakref.ref[Any]]]
        ] = weakref.WeakKeyDictionary()
        self._undo: list[Callable[[], None]] = []
        self._metered: set[type] = set()
        self._waiting: list[Callable[[], None]] = []

    def replace(self, owner: Any, name: str, value: Any) -> Any:
        """Set an attribute of a module or class and return what stood there.

        Args:
            owner: The module or class.
            name: The attribute. On a class it is replaced in that class's own ``__dict__``, so an
                inherited one is left as it is and shows again after :meth:`undo`.
            value: What stands there from now on.
        """
        with _lock:
            # A class's raw entry, not getattr: a staticmethod must come back as a staticmethod.
            before = vars(owner).get(name, _ABSENT)
            original = getattr(owner, name)
            setattr(owner, name, value)
            change = _Change(owner, name, before, vars(owner)[name])
            if isinstance(function := _function(value), types.FunctionType):
                _stood[function] = original
            _piles.setdefault((id(owner), name), []).append(change)
            self._changes.append(change)
            self._undo.append(change.undo)
            return original

    def wrap(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        """Replace a function by what ``make`` returns for the original."""
        self.replace(owner, name, make(getattr(owner, name)))

    def stand_in(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        """Replace a function by what ``make`` returns for it, for as long as the slot is served.

        A reference that somebody took meanwhile (a bound method in an agent's table of tools, an
        import into a user's module) outlives the binding; it runs the original from then on.
        """
        original = getattr(owner, name)
        self.replace(owner, name, self._switch(original, make(original)))

    def stand_in_passing(self, cls: type, name: str, make: Callable[[Any], Any]) -> None:
        """Do as :meth:`stand_in` for a method of a program's class, which is not kept alive for it.

        Args:
            cls: The class; it has the method itself.
            name: The method, a plain function, which is replaced once.
            make: As for :meth:`stand_in`.
        """
        with _lock:
            before = vars(cls)[name]
            after = self._switch(before, make(before))
            setattr(cls, name, after)
            self._passing.setdefault(cls, {})[name] = weakref.ref(before), weakref.ref(after)

    def _passing_changes(self) -> list[_Change]:
        # What is gone was replaced by something that does not call it.
        return [
            _Change(cls, name, before() or _ABSENT, after() or _ABSENT)
            for cls, changes in list(self._passing.items())
            for name, (before, after) in list(changes.items())
        ]

    def _switch(self, original: Any, ours: Any) -> Any:
        watch = self.watch
        if inspect.iscoroutinefunction(original):

            @functools.wraps(original)
            async def switch_async(*args: Any, **kwargs: Any) -> Any:
                return await (ours if watch.serving else original)(*args, **kwargs)

            return switch_async

        @functools.wraps(original)
        def switch(*args: Any, **kwargs: Any) -> Any:
            return (ours if watch.serving else original)(*args, **kwargs)

        return switch

    def replace_functions(
        self, replacements: Iterable[tuple[Any, Any]], package: str = "crewai"
    ) -> None:
        """Replace module-level functions under every name that imported modules know them by.

        ``from module import function`` copies the reference; modules of ``package`` loaded so far
        are searched for it. Modules loaded later copy it from the defining module, which has the
        replacement by then; they get the original back when the binding is undone.

        Args:
            replacements: Each function as it stands, and what stands there from now on. Modules of
                other packages may have copied it, so that must run the original once
                :attr:`watch` has stopped serving, as what :meth:`Watch.guard` returns does.
                All that a slot replaces belongs in one call: the search is what costs.
            package: Where to look.
        """
        by_function = dict(replacements)
        originals = {value: function for function, value in by_function.items()}

        def restore() -> None:
            for module, name, value in _names_of(originals, package):
                setattr(module, name, originals[value])

        # Undone last, after the changes below: it sees only what later modules copied.
        self.on_undo(restore)
        for module, name, function in _names_of(by_function, package):
            self.replace(module, name, by_function[function])

    def replace_body(self, function: Any, value: Any) -> Any:
        """Have a function run another's code, and return a function that runs its own.

        For functions that compiled code has taken hold of, as pydantic's validators have: no
        attribute of a class or module reaches those references.

        Args:
            function: The function, written in Python and without a closure.
            value: A function of the same parameters, likewise. It sees ``function``'s globals,
                not its own.
        """
        with _lock:
            body, other = function.__code__, value.__code__
            original = types.FunctionType(
                body, function.__globals__, function.__name__, function.__defaults__
            )
            # Whoever looks for the source of what is here finds CrewAI's.
            function.__wrapped__ = original
            function.__code__ = other
            _stood[function] = original

            def restore() -> None:
                if function.__code__ is other:
                    function.__code__ = body
                    del function.__wrapped__
                    del _stood[function]
                else:
                    _logger.warning(
                        "the body of %s was replaced by other code after crewai-native had set it; "
                        "left as it is",
                        function.__qualname__,
                    )

            self.on_undo(restore)
            return original

    def meter_methods(self, cls: type, names: Iterable[str]) -> None:
        """Count and time methods of a provider's class while the slot is bound; once per class.

        Methods that the class inherits are metered on the class itself. A class that takes no new
        attributes, as extension types do not, or whose instances find their methods in some other
        way, stays uncounted and a note says so.
        """
        with _lock:
            if cls in self._metered or not self.watch.serving:
                return
            self._metered.add(cls)
            for name in names:
                try:
                    self.wrap(cls, name, self.watch.meter)
                except (AttributeError, TypeError) as error:
                    self.notes.append(f"calls of {cls.__qualname__} are not counted ({error})")
                    return

    def when_imported(self, modules: Iterable[str], action: Callable[[], None]) -> None:
        """Do something as soon as all these modules are there, at the latest in :meth:`settle`.

        CrewAI imports some of its modules on first use only; importing them at activation, to
        change a method in them, would make every program pay for that.
        """
        wanted = list(modules)

        def step() -> None:
            with _lock:
                if wait not in self._waiting or not self.watch.serving:
                    return
                missing = next((name for name in wanted if name not in sys.modules), None)
                if missing is not None:
                    _crewai_native_hook.when_imported(missing, step)
                    self.on_undo(lambda: _crewai_native_hook.forget(missing, step))
                    return
                self._waiting.remove(wait)
            action()

        def wait() -> None:
            for name in wanted:
                with contextlib.suppress(Exception):  # the action finds out what is not there
                    importlib.import_module(name)
            wanted.clear()
            step()

        self._waiting.append(wait)
        step()

    def settle(self) -> None:
        """Do everything that still waits for an import."""
        for wait in list(self._waiting):
            wait()

    def on_undo(self, callback: Callable[[], None]) -> None:
        """Call something when the slot is unbound."""
        self._undo.append(callback)

    def in_force(self) -> bool:
        """Return whether everything that was set still stands, and nothing wraps it."""
        return self.wrappers() == []

    def wrappers(self) -> list[str] | None:
        """Return what other code has put over what was set, by name, or None where that is gone."""
        # Of several changes in one place, each made on top of the one before, the last counts.
        changes = self._changes + self._passing_changes()
        last = {(id(change.owner), change.name): change for change in changes}
        names: list[str] = []
        for change in last.values():
            found = change.wrappers()
            if found is None:
                return None
            names += [name_of(layer) for layer in found if not is_ours(layer)]
        return list(dict.fromkeys(names))

    def attempt(self, action: Callable[[Binding], None]) -> Exception | None:
        """Make some changes, or none: where that fails, they are undone and the error returned.

        Args:
            action: Makes them, through the binding that it is given.
        """
        part = Binding(self.watch)
        part.notes, part.served = self.notes, self.served
        part._metered, part._waiting = self._metered, self._waiting
        try:
            action(part)
        except Exception as error:  # noqa: BLE001 - returned
            part._take_back()
            return error
        with _lock:
            if self.watch.serving:
                self._changes += part._changes
                self._undo += part._undo
                self._passing.update(part._passing)
                return None
        # It was unbound meanwhile.
        part._take_back()
        return None

    def undo(self) -> None:
        """Take every change back, the last first.

        What somebody else has put over ours since then is theirs and stays; a warning says so.

        Raises:
            ExceptionGroup: Callbacks failed; every other change was still undone.
        """
        self.watch.close()
        with _lock:
            self._metered.clear()
            self._waiting.clear()
        self._take_back()

    def _take_back(self) -> None:
        errors = []
        with _lock:
            undo = self._undo + [change.undo for change in self._passing_changes()]
            self._undo = []
            self._changes.clear()
            self._passing.clear()
        for callback in reversed(undo):
            try:
                callback()
            except Exception as error:  # noqa: BLE001 - collected and raised below
                errors.append(error)
        if errors:
            raise ExceptionGroup("undoing a binding", errors)


def beneath(function: Any) -> Any:
    """Return what stood where a function stands before any binding put something there."""
    function = _function(function)
    # A proxy is equal to what it wraps, and says that it is of its class.
    while type(function) is types.FunctionType and function in _stood:
        function = _function(_stood[function])
    return function


def layers(function: Any) -> Iterator[Any]:
    """Give a function, and what it wraps, one after another."""
    # Objects that have any attribute that they are asked for may lead on for ever.
    for _ in range(_MOST_LAYERS):
        function = _function(function)
        if function is None:
            return
        yield function
        function = getattr(function, "__wrapped__", None)


def _relink(upper: Any, gone: Any) -> None:
    """Have what was put over a function call what that stood on, now that its change is undone.

    Slots that are bound anew by turns would otherwise lengthen the way of each call with every turn.
    """
    beneath_it = _stood.get(gone) if type(gone) is types.FunctionType else None
    if beneath_it is None:
        return
    parts, seen = [upper], set()
    while parts:
        part = _function(parts.pop())
        if type(part) is not types.FunctionType or part in seen:
            continue
        seen.add(part)
        if vars(part).get("__wrapped__") is gone:
            part.__wrapped__ = beneath_it  # type: ignore[attr-defined]
        if _stood.get(part) is gone:
            _stood[part] = beneath_it
        for cell in part.__closure__ or ():
            with contextlib.suppress(ValueError):  # nothing is in it
                if cell.cell_contents is gone:
                    cell.cell_contents = beneath_it
                else:
                    parts.append(cell.cell_contents)


def is_ours(function: Any) -> bool:
    """Whether a binding put a function where it stands."""
    return beneath(function) is not function


def name_of(wrapper: Any) -> str:
    """Return what to call a function that other code has put over one, and where it is from."""
    code = getattr(wrapper, "__code__", None)
    if type(wrapper) is not types.FunctionType or code is None:
        # A class of wrappers, which may say that it is what it wraps.
        return f"{type(wrapper).__module__}.{type(wrapper).__qualname__}"
    return f"{code.co_qualname} in {code.co_filename}"


def _function(value: Any) -> Any:
    """Return the function of a method, bound or not."""
    return value.__func__ if type(value) in _METHODS else value


def _names_of(functions: Collection[Any], package: str) -> Iterator[_Place]:
    """Find the names that the loaded modules of a package know functions by."""
    wanted = {id(function): function for function in functions}
    if _look is not None and _look.package == package and _look.wanted.keys() >= wanted.keys():
        return _look.places_of(wanted)
    return _search(wanted, _modules(package, set(sys.modules)).values())


def _modules(package: str, names: Collection[str]) -> dict[str, types.ModuleType]:
    """Return those of some modules, by name, that belong to a package and are still there."""
    prefix = f"{package}."
    return {
        name: module
        for name in names
        if name == package or name.startswith(prefix)
        if (module := sys.modules.get(name)) is not None
    }


def _search(wanted: Mapping[int, Any], modules: Iterable[types.ModuleType]) -> Iterator[_Place]:
    for module in modules:
        # Hardly any module knows one of them, and this asks at the speed of C. It runs no Python
        # code and makes nothing that the garbage collector counts, so no other thread gets a turn.
        if wanted.keys().isdisjoint(map(id, vars(module).values())):
            continue
        # A copy, as list(items()) fails when another thread adds a name.
        for name, attribute in vars(module).copy().items():
            if id(attribute) in wanted:
                yield module, name, attribute


class _Look:
    """One search for many functions, which several searches for some of them share."""

    def __init__(self, functions: Iterable[Any], package: str) -> None:
        self.wanted = {id(function): function for function in functions}
        self.package = package
        self._seen: set[str] = set()
        self._places: list[_Place] = []

    def places_of(self, wanted: Mapping[int, Any]) -> Iterator[_Place]:
        """Find the names of some, where they still stand."""
        names = sys.modules.keys() - self._seen
        new = _modules(self.package, names)
        # What another thread is importing meanwhile may copy a function after we have looked.
        unsettled = {name: module for name, module in new.items() if _initializing(module)}
        self._seen |= names - unsettled.keys()
        settled = [module for name, module in new.items() if name not in unsettled]
        self._places += _search(self.wanted, settled)
        for module, name, function in self._places:
            if id(function) in wanted and vars(module).get(name) is function:
                yield module, name, function
        yield from _search(wanted, unsettled.values())


def _initializing(module: types.ModuleType) -> bool:
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


_look: _Look | None = None


@contextlib.contextmanager
def one_look(functions: Iterable[Any], package: str = "crewai") -> Iterator[None]:
    """Search for these functions once only, however many bindings replace them in a block."""
    global _look  # noqa: PLW0603 - one at a time: the host binds under its lock
    _look = _Look(functions, package)
    try:
        yield
    finally:
        _look = None
