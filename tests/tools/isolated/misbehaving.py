"""Functions for worker processes, most of which do what a tool should not."""

import asyncio
import contextvars
import ctypes
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

TENANT = contextvars.ContextVar("TENANT", default="nobody")
CONNECTION = contextvars.ContextVar("CONNECTION", default=None)


def add(first, second=10):
    return first + second


def whoami():
    return os.getpid(), os.getpgrp(), os.getppid()


async def add_later(first, second):
    await asyncio.sleep(0)
    return first + second


def context():
    return TENANT.get(), CONNECTION.get()


def prints(text):
    sys.stdout.write(f"{text}\n")
    os.write(1, b"and more\n")
    return sys.stdin.read()


def loops(started=None):
    if started:
        pathlib.Path(started).write_text(str(os.getpid()))
    while True:
        pass


def loops_in_c():
    return sum(range(10**14))


def ignores_sigterm():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.kill(os.getpid(), signal.SIGTERM)
    while True:
        time.sleep(1000)


def blocks_on_a_lock():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def allocates():
    kept = []
    while True:
        kept.append(bytearray(1 << 20))


def recurses():
    return recurses()


def exits():
    sys.exit("enough")


def exits_at_once():
    os._exit(3)


def aborts():
    os.abort()


def segfaults():
    ctypes.string_at(0)


def is_killed():
    os.kill(os.getpid(), signal.SIGKILL)


def forks_and_both_return():
    return os.fork() == 0


def forks_and_leaves(file):
    child = subprocess.Popen(["sleep", "1000"])
    lost = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    # Whoever waits for it sees it whole.
    draft = pathlib.Path(f"{file}-new")
    draft.write_text(f"{child.pid} {lost.pid}")
    draft.replace(file)
    return "left"


def forks_and_hangs(file):
    forks_and_leaves(file)
    os.fork()
    loops()


def large(size):
    return b"x" * size


def unpicklable():
    return threading.Lock()


class Vanishes:
    def __reduce__(self):
        return _only_in_the_worker, (os.getpid(),)


def _only_in_the_worker(pid):
    if os.getpid() != pid:
        raise LookupError("not here")
    return Vanishes()


def vanishes():
    return Vanishes()


class OddError(Exception):
    def __init__(self, first, second):
        super().__init__("odd")


class FatalError(BaseException):
    pass


class NamelessError(Exception):
    def __repr__(self):
        raise RuntimeError("no repr")

    __str__ = __repr__


def raises(what):
    raise {
        "value": ValueError("wrong", 7),
        "odd": OddError(1, 2),
        "fatal": FatalError("over"),
        "interrupt": KeyboardInterrupt(),
        "nameless": NamelessError(),
        "local": type("Local", (Exception,), {})("lost"),
        "huge": ValueError("x" * 50_000_000),
    }[what]


def closes_everything():
    os.closerange(3, 1000)
    loops()


def speaks_out_of_turn():
    for fd in range(3, 20):
        try:
            os.write(fd, b"nonsense" * 4)
        except OSError:
            continue


def writes(file, size):
    return pathlib.Path(file).write_bytes(b"x" * size)


def opens(count):
    return len([os.open(os.devnull, os.O_RDONLY) for _ in range(count)])


def takes_processor_time():
    signal.signal(signal.SIGXCPU, signal.SIG_IGN)
    return add(1)


KEPT = []


def leaks(size):
    KEPT.append(bytearray(size))
    return os.getpid()


def waits_for(file):
    while not pathlib.Path(file).exists():
        time.sleep(0.005)
    return "seen"
