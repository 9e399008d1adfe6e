"""What the tests' batches run, as a project's module that workers import."""

import os
import signal
import time
from pathlib import Path

from crewai import Agent, Crew, Task
from crewai.project import CrewBase, agent, crew, task
from pydantic import BaseModel

from crewai_native.testing import ScriptedLLM

FOREVER = 60.0
# As in many a project, one model for all crews of a process.
MODEL = ScriptedLLM([lambda turn: turn.prompt.partition("about ")[2].split()[0]])


def note(what, n):
    """Write down that something happened, for the test to read."""
    line = f"{what} {n} {os.getpid()}\n".encode()
    file = os.open(os.environ["SHOP_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, line)
    os.close(file)


def wait_for(path):
    end = time.monotonic() + FOREVER
    while not Path(path).exists():
        assert time.monotonic() < end, path
        time.sleep(0.02)


class Fish(BaseModel):
    name: str


def crew_about():
    writer = Agent(role="writer", goal="write", backstory="writes", llm=MODEL)
    work = Task(description="write about {topic} ", expected_output="a text", agent=writer)
    return Crew(agents=[writer], tasks=[work])


def fishing():
    model = ScriptedLLM("a fish", structured={"Fish": Fish(name="pike")})
    angler = Agent(role="angler", goal="fish", backstory="fishes", llm=model)
    work = Task(description="catch", expected_output="a fish", agent=angler, output_pydantic=Fish)
    return Crew(agents=[angler], tasks=[work])


standing = crew_about()


@CrewBase
class Painters:
    """A crew as `crewai create` makes it, of the YAML that is beside it."""

    agents_config = "lakes/agents.yaml"
    tasks_config = "lakes/tasks.yaml"

    @agent
    def painter(self):
        return Agent(config=self.agents_config["painter"], llm=MODEL)

    @task
    def sketch(self):
        return Task(config=self.tasks_config["sketch"])

    @crew
    def crew(self):
        return Crew(agents=self.agents, tasks=self.tasks)


class Doing:
    """In place of a crew, where it matters how kickoffs are run and not what they do."""

    usage_metrics = None

    def kickoff(self, inputs):
        note("begin", inputs.get("n"))
        output = self.do(**inputs)
        note("end", inputs.get("n"))
        return output

    def do(self, n, *, after=None, fail=0, die=0, told="", spin=False):
        """Wait for a file, fail or die as often as a file of counts says, or never come back."""
        times = 0
        if told:
            with open(told, "a+") as counts:  # noqa: PTH123
                counts.write("x")
                counts.seek(0)
                times = len(counts.read())
        if after is not None:
            wait_for(after)
        if 0 < times <= fail:
            raise KeyError(n)
        if 0 < times <= die:
            os.kill(os.getpid(), signal.SIGKILL)
        while spin:
            pass
        return n


def doing():
    return Doing()
