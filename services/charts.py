"""Geometry of the small charts on a process's page; drawn as SVG by templates, each with a table beside it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

PROBES = 60
SAMPLES = 120
HEIGHT = 30


@dataclass(frozen=True, slots=True)
class Probe:
    """One probe: `x` its place from the left in units of a bar, `took_ms` milliseconds."""

    x: int
    at: datetime
    ok: bool
    took_ms: int


@dataclass(frozen=True, slots=True)
class Strip:
    """The last 60 probes, oldest first, the newest at the right edge; `missed` is the newest miss."""

    probes: list[Probe]
    passed: int
    missed: Probe | None
    slowest_ms: int


@dataclass(frozen=True, slots=True)
class Spark:
    """One line in a box of 119 by 30, the newest at the right edge; numbers in the samples' own unit."""

    points: str
    area: str
    least: float
    most: float
    now: float


@dataclass(frozen=True, slots=True)
class Usage:
    """Processor (% of one core) and memory (bytes) of the last 120 samples; `rows` newest first: (at, cpu, rss)."""

    cpu: Spark
    rss: Spark
    rows: list[tuple[datetime, float, int]]


def strip(results: Sequence[Any]) -> Strip | None:
    """Lay out probe results [epoch ms, 1 or 0, ms taken]; None when there is none. What is malformed is left out."""
    found = [each for each in results if _numbers(each, 3)][-PROBES:]
    if not found:
        return None
    first = PROBES - len(found)
    probes = [
        Probe(first + place, _moment(at / 1000), bool(ok), int(took)) for place, (at, ok, took) in enumerate(found)
    ]
    missed = next((probe for probe in reversed(probes) if not probe.ok), None)
    return Strip(probes, sum(probe.ok for probe in probes), missed, max(probe.took_ms for probe in probes))


def usage(samples: Sequence[Any]) -> Usage | None:
    """Lay out samples [epoch s, cpu %, rss bytes]; None when there is none. What is malformed is left out."""
    found = [each for each in samples if _numbers(each, 3)][-SAMPLES:]
    if not found:
        return None
    rows = [(_moment(at), float(cpu), int(rss)) for at, cpu, rss in reversed(found)]
    return Usage(spark([cpu for _, cpu, _ in found]), spark([rss for _, _, rss in found]), rows)


def spark(values: Sequence[float]) -> Spark:
    """Lay out a line from zero to its greatest value."""
    top = max(values) or 1
    first = SAMPLES - len(values)
    points = [f"{first + place},{HEIGHT - value / top * (HEIGHT - 2):.2f}" for place, value in enumerate(values)]
    if len(points) == 1:
        points.insert(0, f"{first - 1},{points[0].partition(',')[2]}")
    left = points[0].partition(",")[0]
    area = f"M{left},{HEIGHT} L{' '.join(points)} L{SAMPLES - 1},{HEIGHT} Z"
    return Spark(" ".join(points), area, min(values), max(values), values[-1])


def _numbers(each: Any, count: int) -> bool:
    return (
        isinstance(each, list | tuple)
        and len(each) == count
        and all(isinstance(number, int | float) and 0 <= number < 1 << 53 for number in each)
    )


def _moment(seconds: float) -> datetime:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError):
        return datetime.fromtimestamp(0, UTC)
