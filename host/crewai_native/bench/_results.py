"""What a benchmark run found: plain data, to and from JSON."""

from __future__ import annotations

import dataclasses
import enum
import json
from typing import TYPE_CHECKING, Any, Final

from crewai_native._errors import ConfigurationError
from crewai_native.bench._stats import Estimate

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA: Final = 2


class Outcome(enum.StrEnum):
    """How a case ended."""

    MEASURED = "measured"
    SKIPPED = "skipped"
    FAILED = "failed"


@dataclasses.dataclass(frozen=True, slots=True)
class Subject:
    """A case as the runner knows it: its data, without its code.

    Attributes:
        id: The case's name in full.
        plugin: Entry-point value of the plug-in that contributes it.
        compared: Whether the sides' results are checked.

    The other attributes are those of :class:`crewai_native.bench.Case`.
    """

    id: str
    plugin: str
    group: str
    slot: str
    description: str
    parameters: dict[str, Any]
    sides: list[str]
    isolated: list[str]
    fresh: bool
    compared: bool
    share: float | None
    target: float | None
    limit: float | None
    unit: str
    timeout: float


@dataclasses.dataclass(frozen=True, slots=True)
class Timing:
    """What one side took per run, in the case's unit.

    Attributes:
        side: The side.
        median: Median over the rounds.
        low: First quartile.
        high: Third quartile.
        loops: Runs per round; a round's figure is their mean.
        values: The figure of each round.
    """

    side: str
    median: float
    low: float
    high: float
    loops: int
    values: list[float]


@dataclasses.dataclass(frozen=True, slots=True)
class Comparison:
    """One side against the first, from the same rounds.

    Attributes:
        side: The side.
        base: The first side.
        ratio: How many times less than the first side, with its 95 % interval.
        difference: What each run takes beyond the first side, with its 95 % interval.
    """

    side: str
    base: str
    ratio: Estimate
    difference: Estimate


@dataclasses.dataclass(slots=True)
class Result:
    """What became of one case.

    Attributes:
        subject: The case.
        outcome: Whether it was measured.
        reason: Why not.
        timings: By side, in the case's order.
        comparisons: Of each further side with the first.
        unavailable: Sides that could not run here, and what they need.
        reached: Whether ``native`` kept to the target or limit; None where there is none.
    """

    subject: Subject
    outcome: Outcome = Outcome.MEASURED
    reason: str = ""
    timings: list[Timing] = dataclasses.field(default_factory=list)
    comparisons: list[Comparison] = dataclasses.field(default_factory=list)
    unavailable: dict[str, str] = dataclasses.field(default_factory=dict)
    reached: bool | None = None

    def comparison(self, side: str) -> Comparison | None:
        """Return how a side compares with the first, or None where it does not."""
        return next((c for c in self.comparisons if c.side == side), None)


@dataclasses.dataclass(slots=True)
class Report:
    """A whole run.

    Attributes:
        environment: Where it ran: versions, CPU, and the build of each plug-in.
        results: One for each case.
        problems: Plug-ins whose cases could not be had, and other things to know.
    """

    environment: dict[str, Any]
    results: list[Result] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether a case failed."""
        return any(result.outcome is Outcome.FAILED for result in self.results)

    def dumps(self) -> str:
        """Return the report as JSON."""
        return (
            json.dumps({"schema": SCHEMA, **dataclasses.asdict(self)}, indent=1, allow_nan=False)
            + "\n"
        )


def ratios(path: Path) -> dict[str, Comparison]:
    """Read the comparisons of native with the first side from a report, by case.

    Raises:
        ConfigurationError: The file cannot be read or is no report.
    """
    try:
        report = json.loads(path.read_bytes())
        if report["schema"] != SCHEMA:
            raise ConfigurationError(
                f"{path} has schema {report['schema']!r}; this version reads schema {SCHEMA}"
            )
        return {
            result["subject"]["id"]: Comparison(
                found["side"],
                found["base"],
                Estimate(**found["ratio"]),
                Estimate(**found["difference"]),
            )
            for result in report["results"]
            for found in result["comparisons"]
            if found["side"] == "native"
        }
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, ConfigurationError):
            raise
        raise ConfigurationError(f"{path} is no report of `crewai-native bench --json`") from error
