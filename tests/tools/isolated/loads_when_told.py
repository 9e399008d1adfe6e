"""A module whose import takes until a file is there."""

import os
import pathlib
import time

while not pathlib.Path(os.environ["LOADS_WHEN_TOLD"]).exists():
    time.sleep(0.005)


def answer():
    return 42
