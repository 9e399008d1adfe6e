"""Which embedder made a vector: a name to compare and to show."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import re
import weakref
from collections.abc import Iterable
from types import CodeType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

# What a setting is for is told by the words of its name; whole words, so that "key" is not found
# in "monkey" nor "retr" in "retrieval_query". Credentials, and how the work is done, do not change
# what an embedder computes, and are nobody's business.
_IRRELEVANT: Final = re.compile(
    "(api)?keys?|tokens?|secrets?|password|credentials?|username|headers?|timeout|retry|retries|"
    "delay|client|session|proxy|proxies|verify|device|batch|threads?|workers?|concurrency|verbose|"
    "cache|last|state|status|error"
)
# Where a server is does not matter, either, unless nothing else tells which model it has.
_ADDRESS: Final = re.compile("url|uri|host|endpoint|port|base")
_MODEL: Final = re.compile("model|deployment")
_NAMED: Final = re.compile("model")
# Any other number or flag that an embedder holds may be a counter or a state that changes.
_DECISIVE: Final = re.compile("dims?|dimensions?|normali[sz]ed?|truncate|version|revision")
_DEPTH: Final = 3
# A larger dictionary is taken for a cache and not for settings.
_ENTRIES: Final = 64
# Names were of this form when what was hashed were all plain values and no nested ones.
_FORMER: Final = re.compile(r"(.*)#[0-9a-f]{12}")
_DIGITS: Final = 16

# By id, as what is called need not be hashable.
_names: dict[int, tuple[weakref.ref[Any], str]] = {}


def identity(embedder: Callable[..., Any]) -> str:
    """Name an embedder by its kind and what it is configured with.

    Two embedders of one identity give the same vector for the same text, as far as this can be
    told from outside: by the function's own ``get_config()`` where it has one, as Chroma's have,
    or else by the strings, and the numbers called a dimension or the like, that it holds, also in
    dictionaries, closures and partials; or by its code. What other objects inside it hold is not
    looked at, so a model exchanged there is not seen. Telling two apart that are the same costs
    embedding a text twice; secrets are not looked at, and addresses only where no model is named.

    An embedder keeps the identity with which it was first seen, however it changes.

    Returns:
        ``Kind[model]#digest``; ``[model]`` where a model is named.
    """
    seen = _names.get(id(embedder))
    if seen is not None and seen[0]() is embedder:
        return seen[1]
    name = _identity(embedder)
    key = id(embedder)
    # An object of a kind that cannot be watched has its name computed each time.
    with contextlib.suppress(TypeError):
        _names[key] = weakref.ref(embedder, lambda _: _names.pop(key, None)), name
    return name


def is_same(stored: str, name: str) -> bool:
    """Say whether the identity that a store holds is that of an embedder.

    One computed as it was formerly is compared in the kind and the model only.
    """
    former = _FORMER.fullmatch(stored)
    if former is None:
        return stored == name
    return name.startswith((f"{former[1]}#", f"{former[1]}["))


def vectors(embedder: Callable[..., Any], texts: Sequence[str]) -> list[Any]:
    """Embed texts.

    Raises:
        ValueError: The embedder did not give one vector for each text.
    """
    return _one_each(embedder, embedder(list(texts)), len(texts))


def query_vector(embedder: Callable[..., Any], text: str) -> Any:
    """Embed a query, which some embedders do differently from what is searched.

    Raises:
        ValueError: The embedder did not give one vector.
    """
    embed_query = getattr(embedder, "embed_query", None)
    found = embed_query([text]) if callable(embed_query) else embedder([text])
    return _one_each(embedder, found, 1)[0]


def _one_each(embedder: Callable[..., Any], found: Any, count: int) -> list[Any]:
    """The vectors that an embedder gave for so many texts."""
    if not isinstance(found, Iterable):
        raise ValueError(  # noqa: TRY004 - one error for whatever is no vectors
            f"the embedder {identity(embedder)} gave {type(found).__name__} for {count} texts"
        )
    found = list(found)
    if len(found) != count:
        raise ValueError(
            f"the embedder {identity(embedder)} gave {len(found)} vectors for {count} texts"
        )
    for vector in found:
        if not isinstance(vector, Iterable):
            raise ValueError(  # noqa: TRY004 - one error for whatever is no vectors
                f"the embedder {identity(embedder)} gave {type(vector).__name__} for a vector"
            )
    # NumPy's arrays go to the store as they are, through the buffer protocol.
    return [one if hasattr(one, "__array_interface__") else list(one) for one in found]


def _identity(embedder: Any) -> str:
    called = embedder
    while isinstance(called, functools.partial):
        called = called.func
    # Functions, methods and classes have names of their own.
    kind = called if hasattr(called, "__qualname__") else type(called)
    found = list(_settings(embedder, _DEPTH))
    names_model = any(_says(path[-1], _MODEL) for path, _ in found)
    settings = {
        ".".join(path): value
        for path, value in found
        if not names_model or not _is_address(path[-1])
    }
    text = json.dumps([f"{kind.__module__}.{kind.__qualname__}", settings], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]
    models = sorted(
        (len(path), path, value)
        for path, value in found
        if _says(path[-1], _NAMED) and isinstance(value, str) and "://" not in value
    )
    model = f"[{models[0][2]}]" if models else ""
    return f"{kind.__qualname__}{model}#{digest}"


_Path = tuple[str, ...]


def _settings(embedder: Any, depth: int) -> Iterator[tuple[_Path, str | float]]:
    """Where, and what, the plain values are that decide what an embedder computes."""
    if isinstance(embedder, functools.partial):
        yield from _chosen(enumerate(embedder.args), ("args",), depth)
        yield from _chosen(embedder.keywords.items(), (), depth)
        if depth:
            for path, value in _settings(embedder.func, depth - 1):
                yield ("function", *path), value
        return
    code = getattr(embedder, "__code__", None)
    if isinstance(code, CodeType):
        yield ("code",), json.dumps(_code(code))
        function = getattr(embedder, "__func__", embedder)
        defaults = function.__defaults__ or ()
        arguments = code.co_varnames[: code.co_argcount][-len(defaults) :] if defaults else ()
        yield from _held(zip(arguments, defaults, strict=True), ("default",), depth)
        yield from _held((function.__kwdefaults__ or {}).items(), ("default",), depth)
        yield from _held(_cells(code, function.__closure__ or ()), ("closure",), depth)
        owner = getattr(embedder, "__self__", None)
        if owner is not None and depth:
            yield from _settings(owner, depth - 1)
        return
    config: Any = None
    if callable(get_config := getattr(embedder, "get_config", None)):
        try:
            config = get_config()
        except NotImplementedError:
            config = None
    if isinstance(config, dict) and config:
        yield from _chosen(config.items(), (), depth)
    else:
        yield from _held(getattr(embedder, "__dict__", {}).items(), (), depth)


def _chosen(
    values: Iterable[tuple[Any, Any]], above: _Path, depth: int
) -> Iterator[tuple[_Path, str | float]]:
    """Of values that are settings all plain ones."""
    for name, value in values:
        path = (*above, str(name))
        if _says(path[-1], _IRRELEVANT):
            continue
        if isinstance(value, str):
            # A user's name and password in an address are credentials, too.
            yield path, re.sub(r"//[^/@]*@", "//", value)
        elif isinstance(value, bool | int | float):
            yield path, value
        elif depth and isinstance(value, dict) and len(value) <= _ENTRIES:
            yield from _chosen(value.items(), path, depth - 1)
        elif depth and (hasattr(value, "__code__") or isinstance(value, functools.partial)):
            for below, found in _settings(value, depth - 1):
                yield (*path, *below), found


def _held(
    values: Iterable[tuple[Any, Any]], above: _Path, depth: int
) -> Iterator[tuple[_Path, str | float]]:
    """Of values that may as well be counters and states those that are settings by their name."""
    for path, value in _chosen(values, above, depth):
        if isinstance(value, str) or _says(path[-1], _DECISIVE):
            yield path, value


def _cells(code: CodeType, closure: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(code.co_freevars, closure, strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:
            continue  # it has no value yet


def _code(code: CodeType) -> list[Any]:
    return [code.co_code.hex(), list(code.co_names), [_constant(one) for one in code.co_consts]]


def _constant(value: Any) -> Any:
    # The text of a code object holds its address, and the order in a set changes, too: both would
    # make another embedder of the function in each process.
    if isinstance(value, CodeType):
        return _code(value)
    if isinstance(value, frozenset):
        return sorted(map(repr, value))
    if isinstance(value, tuple):
        return [_constant(one) for one in value]
    return repr(value)


def _says(name: str, what: re.Pattern[str]) -> bool:
    """Whether a name has a word of this kind: ``apiKey`` has the words of ``api_key``."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    return any(what.fullmatch(word.lower()) for word in words)


def _is_address(name: str) -> bool:
    return _says(name, _ADDRESS) and not _says(name, _MODEL)
