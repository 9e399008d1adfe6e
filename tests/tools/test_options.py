"""The settings of the tools' wheel."""

from __future__ import annotations

import pytest

from crewai_native import ConfigurationError
from crewai_native_tools import plugin, processes
from crewai_native_tools.options import Options, PerTool, read
from crewai_native_tools.policy import Budget, Layers, Policy, Rate, Retry, Size


def test_without_any_nothing_is_bounded():
    assert read({}) == Options(PerTool(), PerTool(), None, PerTool(), Layers())


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
    ("value", "expected"),
    [
        (True, PerTool(True)),
        ("true", PerTool(True)),
        ({"search": True}, PerTool(None, {"search": True})),
        ("search=true,*=false", PerTool(False, {"search": True})),
    ],
)
def test_whether_results_persist(value, expected):
    assert read({"cache_persist": value}).cache_persist == expected


@pytest.mark.parametrize("value", [3, "yes", None, {"search": 1}])
def test_persistence_that_means_nothing(value):
    with pytest.raises(ConfigurationError, match=r"tools\.cache_persist is .*; it accepts true or"):
        read({"cache_persist": value})


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


def test_what_is_said_of_calls():
    layers = read(
        {
            "timeout": "search=10,*=60",
            "max_calls": {"Send Mail": 1},
            "rate": "100/min",
            "retry": {"search": {"attempts": 3, "on": ["OSError"]}, "*": 2},
            "max_output": "search=4000 tokens,*=64 kB",
            "redact": "pin, otp",
            "run_budget": "tool_calls=50,money=2.5",
            "agents": {"Researcher": {"timeout": "off", "agent_budget": {"tokens": 10}}},
            "crews": {"crew": {"max_concurrency": 2, "side_effects": True}},
        }
    ).layers
    assert layers.default == Policy(
        timeout=60,
        rate=Rate(100, 60),
        retry=Retry(2),
        max_output=Size(64_000, "bytes"),
        redact=("pin", "otp"),
        run_budget=Budget(tool_calls=50, money=2.5),
    )
    assert layers.tools == {
        "search": Policy(timeout=10, retry=Retry(3, on=("OSError",)), max_output="4000 tokens"),
        "Send Mail": Policy(max_calls=1),
    }
    assert layers.agents == {
        "Researcher": Policy(timeout=float("inf"), agent_budget=Budget(tokens=10))
    }
    assert layers.crews == {"crew": Policy(max_concurrency=2, side_effects=True)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout": "soon"}, r"tools\.timeout is 'soon'; it accepts seconds.* name of a tool"),
        ({"timeout": {"a": -1}}, r"tools\.timeout is -1; it accepts seconds"),
        ({"timeout": {"": 1}}, r"tools\.timeout is .*; a tool has a name"),
        ({"max_calls": 1.5}, r"tools\.max_calls is 1\.5; it accepts a whole number"),
        ({"rate": "10"}, r"tools\.rate is '10'; it accepts calls in a time"),
        ({"rate": "0/s"}, r"tools\.rate is '0/s'"),
        ({"rate_excess": "drop"}, r'tools\.rate_excess is \'drop\'; it accepts "wait" or'),
        ({"loop": 1}, r"tools\.loop is 1; it accepts a whole number from 2"),
        ({"retry": {"*": {"attempt": 1}}}, r"tools\.retry is .* it accepts a number of attempts"),
        ({"run_budget": {"calls": 1}}, r"tools\.run_budget is .*tool_calls"),
        ({"run_budget": {}}, r"tools\.run_budget is"),
        ({"agents": {"a": 1}}, r"tools\.agents is .*; it accepts a table of tables"),
        ({"agents": {"a": {"x": 1}}}, r"tools\.agents\.a has no option 'x'; it has timeout, "),
        ({"crews": {"a": {"timeout": 0}}}, r"tools\.crews\.a\.timeout is 0; it accepts"),
        ({"max_threads": 0}, r"tools\.max_threads is 0; it accepts a whole number above 0"),
        ({"isolation_workers": 0}, r"tools\.isolation_workers is 0; it accepts a whole number"),
        ({"prices": {"m": [1]}}, r"tools\.prices is .*in and out"),
        ({"prices": 1}, r"tools\.prices is 1; it accepts a table"),
    ],
)
def test_sayings_that_mean_nothing(options, message):
    with pytest.raises(ConfigurationError, match=message):
        read(options)


def test_there_are_as_many_workers_as_the_options_say(monkeypatch):
    monkeypatch.setattr(plugin, "_in_force", read({"isolation_workers": "3"}))
    monkeypatch.setattr(processes, "_pool", None)
    with processes.pool() as pool:
        assert pool._max_workers == 3


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
