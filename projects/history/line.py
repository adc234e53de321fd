"""One event of a loop's history."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from projects import lines
from projects.usage import EARLIEST, LATEST


@dataclass(frozen=True, slots=True)
class Line:
    """One event as it was read: `fields` are those beside `kind`; `at` is UTC, None when it is no time."""

    kind: str
    fields: dict[str, Any]
    data: dict[str, Any]
    at: datetime | None


def line_of(event: dict[str, Any]) -> Line:
    """Return an event that passed `check` as a line."""
    said, data = event["type"], event.get("data")
    fields = {name: value for name, value in said.items() if name != "kind"}
    return Line(said["kind"], fields, data if isinstance(data, dict) else {}, time_of(event.get("ts")))


def check(event: dict[str, Any]) -> str:
    """Return "" for an event of a loop's history, else what is wrong with it."""
    said = event.get("type")
    return "" if isinstance(said, dict) and isinstance(said.get("kind"), str) else lines.Problem.SHAPE


def time_of(text: object) -> datetime | None:
    """Return an RFC 3339 time with any number of digits in its fraction as UTC, None for anything else.

    So is a time before 2000 or from 2100 on: at the ends of the calendar it has no place in some viewer's zone.
    """
    try:
        at = datetime.fromisoformat(text) if isinstance(text, str) else None
        # Without an offset it is read as UTC: it has to mean the same thing everywhere.
        at = at and (at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC))
    except (ValueError, OverflowError):
        return None
    return at if at is not None and EARLIEST <= at < LATEST else None
