"""What every test starts from: CrewAI offline, and nobody's settings but the test's own."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile

import hypothesis

from crewai_native.testing.offline import OFFLINE

pytest_plugins = ["crewai_native.testing.plugin"]

os.environ.update(OFFLINE)
for variable in [name for name in os.environ if name.startswith("CREWAI_NATIVE")]:
    del os.environ[variable]
# The test process itself runs stock CrewAI, whichever folder's tests import it first. What wants the
# host wired in activates it, or starts a program of its own without this variable.
os.environ["CREWAI_NATIVE"] = "0"
# Tests name their own; this one catches what a test forgets, away from the user's data.
_storage = tempfile.mkdtemp(prefix="crewai-native-tests-")
os.environ["CREWAI_STORAGE_DIR"] = _storage
# No verdict on a plug-in that a test fabricates belongs into the user's cache.
os.environ["CREWAI_NATIVE_CACHE_DIR"] = _storage
# How long an example takes says something about the machine, not about what is tested.
hypothesis.settings.register_profile("crewai-native", deadline=None)
hypothesis.settings.load_profile("crewai-native")
# A shell starts what it runs in the background with interrupts ignored, and the programs that tests
# start and interrupt would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_unconfigure() -> None:
    """Remove what tests have stored; not at exit, where forked children would do so as well."""
    # What a thread of a test still writes there is left.
    shutil.rmtree(_storage, ignore_errors=True)
