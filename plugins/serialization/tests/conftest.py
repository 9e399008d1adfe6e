"""What every test starts from: CrewAI offline and stock, and nobody's settings but the test's own."""

from __future__ import annotations

import os
import tempfile

from crewai_native.testing.offline import OFFLINE

os.environ.update(OFFLINE)
for variable in [name for name in os.environ if name.startswith("CREWAI_NATIVE")]:
    del os.environ[variable]
os.environ["CREWAI_NATIVE"] = "0"
os.environ["CREWAI_STORAGE_DIR"] = tempfile.mkdtemp(prefix="crewai-native-tests-")
