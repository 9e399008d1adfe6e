"""That a power cut in the middle loses nothing: what may then be on the disk is made, and opened.

A program is recorded while it writes. Then, at moments of it, the power is cut: of what was not synced
by then some is on the disk and some is not. ``POWER_CUTS=5000`` in the environment has it cut more often.
"""

from __future__ import annotations

import bisect
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from disk import MODES, Disk
from recorder import build, record

CUTS = int(os.environ.get("POWER_CUTS", "60"))
SUBJECTS = [
    ("flow", "full"),
    ("flow", "normal"),
    ("database", "full"),
    ("database", "normal"),
    ("replay", "full"),
    ("checkpoints", "full"),
    ("prune", "full"),
    ("memory", "full"),
    ("memory", "normal"),
    ("journal", "full"),
]
WRONG = ["renamed before the sync", "acknowledged before the sync", "directory not synced"]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    if sys.platform != "linux" or shutil.which("cc") is None:
        pytest.skip("recording needs Linux and a C compiler")
    return build(tmp_path_factory.mktemp("recorder"))


class Subject:
    """A program of which what it writes is recorded."""

    def __init__(self, name, setting, library, directory):
        self.program = [sys.executable, str(Path(__file__).parent / "subjects" / f"{name}.py")]
        self.setting = setting
        self.directory = directory
        self.watched = directory / "watched"
        command = [*self.program, "run", setting, str(self.watched)]
        self.root, self.operations = record(library, command, self.watched, directory)
        self.marks = [at for at, done in enumerate(self.operations) if done.kind == "A"]

    def disk(self, *, journal):
        return Disk(self.watched, self.root, journal=journal)

    def moments(self, count):
        """So many numbers of operations, how many are done by each; in order."""
        rng = random.Random(0)
        ends = [at for at, done in enumerate(self.operations) if done.kind in "AE"]
        total = len(self.operations)
        anywhere = [rng.randint(0, total) for _ in range(count // 2)]
        # What was synced or promised last is what can be lost most easily.
        near = [min(total, rng.choice(ends) + rng.randint(0, 4)) for _ in range(count // 2)]
        return sorted(anywhere + near)

    def faults(self, count):
        """What is wrong after power cuts, for each that something is wrong after."""
        with subprocess.Popen(
            [*self.program, "check", self.setting],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as checker:
            for journal in (False, True):
                disk, done = self.disk(journal=journal), 0
                for number, moment in enumerate(self.moments(count // 2)):
                    for operation in self.operations[done:moment]:
                        if operation.kind != "A":
                            disk.do(operation)
                    done = moment
                    rng = random.Random(number)
                    mode = rng.choice(MODES)
                    place = self.directory / "cut"
                    disk.write(place, mode, rng)
                    marks = self.marks[: bisect.bisect_left(self.marks, moment)]
                    said = [json.loads(self.operations[at].data) for at in marks]
                    checker.stdin.write(json.dumps([str(place), said]) + "\n")
                    checker.stdin.flush()
                    fault = json.loads(checker.stdout.readline() or '"it crashed"')
                    if fault is not None:
                        yield f"cut {number} after {moment}, {journal=}, {mode}: {fault}"
                        if checker.poll() is not None:
                            return
                    shutil.rmtree(place)


@pytest.mark.parametrize(("name", "setting"), SUBJECTS)
def test_a_power_cut_loses_nothing(name, setting, library, tmp_path):
    subject = Subject(name, setting, library, tmp_path)
    assert is_recorded(subject, tmp_path / "whole")
    faults = list(subject.faults(CUTS))
    assert not faults, f"{len(faults)} of {CUTS}, the first: {faults[0]}"


def is_recorded(subject, target):
    """Whether what was recorded makes everything that the program has left."""
    disk = subject.disk(journal=False)
    for operation in subject.operations:
        if operation.kind != "A":
            disk.do(operation)
    disk.write(target, "all", random.Random(0))
    return contents(target) == contents(subject.watched)


def contents(directory):
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in directory.rglob("*")
        if not path.name.endswith("-shm")
    }


@pytest.mark.parametrize("setting", WRONG)
def test_programs_that_lose_data_are_found(setting, library, tmp_path):
    assert list(Subject("wrong", setting, library, tmp_path).faults(CUTS))


def test_what_is_not_written_to_survive_a_power_cut_is_found_not_to(library, tmp_path):
    subject = Subject("database", "normal", library, tmp_path)
    subject.setting = "full"
    assert list(subject.faults(CUTS))


def test_a_program_that_loses_none_is_not(library, tmp_path):
    assert not list(Subject("wrong", "right", library, tmp_path).faults(CUTS))
