"""Tables that people take away: CSV in pieces, safe to open in a spreadsheet."""

import csv
import io
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from asgiref.sync import sync_to_async

from projects import costs
from projects.models import UsageEntry

FIELDS = (
    *("iteration", "cost", "input_tokens", "output_tokens", "cache_creation_tokens", "cache_read_tokens"),
    *("duration_s", "duration_api_s", "num_turns", "model", "session", "run", "failed", "rate_limited"),
)
HEADER = ("at", "project", "story", *("cost_usd" if name == "cost" else name for name in FIELDS))
# A spreadsheet runs a cell that begins so.
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def costs_csv(span: costs.Window, project: str = "") -> Iterator[str]:
    """Yield the entries of a window as CSV, oldest first, a page at a time; what is not known is an empty cell."""
    yield text([HEADER])
    for page in costs.exported(span, project):
        yield text([_row(entry) for entry in page])


def _row(entry: UsageEntry) -> list[str]:
    at = entry.at.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return [cell(value) for value in (at, entry.project.slug, entry.story_key, *(getattr(entry, n) for n in FIELDS))]


def cell(value: Any) -> str:
    """Return a value as a cell that no spreadsheet runs; None is empty."""
    match value:
        case None:
            return ""
        case datetime():
            return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
        case bool():
            return "true" if value else "false"
        case Decimal():
            return f"{value:f}"
        case str() if value.startswith(FORMULA):
            return f"'{value}"
        case _:
            return str(value)


def text(rows: list[Any]) -> str:
    """Return rows of cells as CSV."""
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return out.getvalue()


async def pieces(texts: Iterator[str]) -> AsyncIterator[bytes]:
    """Yield texts that are made where the database may be asked."""
    while (made := await sync_to_async(lambda: next(texts, None))()) is not None:
        yield made.encode()
