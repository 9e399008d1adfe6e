"""``checkpoint.writer``: a crew can be restored from what was written of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from crewai_native.testing.contract.crews import crew
from crewai_native.testing.contract.rules import SlotContract

if TYPE_CHECKING:
    from pathlib import Path


class TestCheckpointWriter(SlotContract):
    """Runs crews with checkpoints in files, CrewAI's default."""

    slot: ClassVar = "checkpoint.writer"

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

    @staticmethod
    def _run(folder: Path) -> Any:
        from crewai.state.checkpoint_config import CheckpointConfig

        config = CheckpointConfig(location=str(folder / "checkpoints"))
        return crew("first", "second", checkpoint=config).kickoff(inputs={"topic": "x"})

    @staticmethod
    def _written(folder: Path) -> list[Path]:
        return [path for path in (folder / "checkpoints").rglob("*") if path.is_file()]
