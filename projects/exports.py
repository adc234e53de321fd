"""Tables that people take away: CSV in pieces, safe to open in a spreadsheet."""

import csv
import io
from collections.abc import Iterator
from datetime import UTC
from decimal import Decimal
from typing import Any

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
    yield _text([HEADER])
    for page in costs.exported(span, project):
        yield _text([_row(entry) for entry in page])


def _row(entry: UsageEntry) -> list[str]:
    at = entry.at.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return [_cell(value) for value in (at, entry.project.slug, entry.story_key, *(getattr(entry, n) for n in FIELDS))]


def _cell(value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case Decimal():
            return f"{value:f}"
        case str() if value.startswith(FORMULA):
            return f"'{value}"
        case _:
            return str(value)


def _text(rows: list[Any]) -> str:
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return out.getvalue()
