from __future__ import annotations

import errno
import traceback

import pytest

from crewai_native_tasks import ItemState, map_crew


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (errno.ENOENT, FileNotFoundError),
        (errno.EEXIST, FileExistsError),
        (errno.EACCES, PermissionError),
        (errno.EPERM, PermissionError),
        (errno.ETIMEDOUT, TimeoutError),
        (errno.ECONNRESET, ConnectionResetError),
        (errno.EPIPE, BrokenPipeError),
        (errno.EINTR, InterruptedError),
        (errno.EISDIR, IsADirectoryError),
        (errno.ENOSPC, OSError),
        (errno.EROFS, OSError),
        (errno.EIO, OSError),
    ],
)
def test_an_io_error_has_its_class_errno_and_context(sdk, code, expected):
    with pytest.raises(OSError, match=r"opening y\.db: reading the header: ") as caught:
        sdk.fail_io(code)
    assert type(caught.value) is expected
    assert caught.value.errno == code
    assert "os error" not in str(caught.value)


def test_out_of_memory_is_memory_error(sdk):
    with pytest.raises(MemoryError, match=r"opening y\.db: reading the header: "):
        sdk.fail_io(errno.ENOMEM)


@pytest.mark.parametrize(
    "expected",
    [
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        OverflowError,
        NotImplementedError,
        MemoryError,
        RuntimeError,
        OSError,
        FileNotFoundError,
        FileExistsError,
        PermissionError,
        TimeoutError,
        ConnectionError,
    ],
)
def test_an_attached_kind_is_the_class(sdk, expected):
    with pytest.raises(expected, match="outer: inner") as caught:
        sdk.fail_kind(expected.__name__)
    assert type(caught.value) is expected


@pytest.mark.parametrize("name", ["FileNotFoundError", "PermissionError", "TimeoutError"])
def test_a_kind_with_one_errno_has_it(sdk, name):
    with pytest.raises(OSError, match="outer") as caught:
        sdk.fail_kind(name)
    # Python gives this errno this class.
    assert type(OSError(caught.value.errno, "")).__name__ == name


def test_an_error_type_gives_its_own_kind(sdk):
    with pytest.raises(ValueError, match=r"^a vector of 2 numbers, expected 3$"):
        sdk.fail_width()


class Weird(BaseException):
    """An exception that `except Exception` does not see."""


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("kind", [KeyError, Weird, KeyboardInterrupt])
def test_a_python_exception_comes_back_as_itself(sdk, kind, wrapped):
    raised = kind("from Python")

    def inner():
        raise raised

    with pytest.raises(kind) as caught:
        sdk.call_with_context(inner, wrapped=wrapped)
    assert caught.value is raised
    assert caught.value.__notes__ == ["searching: loading record 7"]
    assert [frame.name for frame in traceback.extract_tb(raised.__traceback__)][-1] == "inner"


class NoNotesError(Exception):
    __notes__ = 7


def test_an_exception_that_refuses_notes_still_comes_back(sdk, monkeypatch):
    unraisable = []
    monkeypatch.setattr("sys.unraisablehook", unraisable.append)

    def inner():
        raise NoNotesError

    with pytest.raises(NoNotesError):
        sdk.call_with_context(inner)
    assert [type(event.exc_value) for event in unraisable] == [TypeError]


@pytest.mark.parametrize("place", ["attached", "detached", "pool", "runtime"])
def test_a_panic_is_a_runtime_error_that_names_the_place(sdk, place, capfd, monkeypatch):
    monkeypatch.delenv("RUST_BACKTRACE", raising=False)
    for _ in range(3):
        with pytest.raises(RuntimeError, match=r"panic at .*lib\.rs:\d+:\d+: part 3 is bad"):
            sdk.fail_panic(place)
    assert capfd.readouterr().err == ""


def test_with_a_backtrace_wanted_a_caught_panic_is_printed(run):
    script = """
    try:
        sdk.fail_panic("detached")
    except RuntimeError:
        pass
    """
    assert "stack backtrace" in run(script, env={"RUST_BACKTRACE": "1"}).stderr


def test_a_panic_that_nothing_catches_is_still_printed(sdk, capfd):
    # The SDK's hook must not hide panics that are not its own.
    with pytest.raises(BaseException, match="unguarded") as caught:
        sdk.fail_panic_unguarded()
    assert type(caught.value).__name__ == "PanicException"
    assert "unguarded" in capfd.readouterr().err


class Panicking:
    """In place of a crew: the kickoff of item 7 panics in Rust."""

    usage_metrics = None

    def __init__(self, panic):
        self.panic = panic

    def __call__(self):
        return self

    def kickoff(self, inputs):
        if inputs["n"] == 7:
            self.panic()
        return inputs["n"]


@pytest.mark.parametrize(
    ("panic", "kind", "says"),
    [
        (lambda sdk: sdk.fail_panic("detached"), "RuntimeError", "part 3 is bad"),
        (lambda sdk: sdk.fail_panic("pool"), "RuntimeError", "part 3 is bad"),
        (lambda sdk: sdk.fail_panic_unguarded(), "PanicException", "unguarded"),
    ],
)
def test_a_panic_in_one_kickoff_of_a_batch_is_that_kickoffs_alone(sdk, panic, kind, says):
    crew = Panicking(lambda: panic(sdk))
    result = map_crew(crew, [{"n": n} for n in range(20)], concurrency=4, on_error="collect")
    failed = [item for item in result if item.state is ItemState.FAILED]
    assert [(item.index, type(item.error).__name__) for item in failed] == [(7, kind)]
    assert says in str(failed[0].error)
    done = [item.output for item in result if item.state is ItemState.DONE]
    assert done == [n for n in range(20) if n != 7]
