"""What a run and its agents have spent, and when that is too much.

It is looked at before each call of a tool and of a language model, and counts from the run's first one
on, that one included. What language models were asked and answered is read from the counters that
CrewAI keeps on them; calls that were seen coming count even where a model does not count itself.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from crewai_native_tools._native import Uses

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from crewai_native_tools.policy import Budget

_UNLIMITED: Final = 2**62
_COUNTERS: Final = ("successful_requests", "prompt_tokens", "completion_tokens")


class Purse:
    """What has been spent by a run, or by one agent in it.

    Args:
        models: The language models that it uses.
        prices: What a million tokens cost, in and out, by the name of a model.
        owner: Returns whose it is, or None once that is gone.

    Attributes:
        owner: As there.
    """

    def __init__(
        self,
        models: Iterable[Any],
        prices: Mapping[str, tuple[float, float]],
        owner: Callable[[], Any],
    ) -> None:
        self.owner = owner
        self._started = time.monotonic()
        self._calls = Uses()
        self._asked = Uses()
        self._models = {id(model): (model, _counters(model)) for model in models}
        self._prices = prices

    def ask(self, model: Any, budget: Budget) -> str | None:
        """Take one call of a language model out of a budget.

        Returns:
            As :meth:`spend`.
        """
        if id(model) not in self._models:
            self._models[id(model)] = (model, _counters(model))
        report = self.exceeds(budget)
        if report is None:
            self._asked.claim(_UNLIMITED)
        return report

    def spend(self, budget: Budget) -> str | None:
        """Take one call of a tool out of a budget.

        Returns:
            None; or, where something is spent already, what, and all that was spent. The call
            is not taken then.
        """
        if not budget.only_tool_calls and (report := self.exceeds(budget)) is not None:
            return report
        limit = budget.tool_calls
        if not self._calls.claim(_UNLIMITED if limit is None else limit):
            return self._report("tool_calls", limit)
        return None

    def exceeds(self, budget: Budget) -> str | None:
        """Return what is spent already of a budget, leaving calls of tools aside, or None."""
        spent = self.spent()
        for name, limit in (
            ("llm_calls", budget.llm_calls),
            ("tokens", budget.tokens),
            ("seconds", budget.seconds),
            ("money", budget.money),
        ):
            if limit is not None and spent[name] >= limit:
                return self._report(name, limit)
        return None

    def spent(self) -> dict[str, float]:
        """Return what was spent, by the names of a budget's fields."""
        asked = tokens = 0
        money = 0.0
        for model, before in list(self._models.values()):
            requests, read, written = (
                now - then for now, then in zip(_counters(model), before, strict=True)
            )
            asked += requests
            tokens += read + written
            price = self._prices.get(str(getattr(model, "model", "")), (0.0, 0.0))
            money += (read * price[0] + written * price[1]) / 1e6
        return {
            "tool_calls": self._calls.used,
            "llm_calls": max(asked, self._asked.used),
            "tokens": tokens,
            "seconds": time.monotonic() - self._started,
            "money": money,
        }

    def _report(self, name: str, limit: float | None) -> str:
        spent = ", ".join(f"{key} {value:g}" for key, value in self.spent().items())
        return f"{name} of {limit:g} are spent (so far: {spent})"


def _counters(model: Any) -> tuple[int, int, int]:
    usage = getattr(model, "_token_usage", None) or {}
    return tuple(int(usage.get(name) or 0) for name in _COUNTERS)  # type: ignore[return-value]
