"""The exceptions that the host raises, and the one that a plug-in may raise to step aside."""

from __future__ import annotations


class CrewAINativeError(Exception):
    """Base of every error that crewai-native raises on its own account."""


class ConfigurationError(CrewAINativeError, ValueError):
    """A setting means nothing; the message names the setting and what it accepts."""


class ProviderError(CrewAINativeError, RuntimeError):
    """A plug-in broke the host's contract; the message names its distribution and the slot."""


class StrictError(CrewAINativeError, RuntimeError):
    """``CREWAI_NATIVE_STRICT`` is set and a slot that should be bound is not."""


class Declined(CrewAINativeError):  # noqa: N818 - a plug-in's decision, not an error
    """Raised by a plug-in to step aside; its words are shown to the user as the reason."""


class Shadowed(Declined):
    """The application uses the extension point itself; its own setting stays in force."""


def is_failure(error: BaseException) -> bool:
    """Return whether an exception is the failure of the code that raised it.

    Every ``Exception`` is, and a panic in a Rust extension: PyO3 derives that from
    ``BaseException``, with a class for each extension, so it is known by its name. What is left
    (KeyboardInterrupt, SystemExit, cancellation) concerns the whole program and must pass.
    """
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"
