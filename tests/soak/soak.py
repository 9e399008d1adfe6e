"""Random misbehaviour on many calls at once: nothing crashes, leaks, or goes unanswered.

    make soak                  # two minutes
    make soak SECONDS=3600

Prints what became of the calls and exits with status 1 if one was answered too late, if more threads
are left than the cap allows, if processes are left, or if memory has grown.
"""

# ruff: noqa: T201 - its table is what it is for

import argparse
import collections
import gc
import os
import pathlib
import random
import sys
import tempfile
import threading
import time
import warnings

os.environ.setdefault("CREWAI_STORAGE_DIR", tempfile.mkdtemp(prefix="crewai-native-soak-"))
warnings.simplefilter("ignore")

import soak_tools  # noqa: E402 - after the environment that it reads

from crewai_native_tools import Policy, ToolEngine, processes  # noqa: E402

CALLERS = 100
TIMEOUT = 1.0
TIMEOUT_APART = 20.0
"""For calls in workers, of which there are few, and which are started anew after most calls."""
APART = 0.05
"""The share of such calls."""
LATE = 5.0
"""Seconds beyond the deadline at which an answer counts as too late. The promise is 0.1 s, on a
machine that is not as busy as this makes it."""
MAX_THREADS = 128
GROWTH = 100 << 20
"""Bytes of memory that may come on top between a quarter of the time and the end."""


def memory():
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def children():
    """Return the processes that this one has started and that are left."""
    me, found = str(os.getpid()), []
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            name, fields = stat.read_text().rsplit(")", 1)
        except OSError:
            continue
        state, parent = fields.split()[:2]
        if parent == me and state != "Z":
            found.append(name)
    return found


class Soak:
    def __init__(self, seconds):
        self.end = time.monotonic() + seconds
        self.outcomes = collections.defaultdict(collections.Counter)
        self.latest = collections.defaultdict(lambda: -TIMEOUT_APART)
        self.asked = self.answered = 0
        self.lock = threading.Lock()
        self.engine = ToolEngine(
            timeout_seconds=TIMEOUT,
            max_threads=MAX_THREADS,
            max_recursion_depth=10,
            max_output="10 kB",
            retry={"attempts": 2, "backoff": 0.01, "on": "ValueError"},
        )
        for tool in soak_tools.THREADS:
            self.engine.register(tool.__name__, tool)
        apart = Policy(
            isolation="process", timeout=TIMEOUT_APART, memory_mb=200, open_files=50, cpu_seconds=2
        )
        for tool in soak_tools.PROCESSES:
            self.engine.register(tool.__name__, tool, apart)

    def call(self):
        rng = random.Random()
        while time.monotonic() < self.end:
            apart = rng.random() < APART
            tool = rng.choice(soak_tools.PROCESSES if apart else soak_tools.THREADS)
            name, n = tool.__name__, rng.randrange(1000)
            with self.lock:
                self.asked += 1
            begun = time.monotonic()
            try:
                self.engine.execute_tool(name, {"n": n}, run=rng.choice((None, "run")))
                outcome = "result"
            except BaseException as error:  # noqa: BLE001 - whatever it is, it is an answer
                outcome = type(error).__name__
            took = time.monotonic() - begun - (TIMEOUT_APART if apart else TIMEOUT)
            with self.lock:
                self.answered += 1
                self.outcomes[name][outcome] += 1
                self.latest[name] = max(self.latest[name], took)

    def run(self):
        started, before = time.monotonic(), 0
        callers = [threading.Thread(target=self.call, daemon=True) for _ in range(CALLERS)]
        for caller in callers:
            caller.start()
        quarter = started + (self.end - started) / 4
        while time.monotonic() < self.end:
            time.sleep(0.25)
            if not before and time.monotonic() >= quarter:
                gc.collect()
                before = memory()
        for caller in callers:
            caller.join(TIMEOUT_APART + LATE + 30)
        unanswered = sum(caller.is_alive() for caller in callers)
        abandoned = self.engine.stats()["abandoned"]
        gc.collect()
        grown = memory() - before
        soak_tools.HANGING.set()
        processes.pool().close()
        limit = time.monotonic() + 30
        while time.monotonic() < limit and (self.engine.stats()["abandoned"] or children()):
            time.sleep(0.1)
        return self.report(unanswered, abandoned, grown)

    def report(self, unanswered, abandoned, grown):
        print(f"{'tool':<18}{'calls':>7}{'latest':>9}  outcomes")
        for name, outcomes in sorted(self.outcomes.items()):
            words = ", ".join(f"{kind} {count}" for kind, count in outcomes.most_common())
            print(f"{name:<18}{outcomes.total():>7}{self.latest[name]:>+8.2f}s  {words}")
        latest = max(self.latest.values())
        left = self.engine.stats()["abandoned"]
        checks = (
            ("calls answered", f"{self.answered} of {self.asked}", not unanswered),
            ("latest answer", f"{latest:+.2f} s after its deadline", latest < LATE),
            ("abandoned threads", f"{abandoned} of {MAX_THREADS}", abandoned <= MAX_THREADS),
            ("left in the end", f"{left} threads, {len(children())} processes", not left),
            ("processes", ", ".join(children()) or "none", not children()),
            ("memory", f"{grown / 2**20:+.0f} MiB", grown < GROWTH),
        )
        print(f"\nworkers: {processes.pool().stats()}\n")
        for what, found, good in checks:
            print(f"{'ok  ' if good else 'FAIL'} {what}: {found}")
        return all(good for *_, good in checks) and self.answered == self.asked


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=120.0)
    sys.exit(not Soak(parser.parse_args().seconds).run())
