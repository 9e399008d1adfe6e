"""The settings of the tools' wheel."""

from __future__ import annotations

import pytest

from crewai_native import ConfigurationError
from crewai_native_tools.options import Options, PerTool, read


def test_without_any_nothing_is_bounded():
    assert read({}) == Options(PerTool(), PerTool(), None)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (300, PerTool(300.0)),
        ("300", PerTool(300.0)),
        (0.5, PerTool(0.5)),
        ({"*": 300, "search": 60}, PerTool(300.0, {"search": 60.0})),
        ({"search": 60}, PerTool(None, {"search": 60.0})),
        ("search=60, *=300,", PerTool(300.0, {"search": 60.0})),
        ("a=b=1", PerTool(None, {"a=b": 1.0})),
    ],
)
def test_times_to_live(value, expected):
    assert read({"cache_ttl": value}).cache_ttl == expected


@pytest.mark.parametrize(
    "value",
    [
        0,
        -1,
        True,
        None,
        "x",
        "",
        "nan",
        "inf",
        float("nan"),
        float("inf"),
        10**400,
        [1],
        "=5",
        "a=x",
        {"a": "x"},
        {"a": None},
        {"": 5},
        "1e400",
        1e300,
    ],
)
def test_times_that_mean_nothing(value):
    with pytest.raises(ConfigurationError, match=r"tools\.cache_ttl is .*; it accepts seconds"):
        read({"cache_ttl": value})


@pytest.mark.parametrize("value", [1000, "1000", " 1000 "])
def test_sizes(value):
    options = read({"cache_max_bytes": value, "cache_tool_max_bytes": {"a": value}})
    assert options.cache_max_bytes == options.cache_tool_max_bytes.named["a"] == 1000


@pytest.mark.parametrize("value", [0, -1, 1.5, True, None, "1e3", "-1", "٣", "9" * 5000, 2**63, []])
def test_sizes_that_mean_nothing(value):
    with pytest.raises(ConfigurationError, match=r"tools\.cache_max_bytes is .*; it accepts a wh"):
        read({"cache_max_bytes": value})
    with pytest.raises(ConfigurationError, match=r"tools\.cache_tool_max_bytes is .* bytes"):
        read({"cache_tool_max_bytes": value})


def test_an_option_that_is_none():
    with pytest.raises(ConfigurationError, match=r"no option 'cache_tll'; it has cache_ttl, "):
        read({"cache_tll": 1})


def test_the_environment_reaches_the_cache(run):
    code = """
    from crewai.agents.cache.cache_handler import CacheHandler
    cache = CacheHandler()
    cache.add("My Tool", "{}", "x" * 1000)
    cache.add("other", "{}", "x" * 1000)
    import crewai_native
    status = crewai_native.status()["tools.cache"]
    answer([status.provider, cache.read("My Tool", "{}"), cache.read("other", "{}") is not None])
    """
    found = run(code, CREWAI_NATIVE_TOOLS_CACHE_TOOL_MAX_BYTES="my_tool=500")
    assert found == ["crewai-native-tools", None, True]
