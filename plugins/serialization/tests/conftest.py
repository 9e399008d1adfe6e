"""What every test starts from: CrewAI offline and stock, and nobody's settings but the test's own."""

from __future__ import annotations

import os
import shutil
import tempfile

from crewai_native.testing.offline import OFFLINE

os.environ.update(OFFLINE)
for variable in [name for name in os.environ if name.startswith("CREWAI_NATIVE")]:
    del os.environ[variable]
os.environ["CREWAI_NATIVE"] = "0"
_storage = tempfile.mkdtemp(prefix="crewai-native-tests-")
os.environ["CREWAI_STORAGE_DIR"] = _storage


def pytest_unconfigure() -> None:
    """Remove what tests have stored; not at exit, where forked children would do so as well."""
    # What a thread of a test still writes there is left.
    shutil.rmtree(_storage, ignore_errors=True)
