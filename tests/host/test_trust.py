"""Trust levels and the lock file."""

from __future__ import annotations

import pytest

from crewai_native import ConfigurationError, _discovery, _trust

SLOT = "memory.storage"


@pytest.fixture
def locked(miniature, tmp_path):
    """Pins what is installed, and returns the status under trust level ``locked``."""
    miniature.site.valid("acme-valid")
    lock = tmp_path / "crewai-native.lock"
    _trust.write(lock, [offer for offers in _discovery.offers()[0].values() for offer in offers])

    def status(**variables):
        return miniature.status(
            CREWAI_NATIVE_TRUST="locked", CREWAI_NATIVE_LOCK=str(lock), **variables
        )

    return status


def test_what_the_lock_file_pins_is_served(locked):
    assert locked().slot(SLOT)["provider"] == "acme-valid"


def test_another_distribution_is_untrusted_and_not_imported(locked, miniature):
    miniature.site.add("acme-new", "open('imported', 'w').close()")
    candidate = locked().candidate("acme-new")
    assert candidate["state"] == "untrusted"
    assert candidate["reason"].startswith("not in the lock file ")
    assert not (miniature.site.folder.parent / "imported").exists()


def test_another_version_is_untrusted(locked, miniature):
    for old in miniature.site.folder.glob("acme_valid-*/*"):
        old.unlink()
    miniature.site.valid("acme-valid", version="1.1")
    candidate = locked().candidate("acme-valid")
    assert candidate["state"] == "untrusted"
    assert "pins version 1.0, installed is 1.1" in candidate["reason"]


def test_another_content_of_the_same_version_is_untrusted(locked, miniature):
    miniature.site.add("acme-valid", "# another build\n")
    candidate = locked().candidate("acme-valid")
    assert candidate["state"] == "untrusted"
    assert "its files are not those that" in candidate["reason"]


def test_a_mismatch_is_an_error_under_strict(locked, miniature):
    miniature.site.add("acme-valid", "# another build\n")
    done = miniature.run(
        "import crewai",
        check=False,
        CREWAI_NATIVE_TRUST="locked",
        CREWAI_NATIVE_LOCK="crewai-native.lock",
        CREWAI_NATIVE_STRICT="1",
    )
    last = done.stderr.splitlines()[-1]
    assert "memory.storage (acme-valid: its files are not those that crewai-native.lock" in last


def test_listed_trusts_names_in_lists_choices_and_the_lock_file(miniature, tmp_path):
    miniature.site.valid("acme-valid")

    def state(**variables):
        return miniature.status(CREWAI_NATIVE_TRUST="listed", **variables).candidate("acme-valid")

    assert state()["state"] == "untrusted"
    assert "CREWAI_NATIVE_TRUST" in state()["reason"]
    assert state(CREWAI_NATIVE_PLUGINS="acme-valid")["state"] == "bound"
    assert state(CREWAI_NATIVE_SLOT_MEMORY_STORAGE="acme-valid")["state"] == "bound"
    lock = tmp_path / "crewai-native.lock"
    lock.write_text('version = 1\n[plugins."Acme_Valid"]\n')
    assert state()["state"] == "bound"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "does not exist; `crewai-native lock` writes it"),
        ("version = [", "cannot be read"),
        ("version = 2\n", "has version 2; this host reads version 1"),
        ("version = 1\nplugins = 3\n", "this host reads version 1"),
        ('version = 1\n[plugins]\nacme = "1.0"\n', "acme"),
    ],
)
def test_a_lock_file_that_means_nothing(text, words, tmp_path):
    path = tmp_path / "crewai-native.lock"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        _trust.read(path)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_lock_file_stops_the_import(miniature):
    done = miniature.run("import crewai", check=False, CREWAI_NATIVE_TRUST="locked")
    assert done.returncode == 1
    assert "lock file crewai-native.lock does not exist" in done.stderr.splitlines()[-1]
