"""What plug-in authors need to test an accelerator; nothing here is used in production.

:class:`ScriptedLLM` and :class:`HashEmbedder` let real crews run offline and give the same answers
every time. :mod:`crewai_native.testing.distributions` fabricates installed distributions, sound
and broken ones, :mod:`crewai_native.testing.plugin` offers both as pytest fixtures, and
:mod:`crewai_native.testing.contract` holds the tests that every provider of a slot must pass.

Importing this package does not import CrewAI; asking it for :class:`ScriptedLLM` does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from crewai_native.testing.embedder import HashEmbedder
    from crewai_native.testing.llm import ScriptedLLM
    from crewai_native.testing.script import Call, ScriptError, ToolCall, Turn

__all__ = ["Call", "HashEmbedder", "ScriptError", "ScriptedLLM", "ToolCall", "Turn"]

_HOMES: Final = {
    "Call": "script",
    "HashEmbedder": "embedder",
    "ScriptError": "script",
    "ScriptedLLM": "llm",
    "ToolCall": "script",
    "Turn": "script",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
