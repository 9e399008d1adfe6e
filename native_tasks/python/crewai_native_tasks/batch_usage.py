"""The tokens of each item of a batch, also where models are shared.

CrewAI counts in the model, for as long as it lives, and a crew reports what its models have counted.
CrewAI's copies of a model count into one dictionary.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import threading
from collections.abc import Iterator, MutableMapping
from typing import Any, Final

# What the item that the current context works on has counted, by the counter's id; with the counter, so
# that no other gets its id.
_item: Final[contextvars.ContextVar[dict[int, tuple[Any, dict[str, int]]] | None]] = (
    contextvars.ContextVar("crewai_native_tasks_usage", default=None)
)
_lock = threading.Lock()


def _anew() -> None:
    global _lock  # noqa: PLW0603 - another thread of the parent may have held it
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_anew)


def _add(whole: Any, key: str, more: int) -> None:
    whole.setdefault(key, 0)
    # Many threads do; between these three steps, with nothing called, Python switches to no other.
    whole[key] += more


class _Own(dict[str, int]):
    """What a copy of a model counts, which its original counts as well."""

    def __init__(self, whole: Any) -> None:
        super().__init__(dict.fromkeys(whole, 0))
        self._whole = whole

    def __setitem__(self, key: str, count: int) -> None:
        _add(self._whole, key, count - self.get(key, 0))
        super().__setitem__(key, count)

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


class _Shared(MutableMapping[str, int], dict[str, int]):  # type: ignore[misc, metaclass]
    """What a model has counted: in an item of a batch what it has counted for that, else all."""

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self._whole = whole

    def _counts(self) -> Any:
        item = _item.get()
        if item is None:
            return self._whole
        return item.setdefault(id(self), (self, dict.fromkeys(self._whole, 0)))[1]

    def __getitem__(self, key: str) -> int:
        return int(self._counts()[key])

    def __setitem__(self, key: str, count: int) -> None:
        counts = self._counts()
        if counts is not self._whole:
            _add(self._whole, key, count - counts.get(key, 0))
        counts[key] = count

    def __delitem__(self, key: str) -> None:
        del self._counts()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._counts())

    def __len__(self) -> int:
        return len(self._counts())

    def __repr__(self) -> str:
        return repr(self._counts())

    def copy(self) -> dict[str, int]:
        """Return what it is now."""
        return {**self._counts()}

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (self.copy(),)


@contextlib.contextmanager
def counting() -> Iterator[None]:
    """Count the tokens of what runs in the block from nought."""
    token = _item.set({})
    try:
        yield
    finally:
        _item.reset(token)


def count_copy(crew: Any) -> None:
    """Have the models of a copy of a crew count for themselves."""
    for model in _models(crew):
        model._token_usage = _Own(model._token_usage)  # noqa: SLF001 - no other way


def count_shared(crew: Any) -> None:
    """Have the models of a crew, which others may have as well, tell items apart."""
    for model in _models(crew):
        with _lock:
            if not isinstance(model._token_usage, _Shared):  # noqa: SLF001 - as above
                model._token_usage = _Shared(model._token_usage)  # noqa: SLF001 - as above


def _models(crew: Any) -> Iterator[Any]:
    from crewai.llms.base_llm import BaseLLM

    found = {id(crew.manager_llm): crew.manager_llm}
    for agent in (*crew.agents, crew.manager_agent):
        for model in (getattr(agent, "llm", None), getattr(agent, "function_calling_llm", None)):
            found[id(model)] = model
    yield from (model for model in found.values() if isinstance(model, BaseLLM))
