"""Batches and the life of the process: forks, and its end."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

FOREVER = 60.0

DOING = """
import gc, os, sys, threading, time
from crewai_native_tasks import imap_crew, map_crew

class Doing:
    usage_metrics = None
    def kickoff(self, inputs):
        n = inputs["n"]
        if n == "sleep":
            time.sleep(600)
        return n

def child(work):
    pid = os.fork()
    if not pid:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
"""


def run(tmp_path: Path, program: str) -> str:
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(DOING) + textwrap.dedent(program))
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", str(script)],
        capture_output=True,
        text=True,
        timeout=FOREVER,
        check=False,
        env={**os.environ, "CREWAI_STORAGE_DIR": str(tmp_path / "crewai")},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_a_fork_before_and_after_first_use_and_in_the_middle_of_a_batch(tmp_path: Path) -> None:
    output = run(
        tmp_path,
        """
        def batch(count=20):
            numbers = [{"n": n} for n in range(count)]
            assert map_crew(Doing, numbers, concurrency=4).outputs == list(range(count))

        child(batch)
        batch()
        child(batch)
        running = imap_crew(Doing, ({"n": n} for n in range(50)), concurrency=3, timeout=60)
        next(running)

        assert gc.get_freeze_count() > 1000

        def go_on():
            assert gc.get_freeze_count() < 1000  # some are frozen always, by Python 3.12
            batch()
            try:
                next(running)
            except RuntimeError as error:
                assert "forked process" in str(error)
            else:
                raise AssertionError
            running.close()

        child(go_on)
        assert len(list(running)) == 49
        print("well")
        """,
    )
    assert output == "well\n"


def test_a_fork_inside_an_item_runs_nothing_of_its_batch(tmp_path: Path) -> None:
    """Not where it runs a batch of its own, asks a model, or goes on after the item."""
    output = run(
        tmp_path,
        """
        import json, re
        from crewai_native.testing import ScriptedLLM

        here, main = sys.path[0], os.getpid()
        ran = os.open(os.path.join(here, "ran"), os.O_CREAT | os.O_APPEND | os.O_WRONLY)

        def inner():
            assert map_crew(Doing, [{"n": n} for n in range(4)], concurrency=2).outputs == [0, 1, 2, 3]

        def ask():
            for _ in range(20):
                ScriptedLLM("Done.").call("x")

        class Forking(Doing):
            def kickoff(self, inputs):
                n = inputs["n"]
                os.write(ran, f"{n} {os.getpid() == main}\\n".encode())
                if n < 2:
                    child([inner, ask][n])
                if n == 2 and not (pid := os.fork()):
                    return "the child's"
                if n == 2:
                    assert os.waitpid(pid, 0)[1] == 0
                return n

        numbers = [{"n": n} for n in range(8)]
        journal = os.path.join(here, "journal")
        assert map_crew(Forking, numbers, concurrency=1, resume=journal).outputs == list(range(8))
        lines = sorted(open(os.path.join(here, "ran")).read().splitlines())
        assert lines == [f"{n} True" for n in range(8)], lines
        indices = re.findall(rb'"index":(\\d+)', open(journal, "rb").read())
        assert [int(index) for index in indices] == list(range(8)), indices
        print("well")
        """,
    )
    assert output == "well\n"


def test_the_process_ends_while_a_batch_runs(tmp_path: Path) -> None:
    began = time.monotonic()
    output = run(
        tmp_path,
        """
        batch = imap_crew(Doing, [{"n": 1}, *[{"n": "sleep"}] * 20], concurrency=4, timeout=500)
        print(next(batch).output)
        """,
    )
    assert output == "1\n"
    assert time.monotonic() - began < FOREVER


def test_and_while_another_thread_reads_it(tmp_path: Path) -> None:
    output = run(
        tmp_path,
        """
        begun = threading.Event()

        def read():
            batch = imap_crew(Doing, [{"n": 1}, *[{"n": "sleep"}] * 20], concurrency=4)
            print(next(batch).output, flush=True)
            begun.set()
            next(batch)

        threading.Thread(target=read, daemon=True).start()
        begun.wait()
        """,
    )
    assert output == "1\n"


def test_processes_share_a_limit(tmp_path: Path) -> None:
    output = run(
        tmp_path,
        """
        from crewai_native_tasks.limits import Limit

        def admitted():
            limit = Limit(requests=7, path="limits")
            return sum(limit.admit()[0] is not None for _ in range(5))

        os.chdir(sys.path[0])
        assert admitted() == 5
        child(lambda: [None][admitted() - 2])
        assert admitted() == 0
        print("well")
        """,
    )
    assert output == "well\n"
