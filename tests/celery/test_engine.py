"""What needs no cluster: names, options, the command, the checks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import crewai_native
from crewai_native import ConfigurationError
from crewai_native.slots.tasks_batch import engines
from crewai_native.testing import ScriptedLLM
from crewai_native_celery import TargetError, options, targets
from crewai_native_celery import app as celery_app
from crewai_native_celery.plugin import crewai_native_health
from crewai_native_tasks import PlanError, map_crew

LAKES = Path(__file__).parent / "project" / "lakes"


def refused(error: type[Exception], match: str, target: Any = "shop:doing", **more: Any) -> None:
    with pytest.raises(error, match=match):
        map_crew(target, [{"n": 1}], engine="celery", **more)


def test_options_that_it_cannot_honour_are_named(idle: Any) -> None:
    refused(ValueError, "engine celery has no priorities", priority=1)
    refused(ValueError, "engine celery has no option bounds", concurrency=(1, 4))
    refused(ValueError, "concurrency is 0; it accepts", concurrency=0)
    refused(
        ValueError, "timeout is 1000; it accepts .* up to tasks.celery_time_limit", timeout=1000
    )
    refused(ValueError, "concurrency is '4'; it accepts", concurrency="4")
    refused(ValueError, "timeout is '5'; it accepts", timeout="5")
    refused(ValueError, "on_error is 'ignore'; it accepts", on_error="ignore")
    refused(ValueError, "resume is empty; it accepts", resume="")
    refused(ValueError, "retries is -1; it accepts", retries=-1)
    with pytest.raises(ValueError, match="it accepts celery, local"):
        map_crew("shop:doing", [], engine="clery")


def test_what_workers_cannot_import_is_refused_here(idle: Any) -> None:
    import shop

    refused(TargetError, "runs a function.*this is a Crew", shop.standing)
    refused(TargetError, "cannot be imported elsewhere", lambda: None)
    refused(TargetError, "there is no module shopp", "shopp:doing")
    refused(TargetError, "module shop has no nothing", "shop:nothing")
    refused(TargetError, r"there is no .*tasks.yaml", "no/such/folder")
    assert targets.named(shop.Painters) == {"path": "shop:Painters"}
    assert map_crew(shop.doing, [], engine="celery").outputs == []


def test_inputs_that_are_none_are_refused_here(idle: Any) -> None:
    for inputs, says in (("abc", "must be a dict or Mapping, got str"), ({"n": {1}}, "are JSON")):
        with pytest.raises(TypeError, match=says):
            map_crew("shop:doing", [inputs], engine="celery")


def test_a_project_s_yaml_is_a_crew(tmp_path: Path) -> None:
    named = targets.named(LAKES)
    assert json.loads(json.dumps(named)) == named
    named["project"]["agents"]["painter"]["llm"] = ScriptedLLM(
        [lambda turn: turn.prompt.partition("about ")[2].split()[0]]
    )
    output, usage = targets.target_of(named).kickoff({"topic": "mills"})
    assert [task.name for task in output.tasks_output] == ["sketch", "paint"]
    assert output.raw == "mills"
    assert usage.successful_requests == 2
    for file in ("agents.yaml", "tasks.yaml"):
        (tmp_path / file).write_text((LAKES / file).read_text())
    (tmp_path / "tasks.yaml").write_text((LAKES / "tasks.yaml").read_text() + "  tools: [search]\n")
    with pytest.raises(PlanError, match="tools of 'paint' names code; name the class of the crew"):
        targets.named(str(tmp_path))
    merging = (
        "base: &base {expected_output: e, agent: painter}\nsign:\n  <<: *base\n  description: d\n"
    )
    (tmp_path / "tasks.yaml").write_text(merging)
    assert targets.named(tmp_path)["project"]["tasks"] == {
        "sign": {"expected_output": "e", "agent": "painter", "description": "d"}
    }
    (tmp_path / "agents.yaml").write_text("{}")
    with pytest.raises(PlanError, match="agent of task 'sign' is 'painter'"):
        targets.named(tmp_path)


def test_a_project_with_a_date_has_a_name_to_go_on_by(idle: Any, tmp_path: Path) -> None:
    (tmp_path / "agents.yaml").write_text((LAKES / "agents.yaml").read_text())
    more = "  config: {since: 2024-01-01}\n"
    (tmp_path / "tasks.yaml").write_text((LAKES / "tasks.yaml").read_text() + more)
    assert map_crew(tmp_path, [], engine="celery", resume="lakes").outputs == []


def test_it_does_not_take_over_crews_that_are_here(idle: Any) -> None:
    import shop

    celery = engines()["celery"]
    assert not celery.takes_over
    results = shop.crew_about().kickoff_for_each([{"topic": "a"}, {"topic": "b"}])
    assert [result.raw for result in results] == ["a", "b"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            {"celery_brokr": "x"},
            "tasks has no option 'celery_brokr'; of crewai-native-celery it has",
        ),
        ({"celery_broker": ""}, "tasks.celery_broker is ''; it accepts a text"),
        ({"celery_results": "amqp://"}, "tasks.celery_results is 'amqp://'; it accepts redis"),
        ({"celery_time_limit": "soon"}, "tasks.celery_time_limit is 'soon'; it accepts seconds"),
        ({"celery_keep": True}, "tasks.celery_keep is True; it accepts seconds"),
    ],
)
def test_options_that_mean_nothing_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        options.read(given)


def test_where_the_cluster_is_must_be_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CELERY_BROKER_URL", raising=False)
    with pytest.raises(ConfigurationError, match=r"tasks\.celery_broker is not set"):
        _ = options.read({}).broker
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://here")
    assert options.read({"graph": True}).results == "redis://here"
    with pytest.raises(ConfigurationError, match=r"tasks\.celery_results is needed beside"):
        _ = options.read({"celery_broker": "amqp://there"}).results


def test_a_worker_waits_longer_than_the_longest_run_and_takes_no_more_than_it_can_do() -> None:
    found = options.read(
        {
            "celery_broker": "redis://here",
            "celery_time_limit": "900",
            "celery_config": "shop_celery",
        }
    )
    with pytest.raises(ModuleNotFoundError, match="shop_celery"):
        _ = celery_app.made(found).conf.broker_transport_options
    conf = celery_app.made(options.read({"celery_broker": "redis://here"})).conf
    assert conf.broker_transport_options["visibility_timeout"] > 2 * conf.task_time_limit
    assert conf.task_acks_late
    assert conf.task_reject_on_worker_lost
    assert conf.worker_prefetch_multiplier == 1
    assert conf.worker_max_tasks_per_child == 50
    assert conf.accept_content == ["json"]


def test_doctor_tries_what_is_set_up(idle: Any) -> None:
    found = {check.name: check for check in crewai_native_health()}
    assert {check.health.value for check in found.values()} == {"ok"}
    assert set(found) == {"celery broker", "celery results"}
    crewai_native.activate(enabled=True, tasks={"celery_broker": "redis://127.0.0.1:1"})
    try:
        found = {check.name: check for check in crewai_native_health()}
    finally:
        crewai_native.activate(enabled=True, tasks=idle.options)
    assert {check.health.value for check in found.values()} == {"error"}
