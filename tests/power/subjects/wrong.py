"""Programs that lose data at a power cut: what finds no fault with them finds none at all."""

import os

from subject import main

FILES = 6


def text(n):
    return f"{n} ".encode() * 3000


def sync(path):
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    os.close(file)


def run(place, setting, mark):
    for n in range(FILES):
        draft = place / "draft"
        with draft.open("wb") as file:
            file.write(text(n))
            file.flush()
            if setting in ("right", "directory not synced"):
                os.fsync(file.fileno())
        if setting == "acknowledged before the sync":
            mark(n)
            sync(draft)
        draft.rename(place / str(n))
        if setting != "directory not synced":
            sync(place)
        mark(n)


def check(place, setting, done):
    for n in range(FILES):
        file = place / str(n)
        assert file.exists() or [n] not in done
        assert not file.exists() or file.read_bytes() == text(n)


main(run, check)
