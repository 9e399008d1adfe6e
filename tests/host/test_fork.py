"""A child by fork imports what another thread was importing just then."""

from __future__ import annotations

import os

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")

# One module imports another, which waits in the middle of it. The alarm ends a child that hangs.
FORKED = """
import gate, os, signal, sys, threading
import crewai_native._host
thread = threading.Thread(target=__import__, args=("outer",))
thread.start()
assert gate.inside.wait(60)
read, write = os.pipe()
child = os.fork()
if child == 0:
    signal.alarm(60)
    gate.go.set()
    import outer
    os.write(write, str(outer.inner.answer).encode())
    os._exit(0)
os.close(write)
_, ended = os.waitpid(child, 0)
gate.go.set()
thread.join()
said = os.read(read, 10).decode()
answer([ended, said, sys.modules["outer"].inner.answer, gate.executed])
"""


@pytest.fixture
def half(tmp_path):
    (tmp_path / "gate.py").write_text(
        "import threading\ninside, go, executed = threading.Event(), threading.Event(), []\n"
    )
    (tmp_path / "outer.py").write_text("import inner\n")
    (tmp_path / "inner.py").write_text(
        "import gate\ngate.executed.append(1)\ngate.inside.set()\nassert gate.go.wait(60)\n"
        "answer = 42\n"
    )
    return f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"


def test_a_child_imports_what_another_thread_was_importing(run, half):
    # In the parent the import goes on where it was, and is not begun again.
    assert run(half + FORKED) == [0, "42", 42, [1]]


def test_a_fork_in_the_middle_of_an_import_of_the_same_thread_lets_that_go_on(run, tmp_path):
    (tmp_path / "forking.py").write_text(
        "import os\nchild = os.fork()\nif child:\n    ended = os.waitpid(child, 0)[1]\nafter = 42\n"
    )
    code = f"""
import os, sys
sys.path.insert(0, {str(tmp_path)!r})
import crewai_native._host
import forking
if not forking.child:
    again = __import__("forking")
    os._exit(0 if again is forking and forking.after == 42 else 1)
answer([forking.ended, forking.after])
"""
    assert run(code) == [0, 42]
