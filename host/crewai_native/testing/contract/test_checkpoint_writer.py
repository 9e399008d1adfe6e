"""``checkpoint.writer``: a crew can be restored from what was written of it."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any, ClassVar

import pytest

from crewai_native.testing.contract.crews import crew
from crewai_native.testing.contract.rules import SlotContract


class TestCheckpointWriter(SlotContract):
    """Runs crews with checkpoints in files, CrewAI's default."""

    slot: ClassVar = "checkpoint.writer"
    runs_crews: ClassVar = True

    @staticmethod
    def exercise() -> Any:
        """Run a crew and restore it from its newest checkpoint."""
        from crewai import Crew
        from crewai.events import crewai_event_bus
        from crewai.state.checkpoint_config import CheckpointConfig

        folder = Path(os.environ["CREWAI_STORAGE_DIR"]) / uuid.uuid4().hex
        TestCheckpointWriter._run(folder)
        # CrewAI's own code writes on threads that the kickoff does not always wait for.
        crewai_event_bus.flush()
        written = TestCheckpointWriter._written(folder)
        newest = max(written, key=lambda path: (path.stat().st_mtime_ns, path.name))
        restored = Crew.from_checkpoint(CheckpointConfig(restore_from=str(newest)))
        return [len(written), *(task.output.raw for task in restored.tasks)]

    def test_a_checkpoint_is_there_when_the_kickoff_returns(
        self, provider: str, tmp_path: Path
    ) -> None:
        """One for each task, under the location that the user named."""
        self._run(tmp_path)
        assert len(self._written(tmp_path)) == 2

    def test_a_crew_is_restored_with_its_outputs(self, provider: str, tmp_path: Path) -> None:
        """From the newest of them."""
        from crewai import Crew
        from crewai.state.checkpoint_config import CheckpointConfig

        self._run(tmp_path)
        newest = max(self._written(tmp_path), key=lambda path: (path.stat().st_mtime_ns, path.name))
        restored = Crew.from_checkpoint(CheckpointConfig(restore_from=str(newest)))
        assert [task.output.raw for task in restored.tasks] == ["first", "second"]

    def test_what_is_no_checkpoint_is_refused(self, provider: str, tmp_path: Path) -> None:
        """With CrewAI's errors."""
        from crewai import Crew
        from crewai.state.checkpoint_config import CheckpointConfig

        missing, damaged = tmp_path / "missing.json", tmp_path / "damaged.json"
        damaged.write_text("{")
        with pytest.raises(FileNotFoundError):
            Crew.from_checkpoint(CheckpointConfig(restore_from=str(missing)))
        with pytest.raises(ValueError, match="JSON"):
            Crew.from_checkpoint(CheckpointConfig(restore_from=str(damaged)))

    @staticmethod
    def _run(folder: Path) -> Any:
        from crewai.state.checkpoint_config import CheckpointConfig

        config = CheckpointConfig(location=str(folder / "checkpoints"))
        return crew("first", "second", checkpoint=config).kickoff(inputs={"topic": "x"})

    @staticmethod
    def _written(folder: Path) -> list[Path]:
        # As CrewAI's commands find them; a writer may have other files beside.
        return [path for path in (folder / "checkpoints").rglob("*.json") if path.is_file()]
