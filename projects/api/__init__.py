"""REST of this app: the loops (mounted at /api/ralph), the event log, and who am I."""

import math
from pathlib import Path
from typing import Any

import orjson
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.utils import timezone
from ninja import Router
from ninja.params.functions import Query

from projects import costs, disk, queries, ralph, streams
from projects.access import Identity
from projects.days import wanted_days
from projects.errors import Broken, Missing, Rejected
from projects.models import Iteration
from projects.relay import Filter, page_of
from projects.schemas import (
    ErrorOut,
    FrameOut,
    IterationLogOut,
    IterationsOut,
    MeOut,
    ProgressOut,
    StatusOut,
    UsageOut,
)
from services import logs

PAGE = 100
DEFAULT_LINES = 100
LOG_TAIL = 65_536
LOG_TAIL_MAX = 1_048_576

router = Router(tags=["ralph"])
events_router = Router(tags=["events"])
me_router = Router(tags=["identity"])
# Every route may refuse whoever asks; those that check what they were given say so too.
STRANGERS = frozenset({401, 403})
NONSENSE = frozenset({401, 403, 422})
SSE = {"responses": {200: {"description": "Server-sent events", "content": {"text/event-stream": {}}}}}


def identity_of(request: HttpRequest) -> Identity:
    identity: Identity = request.identity  # type: ignore[attr-defined]
    return identity


def _json(document: Any) -> HttpResponse:
    """Answer with a document that needs no validation on its way out: it was built here."""
    return HttpResponse(orjson.dumps(document), content_type="application/json")


@router.get("/status", response={200: StatusOut, STRANGERS: ErrorOut})
def status(request: HttpRequest) -> HttpResponse:
    """Every Ralph project with its stories and what is derived from them."""
    return _json(queries.snapshot(timezone.now(), identity_of(request).project))


@router.get("/stream", openapi_extra=SSE)
async def stream(request: HttpRequest, since: str = "") -> StreamingHttpResponse:
    """The status document at once and whenever something shown changed, at most every 2 s; heartbeats in silence."""
    return streams.sse(streams.status_stream(identity_of(request)))


@router.get("/usage", response={200: UsageOut, STRANGERS: ErrorOut})
def usage(request: HttpRequest, days: str = "") -> HttpResponse:
    """What loops cost: today, in the last `days` days (1 to 365, more is 365, anything else 7), and ever."""
    return _json(costs.document(wanted_days(days), timezone.now(), identity_of(request).project))


@router.get("/{slug}/log", response={200: ProgressOut, 400: ErrorOut, STRANGERS: ErrorOut})
def progress_log(request: HttpRequest, slug: str, lines: str = "") -> HttpResponse:
    """The last `lines` (1 to 1000, anything else 100) of progress.txt, and how many it has."""
    project = queries.get_ralph_project(slug, identity_of(request).project)
    wanted = int(lines) if lines.isascii() and lines.isdigit() and len(lines) < 9 else 0
    tail = disk.progress(project, min(wanted, disk.MAX_LINES) or DEFAULT_LINES)
    return _json({"slug": slug, "lines": [_encodable(line) for line in tail.lines], "total": tail.total})


@router.get("/{slug}/prd", response={200: Any, 400: ErrorOut, STRANGERS: ErrorOut, 404: ErrorOut, 500: ErrorOut})
def prd(request: HttpRequest, slug: str) -> HttpResponse:
    """prd.json as it lies on disk."""
    project = queries.get_ralph_project(slug, identity_of(request).project)
    root = Path(project.path)
    try:
        data = ralph.read_inside(root, project.prd_path, ralph.MAX_BYTES)
    except FileNotFoundError:
        raise Missing("prd-not-found", f"{project.prd_path} is not there any more.") from None
    except ralph.Unreadable as error:
        # A sentence of ours, which names nothing outside the project.
        raise Broken("prd-invalid", f"{error}.") from None
    except OSError:
        raise Broken("prd-invalid", f"{project.prd_path} cannot be read.") from None
    try:
        ralph.parse_prd(data)
    except ralph.PrdError as error:
        detail = f"{project.prd_path}:{error.line}:{error.column}: {error.message}"
        raise Broken("prd-invalid", detail, line=error.line, column=error.column) from None
    return HttpResponse(data.removeprefix(b"\xef\xbb\xbf"), content_type="application/json")


@router.get("/{slug}/iterations", response={200: IterationsOut, 400: ErrorOut, NONSENSE: ErrorOut})
def iterations(request: HttpRequest, slug: str, page: int = Query(1, ge=1, le=100_000)) -> HttpResponse:
    """Iterations, newest first, 100 a page."""
    project = queries.get_ralph_project(slug, identity_of(request).project)
    rows = queries.iterations_of(project)
    total = rows.count()
    shown = list(rows[(page - 1) * PAGE : page * PAGE])
    costs.bill(project, shown)
    return _json(
        {
            "slug": slug,
            "iterations": [_iteration_row(row) for row in shown],
            "page": page,
            "pages": max(1, math.ceil(total / PAGE)),
            "total": total,
        }
    )


@router.get(
    "/{slug}/iterations/{number}/log", response={200: IterationLogOut, 400: ErrorOut, 404: ErrorOut, NONSENSE: ErrorOut}
)
def iteration_log(
    request: HttpRequest,
    slug: str,
    number: int,
    tail: int = Query(LOG_TAIL, ge=1, le=LOG_TAIL_MAX),
    offset: int | None = Query(None, ge=0, le=1 << 62),
) -> HttpResponse:
    """An iteration's log: its last `tail` bytes, or up to 256 KiB from a byte `offset` (absolute in the file)."""
    iteration = _iteration(request, slug, number)
    with disk.opened_log(iteration) as descriptor:
        if descriptor is None:
            chunk = logs.Chunk(offset=0, next_offset=0, text="", size=0, truncated=False)
        elif offset is None:
            chunk = logs.tail_bytes(descriptor, tail=tail)
        else:
            chunk = logs.read_from(descriptor, offset=offset)
        exists = descriptor is not None
    return _json(
        {
            "slug": slug,
            "number": number,
            "exists": exists,
            "content": chunk.text,
            "offset": chunk.offset,
            "next_offset": chunk.next_offset,
            "size_bytes": chunk.size,
            "truncated": chunk.truncated,
        }
    )


@router.get("/{slug}/iterations/{number}/log-stream", openapi_extra=SSE)
def iteration_log_stream(
    request: HttpRequest, slug: str, number: int, offset: int = Query(0, ge=0, le=1 << 62)
) -> StreamingHttpResponse:
    """The log from a byte offset as it grows: `log`, `heartbeat`, and `done` when the iteration ended."""
    iteration = _iteration(request, slug, number)
    resumed = request.headers.get("Last-Event-ID", "")
    start = int(resumed) if resumed.isascii() and resumed.isdigit() and len(resumed) < 19 else offset
    return streams.sse(streams.log_stream(identity_of(request), iteration, start))


@events_router.get("", response={200: FrameOut, NONSENSE: ErrorOut})
def events(
    request: HttpRequest,
    since: int | None = Query(None, ge=0, le=1 << 62),
    subject: str = "",
    kind: str = "",
    project: str = "",
) -> HttpResponse:
    """One frame of the event log after `since` (absent = none, only the cursor); filters are prefixes."""
    wanted = Filter(subject, kind, project, only=identity_of(request).project)
    return HttpResponse(page_of(wanted, since).encode(), content_type="application/json")


@events_router.get("/stream", openapi_extra=SSE)
async def events_stream(
    request: HttpRequest,
    since: int | None = Query(None, ge=0, le=1 << 62),
    subject: str = "",
    kind: str = "",
    project: str = "",
) -> StreamingHttpResponse:
    """The event log as server-sent events: `events` with a frame, `reset` where `since` is not in the log."""
    resumed = request.headers.get("Last-Event-ID", "")
    if resumed.isascii() and resumed.isdigit() and len(resumed) < 19:
        since = int(resumed)
    who = identity_of(request)
    return streams.sse(streams.event_stream(who, Filter(subject, kind, project, only=who.project), since))


@me_router.get("", response={200: MeOut, STRANGERS: ErrorOut})
def me(request: HttpRequest) -> dict[str, str]:
    """Who this session or token is."""
    who = identity_of(request)
    return {"name": who.name, "role": str(who.role), "project": who.project}


def _iteration(request: HttpRequest, slug: str, number: int) -> Iteration:
    project = queries.get_ralph_project(slug, identity_of(request).project)
    if not 0 <= number < 1 << 31:
        raise Rejected("invalid-iteration", "An iteration's number is not negative and below 2^31.")
    row = queries.iterations_of(project).filter(number=number).first()
    if row is None:
        raise Missing("iteration-not-found", f"{slug} has no iteration {number}.")
    row.project = project
    return row


def _iteration_row(row: Iteration) -> dict[str, Any]:
    spent: costs.Sum | None = row.spent  # type: ignore[attr-defined]
    cost = spent.cost if spent else None
    return {
        "number": row.number,
        "story": row.story_key or None,
        "started_at": row.started_at,
        "ended_at": row.ended_at,
        "written_at": row.written_at,
        "duration_s": row.duration_s,
        "size_bytes": row.size,
        "running": row.ended_at is None,
        "cost_usd": None if cost is None else float(cost),
        "tokens": spent.tokens if spent else None,
    }


def _encodable(line: str) -> str:
    return line.encode("utf-8", "replace").decode("utf-8")
