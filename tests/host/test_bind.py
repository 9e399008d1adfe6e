"""Changes to classes and modules, and taking them back exactly."""

from __future__ import annotations

import functools
import gc
import inspect
import sys
import threading
import types

import pytest

from crewai_native import _bind
from crewai_native._bind import Binding
from crewai_native._watch import Watch


class Base:
    def inherited(self):
        return "base"

    @staticmethod
    def static(value):
        return value

    @classmethod
    def of_class(cls):
        return cls.__name__


class Target(Base):
    value = 1

    def method(self, number=1):
        """Return the number."""
        return number

    async def coroutine(self):
        return "awaited"


@pytest.fixture
def binding():
    return Binding(Watch("test"))


@pytest.fixture
def unchanged():
    """Fails the test if the classes are not what they were, entry by entry."""
    before = [(cls, dict(vars(cls))) for cls in (Base, Target)]
    yield
    for cls, entries in before:
        assert vars(cls).keys() == entries.keys()
        assert all(vars(cls)[name] is entries[name] for name in entries)


class TestPassing:
    """Changes of classes that may go before the binding does."""

    def bound(self, binding):
        class Mine:
            def method(self):
                return "theirs"

        before = vars(Mine)["method"]
        binding.stand_in_passing(Mine, "method", lambda original: lambda self: "ours")
        assert Mine().method() == "ours"
        return Mine, before

    def test_the_method_comes_back(self, binding):
        mine, before = self.bound(binding)
        assert binding.in_force()
        binding.undo()
        assert vars(mine)["method"] is before

    def test_what_others_put_over_it_is_told(self, binding):
        mine, _ = self.bound(binding)
        inner = mine.method
        mine.method = functools.wraps(inner)(lambda self: inner(self) + "!")
        assert mine().method() == "ours!"
        (name,) = binding.wrappers()
        assert "test_what_others_put_over_it_is_told" in name
        binding.undo()
        assert mine().method() == "theirs!"

    def test_what_others_put_in_its_place_stays(self, binding, caplog):
        mine, _ = self.bound(binding)
        mine.method = lambda self: "other"
        gc.collect()
        assert binding.wrappers() is None
        binding.undo()
        assert mine().method() == "other"
        assert "Mine.method was replaced by other code" in caplog.text


@pytest.mark.usefixtures("unchanged")
class TestUndo:
    def test_an_own_method(self, binding):
        binding.wrap(Target, "method", lambda original: lambda self: original(self) + 1)
        assert Target().method() == 2
        binding.undo()

    def test_an_inherited_one_shows_again(self, binding):
        binding.replace(Target, "inherited", lambda self: "changed")
        assert (Target().inherited(), Base().inherited()) == ("changed", "base")
        binding.undo()
        assert "inherited" not in vars(Target)

    def test_static_and_class_methods_come_back_as_such(self, binding):
        binding.replace(Base, "static", staticmethod(lambda value: -value))
        binding.replace(Base, "of_class", classmethod(lambda cls: "changed"))
        assert (Target.static(1), Target().of_class()) == (-1, "changed")
        binding.undo()
        assert (Target.static(1), Target.of_class()) == (1, "Target")

    def test_several_changes_of_one_place_come_off_in_reverse(self, binding):
        for _ in range(3):
            binding.wrap(Target, "method", lambda original: lambda self: original(self) * 2)
        assert Target().method() == 8
        assert binding.in_force()
        binding.undo()

    def test_one_that_is_under_anothers_comes_off_as_well(self, binding, caplog):
        stock = vars(Target)["method"]
        other = Binding(Watch("locks"))
        binding.stand_in(Target, "method", lambda original: lambda self: "lower")
        other.stand_in(Target, "method", lambda original: lambda self: f"over {original(self)}")
        assert Target().method() == "over lower"
        binding.undo()
        assert Target().method() == "over 1"
        assert other.in_force()
        other.undo()
        assert vars(Target)["method"] is stock
        assert _bind._piles == {}
        assert caplog.text == ""

    @pytest.mark.parametrize("name", ["method", "inherited"])
    def test_slots_that_are_bound_by_turns_pile_nothing_up(self, binding, name):
        def over(letter):
            return lambda original: lambda self: f"{letter}{original(self)}"

        original = getattr(Target, name)
        plain = getattr(Target(), name)()
        bindings = {"X": binding, "Y": Binding(Watch("locks")), "Z": Binding(Watch("locks"))}
        for letter, each in bindings.items():
            each.stand_in(Target, name, over(letter))
        for letter in "XYZ" * 10:
            outlives = getattr(Target, name)
            bindings[letter].undo()
            bindings[letter] = Binding(Watch("locks"))
            bindings[letter].stand_in(Target, name, over(letter))
            assert sum(1 for _ in _bind.layers(vars(Target)[name])) == 4
            assert _bind.beneath(vars(Target)[name]) is original
            assert sorted(getattr(Target(), name)()) == sorted(f"XYZ{plain}")
            assert sorted(outlives(Target())) == sorted(f"XYZ{plain}".replace(letter, ""))
        for each in bindings.values():
            each.undo()

    def test_one_that_is_under_anothers_and_a_foreign_one_stays(self, binding, caplog):
        class Mine:
            value = 1

        other = Binding(Watch("locks"))
        binding.replace(Mine, "value", 2)
        Mine.value = "theirs"
        other.replace(Mine, "value", 3)
        binding.undo()
        assert Mine.value == 3
        other.undo()
        assert Mine.value == "theirs"
        assert "Mine.value was replaced by other code" in caplog.text

    def test_undoing_twice_is_undoing_once(self, binding):
        binding.replace(Target, "value", 2)
        binding.undo()
        binding.undo()

    def test_one_failure_stops_no_other(self, binding):
        binding.replace(Target, "value", 2)
        binding.on_undo(lambda: 1 / 0)
        binding.replace(Target, "value", 3)
        with pytest.raises(ExceptionGroup) as caught:
            binding.undo()
        assert [type(error) for error in caught.value.exceptions] == [ZeroDivisionError]

    def test_an_attempt_that_fails_leaves_nothing(self, binding):
        binding.replace(Target, "value", 2)

        def attempt(part):
            part.replace(Target, "value", 3)
            raise KeyError("half way")

        assert isinstance(binding.attempt(attempt), KeyError)
        assert Target.value == 2
        assert binding.in_force()
        binding.undo()

    def test_a_reference_that_outlives_the_binding_runs_the_original(self, binding):
        binding.stand_in(Target, "method", lambda original: lambda self, number=1: "ours")
        kept = Target().method
        assert kept() == "ours"
        binding.undo()
        assert kept(5) == 5
        assert inspect.getdoc(kept) == "Return the number."

    async def test_so_does_a_coroutine_function(self, binding):
        async def ours(self):
            return "ours"

        binding.stand_in(Target, "coroutine", lambda original: ours)
        kept = Target().coroutine
        assert inspect.iscoroutinefunction(kept)
        assert await kept() == "ours"
        binding.undo()
        assert await kept() == "awaited"


def test_what_somebody_else_put_there_since_stays(binding, caplog):
    class Mine:
        value = 1

    binding.replace(Mine, "value", 2)
    Mine.value = 3
    assert not binding.in_force()
    binding.undo()
    assert Mine.value == 3
    assert "Mine.value was replaced by other code" in caplog.text


def test_what_somebody_else_has_put_over_it_is_told(binding):
    class Mine:
        def method(self):
            return "stock"

        @classmethod
        def of_class(cls):
            return "stock"

    binding.stand_in(Mine, "method", lambda original: lambda self: "ours")
    binding.replace(Mine, "of_class", classmethod(lambda cls: "ours"))
    assert binding.wrappers() == []
    ours = Mine.method, vars(Mine)["of_class"]

    @functools.wraps(ours[0])
    def audited(self):
        return ours[0](self)

    @functools.wraps(ours[1].__func__)
    def counted(cls):
        return ours[1].__func__(cls)

    Mine.method, Mine.of_class = audited, classmethod(counted)
    assert not binding.in_force()
    over = binding.wrappers()
    assert [name.partition(".<locals>.")[2] for name in over] == [
        f"audited in {__file__}",
        f"counted in {__file__}",
    ]
    Mine.of_class = classmethod(lambda cls: "theirs")
    assert binding.wrappers() is None


def test_an_object_without_a_name_can_be_changed_too(binding, caplog):
    thing = types.SimpleNamespace(value=1)
    binding.replace(thing, "value", 2)
    thing.value = 3
    binding.undo()
    assert "namespace(value=3).value was replaced" in caplog.text


@pytest.fixture
def package(monkeypatch):
    """Modules that know one function by several names."""

    def function():
        return "stock"

    def module(name, **names):
        made = types.ModuleType(name)
        vars(made).update(names)
        monkeypatch.setitem(sys.modules, name, made)
        return made

    module("acme_package", function=function)
    module("acme_package.a", function=function, alias=function)
    module("acme_packages", function=function)  # another one, whose name begins the same
    return types.SimpleNamespace(function=function, module=module)


def test_a_function_is_replaced_under_every_name_and_given_back(binding, package):
    switch = binding._switch(package.function, lambda: "ours")
    binding.replace_functions([(package.function, switch)], "acme_package")
    modules = sys.modules
    assert modules["acme_package"].function() == "ours"
    assert modules["acme_package.a"].alias() == "ours"
    assert modules["acme_packages"].function is package.function
    later = package.module("acme_package.later", copied=modules["acme_package"].function)
    binding.undo()
    for name in ("acme_package", "acme_package.a"):
        assert modules[name].function is package.function
    assert modules["acme_package.a"].alias is package.function
    assert later.copied is package.function


class TestOneLook:
    """Several bindings that search the same modules for functions that were named beforehand."""

    @pytest.fixture
    def others(self, monkeypatch):
        def other():
            return "stock"

        monkeypatch.setattr(sys.modules["acme_package.a"], "other", other, raising=False)
        return other

    def test_modules_are_searched_once(self, binding, package, others, monkeypatch):
        searched = []
        search = _bind._search

        def noted(wanted, modules):
            modules = list(modules)
            searched.extend(module.__name__ for module in modules)
            return search(wanted, modules)

        monkeypatch.setattr(_bind, "_search", noted)
        with _bind.one_look([package.function, others], "acme_package"):
            binding.replace_functions([(package.function, lambda: "ours")], "acme_package")
            package.module("acme_package.later", other=others)
            binding.replace_functions([(others, lambda: "ours")], "acme_package")
        assert sorted(searched) == ["acme_package", "acme_package.a", "acme_package.later"]
        assert sys.modules["acme_package.a"].alias() == "ours"
        assert sys.modules["acme_package.a"].other() == "ours"
        assert sys.modules["acme_package.later"].other() == "ours"
        binding.undo()
        assert sys.modules["acme_package.a"].alias is package.function
        assert sys.modules["acme_package.later"].other is others

    def test_a_module_that_is_being_imported_is_searched_again(self, binding, package, others):
        begun = package.module("acme_package.begun")
        begun.__spec__ = types.SimpleNamespace(_initializing=True)
        with _bind.one_look([package.function, others], "acme_package"):
            binding.replace_functions([(package.function, lambda: "ours")], "acme_package")
            begun.other = others
            binding.replace_functions([(others, lambda: "ours")], "acme_package")
        assert begun.other() == "ours"
        binding.undo()
        assert begun.other is others

    def test_what_was_put_elsewhere_since_is_left_alone(self, binding, package, others):
        with _bind.one_look([package.function, others], "acme_package"):
            binding.replace_functions([(package.function, lambda: "ours")], "acme_package")
            sys.modules["acme_package.a"].other = None
            binding.replace_functions([(others, lambda: "ours")], "acme_package")
        assert sys.modules["acme_package.a"].other is None

    def test_a_replacement_can_be_replaced(self, binding, package):
        def ours():
            return "ours"

        with _bind.one_look([package.function], "acme_package"):
            binding.replace_functions([(package.function, ours)], "acme_package")
            binding.replace_functions([(ours, lambda: "on top")], "acme_package")
        assert sys.modules["acme_package.a"].alias() == "on top"
        binding.undo()
        assert sys.modules["acme_package.a"].alias is package.function


def test_a_body_is_replaced_behind_references_and_given_back(binding):
    def function(value=1):
        return value

    def other(value=1):
        return value + 10

    held, body = function, function.__code__
    original = binding.replace_body(function, other)
    assert (held(), held(2), original(), original(2)) == (11, 12, 1, 2)
    assert inspect.unwrap(function) is original
    binding.undo()
    assert function.__code__ is body
    assert not hasattr(function, "__wrapped__")


def test_a_body_that_was_replaced_again_is_left_alone(binding, caplog):
    def function():
        return "stock"

    binding.replace_body(function, lambda: "ours")
    function.__code__ = (lambda: "theirs").__code__
    binding.undo()
    assert function() == "theirs"
    assert "function was replaced by other code" in caplog.text


class TestMetering:
    def test_every_call_of_a_class_counts_once(self, binding):
        class Provider(Target):
            pass

        for _ in range(3):
            binding.meter_methods(Provider, ["method", "inherited"])
        Provider().method()
        Provider().inherited()
        assert binding.watch.metrics().calls == 2
        binding.undo()
        Provider().method()
        assert binding.watch.metrics().calls == 2
        assert "method" not in vars(Provider)

    def test_a_class_that_cannot_be_changed_is_noted(self, binding):
        binding.meter_methods(dict, ["get"])
        assert binding.notes == [
            "calls of dict are not counted (cannot set 'get' attribute of immutable type 'dict')"
        ]

    def test_nothing_is_metered_any_more_after_undoing(self, binding):
        binding.undo()
        binding.meter_methods(Target, ["method"])
        assert not hasattr(Target.method, "__wrapped__")


class TestLater:
    """Changes that wait for a module."""

    @pytest.fixture
    def names(self, tmp_path, monkeypatch):
        for name in ("acme_early", "acme_late", "acme_last"):
            (tmp_path / f"{name}.py").write_text("value = 1\n")
            monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.syspath_prepend(str(tmp_path))
        yield types.SimpleNamespace(early="acme_early", late="acme_late", last="acme_last")
        for name in ("acme_early", "acme_late", "acme_last"):
            sys.modules.pop(name, None)

    def test_at_once_where_everything_is_there(self, binding):
        done = []
        binding.when_imported(["os", "sys"], lambda: done.append(1))
        assert done == [1]

    def test_when_the_last_of_them_is_imported(self, binding, names):
        done = []
        binding.when_imported([names.early, names.late], functools.partial(done.append, 1))
        assert names.early not in sys.modules
        __import__(names.late)
        assert done == []
        __import__(names.early)
        assert done == [1]

    def test_imports_of_other_threads_are_not_in_one_anothers_way(self, binding, names, tmp_path):
        code = "import acme_gate\nacme_gate.begun.set()\nacme_gate.go_on.wait(20)\n"
        (tmp_path / f"{names.early}.py").write_text(code)
        gate = types.SimpleNamespace(begun=threading.Event(), go_on=threading.Event())
        sys.modules["acme_gate"] = gate
        done = []
        try:
            binding.when_imported([names.early], functools.partial(done.append, 1))
            importing = threading.Thread(target=__import__, args=(names.early,), daemon=True)
            importing.start()
            assert gate.begun.wait(20)

            def action():
                gate.go_on.set()
                # Not before the other thread, which has something to change when it is there.
                __import__(names.early)
                done.append(2)

            waiting = threading.Thread(
                target=binding.when_imported, args=([names.early], action), daemon=True
            )
            waiting.start()
            importing.join(20)
            waiting.join(20)
            assert sorted(done) == [1, 2]
        finally:
            del sys.modules["acme_gate"]

    def test_what_is_changed_while_it_is_unbound_is_taken_back(self, binding):
        class Mine:
            value = 1

        def action(part):
            part.replace(Mine, "value", 2)
            binding.undo()

        assert binding.attempt(action) is None
        assert Mine.value == 1

    def test_settling_imports_what_is_missing(self, binding, names):
        done = []
        binding.when_imported([names.early], functools.partial(done.append, 1))
        binding.settle()
        binding.settle()
        assert done == [1]
        assert names.early in sys.modules

    def test_settling_ends_the_waiting_for_a_module_that_there_is_not(self, binding):
        done = []
        binding.when_imported(["acme_nowhere"], functools.partial(done.append, 1))
        binding.settle()
        assert done == [1]

    def test_undoing_ends_the_waiting(self, binding, names):
        done = []
        binding.when_imported([names.early], functools.partial(done.append, 1))
        binding.undo()
        __import__(names.early)
        binding.settle()
        assert done == []

    def test_what_it_changes_is_undone(self, binding, names):
        def change():
            binding.replace(sys.modules[names.last], "value", 2)

        binding.when_imported([names.last], change)
        module = __import__(names.last)
        assert module.value == 2
        binding.undo()
        assert module.value == 1
