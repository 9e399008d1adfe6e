"""CrewAI tools for worker processes."""

import os
import pathlib
import threading
import time
from collections.abc import Iterator

from crewai.tools import BaseTool, tool
from pydantic import BaseModel, PrivateAttr


class Query(BaseModel):
    text: str


class Search(BaseTool):
    name: str = "search"
    description: str = "Searches."
    args_schema: type[BaseModel] = Query
    prefix: str = "found"
    _calls: int = PrivateAttr(default=0)
    _guard: threading.Lock = PrivateAttr(default_factory=threading.Lock)

    def _run(self, text: str) -> str:
        with self._guard:
            self._calls += 1
        return f"{self.prefix} {text} {self._calls} {self.args_schema.__name__}"


class Plain(BaseTool):
    name: str = "plain"
    description: str = "Has no schema of its own."

    def _run(self, text: str) -> int:
        return os.getpid()


class Streams(BaseTool):
    name: str = "streams"
    description: str = "Gives one thing after the other."

    def _run(self, text: str) -> Iterator[str]:
        return iter([text])


class Holds(BaseTool):
    name: str = "holds"
    description: str = "Holds what stays in its process."
    thread: object = None

    def _run(self, text: str) -> str:
        return text


@tool("double it")
def double(number: int) -> int:
    """Doubles a number."""
    return 2 * number


class Risky(BaseTool):
    name: str = "Risky"
    description: str = "Does what it is told to."
    mark: str = ""

    def _run(self, what: str) -> str:
        if what == "crash":
            os.abort()
        if what.startswith("wait for "):
            place = pathlib.Path(what.removeprefix("wait for "))
            place.with_suffix(".here").touch()
            while not place.exists():
                time.sleep(0.005)
        if what == "hang":
            sum(range(10**14))
        return f"{what}{self.mark} in {os.getpid()}"


@tool("Risky function")
def risky(what: str) -> str:
    """Does what it is told to."""
    return Risky()._run(what)


@tool("Risky coroutine")
async def risky_later(what: str) -> str:
    """Does what it is told to."""
    return Risky()._run(what)
