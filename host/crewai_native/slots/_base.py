"""What a slot is: its protocol, the places in CrewAI that it touches, and how it is bound there."""

from __future__ import annotations

import abc
import inspect
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from crewai_native._errors import ProviderError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from crewai_native._bind import Binding


class Target(NamedTuple):
    """A place in CrewAI that a slot relies on.

    Attributes:
        path: ``module:attribute`` or ``module:Class.method``.
        parameters: The names of its parameters, for an official extension point: those are kept
            stable, so name and signature are what is checked.
        wrapped: Whether the slot stands in for this code. Then its source must be one that the
            slot was tested with, which the fingerprints record.
        passes_on: Whether what the slot puts there calls what stood there, at each call and as
            CrewAI does. If not, it cannot be put over other code's wrapper, which would be left out.
    """

    path: str
    parameters: tuple[str, ...] | None = None
    wrapped: bool = False
    passes_on: bool = False

    @property
    def module(self) -> str:
        """The module that it is in."""
        return self.path.partition(":")[0]


class Repair(NamedTuple):
    """A defect of CrewAI around a slot that is mended while a capable provider serves it.

    A repair is bound on its own: where its targets are unknown, the slot is bound without it and
    says so.

    Attributes:
        name: Short name, shown by ``explain``.
        summary: What goes wrong in CrewAI without it.
        targets: What it wraps.
        feature: Feature that the provider must have for the repair to be right.
        bind: Puts it in place.
        imports: Modules among its targets that are imported for it. For the others it waits until
            CrewAI imports them, which it does with some at their first use only.
    """

    name: str
    summary: str
    targets: tuple[Target, ...]
    feature: str
    bind: Callable[[Binding, Provider], None]
    imports: tuple[str, ...] = ()


class Provider:
    """A plug-in's offer for one slot, as the slot sees it: its hook, ready to be called.

    Attributes:
        distribution: The distribution that serves.
        version: Its version.
        features: What it says that it can do for this slot.
        chosen: Whether the user named this distribution for the slot.
        call: The plug-in's hook for the slot, called with keyword arguments. It is the plug-in's
            own function: pluggy validated it once, and no call goes through pluggy again.
    """

    __slots__ = ("call", "chosen", "distribution", "features", "slot", "version")

    def __init__(
        self,
        slot: str,
        distribution: str,
        version: str,
        features: frozenset[str],
        call: Callable[..., Any],
        *,
        chosen: bool = False,
    ) -> None:
        self.slot = slot
        self.distribution = distribution
        self.version = version
        self.features = features
        self.call = call
        self.chosen = chosen

    def wrong_type(self, value: object, accepts: str) -> ProviderError:
        """Return the error for a hook that gave something the slot cannot use."""
        given = repr(type(value).__name__)
        if isinstance(value, type):
            given = f"the class {value.__name__!r}"
        return ProviderError(
            f"{self.distribution} {self.version} returned {given} for {self.slot}; "
            f"the slot accepts {accepts}"
        )

    def require(self, value: Any, methods: tuple[str, ...], accepts: str) -> Any:
        """Return ``value`` if it has the methods of the slot's protocol.

        Raises:
            ProviderError: It lacks one, or is a class whose objects have them.
        """
        if not all(callable(getattr(value, method, None)) for method in methods):
            missing = [m for m in methods if not callable(getattr(value, m, None))]
            raise self.wrong_type(value, f"{accepts} (missing: {', '.join(missing)})")
        if isinstance(value, type) and any(
            inspect.isfunction(inspect.getattr_static(value, method)) for method in methods
        ):
            raise self.wrong_type(value, f"{accepts}: an object, not its class")
        return value


class Slot(abc.ABC):
    """One place in CrewAI that can be served. Subclasses say where it is and how to bind it.

    Attributes:
        name: ``area.thing``.
        summary: What it is, in a few words.
        how: The extension point or the methods that binding uses, for the user to read.
        keeps_data: Whether a provider stores what CrewAI gives it. Such a slot never falls back
            to stock once it has written: two stores must not share one history.
        shared: Whether several providers can serve side by side, each chosen by name at run time.
        targets: What binding relies on.
        repairs: What is mended around the slot, each on its own.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    how: ClassVar[str]
    keeps_data: ClassVar[bool] = False
    shared: ClassVar[bool] = False
    targets: ClassVar[tuple[Target, ...]] = ()
    repairs: ClassVar[tuple[Repair, ...]] = ()

    @property
    def hook(self) -> str:
        """Name of the hook that a provider implements."""
        return f"crewai_native_{self.name.replace('.', '_')}"

    @abc.abstractmethod
    def bind(self, binding: Binding, provider: Provider) -> None:
        """Put the provider in place.

        Every change goes through ``binding``, which undoes all of them if one fails.

        Raises:
            ProviderError: The provider's hook gave something unusable.
            Declined: The provider stands aside.
            Shadowed: The application uses the extension point itself.
        """

    def join(self, binding: Binding, provider: Provider) -> None:
        """Add a further provider to a shared slot that is bound already."""
        raise NotImplementedError(f"{self.name} has one provider at a time")

    def describe(self) -> Mapping[str, Any]:
        """Return the slot as data, for the documentation and ``explain``."""
        return {
            "name": self.name,
            "summary": self.summary,
            "hook": self.hook,
            "how": self.how,
            "keeps_data": self.keeps_data,
            "targets": [target.path for target in self.targets],
        }
