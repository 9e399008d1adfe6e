"""Plans: checked as a whole, run in three ways, without CrewAI."""

from __future__ import annotations

import asyncio
import contextvars
import json
import re
import subprocess
import sys
import textwrap
import threading

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from crewai_native.testing.offline import OFFLINE
from crewai_native_tasks import Plan, PlanError, PlanTask, cancel_scope, control, plan_cli

MODES = ["sequential", "parallel", "async"]

AGENTS = """\
researcher:
  role: Researcher
  goal: finds
  backstory: curious
writer:
  role: Writer
  goal: writes
  backstory: patient
"""

TASKS = """\
search:
  description: search for {topic}
  expected_output: a list
  agent: researcher
interview:
  description: ask people
  expected_output: quotes
  agent: writer
  context: []
report:
  description: write it down
  expected_output: a text
  agent: writer
check:
  description: check the sources
  expected_output: a list
  agent: researcher
  context: [search]
"""


@pytest.fixture
def project(tmp_path):
    def write(agents=AGENTS, tasks=TASKS):
        (tmp_path / "agents.yaml").write_text(agents)
        (tmp_path / "tasks.yaml").write_text(tasks)
        return tmp_path / "agents.yaml", tmp_path / "tasks.yaml"

    return write


def problems_of(made):
    with pytest.raises(PlanError) as refused:
        made()
    return [str(problem) for problem in refused.value.problems]


def echo(task, done):
    return f"{task.name}({','.join(sorted(done))})"


# --- checking ---------------------------------------------------------------------------------


def test_crewais_own_files_are_a_plan(project):
    plan = Plan.from_yaml(*project())
    assert {task.name: task.after for task in plan.tasks} == {
        "search": (),
        "interview": (),
        "report": ("search", "interview"),
        "check": ("search",),
    }
    assert plan.tasks[0].fields["description"] == "search for {topic}"
    assert [task.agent for task in plan.tasks] == ["researcher", "writer", "writer", "researcher"]


def test_everything_that_is_wrong_is_said_at_once_with_its_place(project):
    agents, tasks = project(
        agents="""\
researcher:
  role: Researcher
  goal: ""
  backstory: curious
researcher:
  role: again
""",
        tasks="""\
search:
  description: search
  agent: nobody
  agent: researcher
report:
  description:
  expected_output: a text
  context:
    - search
    - nothing
first:
  description: d
  expected_output: e
  agent: researcher
  context: [second]
second:
  description: d
  expected_output: e
  agent: researcher
  context: [first]
alone:
  description: d
  expected_output: e
  agent: researcher
  context: alone
""",
    )
    found = problems_of(lambda: Plan.from_yaml(agents, tasks, process="circular"))
    assert found == [
        "there is no process 'circular'; it accepts sequential, hierarchical",
        f"{agents}:3: goal of agent 'researcher' is empty; it accepts a text",
        f"{agents}:5: name 'researcher' is there twice, first on line 1",
        f"{tasks}:1: expected_output of task 'search' is missing; it accepts a text",
        f"{tasks}:3: agent of task 'search' is 'nobody'; there are researcher",
        f"{tasks}:4: field of 'search' 'agent' is there twice, first on line 3",
        f"{tasks}:6: description of task 'report' is empty; it accepts a text",
        f"{tasks}:9: task 'report' waits for 'nothing', which is no task",
        f"{tasks}:15: tasks wait for each other: first -> second -> first",
        f"{tasks}:25: context of task 'alone' is 'alone'; it accepts a list of tasks",
    ]


@pytest.mark.parametrize(
    ("value", "line", "says"),
    [
        ("!env X", 4, "could not determine a constructor for the tag '!env'"),
        ("\n    - !env X", 5, "could not determine a constructor for the tag '!env'"),
        ("2024-13-45", 4, "month must be in 1..12"),
        ("!!int abc", 4, "invalid literal for int() with base 10: 'abc'"),
        ("!!bool abc", 4, "'abc'"),
        ("{[a]: b}", 4, "found unhashable key"),
    ],
)
def test_values_that_yaml_has_no_meaning_for(project, value, line, says):
    text = "a:\n  expected_output: e\n  agent: writer\n  description: {}\n"
    agents, tasks = project(tasks=text.format(value))
    found = problems_of(lambda: Plan.from_yaml(agents, tasks))
    assert found[0] == f"{tasks}:{line}: description of 'a' cannot be read: {says}"


def test_keys_that_are_no_texts(project):
    agents, tasks = project(tasks=TASKS + "? [a, b]\n: {}\n")
    assert problems_of(lambda: Plan.from_yaml(agents, tasks)) == [f"{tasks}:19: name is no text"]


def test_merge_keys_give_way_to_what_is_written_beside_them(project):
    agents, tasks = project(
        agents="""\
defaults: &defaults
  goal: g
  backstory: b
  verbose: true
writer: &writer
  <<: *defaults
  role: Writer
  goal: writes
again: *writer
""",
        tasks="""\
base: &base
  description: d
  expected_output: e
  agent: writer
other: &other {expected_output: other, markdown: true}
both:
  <<: [*other, *base]
  description: both
""",
    )
    plan = Plan.from_yaml(agents, tasks)
    assert [task.name for task in plan.tasks] == ["base", "both"]
    assert dict(plan.tasks[1].fields) == yaml.safe_load(tasks.read_text())["both"]


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("a: &a {role: r, goal: g, backstory: b}\nb:\n  <<: 1", 3, "expected a mapping or list"),
        ("a: &a {role: r, role: s}\nb: {<<: *a, role: t}", 1, "field of 'a' 'role' is there twice"),
    ],
)
def test_merges_that_are_wrong(project, text, line, says):
    agents, tasks = project(agents=text)
    found = problems_of(lambda: Plan.from_yaml(agents, tasks))
    assert [each for each in found if each.startswith(f"{agents}:{line}: {says}")]


def test_a_context_ahead_is_refused_as_by_crewai(project):
    text = """\
first: {description: d, expected_output: e, agent: writer, context: [second]}
second: {description: d, expected_output: e, agent: writer, context: []}
"""
    agents, tasks = project(tasks=text)
    (found,) = problems_of(lambda: Plan.from_yaml(agents, tasks))
    assert found.startswith(
        f"{tasks}:1: context of task 'first' has 'second', which is written after"
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [", ":1: no YAML: "),
        ("- a", ":1: is no mapping of names to their fields"),
        ("a: b", ":1: 'a' is no mapping of fields"),
        ("a: &x {description: *y}", ":1: no YAML: found undefined alias"),
    ],
)
def test_what_is_no_such_file_says_so(project, text, says):
    agents, tasks = project(tasks=text)
    (found,) = problems_of(lambda: Plan.from_yaml(agents, tasks))
    assert found.startswith(f"{tasks}{says}")


def test_a_file_that_is_not_there_says_so(project):
    agents, _ = project()
    missing = agents.parent / "none.yaml"
    (found,) = problems_of(lambda: Plan.from_yaml(agents, missing))
    assert found.startswith(f"{missing}: cannot be read (")


def test_a_hierarchical_process_needs_no_agents(project):
    text = "a:\n  description: d\n  expected_output: e\n"
    agents, tasks = project(tasks=text)
    assert problems_of(lambda: Plan.from_yaml(agents, tasks)) == [
        f"{tasks}:1: agent of task 'a' is missing; it accepts the name of an agent"
    ]
    assert Plan.from_yaml(agents, tasks, process="hierarchical").run(do=echo).results == {
        "a": "a()"
    }


def test_plans_in_code_are_checked_as_well():
    tasks = [
        PlanTask("a", after=("a",)),
        PlanTask("b", after=("c",)),
        PlanTask("c", after=("b", "d")),
        PlanTask("c"),
    ]
    assert problems_of(lambda: Plan(tasks)) == [
        "task 'c' is there twice",
        "task 'c' waits for 'd', which is no task",
        "tasks wait for each other: a -> a",
    ]


def test_one_name_is_not_read_letter_by_letter():
    with pytest.raises(TypeError, match=r"after of task 'b' is the text 'load'; .* \('load',\)"):
        PlanTask("b", after="load")


# --- running ----------------------------------------------------------------------------------


@st.composite
def some_plans(draw):
    """What each task waits for, whether it fails, its agent and its priority."""
    return [
        (
            draw(st.lists(st.integers(0, n - 1), unique=True, max_size=3)) if n else [],
            draw(st.sampled_from([False] * 6 + [True])),
            draw(st.sampled_from([None, None, "x", "y"])),
            draw(st.integers(-2, 2)),
        )
        for n in range(draw(st.integers(0, 12)))
    ]


@settings(max_examples=60, deadline=None)
@given(some_plans(), st.sampled_from(MODES), st.integers(1, 5))
def test_each_mode_does_what_a_simple_loop_does(shapes, mode, concurrency):
    expected, statuses = {}, {}
    for number, (after, fails, _, _) in enumerate(shapes):
        name = f"t{number}"
        if any(statuses[f"t{other}"] != "done" for other in after):
            statuses[name] = "skipped"
        elif fails:
            statuses[name] = "failed"
        else:
            statuses[name] = "done"
            expected[name] = (name, sorted(f"t{other}" for other in after))

    lock, at_work = threading.Lock(), []

    def work(task, done):
        with lock:
            assert task.agent is None or task.agent not in at_work
            at_work.append(task.agent)
            assert len(at_work) <= concurrency
        try:
            if task.fields["fails"]:
                raise ValueError(task.name)
            return task.name, sorted(done)
        finally:
            with lock:
                at_work.remove(task.agent)

    plan = Plan(
        PlanTask(
            f"t{number}",
            after=tuple(f"t{other}" for other in after),
            agent=agent,
            priority=priority,
            fields={"fails": fails},
        )
        for number, (after, fails, agent, priority) in enumerate(shapes)
    )
    run = plan.run(mode, do=work, concurrency=concurrency)
    assert (run.results, run.statuses) == (expected, statuses)
    assert {name: str(error) for name, error in run.errors.items()} == {
        name: name for name, status in statuses.items() if status == "failed"
    }
    assert run.done == (set(statuses.values()) <= {"done"})
    assert not [t for t in threading.enumerate() if t.name.startswith("crewai-native plan")]


@pytest.mark.parametrize("mode", ["parallel", "async"])
def test_independent_tasks_run_at_the_same_time(mode):
    barrier = threading.Barrier(3, timeout=60)
    plan = Plan(PlanTask(str(n), lambda _: barrier.wait()) for n in range(3))
    assert sorted(plan.run(mode).results.values()) == [0, 1, 2]


@pytest.mark.parametrize("mode", MODES)
def test_coroutines_and_the_callers_context(mode):
    here = contextvars.ContextVar("here")
    here.set("caller")

    async def ask(done):
        await asyncio.sleep(0)
        seen = here.get()
        here.set("changed")
        return seen

    plan = Plan([PlanTask("a", ask), PlanTask("b", lambda _: here.get(), after=("a",))])
    assert plan.run(mode).results == {"a": "caller", "b": "caller"}


@pytest.mark.parametrize("mode", MODES)
def test_stopping_after_an_error(mode):
    plan = Plan([PlanTask("a", lambda _: 1 / 0), PlanTask("b", lambda _: 1, priority=-1)])
    run = plan.run(mode, concurrency=1, on_error="stop")
    assert run.statuses == {"a": "failed", "b": "cancelled"}
    with pytest.raises(ExceptionGroup) as raised:
        run.check()
    assert isinstance(raised.value.exceptions[0], ZeroDivisionError)


@pytest.mark.parametrize("mode", MODES)
def test_a_scope_that_is_cancelled_begins_nothing_further(mode):
    with cancel_scope() as scope:

        def stop(done):
            scope.cancel()
            scope.cancel()
            return "was running"

        plan = Plan([PlanTask("a", stop), PlanTask("b", lambda _: 1, after=("a",))])
        run = plan.run(mode)
    assert run.statuses["b"] == "cancelled"
    assert run.statuses["a"] in {"done", "cancelled"}
    with pytest.raises((RuntimeError, BaseExceptionGroup)):
        run.check()


def waits_out(scope):
    """A task that ends when the time of its scope is up."""
    while not scope.ended:
        pass


@pytest.mark.parametrize("mode", MODES)
def test_a_scope_whose_time_is_up_begins_nothing_further(mode):
    begun = []

    def work(task, done):
        begun.append(task.name)
        waits_out(control.scope_of_run.get())

    plan = Plan(PlanTask(str(n), agent="one") for n in range(3))
    with pytest.raises(TimeoutError, match=r"took longer than 0\.05"), cancel_scope(timeout=0.05):
        plan.run(mode, do=work)
    assert len(begun) == 1


@pytest.mark.parametrize("mode", ["sequential", "parallel"])
def test_a_plan_that_is_done_when_its_time_is_up_returns(mode):
    def work(task, done):
        waits_out(control.scope_of_run.get())

    with cancel_scope(timeout=0.05):
        assert Plan([PlanTask("a")]).run(mode, do=work).done


@pytest.mark.parametrize("mode", MODES)
def test_a_plan_that_begins_when_its_time_is_up(mode):
    plan = Plan([PlanTask("a", lambda _: 1)])
    with pytest.raises(TimeoutError), cancel_scope(timeout=0), cancel_scope(timeout=60):
        plan.run(mode)


def test_coroutines_on_a_loop_of_the_plans_own_end_when_the_time_is_up():
    async def never(_):
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError), cancel_scope(timeout=0.05):
        Plan([PlanTask("a", never)]).run("async")


@pytest.mark.parametrize("mode", MODES)
def test_a_function_that_raises_stop_iteration(mode):
    run = Plan([PlanTask("a", lambda _: next(iter([])))]).run(mode)
    assert isinstance(run.errors["a"], StopIteration)


@pytest.mark.parametrize("mode", MODES)
async def test_coroutines_where_the_caller_is_one(mode):
    here = contextvars.ContextVar("here")
    here.set("caller")

    async def ask(_):
        await asyncio.sleep(0)
        return here.get()

    assert Plan([PlanTask("a", ask)]).run(mode).results == {"a": "caller"}


async def test_a_plan_that_is_cancelled_twice_leaves_nothing_behind():
    started, ended = asyncio.Event(), []

    async def never(_):
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(1)

    before = asyncio.all_tasks()
    run = asyncio.create_task(Plan([PlanTask("a", never), PlanTask("b", never)]).arun())
    await started.wait()
    run.cancel()
    await asyncio.sleep(0)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert asyncio.all_tasks() == before
    assert ended == [1, 1]


def test_arguments_that_mean_nothing():
    plan = Plan([PlanTask("a")])
    with pytest.raises(ValueError, match="nothing does a; pass do"):
        plan.run()
    with pytest.raises(ValueError, match="mode is 'fast'; it accepts sequential, parallel, async"):
        plan.run("fast", do=echo)
    with pytest.raises(ValueError, match="concurrency is 0"):
        plan.run(do=echo, concurrency=0)
    with pytest.raises(ValueError, match="on_error is 'ignore'"):
        plan.run(do=echo, on_error="ignore")


# --- processes --------------------------------------------------------------------------------


def program(text):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text)],
        env={"PATH": "", **OFFLINE, "CREWAI_NATIVE": "0"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


PLAN = """
import os, signal, sys, threading
from crewai_native_tasks import Plan, PlanTask
"""


def test_ctrl_c_and_the_end_of_the_program_while_a_plan_runs():
    done = program(
        PLAN
        + textwrap.dedent("""
        def hang(_):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            threading.Event().wait()

        try:
            Plan([PlanTask("a", hang), PlanTask("b", lambda _: 1, after=("a",))]).run()
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        assert "crewai" not in sys.modules
        """)
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n", "")


def test_a_fork_while_a_plan_runs_and_after():
    done = program(
        PLAN
        + textwrap.dedent("""
        def child(work):
            number = os.fork()
            if number == 0:
                os._exit(0 if work() else 1)
            return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])

        def plan():
            tasks = [PlanTask(str(n), lambda _: 1, after=(str(n // 2),) * (n > 0)) for n in range(50)]
            return Plan(tasks).run(concurrency=4).done

        print(child(plan), plan(), child(plan))
        tasks = [PlanTask("a", lambda _: child(plan)), PlanTask("b", lambda _: 1)]
        print(sorted(Plan(tasks).run().results.items()))
        """)
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "0 True 0\n[('a', 0), ('b', 1)]\n"


# --- the command ------------------------------------------------------------------------------


def command(*arguments):
    from typer.testing import CliRunner

    return CliRunner().invoke(plan_cli.app, [str(argument) for argument in arguments])


def test_a_project_is_found_and_checked(project, tmp_path):
    project()
    config = tmp_path / "app" / "src" / "mine" / "config"
    config.mkdir(parents=True)
    for name in ("agents.yaml", "tasks.yaml"):
        (tmp_path / name).rename(config / name)
    done = command("check", tmp_path / "app")
    assert (done.exit_code, done.output) == (
        0,
        f"{config / 'tasks.yaml'}: 4 tasks, nothing wrong\n",
    )
    (config / "agents.yaml").write_text("")
    done = command("check", tmp_path / "app")
    assert done.exit_code == 1
    assert f"{config / 'tasks.yaml'}:4: agent of task 'search' is 'researcher'" in done.output


def test_a_graph_is_drawn(project):
    agents, tasks = project()
    files = ["--agents", agents, "--tasks", tasks]
    drawn = command("show", *files).output
    assert (
        drawn
        == f"""\
{tasks} (sequential)
1  search (researcher)
   interview (writer)
2  report (writer), after search, interview
   check (researcher), after search
"""
    )
    assert "t0 --> t2" in command("show", *files, "--format", "mermaid").output
    assert "t0 -> t3;" in command("show", *files, "--format", "dot").output
    graph = json.loads(command("show", *files, "--format", "json").output)
    assert graph["tasks"][3] == {"name": "check", "agent": "researcher", "after": ["search"]}


@pytest.mark.parametrize("context", ["", "  context: []\n"])
def test_no_task_is_lost_from_a_narrow_drawing(project, context):
    task = "task_{0:02}[x]:\n  description: d\n  expected_output: e\n  agent: writer\n"
    tasks = "".join(task.format(number) + context for number in range(40))
    plan = Plan.from_yaml(*project(tasks=tasks + task.format(40)))
    lines = plan_cli.steps(plan, 40).splitlines()
    assert max(map(len, lines)) <= 40
    drawn = [found.group() for line in lines if (found := re.search(r"task_\S+ \(writer\)", line))]
    assert drawn == [f"task_{number:02}[x] (writer)" for number in range(41)]


def test_a_folder_without_a_project_says_so(tmp_path):
    done = command("check", tmp_path)
    assert done.exit_code == 2
    assert "there is no tasks.yaml" in done.output
