"""The cache by itself; how CrewAI gets on with it is the contract's business."""

import pytest

from acme_crewai_cache import BoundedCache


def test_the_least_recently_used_result_goes_first():
    cache = BoundedCache(2)
    cache.add("tool", "1", "one")
    cache.add("tool", "2", "two")
    assert cache.read("tool", "1") == "one"
    cache.add("tool", "3", "three")
    assert [cache.read("tool", key) for key in "123"] == ["one", None, "three"]
    assert len(cache) == 2


def test_adding_again_replaces_and_counts_as_use():
    cache = BoundedCache(2)
    cache.add("tool", "1", "old")
    cache.add("tool", "2", "two")
    cache.add("tool", "1", "new")
    cache.add("tool", "3", "three")
    assert cache.read("tool", "1") == "new"
    assert cache.read("tool", "2") is None


@pytest.mark.parametrize("size", [0, -1])
def test_a_size_that_means_nothing(size):
    with pytest.raises(ValueError, match=f"size is {size}; it accepts 1 and more"):
        BoundedCache(size)
