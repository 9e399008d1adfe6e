"""Long results: their ends are shown, the whole can be read."""

from __future__ import annotations

import os
import re
import stat
import threading
import time

import pytest
from crewai.tools.tool_failure import ToolFailure
from hypothesis import given
from hypothesis import strategies as st

from crewai_native_tools import outputs
from crewai_native_tools.outputs import Outputs
from crewai_native_tools.policy import Size


@pytest.fixture
def kept(tmp_path):
    return Outputs(tmp_path / "outputs")


def until(condition):
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit, "waited for 60 s"
        time.sleep(0.002)


def handle_of(text):
    return re.search(r"handle='([0-9a-f]{32})'", text)[1]


def test_what_is_short_stays_what_it_is(kept):
    for result in ("x" * 100, ["a", "list"], None, 7, ToolFailure(message="x" * 1000)):
        assert kept.cap(result, Size(100, "bytes"), tool="search") is result
    assert not kept.directory.exists()


def test_a_long_result_keeps_its_ends_and_the_whole_can_be_read(kept):
    whole = "begin " + "é" * 100_000 + " end"
    capped = kept.cap(whole, Size(1000, "bytes"), tool="search")
    assert 900 < len(capped.encode()) <= 1000
    assert capped.startswith("begin éé")
    assert capped.endswith("éé end")
    head, note, _ = capped.split("\n\n")
    size = len(whole.encode())
    tail = capped.split("\n\n")[2]
    missing = size - len(head.encode()) - len(tail.encode())
    assert note.startswith(f"[{missing} of {size} bytes are left out here.")

    # Where the note says, the rest begins; pages put together are the whole.
    offset = int(re.search(r"offset=(\d+)", note)[1])
    assert offset == len(head.encode())
    parts, at = [], 0
    while True:
        page, footer = kept.read(handle_of(note), at, 777).rsplit("\n", 1)
        parts.append(page)
        begin, end = (int(n) for n in re.match(r"\[bytes (\d+) to (\d+) of", footer).groups())
        assert begin == at
        at = end
        if "the end" in footer:
            break
    assert "".join(parts) == whole


@given(st.text(), st.integers(1, 400))
def test_never_longer_than_allowed_but_for_the_note(tmp_path_factory, text, most):
    kept = Outputs(tmp_path_factory.getbasetemp() / "any", keep=5)
    capped = kept.cap(text, Size(most, "bytes"), tool="search")
    if len(text.encode("utf-8", "replace")) <= most:
        assert capped is text
    else:
        assert len(capped.encode()) <= max(most, 250)


def test_tokens_are_an_estimate_of_four_bytes(kept):
    assert kept.cap("x" * 400, Size(100, "tokens"), tool="search") == "x" * 400
    assert len(kept.cap("x" * 4000, Size(100, "tokens"), tool="search")) <= 400


def test_what_is_no_text_is_cut_as_text(kept):
    result = list(range(1000))
    capped = kept.cap(result, Size(500, "bytes"), tool="search")
    assert capped.startswith("[0, 1, 2")
    assert kept.read(handle_of(capped), 0, 5000).startswith(str(result))


def test_files_are_the_owners_alone(kept):
    handle = handle_of(kept.cap("x" * 1000, Size(300, "bytes"), tool="search"))
    assert stat.S_IMODE((kept.directory / handle).stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.directory.stat().st_mode) == 0o700


def test_files_are_bounded_in_number_and_age(tmp_path):
    kept = Outputs(tmp_path, keep=3, max_age=100)
    handles = []
    for number in range(5):
        handles.append(handle_of(kept.cap("x" * 1000, Size(300, "bytes"), tool="search")))
        os.utime(
            tmp_path / handles[-1], ns=(0, (tmp_path / handles[-1]).stat().st_mtime_ns + number)
        )
    until(lambda: {file.name for file in tmp_path.iterdir()} == set(handles[2:]))
    with pytest.raises(LookupError, match="not kept any more"):
        kept.read(handles[0])
    os.utime(tmp_path / handles[3], (1, 1))
    last = handle_of(kept.cap("x" * 1000, Size(300, "bytes"), tool="search"))
    until(lambda: {file.name for file in tmp_path.iterdir()} == {handles[2], handles[4], last})


def test_a_result_is_kept_where_no_thread_can_be_started(kept, monkeypatch):
    def refuse(_thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert "The whole is kept" in kept.cap("x" * 1000, Size(300, "bytes"), tool="t")


def test_threads_that_prune_at_once(tmp_path):
    kept, start, errors = Outputs(tmp_path, keep=2), threading.Barrier(8), []

    def fill():
        start.wait()
        try:
            for _ in range(20):
                kept.cap("x" * 1000, Size(300, "bytes"), tool="search")
        except Exception as error:  # noqa: BLE001 - whatever it is
            errors.append(error)

    threads = [threading.Thread(target=fill) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    kept.cap("x" * 1000, Size(300, "bytes"), tool="search")
    until(lambda: len(list(tmp_path.iterdir())) == 2)


def test_a_disk_that_takes_nothing_costs_the_middle_only(tmp_path):
    (tmp_path / "file").touch()
    kept = Outputs(tmp_path / "file" / "outputs")
    capped = kept.cap("begin" + "x" * 1000, Size(300, "bytes"), tool="search")
    assert capped.startswith("begin")
    assert "could not be kept (Not a directory)" in capped


@pytest.mark.parametrize("handle", ["../secret", "", "x" * 32, "0" * 31])
def test_a_handle_leads_nowhere_else(kept, handle):
    with pytest.raises(LookupError, match="is no handle"):
        kept.read(handle)


@pytest.mark.parametrize("part", [{"offset": -1}, {"length": 0}, {"length": 10**6}])
def test_a_part_that_means_nothing(kept, part):
    with pytest.raises(ValueError, match="they accept"):
        kept.read("0" * 32, **part)


def test_bounds_that_mean_nothing():
    with pytest.raises(ValueError, match="above 0"):
        Outputs(keep=0)


def test_the_tool_for_agents(kept):
    tool = outputs.read_tool_output(kept)
    capped = kept.cap("x" * 1000, Size(300, "bytes"), tool="search")
    page = tool.run(handle=handle_of(capped), offset=990)
    assert page == "x" * 10 + "\n[bytes 990 to 1000 of 1000, the end]"
    # Its own results are not cut.
    assert kept.cap("y" * 1000, Size(300, "bytes"), tool=tool.name) == "y" * 1000
    lost = tool.run(handle="0" * 32)
    assert isinstance(lost, ToolFailure)
    assert "not kept any more" in lost.message


def test_the_default_place_is_crewais(monkeypatch, tmp_path):
    monkeypatch.setenv("CREWAI_STORAGE_DIR", str(tmp_path / "storage"))
    capped = outputs.cap("x" * 1000, Size(300, "bytes"), tool="search")
    assert (outputs.DEFAULT.directory / handle_of(capped)).exists()
    assert outputs.DEFAULT.directory.parts[-2:] == ("native", "tool_outputs")
