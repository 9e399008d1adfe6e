"""The host's own cases: what it costs to have it installed.

What a start takes longer is counted in processor time: nothing of it waits for anything, and other
programs' work is not counted in.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crewai_native import _discovery
from crewai_native._watch import Watch
from crewai_native.bench._case import Case, Measured, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_HOST = str(Path(__file__).parents[2])

# What the import hook does once CrewAI has been imported; the worker's environment keeps it from doing
# so by itself.
_ACTIVATION = """
import os, time, crewai
del os.environ["CREWAI_NATIVE"]
start = time.process_time()
from crewai_native import _start
_start.activate()
print(time.process_time() - start)
"""


def cases() -> Iterator[Case]:
    """Return the host's cases."""
    yield Case(
        name="metering",
        group="host",
        description="what counting and timing adds to one call of a bound function",
        sides=("bare", "native"),
        setup=_metering,
        limit=1e-6,
    )
    yield Case(
        name="startup-hook",
        group="host",
        description="what the line in crewai_native.pth adds to `python -c pass`",
        sides=("bare", "native"),
        setup=_python({"bare": "pass", "native": "import _crewai_native_hook"}),
        limit=1e-3,
    )
    yield Case(
        name="import",
        group="host",
        description="what `import crewai_native` adds to `python -c pass`",
        sides=("bare", "native"),
        setup=_python({"bare": "pass", "native": "import crewai_native"}),
        limit=30e-3,
    )
    yield Case(
        name="activation",
        group="host",
        description="what `import crewai` takes longer with every slot bound",
        sides=("native",),
        setup=_activation,
        check=None,
        limit=100e-3,
    )


def _metering(side: str) -> Callable[[], Any]:
    def function() -> int:
        return 42

    return Watch("host.metering").meter(function) if side == "native" else function


def _python(codes: dict[str, str]) -> Callable[[str], Callable[[], Any]]:
    """Return a set-up whose runs start an interpreter without site-packages but for the host's.

    So both sides start alike, whether or not the host's own line is installed in this environment.
    """

    def setup(side: str) -> Callable[[], Any]:
        # os is there in every start with site-packages, before any line of a .pth file runs.
        code = f"import os, sys; sys.path.append({_HOST!r}); {codes[side]}"
        return lambda: _processor_time([sys.executable, "-S", "-E", "-c", code])

    return setup


def _processor_time(command: list[str]) -> Measured:
    """Run a command and return the processor time that it took."""
    before = _children_so_far()
    subprocess.run(command, check=True)  # noqa: S603 - this interpreter
    return Measured(_children_so_far() - before)


def _children_so_far() -> float:
    try:
        import resource
    except ImportError:
        raise Unavailable("this system does not say what processes have used") from None
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _activation(_: str) -> Callable[[], Measured]:
    if not _discovery.crewai_version():
        raise Unavailable("CrewAI is not installed")

    # Programs find the bytecode that an earlier start has left, so these must be able to leave it.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}

    def run() -> Measured:
        # The worker's environment keeps the import hook off: only the explicit call is timed.
        child = subprocess.run(  # noqa: S603 - this interpreter, running the text above
            [sys.executable, "-c", _ACTIVATION],
            check=True,
            capture_output=True,
            text=True,
            env=environment,
        )
        return Measured(float(child.stdout.splitlines()[-1]))

    return run
