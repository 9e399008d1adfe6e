"""Events and messages, encoded once and fast.

Importing this package imports neither CrewAI nor anything heavy.
"""

from crewai_native_serialization._native import (
    AgentMessage,
    MessageError,
    __build_info__,
    to_serializable,
)
from crewai_native_serialization.serializer import Serializer

__all__ = ["AgentMessage", "MessageError", "Serializer", "__build_info__", "to_serializable"]
