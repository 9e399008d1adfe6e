from __future__ import annotations

import contextvars
import threading

import pytest

crew = contextvars.ContextVar("crew", default="none")


def test_a_native_thread_sees_the_context_of_the_submission(sdk):
    crew.set("alpha")

    def job(*args):
        return crew.get(), threading.get_ident(), args

    seen, thread, args = sdk.call_in_thread(job, 1, "two")
    assert seen == "alpha"
    assert thread != threading.get_ident()
    assert args == (1, "two")


def test_what_a_job_sets_stays_in_its_own_copy(sdk):
    crew.set("alpha")
    sdk.call_in_thread(crew.set, "beta")
    assert crew.get() == "alpha"
    assert sdk.call_in_thread(crew.get) == "alpha"


def test_jobs_of_different_contexts_do_not_meet(sdk):
    both = threading.Barrier(2, timeout=60)

    def job():
        both.wait()
        return crew.get()

    def submit(name):
        crew.set(name)
        results[name] = sdk.call_in_thread(job)

    results: dict[str, str] = {}
    threads = [threading.Thread(target=submit, args=(name,)) for name in ("alpha", "beta")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {"alpha": "alpha", "beta": "beta"}


def test_what_the_callable_raises_comes_back(sdk):
    def job():
        raise LookupError("not here")

    with pytest.raises(LookupError, match="not here"):
        sdk.call_in_thread(job)
