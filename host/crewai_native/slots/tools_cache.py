"""``tools.cache``: the results that CrewAI keeps of tool calls."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

from crewai_native.slots._base import Slot, Target

if TYPE_CHECKING:
    from crewai_native._bind import Binding
    from crewai_native.slots._base import Provider

PROTOCOL: Final = ("add", "read")

_bindings: Final = itertools.count(1)


class ToolCache(Protocol):
    """The results kept for one ``CacheHandler``, which a crew, or an agent, has to itself.

    CrewAI calls it from several threads at once. Whether a call is looked up at all is CrewAI's
    business (``Crew(cache=True)``), and so is whether a result may be kept (``cache_function``);
    a ``ToolFailure`` never comes here.
    """

    def add(self, tool: str, input: str, output: Any) -> None:  # noqa: A002 - CrewAI's name
        """Keep a result.

        Args:
            tool: The tool's name, sanitized or not, as CrewAI's callers have it.
            input: The arguments as the JSON text that the caller made of them, in the order in
                which they were written; empty where there are none.
            output: What the tool returned: any object.
        """

    def read(self, tool: str, input: str) -> Any | None:  # noqa: A002 - CrewAI's name
        """Return the kept result, or None where there is none."""


class ToolsCache(Slot):
    """Serves every ``CacheHandler`` that keeps results of tools, those that exist already too.

    Not the one by which ``@agent``, ``@task`` and ``@crew`` remember what a project's methods made:
    its values are the crew's parts themselves, and a copy of an agent is another agent.

    A handler's results live in its :class:`ToolCache` from its first use while the slot is bound.
    What it kept before is still found: a read that the provider misses looks into the handler's
    own dictionary, which also answers calls that the provider fails at. After unbinding, the
    handler reads that dictionary alone, so what the provider kept is a miss. A miss is always
    right: the tool runs again.
    """

    name: ClassVar = "tools.cache"
    summary: ClassVar = "results of tool calls"
    how: ClassVar = "CacheHandler.add, .read"
    targets: ClassVar = (
        Target("crewai.agents.cache.cache_handler:CacheHandler.add", wrapped=True),
        Target("crewai.agents.cache.cache_handler:CacheHandler.read", wrapped=True),
    )

    def bind(self, binding: Binding, provider: Provider) -> None:
        """Put the provider behind the methods of ``CacheHandler``."""
        from crewai.agents.cache.cache_handler import CacheHandler
        from crewai.project.utils import cache as memo

        caches = _Caches(provider)
        # Tried here, on a handler of our own, so that a provider of the wrong type is turned away
        # before a tool call meets it.
        caches.of(CacheHandler())

        def make_add(stock: Any) -> Any:
            def native(handler: Any, tool: str, input: str, output: Any) -> None:  # noqa: A002
                caches.of(handler).add(tool, input, output)
                # What stock kept of this call before is older, and must not outlive it.
                _forget(handler, tool, input)

            served = binding.watch.guard(native, stock, same=None)
            failure = _failure_type()

            def add(handler: Any, tool: str, input: str, output: Any) -> None:  # noqa: A002
                if handler is memo:
                    stock(handler, tool, input, output)
                elif failure is None or not isinstance(output, failure):
                    served(handler, tool, input, output)

            return add

        def make_read(stock: Any) -> Any:
            def native(handler: Any, tool: str, input: str) -> Any:  # noqa: A002
                return caches.of(handler).read(tool, input)

            served = binding.watch.guard(native, stock, same=None)

            def read(handler: Any, tool: str, input: str) -> Any:  # noqa: A002
                if handler is memo:
                    return stock(handler, tool, input)
                found = served(handler, tool, input)
                return stock(handler, tool, input) if found is None else found

            return read

        binding.stand_in(CacheHandler, "add", make_add)
        binding.stand_in(CacheHandler, "read", make_read)


class _Caches:
    """Each handler's cache, kept among the handler's private attributes.

    There it lives exactly as long as the handler, and a copy shares it as copies share stock's
    dictionary; handlers cannot be pickled, with it or without. Its name tells one binding's from
    another's.
    """

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._name = f"_crewai_native_{next(_bindings)}"

    def of(self, handler: Any) -> ToolCache:
        private = handler.__pydantic_private__
        cache: ToolCache | None = private.get(self._name)
        return self._new(handler, private) if cache is None else cache

    def _new(self, handler: Any, private: dict[str, Any]) -> ToolCache:
        provider = self._provider
        cache = provider.require(provider.call(handler=handler), PROTOCOL, "a ToolCache")
        # One step, and no lock: a fork would leave it taken to the child. Of two threads that make
        # one, both get the first.
        kept: ToolCache = private.setdefault(self._name, cache)
        return kept


def _forget(handler: Any, tool: str, input: str) -> None:  # noqa: A002
    if handler._cache:  # noqa: SLF001 - the dictionary that the wrapped methods work on
        with handler._lock.w_locked():  # noqa: SLF001
            handler._cache.pop(f"{tool}-{input}", None)  # noqa: SLF001


def _failure_type() -> type | None:
    """Return the class of declared failures, which CrewAI has since 1.15.9."""
    try:
        from crewai.tools.tool_failure import ToolFailure
    except ImportError:
        return None
    failure: type = ToolFailure
    return failure


SLOT: Final = ToolsCache()
