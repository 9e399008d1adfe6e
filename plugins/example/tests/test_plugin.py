"""The hooks."""

import pytest

from acme_crewai_cache import plugin
from crewai_native import ConfigurationError


@pytest.fixture(autouse=True)
def _defaults():
    yield
    plugin.crewai_native_configure(options={})


@pytest.mark.parametrize("size", [1, "1"])
def test_the_size_comes_from_the_options(size):
    plugin.crewai_native_configure(options={"cache_size": size, "somebody": "else's"})
    cache = plugin.crewai_native_tools_cache()
    cache.add("tool", "1", "one")
    cache.add("tool", "2", "two")
    assert len(cache) == 1


@pytest.mark.parametrize("size", [0, "many", None])
def test_a_size_that_means_nothing(size):
    with pytest.raises(ConfigurationError, match=r"tools\.cache_size is .*; it accepts 1 and more"):
        plugin.crewai_native_configure(options={"cache_size": size})


def test_it_is_healthy():
    (check,) = plugin.crewai_native_health()
    assert check.health == "ok"
