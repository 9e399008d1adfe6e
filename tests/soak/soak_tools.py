"""What tools should not do, for ``make soak``: in threads of the program, and in workers."""

import asyncio
import ctypes
import os
import random
import subprocess
import sys
import threading
import time

from crewai_native_tools import cancelled

HANGING = threading.Event()
"""Set when the soak ends: what hung until then goes."""
_hung = threading.Semaphore(24)


class Fatal(BaseException):
    """Nothing that ``except Exception`` catches."""


class NamelessError(Exception):
    """An error that cannot even be shown."""

    def __repr__(self):
        raise RuntimeError("no repr")

    __str__ = __repr__


# --- in threads -------------------------------------------------------------------------------


def works(n):
    return n + 1


def is_late(n):
    time.sleep(random.uniform(0, 1.5))
    return n


def hangs(n):
    # So many at a time: a program has no more threads than it has.
    if _hung.acquire(blocking=False):
        try:
            HANGING.wait()
        finally:
            _hung.release()
    return n


def loops(n):
    while not cancelled():
        n += 1
    return n


def raises(n):
    raise ValueError(n)


def raises_anything(n):
    raise (Fatal(n), NamelessError(n), SystemExit(n))[n % 3]


def recurses(n):
    return recurses(n)


def returns_much(n):
    return "x" * random.randrange(2_000_000)


async def awaits(n):
    await asyncio.sleep(random.uniform(0, 1.5))
    return n


# --- in workers -------------------------------------------------------------------------------


def works_apart(n):
    return n + 1


def loops_in_c(n):
    return sum(range(10**14))


def crashes(n):
    ctypes.string_at(0)


def exits(n):
    os._exit(n % 7)


def allocates(n):
    kept = []
    while True:
        kept.append(bytearray(1 << 20))


def leaves_children(n):
    subprocess.Popen(["sleep", "1000"], start_new_session=bool(n % 2))
    if n % 3 == 0:
        os.fork()
    return n


def returns_too_much(n):
    return b"x" * 100_000_000


def returns_a_lock(n):
    return threading.Lock()


def prints(n):
    sys.stdout.write("")
    return n


THREADS = (
    works,
    is_late,
    hangs,
    loops,
    raises,
    raises_anything,
    recurses,
    returns_much,
    awaits,
)
PROCESSES = (
    works_apart,
    loops_in_c,
    crashes,
    exits,
    allocates,
    leaves_children,
    returns_too_much,
    returns_a_lock,
    prints,
)
