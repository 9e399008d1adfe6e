"""What is said about calls, and which of several sayings counts."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crewai_native_tools import configure
from crewai_native_tools.policy import (
    DEFAULTS,
    FIELDS,
    Budget,
    Layers,
    Policy,
    Rate,
    Retry,
    Saying,
    Size,
    resolve,
)


def test_values_are_kept_in_one_form():
    policy = Policy(
        timeout="2.5",
        max_calls=3.0,
        rate="5/2 s",
        max_output=1000,
        retry={"attempts": 2, "backoff": 0},
        run_budget={"tokens": "10"},
        redact=["a"],
    )
    assert policy.said() == {
        "timeout": 2.5,
        "max_calls": 3,
        "rate": Rate(5, 2.0),
        "max_output": Size(1000, "bytes"),
        "retry": Retry(2, 0.0),
        "run_budget": Budget(tokens=10),
        "redact": ("a",),
    }
    assert str(policy.rate) == "5/2 s"
    assert str(Rate(1, 60.0)) == "1/min"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"timeout": 0}, r"timeout is 0; it accepts seconds"),
        ({"timeout": math.nan}, r"timeout is nan"),
        ({"timeout": True}, r"timeout is True"),
        ({"max_concurrency": 0.5}, r"max_concurrency is 0\.5; it accepts a whole number"),
        ({"max_output": "5 pages"}, r"max_output is '5 pages'; it accepts a number of bytes"),
        ({"isolation": "vm"}, r"isolation is 'vm'; it accepts \"thread\" or \"process\""),
        ({"side_effects": 2}, r"side_effects is 2; it accepts true or false"),
        ({"redact": 5}, r"redact is 5; it accepts a list"),
        ({"retry": {"attempts": 0}}, r"retry is "),
        ({"run_budget": {"tokens": 0}}, r"run_budget is "),
    ],
)
def test_what_means_nothing_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Policy(**fields)


def test_a_budget_names_what_is_wrong():
    with pytest.raises(ValueError, match=r"tokens is 1\.5; it accepts a whole number above 0"):
        Budget(tokens=1.5)


def test_a_tool_has_no_budget():
    with pytest.raises(ValueError, match=r"policy of the tool 'a' has run_budget; a budget is"):
        Layers(tools={"a": Policy(run_budget={"tokens": 1})})


def test_the_narrowest_saying_counts_field_by_field():
    code = Layers(
        default=Policy(timeout=1, loop=9),
        crews={"c": Policy(timeout=2, max_calls=2)},
    )
    environment = Layers(
        default=Policy(timeout=3, max_concurrency=3),
        tools={"t": Policy(rate="1/s")},
        agents={"a": Policy(timeout=4, max_concurrency=math.inf)},
        crews={"c": Policy(max_calls=5)},
    )
    found = resolve([code, environment], "t", "a", "c")
    assert found["timeout"] == Saying(4, ("agent", "a"))
    assert found["max_concurrency"] == Saying(None, ("agent", "a"))
    assert found["max_calls"] == Saying(2, ("crew", "c"))
    assert found["rate"] == Saying(Rate(1, 1.0), None)
    assert found["loop"] == Saying(9, None)
    assert found["loop_abort"] == Saying(DEFAULTS.loop_abort, None)
    other = resolve([code, environment], "u", "b", None)
    assert (other["timeout"].value, other["max_concurrency"].value) == (1, 3)
    assert (other["rate"].value, other["max_calls"].value) == (None, None)


_policies = st.builds(
    Policy,
    timeout=st.none() | st.integers(1, 9),
    max_calls=st.none() | st.integers(1, 9) | st.just(math.inf),
)
_tables = st.dictionaries(st.sampled_from("xy"), _policies, max_size=2)
_layers = st.builds(Layers, default=_policies, tools=_tables, agents=_tables, crews=_tables)
_names = st.sampled_from("xyz")


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(_layers, max_size=3), _names, st.none() | _names, st.none() | _names)
def test_against_looking_from_the_narrowest_on(sources, tool, agent, crew):
    found = resolve(sources, tool, agent, crew)
    assert set(found) == set(FIELDS)
    tables = [("tools", tool), ("agents", agent), ("crews", crew)]
    order = [getattr(source, table).get(name) for table, name in tables for source in sources]
    order += [source.default for source in sources] + [DEFAULTS]
    for field in ("timeout", "max_calls", "loop"):
        said = [getattr(policy, field) for policy in order if policy is not None]
        expected = next((value for value in said if value is not None), None)
        assert found[field].value == (None if expected == math.inf else expected)


@pytest.mark.parametrize(
    ("layers", "where"),
    [
        ({"default": {"timeout": 5}}, "default is {'timeout': 5}"),
        ({"tools": {"add": 5}}, "tools['add'] is 5"),
        ({"agents": {"Clerk": {"timeout": 5}}}, "agents['Clerk'] is {'timeout': 5}"),
        ({"crews": ["crew"]}, "crews is ['crew']; it accepts a mapping of names"),
    ],
)
def test_what_is_no_policy_is_refused_where_it_is_said(layers, where):
    with pytest.raises(TypeError, match=re.escape(where)):
        configure(**layers)
