"""More stores in one process than the system lets it have files open for."""

from __future__ import annotations

import subprocess

import pytest

pytest.importorskip("resource", reason="limits on open files are those of POSIX")

# 60 stores would have 420 files open.
PROGRAM = """
import os, random, resource, sys, threading
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
from crewai_native_memory._native import Batch, Store

THREADS, STORES, ROUNDS = 6, 60, 150
stores = [Store(f"{sys.argv[1]}/{number}/memory.db", "l2") for number in range(STORES)]
failures, files, saved = [], [], [[] for _ in range(THREADS)]

def work(number):
    chosen = random.Random(number)
    try:
        for turn in range(ROUNDS):
            at, name = chosen.randrange(STORES), f"{number}-{turn}"
            batch = Batch()
            batch.add(name, "text", "/", [], "{}", 0.5, 1, 1, None, False, [1.0, float(turn)])
            stores[at].save(batch)
            saved[number].append((at, name))
            assert stores[at].get(name) is not None, name
            assert len(stores[at].search([1.0, float(turn)], limit=1, min_score=0.0)) == 1
            files.append(len(os.listdir("/dev/fd")))
    except BaseException as error:
        failures.append(error)

def forked():
    child = os.fork()
    if child == 0:
        ids = [stores[at].get(name) for at, name in saved[0]]
        os._exit(0 if None not in ids else 1)
    assert os.waitpid(child, 0)[1] == 0

threads = [threading.Thread(target=work, args=[number]) for number in range(THREADS)]
for thread in threads:
    thread.start()
while any(thread.is_alive() for thread in threads):
    forked()
for thread in threads:
    thread.join()
assert not failures, failures
wanted = [0] * STORES
for at, _ in sum(saved, []):
    wanted[at] += 1
assert [store.count("/") for store in stores] == wanted
print(max(files))
"""


def test_all_are_usable_and_the_least_used_give_up_their_files(script, tmp_path):
    done = subprocess.run(
        script(PROGRAM, tmp_path), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    # Some of a thread's own, and of what was closed in the meantime.
    assert int(done.stdout) < 220
