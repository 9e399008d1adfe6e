"""All wheels together, installed as users install them, and taken out one by one.

``make rehearse`` runs this on the wheels of ``dist/``, as they would be published; ``make test`` on
those of the development environment.
"""

from __future__ import annotations

import configparser
import json
import os
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

from crewai_native.slots import SLOT_NAMES

PUBLISHED = os.environ.get("REHEARSED_WHEELS")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def dist(tmp_path_factory, request):
    """A folder with the host's wheel and one of each accelerator."""
    if PUBLISHED:
        return Path(PUBLISHED).resolve()
    folder = tmp_path_factory.mktemp("dist")
    built = list((Path(sys.prefix) / "wheels").glob("*.whl"))
    if not built:
        pytest.skip("no wheels in .venv/wheels; make setup builds them")
    for wheel in [*built, request.getfixturevalue("host_wheel")]:
        shutil.copy(wheel, folder)
    return folder


@pytest.fixture(scope="module")
def offered(dist):
    """The slots that each accelerator in the folder says it serves, by distribution."""
    found = {}
    for wheel in dist.glob("crewai_native_*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            entries = next((name for name in names if name.endswith("/entry_points.txt")), None)
            parser = configparser.ConfigParser(delimiters="=")
            parser.read_string(archive.read(entries).decode() if entries else "")
        slots = parser["crewai_native.v1"] if parser.has_section("crewai_native.v1") else ()
        found[wheel.name.partition("-")[0].replace("_", "-")] = set(slots)
    return found


@pytest.fixture(scope="module")
def installed(dist, fresh):
    """An environment in which everything was installed by the README's command."""
    made = fresh()
    made("pip", "install", "--quiet", "--find-links", str(dist), "crewai-native[all]")
    return made


def state(environment):
    """Return who serves each slot that is not stock."""
    status = json.loads(environment("crewai-native", "list", "--json"))
    return {s["slot"]: s["provider"] for s in status["slots"] if s["state"] == "bound"}


def test_every_wheel_is_there_and_every_slot_that_it_offers_is_bound(installed, offered):
    assert set(offered) == {
        *("crewai-native-memory", "crewai-native-db", "crewai-native-tools"),
        *("crewai-native-tasks", "crewai-native-serialization", "crewai-native-celery"),
    }
    bound = state(installed)
    assert set(bound) == set().union(*offered.values())
    assert all(slot in offered[provider] for slot, provider in bound.items())
    where = installed("python", "-c", "import crewai_native; print(crewai_native.__file__)")
    assert Path(where.strip()).is_relative_to(installed.packages)


@pytest.mark.skipif(not PUBLISHED, reason="what is published serves everything; see make rehearse")
def test_no_slot_is_left_to_stock(installed):
    assert sorted(set(SLOT_NAMES) - set(state(installed))) == []


def test_the_demo_shows_what_it_should(installed):
    told = installed("python", "-m", "crewai_native.demo", "--repetitions", "1")
    assert "crewai-native-memory" in told


def test_taking_one_out_leaves_the_others(installed, offered, dist):
    for gone, its in offered.items():
        if not its:
            continue
        installed("pip", "uninstall", "--quiet", "--yes", gone)
        bound = state(installed)
        others = [slots for name, slots in offered.items() if name != gone]
        assert set(bound) == set().union(*others), gone
        assert gone not in bound.values()
        installed("pip", "install", "--quiet", "--find-links", str(dist), gone)
    assert set(state(installed)) == set().union(*offered.values())
