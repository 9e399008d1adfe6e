"""``flow.persistence``: where flows keep their state between methods, runs and processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

from crewai_native._errors import ProviderError, Shadowed
from crewai_native.slots._base import Slot, Target

if TYPE_CHECKING:
    from crewai_native._bind import Binding
    from crewai_native.slots._base import Provider

PROTOCOL: Final = (
    "init_db",
    "save_state",
    "load_state",
    "save_pending_feedback",
    "load_pending_feedback",
    "clear_pending_feedback",
)
"""The methods of ``FlowPersistence`` (``crewai/flow/persistence/base.py``)."""


class FlowPersistenceSlot(Slot):
    """Serves ``@persist`` and paused flows that were not given a persistence of their own.

    CrewAI asks for it while a program's modules are imported, once per decorated class and method.
    Binding at the end of ``import crewai`` comes before that.
    """

    name: ClassVar = "flow.persistence"
    summary: ClassVar = "state of flows"
    how: ClassVar = "set_flow_persistence_factory"
    keeps_data: ClassVar = True
    targets: ClassVar = (
        Target("crewai.flow.persistence.factory:set_flow_persistence_factory", ("factory",)),
        Target("crewai.flow.persistence.factory:default_flow_persistence", ()),
        Target("crewai.flow.persistence.factory:_factory"),
        Target("crewai.flow.persistence.base:FlowPersistence"),
    )

    def bind(self, binding: Binding, provider: Provider) -> None:
        """Put the provider behind CrewAI's flow persistence factory.

        Raises:
            Shadowed: The application set a factory. CrewAI's contract lets a factory decline
                nothing, so there is nothing left to serve after it.
        """
        from crewai.flow.persistence import factory
        from crewai.flow.persistence.base import FlowPersistence

        if factory._factory is not None:  # noqa: SLF001 - CrewAI has no getter for it
            raise Shadowed("the application set its own flow persistence factory")
        call = provider.call

        def native_factory() -> Any:
            persistence = call()
            if not isinstance(persistence, FlowPersistence):
                raise provider.wrong_type(persistence, "a FlowPersistence")
            cls = type(persistence)
            _check_restorable(cls, provider)
            binding.meter_methods(cls, PROTOCOL)
            return persistence

        binding.replace(factory, "_factory", native_factory)


def _check_restorable(cls: Any, provider: Provider) -> None:
    """Check that CrewAI would find the class again when it restores a checkpoint.

    Raises:
        ProviderError: It looks the class up by ``persistence_type``, among class names.
    """
    stated = cls.model_fields["persistence_type"].default
    if stated != cls.__name__:
        raise ProviderError(
            f"{provider.distribution} {provider.version} returned a {cls.__name__} whose "
            f"persistence_type is {stated!r}; {provider.slot} accepts a class whose "
            f"persistence_type defaults to its own name, {cls.__name__!r}"
        )


SLOT: Final = FlowPersistenceSlot()
