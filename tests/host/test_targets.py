"""Looking at CrewAI's code: what is found, what is known, and what is told when it differs."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import json.decoder
import linecache
import logging
import os
import sys
import types
from pathlib import Path

import pytest

from crewai_native import _targets
from crewai_native._bind import Binding
from crewai_native._watch import Watch
from crewai_native.slots._base import Target


@pytest.fixture
def module(monkeypatch):
    """Makes a module of some source, with the source where linecache finds it."""

    def make(source, tmp_path, name="acme_code"):
        path = tmp_path / f"{name}_{abs(hash(source))}.py"
        path.write_text(source)
        made = types.ModuleType(name)
        exec(compile(source, str(path), "exec"), vars(made))
        monkeypatch.setitem(sys.modules, name, made)
        return made

    return make


@pytest.fixture
def known(tmp_path, monkeypatch):
    """Fingerprints of the test's own."""
    path = tmp_path / "fingerprints.json"
    path.write_text("{}")
    monkeypatch.setattr(_targets, "FINGERPRINTS", path)
    _targets._known.cache_clear()
    yield path
    _targets._known.cache_clear()


def lines(source):
    return [
        line.rstrip()
        for line in source.splitlines()
        if line.strip() and not line.strip().startswith("#")
    ]


@pytest.mark.parametrize("owner", [json, json.decoder, logging, dataclasses, functools, inspect])
def test_the_source_is_what_inspect_finds(owner):
    functions = [
        function
        for holder in [owner, *(c for c in vars(owner).values() if inspect.isclass(c))]
        for function in vars(holder).values()
        if inspect.isfunction(function) and function.__module__ == owner.__name__
    ]
    assert len(functions) > 3
    for function in functions:
        code = inspect.unwrap(function).__code__
        assert _targets._source(code).splitlines() == lines(inspect.getsource(function))


def test_a_target_that_there_is_not():
    for path in ("acme.nowhere:function", "json:nothing", "json:JSONDecoder.nothing"):
        problem = _targets.probe(Target(path)).problem
        assert problem.startswith(f"{path} does not exist (")


def test_the_parameters_of_an_official_extension_point_are_compared():
    assert _targets.probe(Target("json:JSONDecoder.decode", ("self", "s", "_w"))).problem is None
    assert _targets.probe(Target("json:JSONDecoder.decode", ("self", "s"))).problem == (
        "json:JSONDecoder.decode takes (self, s, _w), not (self, s)"
    )
    assert "has no signature" in _targets.probe(Target("json:__name__", ())).problem


def test_wrapped_code_must_be_known_word_for_word(module, known, tmp_path):
    target = Target("acme_code:function", wrapped=True)
    module("def function(a):\n    return a + 1\n", tmp_path)
    assert "is not code that was tested" in _targets.probe(target).problem
    _targets.refresh([target], "1.0")
    assert _targets.probe(target).known == ("1.0",)
    module("def function(a):\n    return a + 2\n", tmp_path)
    assert "is not code that was tested" in _targets.probe(target).problem
    _targets.refresh([target], "1.1")
    assert len(json.loads(known.read_text())["acme_code:function"]) == 2
    module("# moved\n\ndef function(a):\n    # explained\n\n    return a + 1\n", tmp_path)
    assert _targets.probe(target).known == ("1.0",)


class TestOtherCodesWrapper:
    """A wrapper that other code has put over a target."""

    TARGET = Target("acme_code:function", wrapped=True)

    @pytest.fixture
    def made(self, module, known, tmp_path):
        made = module("def function(a):\n    return a + 1\n", tmp_path)
        _targets.refresh([self.TARGET], "1.0")
        return made

    @pytest.fixture
    def binding(self):
        binding = Binding(Watch("memory.storage"))
        yield binding
        binding.undo()

    @staticmethod
    def traced(function):
        @functools.wraps(function)
        def traced(*args):
            return function(*args)

        return traced

    def test_would_be_left_out(self, made):
        made.function = self.traced(made.function)
        problem = _targets.probe(self.TARGET).problem
        assert "acme_code:function is wrapped by other code (" in problem
        assert f"traced in {__file__})" in problem

    def test_does_no_harm_where_ours_calls_it(self, made):
        made.function = self.traced(made.function)
        assert _targets.probe(self.TARGET._replace(passes_on=True)).problem is None

    def test_that_is_a_proxy_is_seen_for_what_it_is(self, made, binding):
        class Proxy:
            def __init__(self, wrapped):
                self.__wrapped__ = wrapped

            __class__ = property(lambda self: type(self.__wrapped__))

            def __getattr__(self, name):
                return getattr(self.__wrapped__, name)

            def __hash__(self):
                return hash(self.__wrapped__)

            def __eq__(self, other):
                return self.__wrapped__ == other

        binding.stand_in(made, "function", lambda stock: stock)
        made.function = Proxy(made.function)
        assert "wrapped by other code (" in _targets.probe(self.TARGET).problem
        assert binding.wrappers() == [f"{__name__}.{Proxy.__qualname__}"]

    def test_that_has_every_attribute_leads_nowhere(self, made, binding):
        class Everything:
            def __getattr__(self, name):
                return Everything()

        binding.stand_in(made, "function", lambda stock: stock)
        made.function = Everything()
        assert binding.wrappers() is None
        assert "is not available" in _targets.probe(self.TARGET).problem

    def test_may_be_under_ours_and_over_it(self, made, binding):
        made.function = self.traced(made.function)
        binding.stand_in(made, "function", lambda stock: stock)
        assert "traced in" in _targets.probe(self.TARGET).problem

    def test_is_not_what_ours_are(self, made, binding):
        binding.stand_in(made, "function", lambda stock: stock)
        binding.wrap(made, "function", binding.watch.meter)
        assert _targets.probe(self.TARGET).problem is None
        binding.undo()
        binding.replace_body(made.function, lambda a: a + 2)
        assert _targets.probe(self.TARGET).problem is None

    @pytest.mark.parametrize("decorator", ["functools.cache", "contextlib.contextmanager"])
    def test_is_not_what_the_code_itself_is_decorated_with(
        self, module, known, tmp_path, decorator
    ):
        library = decorator.partition(".")[0]
        module(f"import {library}\n@{decorator}\ndef function(a):\n    yield a\n", tmp_path)
        _targets.refresh([self.TARGET], "1.0")
        assert _targets.probe(self.TARGET).problem is None


def test_code_without_source_is_told(known):
    problem = _targets.probe(Target("json:dumps.__call__", wrapped=True)).problem
    assert "is not available" in problem


def test_the_fingerprints_that_are_shipped_are_sound():
    for path, entries in _targets._known().items():
        module_name, _, attribute = path.partition(":")
        assert module_name.startswith(("crewai.", "crewai_core.", "crewai_cli."))
        assert attribute
        for fingerprint, versions in entries.items():
            assert len(fingerprint) == 16
            assert versions


class TestRememberedFingerprints:
    SOURCE = "def function(a):\n    return a + 1\n"

    @pytest.fixture
    def cache(self, tmp_path):
        return tmp_path / "cache" / "fingerprints.json"

    @pytest.fixture
    def found(self, cache, monkeypatch):
        """Looks at a function in a start of its own, and says what its source had to be read for."""

        def look(function):
            read = []
            getlines = linecache.getlines
            with monkeypatch.context() as patch:
                patch.setattr(
                    linecache, "getlines", lambda name: read.append(name) or getlines(name)
                )
                fingerprints = _targets.Fingerprints(cache)
                fingerprint = fingerprints.of(function)
                fingerprints.keep()
            return fingerprint, len(read)

        return look

    def test_a_source_is_read_once(self, module, tmp_path, found):
        function = module(self.SOURCE, tmp_path).function
        first, read = found(function)
        assert read == 1
        assert found(function) == (first, 0)
        assert _targets.Fingerprints().of(function) == first

    def test_a_file_that_has_changed_is_read_anew(self, module, tmp_path, found):
        made = module(self.SOURCE, tmp_path)
        path = Path(made.function.__code__.co_filename)
        before = path.stat()
        first, _ = found(made.function)
        # As long as before, and as old as an installer says.
        path.write_text(self.SOURCE.replace("1", "2"))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        second, read = found(made.function)
        assert read == 1
        assert second != first

    def test_a_function_that_stands_in_for_another_is_seen(
        self, module, tmp_path, known, cache, found
    ):
        target = Target("acme_code:function", wrapped=True)
        made = module(self.SOURCE, tmp_path)
        _targets.refresh([target], "1.0")
        found(made.function)
        assert _targets.probe(target, _targets.Fingerprints(cache)).problem is None
        made.function = lambda a: a
        problem = _targets.probe(target, _targets.Fingerprints(cache)).problem
        assert "is not code that was tested" in problem

    @pytest.mark.parametrize("content", ["[]", "{", '{"%s": 1}'])
    def test_what_cannot_be_read_is_found_out_anew(self, module, tmp_path, cache, found, content):
        function = module(self.SOURCE, tmp_path).function
        first, _ = found(function)
        key = next(iter(json.loads(cache.read_text())))
        cache.write_text(content.replace("%s", key))
        assert found(function) == (first, 1)
        assert found(function) == (first, 0)

    def test_where_nothing_can_be_written_nothing_is_remembered(
        self, module, tmp_path, cache, found
    ):
        cache.parent.write_text("a file")
        function = module(self.SOURCE, tmp_path).function
        first, _ = found(function)
        assert found(function) == (first, 1)

    def test_what_is_in_no_file_is_not_remembered(self, cache, found):
        made = {}
        exec("def function(a):\n    return a\n", made)
        assert found(made["function"])[0] is None
        assert not cache.exists()
