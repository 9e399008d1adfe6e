"""What can go from one process to another, and how.

Messages are pickled. They are only ever read from a socket whose other end was made for the one
process that writes it: a worker that this process started, or the process that started the worker.
Nothing that lay on a disk or came over a network is unpickled. A worker is no less trusted than the
tool was while it ran in this process; what it is kept from is taking the process down with it.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import hashlib
import importlib
import inspect
import io
import pickle
import socket
import sys
import threading
import types
import typing
from typing import TYPE_CHECKING, Any, Final

from crewai_native_tools.isolation._errors import NotTransferable, ResultTooLarge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextvars import Context, ContextVar

_ACCEPTED: Final = (
    "accepted are functions at the top level of an importable module, @tool functions and "
    "instances of BaseTool subclasses defined there, their methods, and functools.partial of these"
)
_VALUES: Final = "accepted are values that pickle can copy, of classes that can be imported"
_PLAIN: Final = (type(None), bool, int, float, str, bytes)
_PLAIN_DEPTH: Final = 4
_PLAIN_ITEMS: Final = 64
_PLAIN_LENGTH: Final = 65_536
_LOCKS: Final = {type(threading.Lock()): threading.Lock, type(threading.RLock()): threading.RLock}
# What no process can hand to another. An iterator that a tool announces is a generator in practice.
_BOUND_TO_A_PROCESS: Final = (
    *_LOCKS,
    collections.abc.AsyncGenerator,
    collections.abc.AsyncIterator,
    collections.abc.Generator,
    collections.abc.Iterator,
    io.IOBase.__base__,
    socket.socket,
    threading.Thread,
    types.FrameType,
    types.ModuleType,
    types.TracebackType,
    typing.IO,
)


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """A function that a worker can load.

    Attributes:
        name: What it is called in messages.
        digest: Tells it from others.
        data: How the worker finds it.
    """

    name: str
    digest: bytes
    data: bytes


def check_transferable(function: Callable[..., Any], *, name: str | None = None) -> Target:
    """Return how a worker finds a function; to be called when a tool is registered.

    What the function's annotations say about arguments and result is checked as well. What they do
    not say is found out by the call.

    Args:
        function: A function or method, a ``BaseTool`` (its ``_run`` is meant), or a
            ``functools.partial``. State that a tool holds is copied now: later changes of it, on
            either side, stay where they are made.
        name: What messages call it; by default its own name.

    Raises:
        NotTransferable: No other process can have it; the message says what is in the way and
            what would be accepted.
    """
    label = name or _name_of(function)
    called = getattr(function, "_run", function)
    if not callable(called):
        raise NotTransferable(_refusal(label, f"{function!r} cannot be called"))
    _check_annotations(label, called)
    buffer = io.BytesIO()
    try:
        _TargetPickler(buffer, label).dump(called)
    except NotTransferable:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise NotTransferable(_refusal(label, f"it cannot be pickled ({reason})")) from error
    data = buffer.getvalue()
    return Target(label, hashlib.blake2b(data, digest_size=16).digest(), data)


def pack_arguments(
    target: Target, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[bytes, bytes]:
    """Return arguments, and what the caller's context holds, as bytes.

    Raises:
        NotTransferable: An argument cannot go; the message names it.
    """
    try:
        return pickle.dumps((tuple(args), dict(kwargs)), protocol=5), context_values()
    except Exception as error:
        named = [*((str(at), value) for at, value in enumerate(args)), *kwargs.items()]
        for place, value in named:
            try:
                pickle.dumps(value, protocol=5)
            except Exception as found:
                raise NotTransferable(
                    f"tool {target.name!r}: argument {place} ({type(value).__name__}) cannot go to "
                    f"the tool's process ({type(found).__name__}: {found}); {_VALUES}"
                ) from found
        raise NotTransferable(
            f"tool {target.name!r}: its arguments cannot go to its process "
            f"({type(error).__name__}: {error}); {_VALUES}"
        ) from error


def pack_result(value: Any, most: int) -> bytes:
    """Return a result as at most ``most`` bytes.

    Raises:
        ResultTooLarge: It takes more.
        NotTransferable: It cannot go.
    """
    bounded = _Bounded(most)
    try:
        pickle.Pickler(bounded, protocol=5).dump(value)
    except (ResultTooLarge, MemoryError):
        raise
    except Exception as error:
        raise NotTransferable(
            f"the result ({type(value).__name__}) cannot leave the tool's process "
            f"({type(error).__name__}: {error}); {_VALUES}"
        ) from error
    return bounded.getvalue()


class _Bounded(io.BytesIO):
    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def write(self, data: Any) -> int:
        size = self.tell() + memoryview(data).nbytes
        if size > self._most:
            raise ResultTooLarge(f"the result takes more than {self._most} bytes (result_bytes)")
        return super().write(data)


# --- functions and tools ----------------------------------------------------------------------

_STANDS_FOR: Final = "__crewai_native_stands_for__"


def forked(fork: Any, function: Any) -> Any:
    """Mark a function as one that stands for another while calls go to workers."""
    setattr(fork, _STANDS_FOR, function)
    return fork


def unforked(function: Any) -> Any:
    """Return the function that another stands for, or itself."""
    if isinstance(function, types.MethodType):
        method = unforked(function.__func__)
        owner = function.__self__
        return function if method is function.__func__ else method.__get__(owner, type(owner))
    return getattr(function, _STANDS_FOR, function)


class _TargetPickler(pickle.Pickler):
    """Pickles a function by where it is found, and says why if that does not work."""

    def __init__(self, file: io.BytesIO, label: str) -> None:
        super().__init__(file, protocol=5)
        self._label = label

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, types.FunctionType):
            function = unforked(value)
            return self._function(value) if function is value else (_itself, (function,))
        if isinstance(value, type):
            self._check_place(value)
            return NotImplemented
        if type(value) in _LOCKS:
            # A lock guards what is in its own process.
            return _LOCKS[type(value)], ()
        if _is_tool(value):
            return _rebuild_tool, (type(value), *_state(value))
        return NotImplemented

    def _function(self, function: types.FunctionType) -> Any:
        self._check_place(function)
        found = _find(function.__module__, function.__qualname__)
        if found is function:
            return NotImplemented
        if unforked(found) is function:
            return _find, (function.__module__, function.__qualname__)
        # `@tool` leaves a Tool where the function was.
        if unforked(getattr(found, "func", None)) is function:
            return _find_function, (function.__module__, function.__qualname__)
        raise NotTransferable(
            _refusal(
                self._label,
                f"{function.__module__}.{function.__qualname__} is not what is found there",
            )
        )

    def _check_place(self, value: Any) -> None:
        if (reason := _not_importable(value)) is not None:
            raise NotTransferable(_refusal(self._label, reason))


def _is_tool(value: Any) -> bool:
    base_tool = sys.modules.get("crewai.tools.base_tool")
    return base_tool is not None and isinstance(value, base_tool.BaseTool)


def _state(tool: Any) -> tuple[dict[str, Any], dict[str, Any], set[str]]:
    """Return a tool's fields, private attributes and names of fields that were set."""
    fields = dict(vars(tool))
    for name in ("args_schema", "result_schema"):
        # Most are made at run time from a signature. The arguments are validated before they go.
        if isinstance(fields.get(name), type) and _not_importable(fields[name]) is not None:
            del fields[name]
    # Uses are counted, and whether a result is kept is decided, in the tool's own process. With a
    # count in it, each call would be that of another tool.
    for name in ("cache_function", "current_usage_count"):
        fields.pop(name, None)
    return fields, dict(tool.__pydantic_private__ or {}), set(tool.__pydantic_fields_set__)


def _rebuild_tool(
    cls: Any, fields: dict[str, Any], private: dict[str, Any], was_set: set[str]
) -> Any:
    tool = cls.__new__(cls)
    for name in ("args_schema", "result_schema", "cache_function", "current_usage_count"):
        fields.setdefault(name, cls.model_fields[name].get_default(call_default_factory=True))
    object.__setattr__(tool, "__dict__", fields)
    object.__setattr__(tool, "__pydantic_private__", private)
    object.__setattr__(tool, "__pydantic_fields_set__", was_set)
    object.__setattr__(tool, "__pydantic_extra__", None)
    return tool


def _itself(value: Any) -> Any:
    return value


def _find(module: str, qualname: str) -> Any:
    found: Any = importlib.import_module(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found


def _find_function(module: str, qualname: str) -> Any:
    return _find(module, qualname).func


def _not_importable(value: Any) -> str | None:
    """Return why no other process can import a function or a class, or None."""
    kind = "class" if isinstance(value, type) else "function"
    place = f"{kind} {value.__qualname__}"
    if value.__qualname__.rpartition(".")[2] == "<lambda>":
        return f"{place} has no name"
    if "<locals>" in value.__qualname__:
        return f"{place} is defined inside a function"
    if value.__module__ == "__main__":
        return f"{place} is defined in the program that was started; move it into a module"
    if isinstance(value, type):
        module = sys.modules.get(value.__module__)
        found: Any = module
        for part in value.__qualname__.split("."):
            found = getattr(found, part, None)
        # Classes in C may be found elsewhere; pickle knows where.
        if found is not value and isinstance(module, types.ModuleType) and _made_at_runtime(value):
            return f"{place} is not found in {value.__module__}"
    return None


def _made_at_runtime(cls: type) -> bool:
    return hasattr(cls, "__pydantic_fields__")


def _name_of(function: Any) -> str:
    if isinstance(function, functools.partial):
        return _name_of(function.func)
    name = getattr(function, "name", None)
    if isinstance(name, str):
        return name
    owner = getattr(getattr(function, "__self__", None), "name", None)
    if isinstance(owner, str):
        return owner
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def _refusal(label: str, reason: str) -> str:
    return f"tool {label!r} cannot run in a process of its own: {reason}; {_ACCEPTED}"


# --- annotations ------------------------------------------------------------------------------


def _check_annotations(label: str, called: Any) -> None:
    function = called.func if isinstance(called, functools.partial) else called
    function = inspect.unwrap(getattr(function, "__func__", function))
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise NotTransferable(
            _refusal(label, "it is a generator, which stays in the process that runs it")
        )
    try:
        hints = typing.get_type_hints(function)
    except Exception:  # noqa: BLE001 - names that exist for type checkers only, or no function
        return
    for name, hint in hints.items():
        for part in _parts(hint):
            if (reason := _bound(part)) is not None:
                what = "its result" if name == "return" else f"argument {name}"
                raise NotTransferable(
                    f"tool {label!r} cannot run in a process of its own: {what} is annotated as "
                    f"{part!r}, {reason}; {_VALUES}"
                )


def _parts(hint: Any) -> Iterator[Any]:
    yield typing.get_origin(hint) or hint
    if typing.get_origin(hint) is not typing.Literal:
        for argument in typing.get_args(hint):
            yield from _parts(argument)


def _bound(part: Any) -> str | None:
    if not isinstance(part, type):
        return None
    # Abstract classes are compared, not asked: a list is no Iterator, a file is.
    if part in _BOUND_TO_A_PROCESS or any(base in _BOUND_TO_A_PROCESS for base in part.__mro__):
        return "which stays in the process that made it"
    if "<locals>" in part.__qualname__ or part.__module__ == "__main__":
        return _not_importable(part)
    return None


# --- context ----------------------------------------------------------------------------------

_Places = tuple[tuple[str, str], ...]
_places: dict[ContextVar[Any], _Places] = {}


def context_values() -> bytes:
    """Return the plain values in the caller's context, by where their variables are found.

    A variable goes if it is an attribute of a module, and if its value is text, a number, None or a
    short list or dictionary of such. What else a context holds, such as spans, crews and
    connections, belongs to this process.
    """
    import contextvars

    values = [
        (places, value)
        for variable, value in contextvars.copy_context().items()
        if _plain(value, _PLAIN_DEPTH) and (places := _places_of(variable))
    ]
    return pickle.dumps(values, protocol=5)


def restore_context(data: bytes, context: Context) -> None:
    """Set what :func:`context_values` returned, where the module is loaded here too."""
    for places, value in pickle.loads(data):  # noqa: S301 - from the parent, see above
        for module, name in places:
            if module in sys.modules:
                context.run(getattr(sys.modules[module], name).set, value)
                break


def _places_of(variable: ContextVar[Any]) -> _Places:
    known = _places.get(variable)
    if known is None:
        known = _places[variable] = tuple(
            (module_name, name)
            for module_name, module in list(sys.modules.items())
            if module_name != "__main__" and isinstance(module, types.ModuleType)
            for name, value in list(vars(module).items())
            if value is variable
        )
    return known


def _plain(value: Any, depth: int) -> bool:
    kind = type(value)
    if kind in _PLAIN:
        return kind not in (str, bytes) or len(value) <= _PLAIN_LENGTH
    if depth == 0 or kind not in (tuple, list, dict) or len(value) > _PLAIN_ITEMS:
        return False
    if kind is dict:
        return all(_plain(k, depth - 1) and _plain(v, depth - 1) for k, v in value.items())
    return all(_plain(item, depth - 1) for item in value)
