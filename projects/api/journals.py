"""REST of the journals: turns of sessions (mounted at /api/journal), and the history of a loop (at /api/ralph)."""

import dataclasses
import json
import math
from datetime import datetime
from typing import Any

import orjson
from django.core.exceptions import RequestDataTooBig
from django.http import HttpRequest, HttpResponse
from django.http.multipartparser import MultiPartParserError
from django.http.request import RawPostDataException
from django.utils import timezone
from ninja import Router, Status
from ninja.params.functions import Query

from projects import auditing, history, keeping, queries, sessions
from projects.access import actor
from projects.api import NONSENSE, STRANGERS, identity_of
from projects.errors import DomainError, Forbidden, Unprocessable
from projects.keeping import TooLarge
from projects.models import JournalFile
from projects.schemas import (
    AuditOut,
    ErrorOut,
    HistoryOut,
    RecoverIn,
    RecoverOut,
    SessionOut,
    SessionsOut,
    WrittenOut,
)

PAGE = 100
EVENTS_DEFAULT = 100

journal_router = Router(tags=["journal"])
history_router = Router(tags=["ralph"])


def _body(example: dict[str, Any]) -> dict[str, Any]:
    """Describe a body that is read here, by the rules of journals, and not by a schema."""
    schema = {"type": "object", "additionalProperties": True, "example": example}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


TURN = _body({"event": "submitted", "turn_id": "t-1", "role": "user", "content": "Mend the gate"})
WANTED: dict[str, Any] = {
    "requestBody": {"required": False, "content": {"application/json": {"schema": RecoverIn.model_json_schema()}}}
}
HAPPENED = _body({"type": {"kind": "iteration_started", "iteration": 3}, "data": {"run": "r-1"}})


@journal_router.get("/sessions", response={200: SessionsOut, NONSENSE: ErrorOut})
def list_sessions(request: HttpRequest, page: int = Query(1, ge=1, le=100_000)) -> HttpResponse:
    """Sessions, the one written to last first, 100 a page."""
    _need_unbound(request)
    rows = sessions.sessions()
    total = rows.count()
    shown = [_session_row(row) for row in rows[(page - 1) * PAGE : page * PAGE]]
    return _json({"sessions": shown, "page": page, "pages": max(1, math.ceil(total / PAGE)), "total": total})


@journal_router.get(
    "/sessions/{session_id}", response={200: SessionOut, 404: ErrorOut, 500: ErrorOut, NONSENSE: ErrorOut}
)
def get_session(
    request: HttpRequest,
    session_id: str,
    after: int = Query(0, ge=0, le=1 << 62),
    limit: int = Query(sessions.MOST_EVENTS, ge=1, le=sessions.MOST_EVENTS),
) -> HttpResponse:
    """One session: events behind the line `after`; malformed lines, turns and those that ended more than once.

    At most `limit` of each: of the events the first, of the others the last.
    """
    _need_unbound(request)
    return _json(sessions.session(session_id, after=after, limit=limit))


@journal_router.post(
    "/sessions/{session_id}/events",
    response={201: WrittenOut, 409: ErrorOut, 413: ErrorOut, NONSENSE: ErrorOut, 503: ErrorOut},
    openapi_extra=TURN,
)
def append_event(request: HttpRequest, session_id: str) -> HttpResponse:
    """Append one event; the answer, exactly what was written, comes once it is on the disk.

    503 `journal-unavailable` says that it is not: whoever hears that must not start the turn.
    """
    _need_unbound(request)
    keeping.home_of(session_id)
    event = _read(request)
    return _json(keeping.append(session_id, event, by=actor(request), now=timezone.now()), status=201)


@journal_router.delete("/sessions/{session_id}", response={204: None, 404: ErrorOut, NONSENSE: ErrorOut, 503: ErrorOut})
def delete_session(request: HttpRequest, session_id: str) -> Status[None]:
    """Delete a session and what was read of it; a tombstone refuses late appends."""
    _need_unbound(request)
    keeping.delete(session_id, by=actor(request), now=timezone.now())
    return Status(204, None)


@journal_router.get("/audit", response={200: AuditOut, STRANGERS: ErrorOut})
def audit(request: HttpRequest) -> HttpResponse:
    """What is odd in the journals of this host, each with what to do about it: the worst 1,000; `count` is of all."""
    _need_unbound(request)
    found = auditing.audit(timezone.now())
    return _json({"findings": found.findings, "count": found.total})


@journal_router.post("/recover", response={200: RecoverOut, NONSENSE: ErrorOut, 503: ErrorOut}, openapi_extra=WANTED)
def recover(request: HttpRequest) -> dict[str, Any]:
    """Say of turns that nobody works on that they were interrupted; a second time adds nothing.

    The body may be left out: `live_streams` are those that the caller knows to be worked on, `dry_run` only says what
    would be added.
    """
    _need_unbound(request)
    try:
        wanted = RecoverIn.model_validate({} if _is_blank(request) else _read(request))
    except (ValueError, DomainError):
        raise Unprocessable("invalid-request", "live_streams is a list of texts, dry_run true or false.") from None
    live = frozenset(wanted.live_streams)
    return keeping.recover(by=actor(request), now=timezone.now(), live=live, dry_run=wanted.dry_run)


@history_router.get("/{slug}/history", response={200: HistoryOut, 400: ErrorOut, NONSENSE: ErrorOut})
def get_history(request: HttpRequest, slug: str, limit: int = Query(EVENTS_DEFAULT, ge=0, le=10_000)) -> HttpResponse:
    """The last `limit` events of a loop's history, oldest first, what they add up to, and its runs."""
    project = queries.get_ralph_project(slug, identity_of(request).project)
    found = sessions.loop_history(project, limit)
    told = {name: [dataclasses.asdict(each) for each in found[name]] for name in ("loops", "merges")}
    return _json({"slug": slug, **found, **told})


@history_router.post(
    "/{slug}/history",
    response={201: WrittenOut, 400: ErrorOut, 409: ErrorOut, 413: ErrorOut, NONSENSE: ErrorOut, 503: ErrorOut},
    openapi_extra=HAPPENED,
)
def append_history(request: HttpRequest, slug: str) -> HttpResponse:
    """Append one event to a loop's history: `{"type": {"kind": …, fields…}, "data": …, "ts": …}`; no `ts` = now."""
    project = queries.get_ralph_project(slug, identity_of(request).project)
    queries.need_here(project)
    event, now = _read(request), timezone.now()
    kind, fields = _happened(event)
    data, at = event.get("data"), _time(event.get("ts"), now)
    line = keeping.append_history(project, kind, fields, data=data, by=actor(request), now=now, at=at)
    return HttpResponse(line, content_type="application/json", status=201)


def _is_blank(request: HttpRequest) -> bool:
    """Say whether nothing was sent, or a form without a field; of what was, the content type may say anything."""
    try:
        if request.content_type == "multipart/form-data":
            return not request.POST and not request.FILES
        return not request.body.strip()
    except (MultiPartParserError, RawPostDataException, RequestDataTooBig):
        return False


def _happened(event: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    said = event.get("type")
    more = sorted(set(event) - {"type", "data", "ts"})
    if not isinstance(said, dict) or not isinstance(said.get("kind"), str) or more:
        raise Unprocessable(
            "invalid-event", "Send type, an object with a kind and its fields; data and ts if you like."
        )
    return said["kind"], {name: value for name, value in said.items() if name != "kind"}


def _time(said: object, now: datetime) -> datetime:
    at = now if said is None else history.time_of(said)
    if at is None:
        raise Unprocessable("invalid-event", "ts is a time such as 2026-01-02T03:04:05Z.")
    return at


def _read(request: HttpRequest) -> dict[str, Any]:
    """Return the body, one JSON object."""
    try:
        event = json.loads(request.body)
    except RequestDataTooBig:
        raise TooLarge("event-too-large", f"An event is at most {history.MAX_LINE} bytes as a line.") from None
    except (ValueError, RecursionError, RawPostDataException):
        raise Unprocessable("invalid-event", "The body is not JSON.") from None
    if not isinstance(event, dict):
        raise Unprocessable("invalid-event", "An event is a JSON object.")
    return event


def _need_unbound(request: HttpRequest) -> None:
    """Refuse a token that is bound to a project: sessions are of none."""
    if identity_of(request).project:
        raise Forbidden("forbidden", "This token is bound to one project, and sessions belong to none.")


def _session_row(row: JournalFile) -> dict[str, Any]:
    counted: Any = row
    return {
        "session_id": row.name,
        "turns": counted.turns_total,
        "pending": counted.pending,
        "collisions": counted.collisions,
        "malformed": row.malformed,
        "updated_at": row.written_at,
        "state": row.state,
    }


def _json(document: Any, status: int = 200) -> HttpResponse:
    """Answer with what stands in files: a lone surrogate is escaped, a number that JSON does not have is null."""
    try:
        body = orjson.dumps(document)
    except (TypeError, ValueError):
        body = json.dumps(_told(document), default=_plain).encode("ascii")
    return HttpResponse(body, content_type="application/json", status=status)


def _told(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [_told(item) for item in value]
    return {str(key): _told(item) for key, item in value.items()} if isinstance(value, dict) else value


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else str(value)
