"""The journal of a batch: what it keeps, what it refuses, and what it survives."""

from __future__ import annotations

import datetime as dt
import os
import signal
import subprocess
import sys
import textwrap
import warnings
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import crewai_native
from crewai_native.testing import ScriptedLLM

with warnings.catch_warnings():
    # What CrewAI's dependencies say while they are imported is not what is tested here.
    warnings.simplefilter("ignore")
    from crewai import Agent, Crew, Task
from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    computed_field,
    field_validator,
)

from crewai_native_tasks import ItemState, JournalError, imap_crew, map_crew
from crewai_native_tasks.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FOREVER = 60.0
T = TypeVar("T")


@pytest.fixture(autouse=True, scope="module")
def bound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CREWAI_STORAGE_DIR", str(tmp_path_factory.mktemp("crewai")))
        crewai_native.activate(enabled=True)
        yield
        crewai_native.deactivate()


class Doing:
    usage_metrics = None

    def __init__(self, do: Any) -> None:
        self.do = do

    def __call__(self) -> Doing:
        return self

    def kickoff(self, inputs: dict[str, Any]) -> Any:
        return self.do(**inputs)


class Answer(BaseModel):
    topic: str
    length: int


class Renamed(BaseModel):
    length: int = Field(default=0, alias="lengthInMetres")
    width: int = Field(validation_alias=AliasChoices("w", "breadth"), serialization_alias="W")


class Computed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    length: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def doubled(self) -> int:
        return 2 * self.length


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)
    when: dt.datetime
    tags: set[str]
    part: Renamed
    ratio: float
    _seen: int = PrivateAttr(default=0)


class Box(BaseModel, Generic[T]):
    content: T


BOX = Box[int]


class Growing(BaseModel):
    """Does not come back as it was."""

    text: str

    @field_validator("text")
    @classmethod
    def grow(cls, text: str) -> str:
        return f"{text}!"


def numbers(count: int) -> list[dict[str, Any]]:
    return [{"n": n} for n in range(count)]


class TestResuming:
    def test_finished_items_are_not_run_again(self, tmp_path: Path) -> None:
        path, ran = tmp_path / "deep" / "batch.journal", []

        def do(n: int) -> int:
            ran.append(n)
            if len(ran) == 4:
                raise KeyError(n)
            return n * n

        with pytest.raises(KeyError):
            map_crew(Doing(do), numbers(8), concurrency=1, resume=path)
        first = list(ran)
        result = map_crew(Doing(do), numbers(8), concurrency=1, resume=path)
        assert result.outputs == [n * n for n in range(8)]
        assert [item.attempts for item in result] == [0, 0, 0, 1, 1, 1, 1, 1]
        assert ran[len(first) :] == [3, 4, 5, 6, 7]
        assert map_crew(Doing(do), numbers(8), resume=path).outputs == result.outputs
        assert len(ran) == len(first) + 5

    def test_a_crews_output_comes_back_as_it_was(self, tmp_path: Path) -> None:
        agent = Agent(
            role="worker",
            goal="work",
            backstory="works",
            llm=ScriptedLLM(
                ['{"topic": "mill", "length": 4}'],
                structured={"Answer": {"topic": "mill", "length": 4}},
            ),
        )
        task = Task(
            description="task about {topic}",
            expected_output="words",
            agent=agent,
            output_pydantic=Answer,
        )
        crew = Crew(agents=[agent], tasks=[task])
        inputs = [{"topic": "mill"}]
        first = map_crew(crew, inputs, resume=tmp_path / "j")
        again = map_crew(crew, inputs, resume=tmp_path / "j")
        assert again[0].attempts == 0
        assert again.outputs == first.outputs
        assert again.outputs[0].pydantic == Answer(topic="mill", length=4)
        assert again.outputs[0].tasks_output[0].pydantic == Answer(topic="mill", length=4)
        assert again.usage == first.usage

    def test_an_output_that_has_no_json_is_not_done(self, tmp_path: Path) -> None:
        result = map_crew(
            Doing(lambda n: {n}), numbers(1), resume=tmp_path / "j", on_error="collect"
        )
        assert result[0].state is ItemState.FAILED
        assert isinstance(result[0].error, TypeError)

    def test_nor_is_an_item_whose_inputs_have_none(self, tmp_path: Path) -> None:
        inputs: list[Any] = [{"n": 1}, {"n": {1}}]
        result = map_crew(
            Doing(lambda n: 1), inputs, resume=tmp_path / "j", retries=1, on_error="collect"
        )
        assert [item.state for item in result] == [ItemState.DONE, ItemState.FAILED]
        assert "inputs of a batch with a journal are JSON; they hold {1}" in str(result[1].error)

    def test_what_kickoffs_make_of_their_inputs_is_no_other_input(self, tmp_path: Path) -> None:
        inputs = [{"n": {"seen": []}}, None]

        def do(n: Any = None) -> int:
            if n is not None:
                n["seen"].append(1)
            return 1

        class Kicked(Doing):
            def kickoff(self, inputs: Any) -> Any:
                return self.do(**(inputs or {}))

            def __call__(self) -> Kicked:
                return self

        for attempts in (1, 0):
            result = map_crew(Kicked(do), inputs, resume=tmp_path / "j")
            assert [item.attempts for item in result] == [attempts] * 2
        assert inputs == [{"n": {"seen": []}}, None]

    def test_models_of_imported_modules_come_back(self, tmp_path: Path) -> None:
        answer = Answer(topic="x", length=1)
        batch = Doing(lambda n: answer)
        assert map_crew(batch, numbers(1), resume=tmp_path / "j").outputs == [answer]
        assert map_crew(batch, numbers(1), resume=tmp_path / "j").outputs == [answer]

    @pytest.mark.parametrize(
        "answer",
        [
            Renamed(lengthInMetres=3, breadth=4),
            Computed(length=3),
            Strict(
                when=dt.datetime(2026, 1, 2, tzinfo=dt.UTC),
                tags={"a"},
                part=Renamed(w=1),
                ratio=float("inf"),
            ),
            BOX(content=1),
        ],
        ids=lambda answer: type(answer).__name__,
    )
    def test_whatever_their_fields_are_called_and_made_of(
        self, tmp_path: Path, answer: BaseModel
    ) -> None:
        batch = Doing(lambda n: answer)
        for attempts in (1, 0):
            (item,) = map_crew(batch, numbers(1), resume=tmp_path / "j")
            assert (item.output, item.attempts) == (answer, attempts)

    def test_one_that_would_not_come_back_is_not_done(self, tmp_path: Path) -> None:
        class Local(BaseModel):
            n: int

        answers = [Growing(text="a"), Local(n=1), 5]
        batch = Doing(lambda n: answers[n])
        for attempts in (1, 0):
            result = map_crew(batch, numbers(3), resume=tmp_path / "j", on_error="collect")
            grown, local, five = result
            assert "would come back as another" in str(grown.error)
            assert "no model that this program has imported" in str(local.error)
            assert (five.output, five.attempts) == (5, attempts)


class TestRefusing:
    def test_the_journal_of_another_batch(self, tmp_path: Path) -> None:
        map_crew(Doing(lambda n: n), numbers(3), resume=tmp_path / "j")
        with pytest.raises(JournalError, match="item 2 has other inputs"):
            map_crew(Doing(lambda n: n), [*numbers(2), {"n": "x"}], resume=tmp_path / "j")

        def another() -> None:
            raise AssertionError

        with pytest.raises(JournalError, match="of another crew or flow"):
            map_crew(another, numbers(3), resume=tmp_path / "j")

    def test_one_that_is_in_use(self, tmp_path: Path) -> None:
        with (
            imap_crew(Doing(lambda n: n), numbers(3), resume=tmp_path / "j"),
            pytest.raises(JournalError, match="in use by another batch"),
        ):
            map_crew(Doing(lambda n: n), numbers(3), resume=tmp_path / "j")
        assert map_crew(Doing(lambda n: n), numbers(3), resume=tmp_path / "j").outputs == [0, 1, 2]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"crewai-native batch journal 2\n", "newer than this version's"),
            (b"a diary\n", "is no journal"),
        ],
    )
    def test_what_is_none(self, tmp_path: Path, content: bytes, message: str) -> None:
        (tmp_path / "j").write_bytes(content)
        with pytest.raises(JournalError, match=message):
            map_crew(Doing(lambda n: n), numbers(3), resume=tmp_path / "j")
        assert (tmp_path / "j").read_bytes() == content

    def test_a_damaged_one(self, tmp_path: Path) -> None:
        path = tmp_path / "j"
        map_crew(Doing(lambda n: n), numbers(5), resume=path)
        damaged = bytearray(path.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(JournalError, match="damaged at byte"):
            map_crew(Doing(lambda n: n), numbers(5), resume=path)

    def test_a_damaged_length(self, tmp_path: Path) -> None:
        path = tmp_path / "j"
        map_crew(Doing(lambda n: n), numbers(5), resume=path)
        damaged = bytearray(path.read_bytes())
        # The upper bytes of the first length: the record would end far behind the file. Which item is
        # the first to be done is open.
        at = damaged.index(b'{"index":') - 6
        damaged[at : at + 2] = b"\xff\xff"
        path.write_bytes(damaged)
        with pytest.raises(JournalError, match="damaged at byte"):
            map_crew(Doing(lambda n: n), numbers(5), resume=path)
        assert path.read_bytes() == damaged

    def test_models_that_nobody_has_imported(self, tmp_path: Path) -> None:
        path = tmp_path / "j"
        map_crew(Doing(lambda n: Answer(topic="x", length=n)), numbers(1), resume=path)
        gone = path.read_bytes().replace(b"Answer", b"Answex")
        journal = Journal(tmp_path / "new", "key")
        journal.close()
        assert b"Answex" in gone
        with pytest.raises(JournalError, match=r"no model that this program has imported"):
            journal._output({"model": "os:system", "fields": {}})
        with pytest.raises(JournalError, match=r"a .*Answer that does not come back: 2 validation"):
            journal._output({"model": f"{__name__}:Answer", "fields": {}})


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 10_000), zeros=st.integers(0, 600))
def test_a_journal_that_was_cut_anywhere_has_what_lies_before(
    tmp_path_factory: pytest.TempPathFactory, cut: int, zeros: int
) -> None:
    path = tmp_path_factory.mktemp("cut") / "j"
    journal = Journal(path, "key")
    ends = [path.stat().st_size]
    for n in range(6):
        journal.write(n, Journal.key_of({"n": n}), {"text": "x" * n}, None)
        ends.append(path.stat().st_size)
    journal.close()
    cut %= ends[-1] + 1
    os.truncate(path, cut)
    # What a power cut leaves where a file has its length already, and not yet its text.
    os.truncate(path, cut + zeros)
    journal = Journal(path, "key")
    whole = max(0, sum(end <= cut for end in ends) - 1)
    assert len(journal) == whole
    for n in range(6):
        known = journal.find(n, Journal.key_of({"n": n}))
        assert (known.output if known else None) == ({"text": "x" * n} if n < whole else None)
    journal.write(9, "key", "after", None)
    journal.close()
    journal = Journal(path, "key")
    assert len(journal) == whole + 1
    journal.close()


PROGRAM = """
import os, sys, time
from crewai_native_tasks import imap_crew

def say(*words):
    # Whole lines, from whichever thread.
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

class Doing:
    usage_metrics = None
    def kickoff(self, inputs):
        n = inputs["n"]
        if n >= int(sys.argv[2]):
            say("waiting")
            time.sleep(60)
        return n * n

def main():
    try:
        for item in imap_crew(Doing, ({"n": n} for n in range(12)), concurrency=2, resume=sys.argv[1]):
            say(item.index, item.attempts, item.output)
    except KeyboardInterrupt:
        say("interrupted")

main()
"""


def program(tmp_path: Path, stop_at: int) -> subprocess.Popen[str]:
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(PROGRAM))
    return subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "j"), str(stop_at)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_batch_that_was_killed_goes_on_where_it_stood(
    tmp_path: Path, how: signal.Signals
) -> None:
    first = program(tmp_path, 6)
    assert first.stdout is not None
    said = []
    while (line := first.stdout.readline()).strip() != "waiting":
        assert line, first.communicate()[1]
        said.append(line.split())
    first.send_signal(how)
    # Ctrl-C ends it long before the kickoffs that sleep.
    rest, errors = first.communicate(timeout=FOREVER / 2)
    if how is signal.SIGINT:
        assert "interrupted" in rest
        assert errors == ""
    finished = {int(index) for index, *_ in said}
    second = program(tmp_path, 99)
    output, errors = second.communicate(timeout=FOREVER)
    assert errors == ""
    lines = [[int(word) for word in line.split()] for line in output.splitlines()]
    assert sorted(line[0] for line in lines) == list(range(12))
    for index, attempts, value in lines:
        assert value == index * index
        if index in finished:
            assert attempts == 0
        if index >= 6:
            assert attempts == 1
