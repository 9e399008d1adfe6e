"""A module that only the process of the tests can import."""

import os

if "PYTEST_VERSION" in os.environ and os.environ.get("DOES_NOT_LOAD") == str(os.getppid()):
    raise RuntimeError("no licence found")


def answer():
    return 42
