"""Activation by import and by hand, and taking it back: CrewAI is what it was, to the identity."""

from __future__ import annotations

import textwrap

import pytest

# A plug-in that can be watched: it writes down what is done with it.
WATCHED = """
from crewai_native import hookimpl
events = []
class Store:
    who = "{name}"
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *a, **k: self.who
@hookimpl
def crewai_native_configure(options):
    events.append("configure")
@hookimpl
def crewai_native_memory_storage(spec):
    return None if spec == "declined" else Store()
@hookimpl
def crewai_native_unconfigure():
    events.append("unconfigure")
"""

PRELUDE = """
import crewai_native
from crewai.memory.storage import factory
def who(spec="lancedb"):
    storage = factory.resolve_memory_storage(spec)
    return "stock" if storage is None else storage.count()
"""


@pytest.fixture
def watched(miniature):
    """Runs a program with two watched plug-ins, acme-a (chosen by name) and acme-b."""
    for name in ("acme-a", "acme-b"):
        miniature.site.add(name, WATCHED.replace("{name}", name))

    def run(code, prelude=PRELUDE, **variables):
        return miniature.run(prelude + textwrap.dedent(code), **variables)

    return run


def test_importing_crewai_is_enough(watched):
    assert watched("answer([who(), crewai_native.status().reason])") == [
        "acme-a",
        "CrewAI was imported",
    ]


def test_looking_for_crewai_does_not_use_up_the_hook(watched):
    code = """
    import importlib.util, sys
    import crewai_native
    spec = importlib.util.find_spec("crewai")
    before = crewai_native.status().active
    import crewai
    answer([spec.name, before, crewai_native.status().active,
            [f for f in sys.meta_path if f.__class__.__module__ == "_crewai_native_hook"
             or getattr(f, "__module__", "") == "_crewai_native_hook"],
            spec.loader.get_filename() == crewai.__file__ == crewai.__loader__.get_filename(),
            type(crewai.__loader__).__name__, type(crewai.__spec__.loader).__name__])
    """
    loader = "SourceFileLoader"
    assert watched(code, prelude="") == ["crewai", False, True, [], True, loader, loader]


def test_other_import_hooks_still_see_crewai(watched):
    code = """
    import importlib.abc, importlib.util, sys
    seen = []
    class Loader(importlib.abc.Loader):
        def __init__(self, inner): self.inner = inner
        def create_module(self, spec): return self.inner.create_module(spec)
        def exec_module(self, module):
            seen.append("before"); self.inner.exec_module(module); seen.append("after")
    class Finder:
        busy = False
        def find_spec(self, name, path=None, target=None):
            if name != "crewai" or self.busy: return None
            self.busy = True
            spec = importlib.util.find_spec(name)
            self.busy = False
            spec.loader = Loader(spec.loader)
            return spec
    sys.meta_path.insert(0, Finder())
    import crewai, crewai_native
    answer([seen, crewai.READY, crewai_native.status().active])
    """
    assert watched(code, prelude="") == [["before", "after"], True, True]


@pytest.mark.parametrize("position", ["0", "len(sys.meta_path) - 1"])
def test_a_finder_that_asks_all_others_as_well_finds_crewai(watched, position):
    code = f"""
    import importlib.util, sys
    class Lazily:
        @classmethod
        def find_spec(cls, name, path=None, target=None):
            if name != "crewai": return None
            others = [finder for finder in sys.meta_path if finder is not cls]
            specs = (finder.find_spec(name, path, target) for finder in others)
            spec = next(filter(None, specs))
            spec.loader = importlib.util.LazyLoader(spec.loader)
            return spec
    sys.meta_path.insert({position}, Lazily)
    import crewai, crewai_native
    answer([crewai.READY, crewai_native.status().active])
    """
    assert watched(code, prelude="") == [True, True]


def test_a_loader_takes_no_attributes(watched):
    code = """
    import importlib.machinery, sys
    class Loader:
        __slots__ = ("inner",)
        def __init__(self, inner): self.inner = inner
        def create_module(self, spec): return self.inner.create_module(spec)
        def exec_module(self, module): self.inner.exec_module(module)
    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name != "crewai": return None
            spec = importlib.machinery.PathFinder.find_spec(name, path, target)
            spec.loader = Loader(spec.loader)
            return spec
    sys.meta_path.insert(-1, Finder)
    import crewai, crewai_native
    answer([type(crewai.__loader__).__name__, type(crewai.__spec__.loader).__name__,
            crewai_native.status().active])
    """
    assert watched(code, prelude="") == ["Loader", "Loader", True]


def test_reloading_crewai_changes_nothing(watched):
    code = """
    import crewai, importlib
    importlib.reload(crewai)
    answer(who())
    """
    assert watched(code) == "acme-a"


@pytest.mark.parametrize("value", ["0", "false", "OFF", " no "])
def test_the_switch_turns_the_hook_off(watched, value):
    code = """
    import sys, crewai
    hosts = [m for m in sys.modules if m.startswith("crewai_native")]
    answer([hosts, any("_crewai_native_hook" in repr(f) for f in sys.meta_path)])
    """
    assert watched(code, prelude="", CREWAI_NATIVE=value) == [[], False]


def test_the_switch_holds_against_activate_unless_code_says_otherwise(watched):
    code = """
    import crewai
    off = crewai_native.activate()
    on = crewai_native.activate(enabled=True)
    answer([off.active, off.reason, on.active, who()])
    """
    assert watched(code, CREWAI_NATIVE="0") == [
        False,
        "switched off (CREWAI_NATIVE)",
        True,
        "acme-a",
    ]


def test_activate_before_the_import_binds_once_with_its_own_settings(watched):
    code = """
    import sys
    import crewai_native
    crewai_native.activate(slots={"memory.storage": "acme-b"})
    from crewai.memory.storage import factory
    answer([factory.resolve_memory_storage("x").count(),
            "acme_a" in sys.modules, sys.modules["acme_b"].events])
    """
    assert watched(code, prelude="") == ["acme-b", False, ["configure"]]


def test_activate_and_deactivate_are_idempotent_and_restore_the_identity(watched):
    code = """
    import sys
    before = {n: dict(vars(m)) for n, m in sys.modules.items() if n.startswith("crewai.")}
    def same():
        now = {n: dict(vars(m)) for n, m in sys.modules.items() if n in before}
        return now.keys() == before.keys() and all(
            now[n].keys() == before[n].keys() and all(now[n][k] is before[n][k] for k in now[n])
            for n in now)
    steps = [same()]
    crewai_native.activate(enabled=True)
    bound = factory._factory
    steps.append(same())
    crewai_native.activate(enabled=True)
    steps.append(factory._factory is bound)
    crewai_native.deactivate()
    steps.append(same())
    crewai_native.deactivate()
    steps.append(same())
    crewai_native.activate(enabled=True)
    steps.append(who())
    crewai_native.deactivate()
    steps.append(same())
    answer([steps, sys.modules["acme_a"].events])
    """
    steps, events = watched(code, CREWAI_NATIVE="0")
    assert steps == [True, False, True, True, True, "acme-a", True]
    assert events == ["configure", "unconfigure"] * 2


# --- the application's own factory ------------------------------------------------------------

OWN = """
import crewai_native
from crewai.memory.storage import factory
class Mine:
    def count(self): return "mine"
mine = lambda spec: Mine() if spec == "mine" else None
factory.set_memory_storage_factory(mine)
def who(spec="lancedb"):
    storage = factory.resolve_memory_storage(spec)
    return "stock" if storage is None else storage.count()
"""


def test_a_factory_that_the_application_set_keeps_its_say(watched):
    code = """
    status = crewai_native.activate(enabled=True)
    answers = [who("mine"), who("other"), who("declined"), status["memory.storage"].reason]
    crewai_native.deactivate()
    answer([*answers, factory._factory is mine, who("mine"), who("other")])
    """
    mine, other, declined, reason, restored, *after = watched(code, prelude=OWN, CREWAI_NATIVE="0")
    assert (mine, other, declined) == ("mine", "acme-a", "stock")
    assert "after the application's own factory" in reason
    assert restored
    assert after == ["mine", "stock"]


def test_a_wrapper_over_ours_is_told_and_nothing_else_changes(watched):
    code = """
    import functools
    ours = factory._factory
    @functools.wraps(ours)
    def counted(spec):
        return ours(spec)
    factory.set_memory_storage_factory(counted)
    slot = crewai_native.status()["memory.storage"]
    answer([slot.state, slot.provider, slot.reason.rpartition("; ")[2], who()])
    """
    state, provider, note, served = watched(code)
    assert (state, provider, served) == ("bound", "acme-a", "acme-a")
    assert note.startswith("under counted in ")


def test_what_others_put_over_ours_stays_and_is_told(watched):
    code = """
    import logging
    logging.basicConfig(format="%(message)s")
    theirs = lambda spec: None
    factory.set_memory_storage_factory(theirs)
    slot = crewai_native.status()["memory.storage"]
    crewai_native.deactivate()
    answer([slot.state, slot.reason, factory._factory is theirs])
    """
    assert watched(code) == ["stock", "by other code, which replaced it since", True]


def test_an_application_that_asks_for_the_setting_before_us_shadows_locks(miniature):
    miniature.site.valid(slots=["locks"])
    code = """
    from crewai_core import lock_store
    mine = lambda name, timeout: None
    lock_store.set_lock_backend(mine)
    import crewai, crewai_native
    slot = crewai_native.status()["locks"]
    state = [c.state for c in slot.candidates if c.distribution == "acme-valid"]
    answer([state, lock_store._backend is mine])
    """
    assert miniature.run(code) == [["shadowed"], True]


# --- using() ----------------------------------------------------------------------------------


def test_using_changes_a_slot_for_a_block_and_nests(watched):
    code = """
    seen = [who()]
    with crewai_native.using({"memory.storage": "acme-b"}) as status:
        seen.append([who(), status["memory.storage"].provider])
        with crewai_native.using({"memory.storage": "stock"}):
            seen.append(who())
        seen.append(who())
        try:
            with crewai_native.using({"memory.storage": "stock"}):
                raise ZeroDivisionError
        except ZeroDivisionError:
            seen.append(who())
    answer([*seen, who()])
    """
    assert watched(code) == ["acme-a", ["acme-b"] * 2, "stock", "acme-b", "acme-b", "acme-a"]


def test_a_slot_that_there_is_not_has_no_status(watched):
    code = """
    try:
        crewai_native.status()["memory.store"]
    except KeyError as error:
        answer(str(error))
    """
    assert "there is no slot 'memory.store'; slots: memory.storage, " in watched(code)


def test_using_with_wrong_names_changes_nothing(watched):
    code = """
    bound = factory._factory
    errors = []
    wrong = {"memory.store": "stock"}, {"memory.storage": "acme-c"}, {"locks": 3}, "locks"
    for slots in wrong:
        try:
            with crewai_native.using(slots):
                errors.append("entered")
        except ValueError as error:
            errors.append(str(error))
    answer([errors, who(), crewai_native.status()["memory.storage"].provider])
    """
    errors, *after = watched(code)
    assert "there is no slot 'memory.store'" in errors[0]
    assert "code chooses 'acme-c' for memory.storage" in errors[1]
    assert "provider of locks (code) is 3; it accepts the name of" in errors[2]
    assert "slots (code) is 'locks'; it accepts a table" in errors[3]
    assert after == ["acme-a", "acme-a"]


def test_blocks_that_end_in_another_order(watched):
    code = """
    first = crewai_native.using({"memory.storage": "acme-b"})
    second = crewai_native.using({"memory.storage": "stock"})
    first.__enter__(); second.__enter__()
    seen = [who()]
    first.__exit__(None, None, None)
    seen.append(who())
    second.__exit__(None, None, None)
    answer([*seen, who()])
    """
    assert watched(code) == ["stock", "stock", "acme-a"]


def test_using_activates_for_the_block_alone(watched):
    code = """
    crewai_native.deactivate()
    with crewai_native.using({"memory.storage": "acme-b"}):
        inside = who()
    outside = [who(), crewai_native.status().active]
    try:
        with crewai_native.using({"memory.storage": "acme-c"}):
            pass
    except ValueError:
        outside.append(crewai_native.status().active)
    answer([inside, *outside])
    """
    assert watched(code) == ["acme-b", "stock", False, False]


def test_deactivating_inside_a_block_ends_it(watched):
    code = """
    with crewai_native.using({"memory.storage": "acme-b"}):
        crewai_native.deactivate()
        inside = who()
    answer([inside, who(), crewai_native.status().active])
    """
    assert watched(code) == ["stock", "stock", False]


def test_blocks_on_many_threads_leave_what_was_there(watched):
    code = """
    import itertools, threading
    errors, barrier = [], threading.Barrier(8)
    def work(names):
        barrier.wait()
        try:
            for name in itertools.islice(itertools.cycle(names), 25):
                with crewai_native.using({"memory.storage": name}) as status:
                    status["memory.storage"]
                    if who() not in {"acme-a", "acme-b", "stock"}:
                        errors.append(who())
                crewai_native.metrics()
        except BaseException as error:
            errors.append(repr(error))
    names = ["acme-a", "acme-b", "stock"]
    threads = [threading.Thread(target=work, args=(names[n % 3:] + names[:n % 3],)) for n in range(8)]
    [t.start() for t in threads]; [t.join() for t in threads]
    answer([errors, who()])
    """
    assert watched(code) == [[], "acme-a"]


# --- threads and processes --------------------------------------------------------------------


def test_threads_that_import_and_activate_at_once_do_not_wait_for_each_other_for_ever(watched):
    code = """
    import sys, threading
    barrier = threading.Barrier(8)
    errors = []
    def imports():
        barrier.wait()
        import crewai
    def activates():
        import crewai_native
        barrier.wait()
        crewai_native.activate(slots={"memory.storage": "acme-b"})
    def looks():
        import crewai_native
        barrier.wait()
        crewai_native.status()
    jobs = [imports, activates, looks, imports] * 2
    def guarded(job):
        try: job()
        except BaseException as error: errors.append(repr(error))
    threads = [threading.Thread(target=guarded, args=(job,), daemon=True) for job in jobs]
    [t.start() for t in threads]; [t.join(60) for t in threads]
    from crewai.memory.storage import factory
    answer([errors, any(t.is_alive() for t in threads), factory.resolve_memory_storage("x").count()])
    """
    assert watched(code, prelude="") == [[], False, "acme-b"]


def test_a_child_by_fork_keeps_the_host_and_can_change_it(watched):
    code = """
    import os, threading
    stop = threading.Event()
    def busy():
        while not stop.is_set():
            crewai_native.status()
    thread = threading.Thread(target=busy); thread.start()
    good = 0
    for _ in range(20):
        child = os.fork()
        if child == 0:
            ok = who() == "acme-a"
            with crewai_native.using({"memory.storage": "stock"}):
                ok = ok and who() == "stock"
            crewai_native.deactivate()
            os._exit(0 if ok and who() == "stock" else 1)
        good += os.waitpid(child, 0)[1] == 0
    stop.set(); thread.join()
    answer([good, who()])
    """
    assert watched(code) == [20, "acme-a"]


def test_a_spawned_child_activates_by_itself_from_remembered_verdicts(watched, tmp_path):
    # The child finds its function in a file, as multiprocessing wants it.
    (tmp_path / "job.py").write_text(
        PRELUDE + "def job():\n"
        "    c = crewai_native.status()['memory.storage'].candidates\n"
        "    step = [s.detail for k in c if k.state == 'bound' for s in k.steps\n"
        "            if s.name == 'first-import']\n"
        "    return [who(), step]\n"
    )
    code = """
    import multiprocessing, sys
    sys.path.insert(0, ".")
    if __name__ == "__main__":
        import job
        here = job.job()
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            answer([here, pool.apply(job.job)])
    """
    assert watched(code, prelude="") == [
        ["acme-a", ["tried now"]],
        ["acme-a", ["remembered as sound"]],
    ]


# --- failures ---------------------------------------------------------------------------------


def test_a_crash_while_binding_undoes_the_slot(miniature):
    miniature.site.valid("acme-locks", slots=["locks"])
    code = """
    import crewai_native
    from crewai_native.slots import load
    from crewai_core import lock_store
    slot = load("locks")
    bind = type(slot).bind
    def crash(self, binding, provider):
        bind(self, binding, provider)
        raise RuntimeError("half way")
    type(slot).bind = crash
    status = crewai_native.activate(enabled=True)
    answer([status["locks"].reason, lock_store._backend])
    """
    reason, backend = miniature.run(code, CREWAI_NATIVE="0")
    assert reason == "acme-locks is broken: RuntimeError: half way"
    assert backend is None


def test_a_broken_plugin_is_logged_and_others_that_do_not_serve_for_those_who_ask(miniature):
    broken = "import acme_missing\n"
    miniature.site.add("acme-broken", broken, slots=["locks", "memory.storage"])
    miniature.site.valid("acme-later", slots=["flow.persistence"], accelerates=">=1.16")
    done = miniature.run("import crewai")
    assert done.stderr == (
        "crewai-native: acme-broken does not serve memory.storage, locks; it is broken: "
        "ModuleNotFoundError: No module named 'acme_missing'\n"
    )
    done = miniature.run("import logging; logging.basicConfig(level=logging.INFO); import crewai")
    assert "0 of 15 slots are bound" in done.stderr
    assert "acme-later does not serve flow.persistence; it is incompatible: " in done.stderr


def test_a_plugin_that_fails_to_let_go_is_logged_and_crewai_restored(miniature):
    source = WATCHED.replace("{name}", "acme") + "    raise RuntimeError('I stay')\n"
    miniature.site.add("acme-clingy", source)
    done = miniature.run(PRELUDE + "crewai_native.deactivate(); print(who())")
    assert done.stdout == "stock\n"
    assert "acme-clingy failed to unconfigure" in done.stderr
    assert "I stay" in done.stderr


def test_a_defect_of_the_host_leaves_the_program_on_stock(miniature):
    miniature.site.valid()
    code = """
    from crewai_native import _host
    def fail(self): raise KeyError("a defect of ours")
    _host.Host._discover = fail
    import crewai
    print(crewai.READY, _host.HOST.status().reason)
    """
    done = miniature.run(code)
    assert done.stdout == "True activation failed: KeyError: 'a defect of ours'\n"
    assert "crewai-native could not be activated; CrewAI runs as it is" in done.stderr
