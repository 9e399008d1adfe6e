"""Random misbehaviour on many calls at once: nothing crashes, leaks, or goes unanswered.

    make soak                  # two minutes
    make soak SECONDS=3600

Prints what became of the calls and exits with status 1 if one was answered too late, if more threads
are left than the cap allows, if processes are left, or if memory has grown. If it does not come to its
end it says where every thread is, how much of a processor it was given, and exits with status 2.
"""

# ruff: noqa: T201 - its table is what it is for

import argparse
import collections
import ctypes
import faulthandler
import gc
import os
import pathlib
import random
import sys
import tempfile
import threading
import time
import traceback
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
ENDING = 300.0
"""Seconds that it may take from the end of its time to its own end."""
PR_SET_CHILD_SUBREAPER = 36


def memory():
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def adopt_orphans():
    """Have what workers leave behind become this process's children, which :func:`children` sees."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def children():
    """Return the processes that this one has started, or adopted, and that are left."""
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
        self.seconds = seconds
        self.started = time.monotonic()
        self.phase = "starting its callers"
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

    @property
    def end(self):
        return self.started + self.seconds

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
        self.watch()
        before = 0
        callers = [threading.Thread(target=self.call, daemon=True) for _ in range(CALLERS)]
        for caller in callers:
            caller.start()
        self.phase = "calling"
        quarter = self.started + self.seconds / 4
        while time.monotonic() < self.end:
            time.sleep(0.25)
            if not before and time.monotonic() >= quarter:
                gc.collect()
                before = memory()
        self.phase = "waiting for the last answers"
        limit = time.monotonic() + TIMEOUT_APART + LATE + 30
        for caller in callers:
            caller.join(max(0.0, limit - time.monotonic()))
        unanswered = sum(caller.is_alive() for caller in callers)
        if unanswered:
            self.tell_where_it_is()
        abandoned = self.engine.stats()["abandoned"]
        gc.collect()
        grown = memory() - before
        self.phase = "waiting for what was abandoned"
        soak_tools.HANGING.set()
        processes.pool().close()
        limit = time.monotonic() + 30
        while time.monotonic() < limit and (self.engine.stats()["abandoned"] or children()):
            time.sleep(0.1)
        good = self.report(unanswered, abandoned, grown)
        self.phase = "exiting"
        return good

    def watch(self):
        """Say where it is and exit, should it not come to its end, or hang when it exits."""
        limit = self.seconds + ENDING

        def wait():
            time.sleep(limit)
            print(f"FAIL not at its end {limit:.0f} s after its beginning: {self.phase}")
            self.tell_where_it_is()
            os._exit(2)

        threading.Thread(target=wait, name="watchdog", daemon=True).start()
        # Where a thread does not let go of the GIL, this one needs none. It shows some threads only.
        faulthandler.dump_traceback_later(limit + 60, exit=True)

    def tell_where_it_is(self):
        wall, processor = time.monotonic() - self.started, time.process_time()
        print(
            f"answered {self.answered} of {self.asked} calls; was given {processor:.1f} s of a "
            f"processor in {wall:.0f} s ({processor / wall:.1%}); load {os.getloadavg()[0]:.1f}; "
            f"children: {', '.join(children()) or 'none'}"
        )
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        stacks = collections.defaultdict(list)
        for ident, frame in sys._current_frames().items():
            stack = "".join(traceback.format_stack(frame))
            stacks[stack].append(names.get(ident, str(ident)))
        for stack, threads in sorted(stacks.items(), key=lambda item: len(item[1])):
            print(f"\n{len(threads)} of: {', '.join(threads[:4])}\n{stack}", end="", flush=True)
        # Last, since it takes locks.
        print(f"\nworkers: {processes.pool().stats()}", flush=True)

    def report(self, unanswered, abandoned, grown):
        print(f"{'tool':<18}{'calls':>7}{'latest':>9}  outcomes")
        for name, outcomes in sorted(self.outcomes.items()):
            words = ", ".join(f"{kind} {count}" for kind, count in outcomes.most_common())
            print(f"{name:<18}{outcomes.total():>7}{self.latest[name]:>+8.2f}s  {words}")
        latest = max(self.latest.values())
        left = self.engine.stats()["abandoned"]
        wall, processor = time.monotonic() - self.started, time.process_time()
        checks = (
            ("calls answered", f"{self.answered} of {self.asked}", not unanswered),
            ("latest answer", f"{latest:+.2f} s after its deadline", latest < LATE),
            ("abandoned threads", f"{abandoned} of {MAX_THREADS}", abandoned <= MAX_THREADS),
            ("left in the end", f"{left} threads", not left),
            ("processes", ", ".join(children()) or "none", not children()),
            ("memory", f"{grown / 2**20:+.0f} MiB", grown < GROWTH),
        )
        print(f"\nworkers: {processes.pool().stats()}")
        print(
            f"time: {wall:.0f} s, and {processor:.0f} s of a processor ({processor / wall:.1%})\n"
        )
        for what, found, good in checks:
            print(f"{'ok  ' if good else 'FAIL'} {what}: {found}")
        return all(good for *_, good in checks) and self.answered == self.asked


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=120.0)
    adopt_orphans()
    sys.exit(not Soak(parser.parse_args().seconds).run())
