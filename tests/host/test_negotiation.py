"""Who serves a slot: every bad kind of distribution costs its slot at most, and is told."""

from __future__ import annotations

import importlib.metadata
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from crewai_native import _negotiate
from crewai_native.testing.distributions import Site

SLOT = "memory.storage"

# What becomes of each bad kind, and a word of the reason that `list` shows.
BAD = {
    "broken": ("broken", "RuntimeError: acme is broken"),
    "exiting": ("broken", "SystemExit: acme wants to stop"),
    "aborting": ("broken", "SIGABRT"),
    "segfaulting": ("broken", "SIGSEGV"),
    "wrong_range": ("incompatible", "accelerates crewai >=0.1,<0.2, installed is 1.15.30"),
    "missing_hook": ("broken", "implements no crewai_native_memory_storage"),
    "bad_signature": ("broken", "crewai_native_memory_storage accepts spec"),
    "declining": ("declined", "no GPU here"),
}


@pytest.fixture
def everyone(miniature):
    """One of each bad kind, and a sound one, all for the same slot."""
    dists = {kind: getattr(miniature.site, kind)() for kind in BAD}
    miniature.site.valid("zzz-valid")
    return dists


def test_each_bad_kind_is_named_and_the_next_candidate_serves(everyone, miniature):
    status = miniature.status()
    slot = status.slot(SLOT)
    assert (slot["state"], slot["provider"]) == ("bound", "zzz-valid")
    for kind, (state, reason) in BAD.items():
        candidate = status.candidate(everyone[kind].name)
        assert (kind, candidate["state"]) == (kind, state)
        # Without asking for every candidate, too.
        assert f"{everyone[kind].name} is {state}: {candidate['reason']}" in slot["reason"]
        assert reason in candidate["reason"]
        assert "\n" not in candidate["reason"]
        assert not candidate["steps"][-1]["passed"]


@pytest.mark.parametrize("kind", BAD)
def test_each_bad_kind_alone_leaves_the_slot_to_stock(kind, miniature):
    dist = getattr(miniature.site, kind)()
    slot = miniature.status().slot(SLOT)
    state, reason = BAD[kind]
    assert (slot["state"], slot["provider"]) == ("stock", "stock")
    assert slot["reason"].startswith(f"{dist.name} is {state}: ")
    assert reason in slot["reason"]


def test_a_hanging_import_costs_its_slot_and_no_more_than_its_limit(miniature):
    miniature.site.hanging()
    miniature.site.valid("zzz-valid")
    status = miniature.status(CREWAI_NATIVE_PROBE_TIMEOUT="0.5")
    hanging = status.candidate("acme-hanging")
    assert (hanging["state"], hanging["reason"]) == (
        "broken",
        "its import did not end within 0.5 s",
    )
    assert status.slot(SLOT)["provider"] == "zzz-valid"


def test_another_contract_and_an_unknown_slot_are_told(miniature):
    miniature.site.wrong_contract()
    miniature.site.unknown_slot()
    status = miniature.status()
    future, stranger = status.candidate("acme-future"), status.candidate("acme-stranger")
    assert (future["state"], future["reason"]) == (
        "incompatible",
        "offers contract 2; this host speaks contract 1",
    )
    assert stranger["state"] == "incompatible"
    assert SLOT in stranger["reason"]  # what would be accepted
    assert len(status["warnings"]) == 2
    assert status.slot(SLOT)["state"] == "stock"


@pytest.mark.parametrize("group", ["crewai-native.v1", "crewai_native", "crewai_native.1"])
def test_a_mistyped_group_of_entry_points_is_told(group, miniature):
    entries = miniature.site.valid("acme-valid").info / "entry_points.txt"
    entries.write_text(entries.read_text().replace("crewai_native.v1", group))
    status = miniature.status()
    (stranger,) = status["strangers"]
    assert stranger["reason"] == (
        f"is in the group of entry points {group!r}; this host reads 'crewai_native.v1'"
    )


def test_other_entry_points_are_none_of_ours(miniature):
    entries = miniature.site.valid("acme-valid").info / "entry_points.txt"
    entries.write_text(entries.read_text().replace("crewai_native.v1", "crewai_native_acme.parts"))
    status = miniature.status()
    assert (status["strangers"], status["warnings"]) == ([], [])


@pytest.mark.parametrize(
    ("name", "words"),
    [("tool_cache", "(did you mean crewai_native_tools_cache?)"), ("x", "crewai_native_locks")],
)
def test_a_hook_that_there_is_not_is_told_with_those_that_there_are(name, words, miniature):
    source = f"""
    from crewai_native import hookimpl
    @hookimpl
    def crewai_native_{name}(): pass
    """
    miniature.site.add("acme-mistyped", source)
    reason = miniature.status().candidate("acme-mistyped")["reason"]
    assert f"crewai_native_{name} is no hook" in reason
    assert words in reason


def test_the_first_copy_on_the_path_counts(miniature, tmp_path):
    miniature.site.valid("acme-valid")
    late = Site(tmp_path / "late")
    late.stale("acme-valid")
    path = f"{miniature.site.folder}:{late.folder}:{miniature.site.folder}"
    status = miniature.status(PYTHONPATH=path)
    assert status.slot(SLOT)["version"] == "1.0"
    (stale,) = status["strangers"]
    assert (stale["version"], stale["state"]) == ("0.1", "shadowed")
    assert str(miniature.site.folder) in stale["reason"]


def test_a_stale_copy_does_not_serve_what_the_new_one_gave_up(miniature, tmp_path):
    miniature.site.valid("acme-valid", slots=["locks"])
    late = Site(tmp_path / "late")
    late.stale("acme-valid")
    status = miniature.status(PYTHONPATH=f"{miniature.site.folder}:{late.folder}")
    assert status.slot(SLOT)["provider"] == "stock"
    assert status.slot("locks")["provider"] == "acme-valid"


def test_a_damaged_distribution_is_told_and_harms_no_other(miniature):
    damaged = miniature.site.valid("acme-damaged")
    (damaged.info / "METADATA").unlink()
    miniature.site.valid("acme-valid")
    status = miniature.status()
    assert status.slot(SLOT)["provider"] == "acme-valid"
    (stranger,) = status["strangers"]
    assert stranger["state"] == "broken"
    assert "metadata cannot be read" in stranger["reason"]


@pytest.mark.parametrize("name", ["crewai", "acme-valid"])
@pytest.mark.parametrize("metadata", [b"Name: x\n", b"Name: x\nVersion: 9\nAuthor: J\xfcrgen\n"])
def test_a_neighbour_with_damaged_metadata_harms_nobody(name, metadata, miniature):
    miniature.site.valid("acme-valid")
    info = miniature.site.folder / f"{name.replace('-', '_')}-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_bytes(metadata)
    status = miniature.status()
    assert status["crewai"] == "1.15.30"
    assert status.slot(SLOT)["version"] == "1.0"


def test_a_distribution_in_a_folder_of_another_name_is_told_and_harms_no_other(miniature):
    other = miniature.site.valid("acme-other")
    metadata = other.info / "METADATA"
    metadata.write_text(metadata.read_text().replace("acme-other", "acme-else"))
    miniature.site.valid("acme-valid")
    status = miniature.status()
    assert status.slot(SLOT)["provider"] == "acme-valid"
    (stranger,) = status["strangers"]
    assert "metadata cannot be read" in stranger["reason"]


@pytest.mark.parametrize(
    ("file", "content"),
    [("RECORD", b"\xfc"), ("direct_url.json", b"{"), ("direct_url.json", b"[]")],
)
def test_a_plugin_of_which_a_file_of_metadata_is_damaged_serves(file, content, miniature):
    dist = miniature.site.valid("acme-valid")
    (dist.info / file).write_bytes(content)
    assert miniature.status().slot(SLOT)["provider"] == "acme-valid"


def test_entry_points_that_are_a_folder_harm_nobody(miniature):
    dist = miniature.site.valid("acme-strange")
    (dist.info / "entry_points.txt").unlink()
    (dist.info / "entry_points.txt").mkdir()
    miniature.site.valid("acme-valid")
    assert miniature.status().slot(SLOT)["provider"] == "acme-valid"


def test_two_on_one_slot_go_by_name_and_it_is_said(miniature):
    miniature.site.duplicate("acme-b", "acme-a")
    status = miniature.status()
    slot = status.slot(SLOT)
    assert slot["provider"] == "acme-a"
    assert slot["reason"].startswith("ambiguous: 2 third-party candidates, taken by name")
    loser = status.candidate("acme-b")
    assert loser["state"] == "shadowed"
    assert loser["reason"].startswith("by acme-a")


def test_the_users_choice_goes_before_the_name(miniature):
    miniature.site.duplicate("acme-b", "acme-a")
    slot = miniature.status(CREWAI_NATIVE_SLOT_MEMORY_STORAGE="Acme_B").slot(SLOT)
    assert slot["provider"] == "acme-b"
    assert slot["reason"].startswith("chosen by CREWAI_NATIVE_SLOT_MEMORY_STORAGE")


def test_a_third_party_goes_before_ours(miniature):
    miniature.site.valid("crewai-native-db", slots=["locks"])
    miniature.site.valid("zebra", slots=["locks"])
    status = miniature.status()
    assert status.slot("locks")["provider"] == "zebra"
    assert status.candidate("crewai-native-db", "locks")["state"] == "shadowed"


def test_two_on_different_slots_serve_side_by_side(miniature):
    miniature.site.valid("acme-memory", slots=["memory.storage"])
    miniature.site.valid("acme-locks", slots=["locks"])
    status = miniature.status()
    assert status.slot("memory.storage")["provider"] == "acme-memory"
    assert status.slot("locks")["provider"] == "acme-locks"


def test_wrapped_code_that_nobody_tested_stays_as_it_is(miniature):
    miniature.site.valid("acme-cache", slots=["tools.cache"])
    slot = miniature.status().slot("tools.cache")
    assert slot["state"] == "stock"
    assert slot["candidates"][0]["state"] == "target-changed"
    assert "CacheHandler.add does not exist" in slot["reason"]


def test_the_installed_crewai_decides_on_the_range(miniature):
    miniature.site.valid("acme-range", accelerates=">=1.15,<1.16")
    miniature.crewai("1.14.7")
    assert miniature.status().candidate("acme-range")["state"] == "incompatible"
    miniature.crewai("1.15.2rc1")
    assert miniature.status().candidate("acme-range")["state"] == "bound"


@pytest.mark.parametrize(
    ("accelerates", "state"),
    [(None, "bound"), (">=what", "incompatible")],
    ids=["unsaid", "nonsense"],
)
def test_a_range_that_is_unsaid_or_nonsense(accelerates, state, miniature):
    miniature.site.valid("acme-range", accelerates=accelerates)
    candidate = miniature.status().candidate("acme-range")
    assert candidate["state"] == state


releases = st.lists(st.integers(0, 3), min_size=1, max_size=4).map(lambda n: ".".join(map(str, n)))
versions = st.tuples(releases, st.sampled_from(["", "", "", "a1", ".dev2", ".post1", "+x"])).map(
    "".join
)
clauses = st.tuples(
    st.sampled_from([">=", "<=", "<", ">", "==", "!=", "~=", " >= "]), releases
).map("".join)
wild = releases.map("=={}.*".format)


@given(st.lists(clauses | wild, max_size=3).map(",".join), versions)
def test_ranges_are_those_of_packaging(specifier, version):
    try:
        expected = SpecifierSet(specifier).contains(Version(version), prereleases=True)
    except ValueError:  # ~= with a single number
        with pytest.raises(ValueError, match="Invalid"):
            _negotiate._within(specifier, version)
        return
    assert _negotiate._within(specifier, version) is expected


def test_required_features_skip_a_candidate(miniature):
    features = """
    from crewai_native import hookimpl
    @hookimpl
    def crewai_native_features():
        return {"memory.storage": ["durable"]}
    @hookimpl
    def crewai_native_memory_storage(spec):
        return None
    """
    miniature.site.add("acme-durable", features)
    miniature.site.valid("acme-bare")
    code = """
    import crewai_native
    require = {"memory.storage": ["durable"]}
    status = crewai_native.activate(require=require)
    answer(status.as_json())
    """
    slots = miniature.run(code)["slots"][0]
    assert slots["provider"] == "acme-durable"
    bare = next(c for c in slots["candidates"] if c["distribution"] == "acme-bare")
    assert (bare["state"], bare["reason"]) == (
        "incompatible",
        "lacks durable, required by code; it has: none",
    )


@pytest.mark.parametrize("error", ["SystemExit('no licence')", "asyncio.CancelledError('no')"])
@pytest.mark.parametrize("place", ["import", "configure", "features"])
def test_a_plugin_that_ends_programs_ends_none(place, error, miniature):
    """Once it is the host that imports it, and no child process."""
    raising = f"raise {error}"
    source = f"""
    import asyncio, os
    from crewai_native import hookimpl
    if os.environ.get("CREWAI_NATIVE") != "0" and {place == "import"}:
        {raising}
    @hookimpl
    def crewai_native_configure(options):
        {raising if place == "configure" else "return None"}
    @hookimpl
    def crewai_native_features():
        {raising if place == "features" else "return {}"}
    @hookimpl
    def crewai_native_locks():
        return None
    """
    miniature.site.add("acme-ending", source, slots=["locks"])
    miniature.site.valid("acme-valid", slots=["locks"])
    status = miniature.status()
    assert status.slot("locks")["provider"] == "acme-valid"
    candidate = status.candidate("acme-ending", "locks")
    assert candidate["state"] == "broken"
    assert candidate["reason"].startswith(("SystemExit: no licence", "CancelledError: no"))


def test_an_interrupt_while_a_plugin_is_imported_is_the_users(miniature):
    source = """
    import os, pathlib
    from crewai_native import hookimpl
    if os.environ.get("CREWAI_NATIVE") != "0" and not pathlib.Path("once").exists():
        pathlib.Path("once").touch()
        raise KeyboardInterrupt
    @hookimpl
    def crewai_native_memory_storage(spec):
        return None
    """
    miniature.site.add("acme-slow", source)
    code = """
    import crewai_native
    try:
        crewai_native.activate()
    except KeyboardInterrupt:
        answer(crewai_native.activate()["memory.storage"].provider)
    """
    assert miniature.run(code) == "acme-slow"


@pytest.mark.parametrize(
    "change",
    [
        "crewai_native.deactivate()",
        "crewai_native.activate(strict=True)",
        "crewai_native.using({'locks': 'stock'}).__enter__()",
    ],
)
def test_a_plugin_cannot_change_the_host_that_binds_it(change, miniature):
    source = f"""
    import crewai_native
    @crewai_native.hookimpl
    def crewai_native_features():
        {change}
    @crewai_native.hookimpl
    def crewai_native_locks():
        return None
    """
    miniature.site.add("acme-meddling", source, slots=["locks"])
    miniature.site.valid("acme-valid")
    status = miniature.status()
    assert status["active"]
    assert status.slot("memory.storage")["provider"] == "acme-valid"
    candidate = status.candidate("acme-meddling", "locks")
    assert candidate["state"] == "broken"
    assert "cannot change the host" in candidate["reason"]


@pytest.mark.parametrize("said", ['["durable"]', '{"memory.storage": "durable"}', "3"])
def test_features_of_the_wrong_type_are_told_with_the_distribution(said, miniature):
    source = f"""
    from crewai_native import hookimpl
    @hookimpl
    def crewai_native_features():
        return {said}
    @hookimpl
    def crewai_native_memory_storage(spec):
        return None
    """
    miniature.site.add("acme-wrong", source)
    candidate = miniature.status().candidate("acme-wrong")
    assert candidate["state"] == "broken"
    assert "acme-wrong 1.0 returned" in candidate["reason"]
    assert "accepts a mapping of slots" in candidate["reason"]


def test_a_hook_that_returns_the_wrong_type_is_told_where_it_is_called(miniature):
    miniature.site.wrong_type()
    code = """
    import crewai
    from crewai.memory.storage import factory
    try:
        factory.resolve_memory_storage("lancedb")
    except RuntimeError as error:
        answer([type(error).__name__, str(error)])
    """
    kind, message = miniature.run(code)
    assert kind == "ProviderError"
    assert message.startswith("acme-types 1.0 returned 'dict' for memory.storage; the slot accepts")
    assert "\n" not in message


def test_a_panic_in_a_rust_extension_costs_its_slot(miniature):
    # PyO3 derives its exception from BaseException.
    panic = "class PanicException(BaseException): pass\n"
    hook = """
    from crewai_native import hookimpl
    @hookimpl
    def crewai_native_configure(options):
        raise PanicException("index out of bounds")
    @hookimpl
    def crewai_native_memory_storage(spec):
        return None
    """
    miniature.site.add("acme-panic", panic + textwrap.dedent(hook))
    candidate = miniature.status().candidate("acme-panic")
    assert candidate["state"] == "broken"
    assert candidate["reason"] == "PanicException: index out of bounds"


def test_hook_wrappers_and_unknown_hooks_are_refused(miniature):
    wrapper = """
    from crewai_native import hookimpl
    @hookimpl(wrapper=True)
    def crewai_native_memory_storage(spec):
        return (yield)
    """
    unknown = """
    from crewai_native import hookimpl
    @hookimpl
    def crewai_native_memory_storage(spec):
        return None
    @hookimpl
    def crewai_native_coffee(): pass
    """
    miniature.site.add("acme-wrapper", wrapper)
    miniature.site.add("acme-unknown", unknown)
    status = miniature.status()
    assert "no hook wrappers" in status.candidate("acme-wrapper")["reason"]
    assert "crewai_native_coffee is no hook" in status.candidate("acme-unknown")["reason"]


def test_a_plugin_may_take_fewer_arguments_and_be_an_object(miniature):
    source = """
    from crewai_native import hookimpl
    class Store:
        def __getattr__(self, name):
            if name.startswith("__"): raise AttributeError(name)
            return lambda *a, **k: name
    class Plugin:
        @hookimpl
        def crewai_native_memory_storage(self):
            return Store()
    plugin = Plugin()
    """
    dist = miniature.site.add("acme-object", source)
    (dist.info / "entry_points.txt").write_text(
        f"[crewai_native.v1]\nmemory.storage = {dist.module}:plugin\n"
    )
    code = """
    import crewai
    from crewai.memory.storage import factory
    answer(factory.resolve_memory_storage("x").count())
    """
    assert miniature.run(code) == "count"


def test_every_step_leaves_its_reason(miniature):
    miniature.site.valid()
    steps = miniature.status().candidate("acme-valid")["steps"]
    assert [step["name"] for step in steps] == [
        "discover",
        "settings",
        "trust",
        "compatibility",
        "order",
        "target",
        "first-import",
        "features",
        "bind",
    ]
    assert all(step["detail"] for step in steps)


def test_an_import_that_aborts_costs_the_parent_nothing(miniature):
    miniature.site.aborting()
    code = "import crewai, sys; print('alive', 'acme_aborting' in sys.modules)"
    done = miniature.run(code)
    assert done.stdout == "alive False\n"
    (line,) = done.stderr.splitlines()
    assert "acme-aborting does not serve memory.storage" in line


NO_CREWAI = """
import importlib.metadata
real = importlib.metadata.distributions
def missing(**fields):
    return () if fields.get("name") == "crewai" else real(**fields)
importlib.metadata.distributions = missing
"""


def test_without_crewai_activation_says_so(site, run):
    code = """
import crewai_native
try:
    crewai_native.activate()
except ValueError as error:
    answer(str(error))
"""
    assert run(NO_CREWAI + code) == "CrewAI is not installed; pip install crewai"


def test_a_package_of_crewais_name_is_left_alone(miniature):
    status = miniature.status(NO_CREWAI)
    assert not status["active"]
    assert status["reason"] == "a package crewai was imported, but no CrewAI is installed"
    assert {slot["state"] for slot in status["slots"]} == {"stock"}


def test_strict_wants_the_provider_that_was_chosen(miniature):
    miniature.site.broken("acme-broken")
    miniature.site.valid("acme-valid")
    variables = {"CREWAI_NATIVE_SLOT_MEMORY_STORAGE": "acme-broken", "CREWAI_NATIVE_STRICT": "1"}
    done = miniature.run("import crewai", check=False, **variables)
    assert "not bound: memory.storage (acme-broken: RuntimeError: acme is broken" in done.stderr
    assert "; chosen by CREWAI_NATIVE_SLOT_MEMORY_STORAGE)" in done.stderr
    variables["CREWAI_NATIVE_SLOT_MEMORY_STORAGE"] = "acme-valid"
    assert miniature.status(**variables).slot(SLOT)["provider"] == "acme-valid"


def test_strict_is_not_content_with_a_package_of_crewais_name(miniature):
    done = miniature.run(f"{NO_CREWAI}\nimport crewai", check=False, CREWAI_NATIVE_STRICT="1")
    assert "CrewAI is not installed" in done.stderr


def test_a_folder_that_pip_left_behind_is_not_crewai(site, run):
    version = importlib.metadata.version("crewai")
    (site.folder / "crewai-0.0.1.dist-info").mkdir()
    code = "from crewai_native import _discovery; answer(_discovery.crewai_version())"
    assert run(code) == version
