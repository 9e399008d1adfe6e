"""New flows like one that a batch was given.

CrewAI has no copy of a flow, and its class's own ``__init__`` sees to what each must have for itself. So
new ones are made of its fields and get its state; what else it was given cannot be told to them.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_HINT: Final = "give the batch a function that returns a new one"


class Flows:
    """Makes flows like one.

    Args:
        flow: That one.
    """

    def __init__(self, flow: Any) -> None:
        self._flow = flow
        self._kind = type(flow)
        self._alike = False

    def __call__(self) -> Any:
        """Return a new one.

        Raises:
            TypeError: It would lack something that the flow has.
        """
        made = self._made()
        if not self._alike:
            self._compare(made)
            self._alike = True
        state, own = self._flow._copy_state(), made.flow_id  # noqa: SLF001 - as CrewAI copies it
        if isinstance(state, dict):
            state["id"] = own
        else:
            object.__setattr__(state, "id", own)
        made._state = state  # noqa: SLF001 - there is no other way to set it
        return made

    def _made(self) -> Any:
        fields = {name: getattr(self._flow, name) for name in self._flow.model_fields_set}
        try:
            return self._kind(**fields)
        except TypeError as error:
            name = self._kind.__qualname__
            raise TypeError(
                f"a flow {name} cannot be made like another ({error}); {_HINT}"
            ) from error

    def _compare(self, made: Any) -> None:
        lost = list(_differences(self._flow, made))
        if not lost:
            return
        # Such as the time at which it was made: no two have the same.
        other = self._made()
        if lost := [name for name in lost if name not in set(_differences(made, other))]:
            raise TypeError(
                f"the flow {self._kind.__qualname__} has another {' and '.join(lost)} than a new one "
                f"would have; {_HINT}"
            )


def _differences(one: Any, other: Any) -> Iterator[str]:
    """Yield the names of attributes that are not CrewAI's and that tell two flows apart."""
    from crewai.flow.flow import Flow

    private = type(one).__private_attributes__.keys() - Flow.__private_attributes__.keys()
    for name in sorted((vars(one).keys() - type(one).model_fields.keys()) | private):
        if not hasattr(other, name) or _seen(getattr(one, name)) != _seen(getattr(other, name)):
            yield name


def _seen(value: Any) -> tuple[type, str | None]:
    """Return what is compared of a value: its type, and of JSON all of it."""
    try:
        return type(value), json.dumps(value, sort_keys=True)
    except (TypeError, ValueError, RecursionError):
        return type(value), None
