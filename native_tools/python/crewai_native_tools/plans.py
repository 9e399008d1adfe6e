"""Which plan counts for a call: what was said, resolved once for each tool, agent and crew."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Final

from crewai_native_tools.execution import Plan, Shared
from crewai_native_tools.policy import Layers, Policy, resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_MOST_PLANS: Final = 4096
"""Roles may be made up at run time: no table may grow with them."""

_code = Layers()
_known: weakref.WeakSet[Plans] = weakref.WeakSet()


class Plans:
    """The plans of a guard or an engine.

    Args:
        own: What was said to it itself; it goes before everything else.
        options: What the environment and ``pyproject.toml`` say.
        shared: Queues and counts.
        spell: The spelling in which names of tools are compared.
    """

    def __init__(
        self,
        own: Layers,
        options: Layers,
        shared: Shared,
        spell: Callable[[str], str],
    ) -> None:
        self.shared = shared
        self._own = own
        self._options = options
        self._spell = spell
        self._spellings: dict[str, str] = {}
        self._plans: dict[tuple[str, str | None, str | None], Plan] = {}
        self._sources: Sequence[Layers] = ()
        self.reload()
        _known.add(self)

    def reload(self) -> None:
        """Resolve everything anew."""
        self._sources = [
            Layers(
                default=source.default,
                tools={self._spell(name): policy for name, policy in source.tools.items()},
                agents=source.agents,
                crews=source.crews,
            )
            for source in (self._own, _code, self._options)
        ]
        self.by_agent = any(source.agents for source in self._sources)
        self.by_crew = any(source.crews for source in self._sources)
        self._plans = {}

    def of(self, tool: str, agent: str | None = None, crew: str | None = None) -> Plan:
        """Return what counts for a tool's calls by an agent, by its role, of a crew, by its name."""
        key = (tool, agent, crew)
        return self._plans.get(key) or self._make(key)

    def _make(self, key: tuple[str, str | None, str | None]) -> Plan:
        plans = self._plans
        if len(plans) >= _MOST_PLANS:
            plans.clear()
        tool, agent, crew = key
        name = self._spell(tool)
        return plans.setdefault(
            key, Plan(name, resolve(self._sources, name, agent, crew), self.shared)
        )

    def near_calls_are_watched(self) -> bool:
        """Whether anything is said about calls that are only nearly the same."""
        return any(
            policy.loop_near is not None
            for source in self._sources
            for policy in (
                source.default,
                *source.tools.values(),
                *source.agents.values(),
                *source.crews.values(),
            )
        )


def configure(
    *,
    default: Policy | None = None,
    tools: Mapping[str, Policy] | None = None,
    agents: Mapping[str, Policy] | None = None,
    crews: Mapping[str, Policy] | None = None,
) -> None:
    """Say what counts for calls, in place of what was said here before.

    It goes before what the environment and ``pyproject.toml`` say in the same layer. Calls that
    are under way go on under the policy that they started with.

    Args:
        default: About everything.
        tools: By a tool's name, in whatever spelling.
        agents: By an agent's role.
        crews: By a crew's name.

    Raises:
        ValueError: The policy of a tool has a budget.
    """
    global _code  # noqa: PLW0603 - the settings of a process
    _code = Layers(
        default=default or Policy(), tools=tools or {}, agents=agents or {}, crews=crews or {}
    )
    for plans in list(_known):
        plans.reload()


def cancel(crew: Any) -> int:
    """End the runs of a crew at their next call of a tool or a language model.

    Whoever waits for a tool with a deadline is let go at once; what a tool is told is what
    ``cancelled()`` returns, and one in a process of its own is killed. A kickoff that has not yet
    called a model or a tool is not known and goes on, and so do later ones.

    Args:
        crew: The crew whose kickoffs are meant. What ``kickoff_for_each`` starts are copies of it,
            which are other crews.

    Returns:
        How many calls of tools were under way.

    Raises:
        RuntimeError: ``tools.guard`` is not served by this accelerator.
    """
    from crewai_native_tools import plugin

    guard = plugin.guard()
    if guard is None:
        raise RuntimeError(
            "nothing knows of this crew's runs: tools.guard is not bound to crewai-native-tools "
            "(crewai-native explain tools.guard)"
        )
    return guard.cancel(crew)
