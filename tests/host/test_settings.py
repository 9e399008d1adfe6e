"""Settings: which source wins, and that what means nothing is said in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from crewai_native import ConfigurationError, _settings
from crewai_native.slots import SLOT_NAMES


@pytest.fixture
def project(tmp_path):
    """Writes the project's pyproject.toml."""

    def write(text, where=tmp_path):
        where.mkdir(parents=True, exist_ok=True)
        (where / "pyproject.toml").write_text(text)
        return tmp_path

    return write


def load(directory, environ=None, **overrides):
    return _settings.load(environ or {}, directory, overrides)


# --- precedence -------------------------------------------------------------------------------


def test_defaults(tmp_path):
    settings = load(tmp_path)
    assert settings == _settings.Settings()
    assert settings.source("trust") == "default"


def test_code_over_environment_over_pyproject_over_defaults(project):
    folder = project('[tool.crewai-native]\ntrust = "listed"\nstrict = true\nverify = 0.5\n')
    environ = {"CREWAI_NATIVE_STRICT": "0", "CREWAI_NATIVE_VERIFY": "0.25"}
    settings = load(folder, environ, verify=0.125)
    assert (settings.trust, settings.strict, settings.verify) == ("listed", False, 0.125)
    assert settings.probe_timeout == 20.0
    assert settings.source("trust") == f"[tool.crewai-native] in {folder / 'pyproject.toml'}"
    assert settings.source("strict") == "CREWAI_NATIVE_STRICT"
    assert settings.source("verify") == "code"


def test_slots_and_options_are_merged_setting_by_setting(project):
    folder = project(
        '[tool.crewai-native.slots]\n"memory.storage" = "a"\n"locks" = "b"\n'
        '[tool.crewai-native.memory]\npath = "here"\nmetric = "l2"\n'
        '[tool.crewai-native.require]\n"memory.storage" = ["exact"]\n'
    )
    environ = {"CREWAI_NATIVE_SLOT_LOCKS": "stock", "CREWAI_NATIVE_MEMORY_METRIC": "dot"}
    settings = load(folder, environ)
    assert settings.slots == {"memory.storage": "a", "locks": "stock"}
    assert settings.options == {"memory": {"path": "here", "metric": "dot"}}
    assert settings.require == {"memory.storage": frozenset({"exact"})}


def test_the_nearest_pyproject_counts_and_its_paths_are_its_own(project, tmp_path):
    project('[tool.crewai-native]\ntrust = "locked"\n')
    inner = tmp_path / "inner"
    project('[tool.crewai-native]\nlock = "my.lock"\n', inner)
    settings = load(inner / "deeper")
    assert (settings.trust, settings.lock) == ("all", inner / "my.lock")
    assert load(tmp_path).lock == tmp_path / "crewai-native.lock"


def test_a_pyproject_that_says_nothing_of_us_ends_the_search_unparsed(project, tmp_path):
    project('[tool.crewai-native]\ntrust = "locked"\n')
    project("this is not [ TOML", tmp_path / "inner")
    assert load(tmp_path / "inner") == _settings.Settings()


def test_paths_from_the_environment_are_relative_to_the_working_directory(project):
    folder = project('[tool.crewai-native]\nlock = "my.lock"\n')
    assert load(folder, {"CREWAI_NATIVE_LOCK": "other.lock"}).lock == Path("other.lock")
    assert load(folder, lock=Path("code.lock")).lock == Path("code.lock")


def test_a_tilde_is_the_users_folder(project, monkeypatch):
    monkeypatch.setenv("HOME", "/home/acme")
    folder = project('[tool.crewai-native]\nmetrics = "~/m.jsonl"\nlock = "~"')
    settings = load(folder, {"CREWAI_NATIVE_CACHE_DIR": "~/cache"})
    assert settings.metrics == Path("/home/acme/m.jsonl")
    assert settings.lock == Path("/home/acme")
    assert settings.cache_dir == Path("/home/acme/cache")
    words = "it accepts a path"
    assert_one_line(words, load, folder, {"CREWAI_NATIVE_METRICS": "~nobody-of-this-name/m"})


@pytest.mark.parametrize("slot", SLOT_NAMES)
def test_every_slot_has_a_variable_and_a_component(slot, tmp_path):
    variable = f"CREWAI_NATIVE_SLOT_{slot.replace('.', '_').upper()}"
    settings = load(tmp_path, {variable: "Acme.Fast"})
    assert settings.slots == {slot: "acme-fast"}
    component = _settings.component_of(slot)
    off = load(tmp_path, {f"CREWAI_NATIVE_{component.upper()}": "off"})
    assert off.switched_off(slot) == f"{component} is off (CREWAI_NATIVE_{component.upper()})"


def test_a_slot_chosen_in_code_goes_before_a_switch_of_its_component(tmp_path):
    off = load(tmp_path, {"CREWAI_NATIVE_MEMORY": "0"})
    assert off.override({"memory.storage": "acme"}).switched_off("memory.storage") is None
    assert off.override({"memory.storage": "stock"}).switched_off("memory.storage") is not None


def test_a_component_is_a_switch_or_a_table_with_a_switch(project):
    folder = project(
        "[tool.crewai-native]\ntools = false\n[tool.crewai-native.memory]\nenabled=0\n"
    )
    assert load(folder).components == {"tools": False, "memory": False}


def test_a_removed_working_directory_is_no_reason_to_fail(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    code = f"import os; os.rmdir({str(gone)!r}); from crewai_native import _settings as s; s.load()"
    subprocess.run([sys.executable, "-c", code], cwd=gone, check=True)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root can read everything")
def test_a_pyproject_above_that_may_not_be_read_is_skipped_and_said(project, tmp_path, caplog):
    project('[tool.crewai-native]\ntrust = "locked"\n')
    (tmp_path / "pyproject.toml").chmod(0)
    assert load(tmp_path / "inner").trust == "all"
    assert "Permission denied" in caplog.text


# --- what means nothing -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["crewai_native", "CrewAI-Native", '"crewai.native"'])
def test_a_table_under_another_spelling_is_no_setting(project, name):
    folder = project(f'[tool.{name}]\ntrust = "locked"\n')
    with pytest.raises(ConfigurationError, match=r"settings are in \[tool.crewai-native\]"):
        load(folder)


ENVIRONMENT = [
    ({"CREWAI_NATIVE": "maybe"}, ["CREWAI_NATIVE", "'maybe'", "1 or 0"]),
    ({"CREWAI_NATIVE": ""}, ["CREWAI_NATIVE", "''", "1 or 0"]),
    ({"CREWAI_NATIVE_MEMORY": "fast"}, ["CREWAI_NATIVE_MEMORY", "'fast'", "1 or 0"]),
    ({"CREWAI_NATIVE_STRICT": "2"}, ["CREWAI_NATIVE_STRICT", "'2'", "1 or 0"]),
    ({"CREWAI_NATIVE_TRUST": "some"}, ["CREWAI_NATIVE_TRUST", "all, listed, locked"]),
    ({"CREWAI_NATIVE_VERIFY": "1.5"}, ["CREWAI_NATIVE_VERIFY", "'1.5'", "0 to 1"]),
    ({"CREWAI_NATIVE_VERIFY": "nan"}, ["CREWAI_NATIVE_VERIFY", "0 to 1"]),
    ({"CREWAI_NATIVE_PROBE_TIMEOUT": "soon"}, ["CREWAI_NATIVE_PROBE_TIMEOUT", "seconds"]),
    ({"CREWAI_NATIVE_LOCK": ""}, ["CREWAI_NATIVE_LOCK", "a path"]),
    ({"CREWAI_NATIVE_PLUGINS": ""}, ["CREWAI_NATIVE_PLUGINS", "''", "names, with commas"]),
    ({"CREWAI_NATIVE_DENY": " , "}, ["CREWAI_NATIVE_DENY", "' , '", "names, with commas"]),
    ({"CREWAI_NATIVE_TURST": "all"}, ["CREWAI_NATIVE_TURST", "CREWAI_NATIVE_TRUST?"]),
    ({"CREWAI_NATIVE_SLOT_MEMROY": "x"}, ["SLOT_MEMROY", "CREWAI_NATIVE_SLOT_MEMORY_STORAGE"]),
    ({"CREWAI_NATIVE_SLOT_LOCKS": " "}, ["locks", "CREWAI_NATIVE_SLOT_LOCKS", "'stock'"]),
]


@pytest.mark.parametrize(("environ", "words"), ENVIRONMENT, ids=lambda v: str(v)[:40])
def test_a_variable_that_means_nothing(environ, words, tmp_path):
    assert_one_line(words, load, tmp_path, environ)


PYPROJECT = [
    ("[tool.crewai-native\n", ["is not valid TOML"]),
    ("tool = 3 # crewai-native\n", ["[tool]", "a table"]),
    ('[tool]\ncrewai-native = "yes"\n', ["[tool.crewai-native]", "'yes'", "a table"]),
    ("[tool.crewai-native]\nturst = 1\n", ["turst", "did you mean trust?", "slots"]),
    ('[tool.crewai-native.slots]\n"memory.store" = "x"\n', ["'memory.store'", "memory.storage?"]),
    ('[tool.crewai-native.slots]\n"locks" = 3\n', ["locks", "3", "'stock'"]),
    ("[tool.crewai-native]\nslots = []\n", ["slots", "a table"]),
    ('[tool.crewai-native.require]\n"coffee" = ["hot"]\n', ["require", "'coffee'"]),
    ('[tool.crewai-native.require]\n"locks" = 3\n', ["require", "3", "a list of names"]),
    ("[tool.crewai-native]\nplugins = {a = 1}\n", ["plugins", "a list of names"]),
    ("[tool.crewai-native]\nmemory = 3\n", ["memory", "3", "a table of options"]),
    ("[tool.crewai-native]\nverify = true\n", ["verify", "True", "0 to 1"]),
    ("[tool.crewai-native]\nlock = 3\n", ["lock", "3", "a path"]),
]


@pytest.mark.parametrize(("text", "words"), PYPROJECT, ids=lambda v: str(v)[:40])
def test_a_pyproject_that_means_nothing(text, words, project):
    folder = project(text)
    assert_one_line([*words, str(folder / "pyproject.toml")], load, folder)


def test_a_setting_in_code_that_means_nothing(tmp_path):
    assert_one_line(["trust", "code"], load, tmp_path, trust="some")
    assert_one_line(["'nope'", "memory.storage"], _settings.Settings().override, {"nope": "x"})


def assert_one_line(words, function, *args, **kwargs):
    with pytest.raises(ConfigurationError) as caught:
        function(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


# --- what only shows when it is used ----------------------------------------------------------


def test_an_unknown_provider_is_an_error_of_the_import(miniature):
    miniature.site.valid()
    code = "import crewai"
    done = miniature.run(code, check=False, CREWAI_NATIVE_SLOT_MEMORY_STORAGE="acme-vaild")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "crewai_native._errors.ConfigurationError: CREWAI_NATIVE_SLOT_MEMORY_STORAGE chooses "
        "'acme-vaild' for memory.storage, which no installed distribution of that name offers; "
        f"there are: {', '.join([*sorted({'acme-valid', *miniature.denied('memory.storage')}), 'stock'])}"
    )


def test_a_wrong_setting_stays_an_error_when_the_program_tries_again(miniature):
    code = """
    errors = []
    for _ in range(2):
        try:
            import crewai
        except ValueError as error:
            errors.append(str(error))
    answer(errors)
    """
    first, second = miniature.run(code, CREWAI_NATIVE_TRUST="some")
    assert first == second
    assert "CREWAI_NATIVE_TRUST" in first


def test_allow_list_deny_list_and_switches_say_what_turned_a_candidate_off(miniature):
    miniature.site.valid()

    def reason(**variables):
        candidate = miniature.status(**variables).candidate("acme-valid")
        assert candidate["state"] == "disabled"
        return candidate["reason"]

    assert reason(CREWAI_NATIVE_PLUGINS="other") == "not on the allow-list (CREWAI_NATIVE_PLUGINS)"
    assert reason(CREWAI_NATIVE_DENY="acme_valid") == "on the deny-list (CREWAI_NATIVE_DENY)"
    assert reason(CREWAI_NATIVE_MEMORY="0") == "memory is off (CREWAI_NATIVE_MEMORY)"
    assert reason(CREWAI_NATIVE_SLOT_MEMORY_STORAGE="stock").startswith("slot set to stock")
    assert miniature.status(CREWAI_NATIVE_PLUGINS="Acme.Valid").slot("memory.storage")[
        "provider"
    ] == ("acme-valid")


def test_a_list_that_names_nobody_is_a_warning(miniature):
    status = miniature.status(CREWAI_NATIVE_PLUGINS="acme-vaild")
    assert any("acme-vaild" in w and "CREWAI_NATIVE_PLUGINS" in w for w in status["warnings"])


def test_strict_names_every_slot_that_should_be_bound(miniature):
    miniature.site.broken()
    done = miniature.run("import crewai", check=False, CREWAI_NATIVE_STRICT="1")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(
        "StrictError: strict (CREWAI_NATIVE_STRICT): not bound: memory.storage "
        "(acme-broken: RuntimeError: acme is broken)"
    )


def test_strict_is_content_with_a_slot_that_the_user_turned_off(miniature):
    miniature.site.broken()
    for turned_off in (
        {"CREWAI_NATIVE_SLOT_MEMORY_STORAGE": "stock"},
        {"CREWAI_NATIVE_MEMORY": "0"},
        {"CREWAI_NATIVE_DENY": "acme-broken"},
        {"CREWAI_NATIVE_PLUGINS": "somebody-else"},
    ):
        assert miniature.status(CREWAI_NATIVE_STRICT="1", **turned_off)["active"]


def test_strict_wants_what_is_required(miniature):
    code = """
    import crewai_native
    try:
        crewai_native.activate(strict=True, require={"replay.store": ["durable"]})
    except RuntimeError as error:
        answer([str(error), crewai_native.status().active])
    """
    message, active = miniature.run(code)
    assert "replay.store" in message
    assert not active


def test_options_reach_the_plugin_and_its_complaint_reaches_the_user(miniature):
    source = """
    from crewai_native import ConfigurationError, hookimpl
    @hookimpl
    def crewai_native_configure(options):
        if options != {"color": "red"}:
            raise ConfigurationError(f"memory.color is {options}; it accepts red")
    @hookimpl
    def crewai_native_memory_storage(spec):
        return None
    """
    miniature.site.add("acme-options", source)
    red = miniature.status(CREWAI_NATIVE_MEMORY_COLOR="red")
    assert red.slot("memory.storage")["provider"] == "acme-options"
    done = miniature.run("import crewai", check=False, CREWAI_NATIVE_MEMORY_COLOR="blue")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("it accepts red")


def test_options_that_nobody_takes_are_refused(miniature):
    miniature.site.valid("acme-plain", slots=["locks"])
    code = """
    import crewai_native
    try:
        answer(crewai_native.activate()["locks"].provider)
    except crewai_native.ConfigurationError as error:
        answer(str(error))
    """
    # Of a component that nobody serves here nothing is known.
    assert miniature.run(code, CREWAI_NATIVE_MEMORY_PATH="x") == "acme-plain"
    said = miniature.run(code, CREWAI_NATIVE_DB_SPEED="high")
    assert said == (
        "db.speed (CREWAI_NATIVE_DB_SPEED) is not an option; db has none where acme-plain serves it"
    )
    taking = """
    from crewai_native import hookimpl
    @hookimpl
    def crewai_native_configure(options):
        assert options == {"speed": "high"}
    @hookimpl
    def crewai_native_flow_persistence():
        return None
    """
    miniature.site.add("acme-taking", taking, slots=["flow.persistence"])
    assert miniature.run(code, CREWAI_NATIVE_DB_SPEED="high") == "acme-plain"
