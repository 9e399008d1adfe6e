"""``locks``: the named locks by which threads and processes take turns at a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

from crewai_native._errors import Declined, Shadowed
from crewai_native.slots._base import Slot, Target

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from crewai_native._bind import Binding
    from crewai_native.slots._base import Provider

DISTRIBUTED: Final = "distributed"
"""The feature of a provider whose locks hold between machines."""


class Locks(Slot):
    """Serves every lock that CrewAI's stores take."""

    name: ClassVar = "locks"
    summary: ClassVar = "named locks between threads and processes"
    how: ClassVar = "set_lock_backend"
    targets: ClassVar = (
        Target("crewai_core.lock_store:set_lock_backend", ("backend",)),
        Target("crewai_core.lock_store:lock", ("name", "timeout")),
        Target("crewai_core.lock_store:_backend"),
        Target("crewai_core.lock_store:_redis_available", ()),
    )

    def bind(self, binding: Binding, provider: Provider) -> None:
        """Put the provider behind CrewAI's lock backend.

        Waiting and taking the lock is what is counted and timed, not the block that holds it.

        Raises:
            Shadowed: The application set a backend. It excludes other processes in its own way,
                which a second backend knows nothing of.
            Declined: CrewAI locks through Redis, so across machines. Locks of one machine in
                their place would let two machines into one store at once; only the user's own
                choice of provider, or a provider whose locks are distributed too, may do that.
        """
        from crewai_core import lock_store

        if lock_store._backend is not None:  # noqa: SLF001 - CrewAI has no getter for it
            raise Shadowed("the application set its own lock backend")
        distributed = DISTRIBUTED in provider.features
        if lock_store._redis_available() and not (provider.chosen or distributed):  # noqa: SLF001
            raise Declined(
                "CrewAI locks across machines through REDIS_URL, and this provider locks within "
                f'one; choose it with [tool.crewai-native.slots] "{self.name}" = '
                f'"{provider.distribution}" where one machine is all there is'
            )
        call = provider.call
        enter = binding.watch.meter(_enter)
        checked: set[type] = set()

        def native_backend(name: str, *, timeout: float) -> AbstractContextManager[None]:
            manager = call(name=name, timeout=timeout)
            if type(manager) not in checked:
                provider.require(manager, ("__enter__", "__exit__"), "a context manager")
                checked.add(type(manager))
            return _Held(manager, enter)

        binding.replace(lock_store, "_backend", native_backend)


def _enter(manager: Any) -> None:
    manager.__enter__()


class _Held:
    """A provider's lock, whose taking is metered."""

    __slots__ = ("_enter", "_manager")

    def __init__(self, manager: Any, enter: Callable[[Any], None]) -> None:
        self._manager = manager
        self._enter = enter

    def __enter__(self) -> None:
        self._enter(self._manager)

    def __exit__(self, *error: object) -> bool | None:
        suppressed: bool | None = self._manager.__exit__(*error)
        return suppressed


SLOT: Final = Locks()
