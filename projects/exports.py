"""Tables that people take away: CSV in pieces, safe to open in a spreadsheet."""

import csv
import heapq
import io
import itertools
from collections.abc import AsyncIterator, Iterable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from operator import itemgetter
from typing import Any

from asgiref.sync import sync_to_async

from projects import costs
from projects.days import Window
from projects.models import UsageEntry

FIELDS = (
    *("iteration", "cost", "input_tokens", "output_tokens", "cache_creation_tokens", "cache_read_tokens"),
    *("duration_s", "duration_api_s", "num_turns", "model", "session", "run", "failed", "rate_limited"),
)
HEADER = (
    *("at", "project", "story", *("cost_usd" if name == "cost" else name for name in FIELDS)),
    # Of an attempt at a task, which tells all tokens as one number.
    *("task", "attempt", "profile", "tokens"),
)
PAGE = 1000
# A spreadsheet runs a cell that begins so.
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def costs_csv(span: Window, project: str = "", beside: Iterable[dict[str, Any]] = ()) -> Iterator[str]:
    """Yield the entries of a window as CSV, oldest first, a page at a time; what is not known is an empty cell.

    `beside` are rows of other work by the names of HEADER, oldest first as well.
    """
    yield text([HEADER])
    ours = (_row(entry) for page in costs.exported(span, project) for entry in page)
    rows = heapq.merge(ours, beside, key=itemgetter("at"))
    while page := list(itertools.islice(rows, PAGE)):
        yield text([[cell(row.get(name)) for name in HEADER] for row in page])


def _row(entry: UsageEntry) -> dict[str, Any]:
    told = {name: getattr(entry, name) for name in FIELDS}
    return {**told, "cost_usd": entry.cost, "at": entry.at, "project": entry.project.slug, "story": entry.story_key}


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
