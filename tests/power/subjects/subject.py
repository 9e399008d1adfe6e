"""What the subjects have in common: how they are run, and how what is left of them is looked at.

``SUBJECT.py run SETTING PLACE`` writes below a directory, and says after each step that it is done.
``SUBJECT.py check SETTING`` reads from its input, line by line, where a power cut has left what and
which steps were done by then, and prints for each what is wrong with it, or null.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import traceback
from pathlib import Path


def main(run, check) -> None:
    what, setting = sys.argv[1:3]
    if what == "run":
        with open(os.environ["POWER_MARKS"], "ab", buffering=0) as marks:  # noqa: PTH123
            run(Path(sys.argv[3]), setting, lambda *done: marks.write(json.dumps(done).encode()))
        return
    for line in sys.stdin:
        place, done = json.loads(line)
        try:
            check(Path(place), setting, done)
        except BaseException:  # noqa: BLE001 - whatever it is, it is told
            fault = traceback.format_exc()
        else:
            fault = None
        print(json.dumps(fault), flush=True)  # noqa: T201 - whoever asked reads it


def noise(seed: object, size: int) -> str:
    """Text that does not get smaller when it is packed; the same for the same seed."""
    return random.Random(str(seed)).randbytes(size // 2).hex()


def together(*works) -> None:
    """Run functions at the same time; raise what one raises."""
    errors = []

    def guarded(work):
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
