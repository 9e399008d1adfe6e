"""``replay.store``: what ``crewai replay`` may rely on after a crew has run."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from crewai_native.testing.contract.crews import crew
from crewai_native.testing.contract.rules import SlotContract


class TestReplayStore(SlotContract):
    """Runs crews and looks at their logs."""

    slot: ClassVar = "replay.store"
    stock_defects: ClassVar = {
        "test_threads_can_use_it_at_once": "all crews of a project share one table",
    }
    runs_crews: ClassVar = True

    @staticmethod
    def exercise() -> Any:
        """Run a crew and load its log."""
        made = crew("first", "second")
        made.kickoff(inputs={"topic": "x"})
        log = made._task_output_handler.load()  # noqa: SLF001 - what replay itself calls
        return [entry["output"]["raw"] for entry in log]

    @pytest.fixture
    def ran(self, provider: str) -> Any:
        """A crew that has run."""
        made = crew("first", "second")
        made.kickoff(inputs={"topic": "x"})
        return made

    def test_every_task_of_the_run_is_there_in_order(self, ran: Any) -> None:
        """With its output and the inputs of the run."""
        log = ran._task_output_handler.load()  # noqa: SLF001 - what replay itself calls
        assert [entry["task_index"] for entry in log] == [0, 1]
        assert [entry["output"]["raw"] for entry in log] == ["first", "second"]
        assert [entry["inputs"] for entry in log] == [{"topic": "x"}] * 2
        assert [entry["was_replayed"] for entry in log] == [False] * 2

    def test_a_new_run_replaces_the_old_one(self, ran: Any) -> None:
        """Of the same crew."""
        ran.kickoff(inputs={"topic": "y"})
        log = ran._task_output_handler.load()  # noqa: SLF001
        assert [entry["inputs"] for entry in log] == [{"topic": "y"}] * 2

    def test_a_reset_deletes_what_was_logged(self, ran: Any) -> None:
        """For whichever crew of the project comes after, too."""
        ran.reset_memories("kickoff_outputs")
        assert not ran._task_output_handler.load()  # noqa: SLF001
        assert not crew("later")._task_output_handler.load()  # noqa: SLF001
        ran.kickoff(inputs={"topic": "y"})
        log = ran._task_output_handler.load()  # noqa: SLF001
        assert [entry["inputs"] for entry in log] == [{"topic": "y"}] * 2

    def test_a_crew_can_be_replayed_from_a_task(self, ran: Any) -> None:
        """The tasks before it keep their outputs and do not run."""
        result = ran.replay(str(ran.tasks[1].id))
        assert result.raw == "second"
        assert len(ran.agents[0].llm.calls) == 1
        assert len(ran.agents[1].llm.calls) == 2

    def test_a_task_that_never_ran_cannot_be_replayed(self, ran: Any) -> None:
        """With CrewAI's error."""
        with pytest.raises(ValueError, match="nobody"):
            ran.replay("nobody")

    @pytest.mark.stock_defect("all crews of a project share one table, and each run empties it")
    def test_crews_keep_their_logs_apart(self, ran: Any) -> None:
        """Another crew's run leaves this one's log alone."""
        crew("other").kickoff(inputs={"topic": "z"})
        log = ran._task_output_handler.load()  # noqa: SLF001
        assert [entry["output"]["raw"] for entry in log] == ["first", "second"]
