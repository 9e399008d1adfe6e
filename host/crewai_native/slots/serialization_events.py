"""``serialization.events``: events, messages and values as JSON-compatible structures."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any, ClassVar, Final

from crewai_native.slots._base import Slot, Target

if TYPE_CHECKING:
    from crewai_native._bind import Binding
    from crewai_native.slots._base import Provider


class SerializationEvents(Slot):
    """Serves ``to_serializable``, which CrewAI applies to every event and message history."""

    name: ClassVar = "serialization.events"
    summary: ClassVar = "events and messages as JSON"
    how: ClassVar = "to_serializable"
    targets: ClassVar = (
        Target("crewai.utilities.serialization:to_serializable", wrapped=True),
        Target("crewai.utilities.serialization:_to_serializable_key", wrapped=True),
    )

    def bind(self, binding: Binding, provider: Provider) -> None:
        """Put the provider's function in the place of CrewAI's.

        The provider takes CrewAI's signature, ``(obj, exclude=None, max_depth=5,
        _current_depth=0, _ancestors=None)``, and gives equal results.
        """
        from crewai.utilities import serialization

        native = provider.call()
        if not callable(native):
            raise provider.wrong_type(native, "a function with to_serializable's signature")
        stock = serialization.to_serializable
        guarded = binding.watch.guard(native, _closed(stock), _same)
        binding.replace_functions([(stock, guarded)])


def _closed(function: Any) -> Any:
    """Return a function that recurses into itself, whatever its module's name for it means.

    CrewAI's function finds itself through that name, where the provider is while the slot is
    bound: what it answers as a fallback, or for comparison, would be the provider's work from the
    second level on.
    """
    names = dict(function.__globals__)
    closed = types.FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )
    closed.__kwdefaults__ = function.__kwdefaults__
    closed.__doc__, closed.__module__ = function.__doc__, function.__module__
    names[function.__name__] = closed
    return closed


def _same(left: Any, right: Any) -> bool:
    # NaN equals itself nowhere but in its representation.
    return bool(left == right) or repr(left) == repr(right)


SLOT: Final = SerializationEvents()
