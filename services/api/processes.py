"""REST of managed processes (mounted at /api/managed-processes)."""

import gzip
import hashlib
import json
from typing import Any, Literal

import orjson
from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.utils import timezone
from django.utils.cache import get_conditional_response, patch_vary_headers
from ninja import Router
from ninja.errors import ValidationError

from projects.access import Identity, actor
from projects.errors import Conflict, Forbidden, Rejected, Unprocessable
from projects.events import By
from projects.models import Project
from projects.queries import get_project
from projects.schemas import ErrorOut
from projects.streams import sse
from services import acceptance, lifecycle, logs, orders, queries, rules, specs
from services.blocks import live_block
from services.models import ManagedProcess
from services.schemas import (
    SPEC_FILE,
    DeclaredOut,
    ExtendIn,
    KilledOut,
    KillIn,
    LogOut,
    ProcessesOut,
    ProcessOut,
    RestartedOut,
    ServiceIn,
    ValidOut,
)
from services.specs.sidecars import FILE, FOLDER
from services.states import LIVE
from services.streams import log_stream, opened_log

DEFAULT_LINES = 100
MAX_LINES = 1000
DEFAULT_TAIL = 65_536
MAX_TAIL = 1_048_576
MAX_OFFSET = 1 << 62

router = Router(tags=["services"])
# Every route may refuse whoever asks; those that check what they were given say so too.
STRANGERS = frozenset({401, 403})
NONSENSE = frozenset({401, 403, 422})
# What a verb on one service may refuse.
REFUSED = frozenset({400, 401, 403, 404, 409, 422, 503})
SSE = {"responses": {200: {"description": "Server-sent events", "content": {"text/event-stream": {}}}}}
MARKDOWN = {"responses": {200: {"description": "OK", "content": {"text/markdown": {"schema": {"type": "string"}}}}}}
BODY = {"requestBody": {"required": True, "content": {"application/json": {"schema": SPEC_FILE}}}}


@router.get("", response={200: ProcessesOut, 304: None, 404: ErrorOut, NONSENSE: ErrorOut})
def processes(
    request: HttpRequest, project: str = "", purpose: Literal["service", "worker", "loop", "all"] = "service"
) -> HttpResponseBase:
    """Services by name, or what runs for another purpose; with an ETag that probes alone do not change."""
    rows = queries.listed(purpose=purpose, project=queries.scope(project, identity_of(request).project))
    items = [queries.item(row) for row in rows]
    shown = _encoded([{**each, "last_health_at": None} for each in items])
    # One validator for each coding: compressed by the middleware, a strong one would be made weak.
    coding = "gzip" if items and "gzip" in request.headers.get("Accept-Encoding", "") else ""
    etag = f'"{hashlib.sha256(shown).hexdigest()[:32]}{coding and "-" + coding}"'
    answer = get_conditional_response(request, etag=etag)
    if answer is None:
        body = _encoded({"items": items, "generatedAt": timezone.now().isoformat()})
        answer = HttpResponse(gzip.compress(body, 1) if coding else body, content_type="application/json")
        if coding:
            answer["Content-Encoding"] = coding
    answer["ETag"] = etag
    patch_vary_headers(answer, ["Accept-Encoding"])
    return answer


@router.get(
    "/by-name/{name}", response={200: ProcessOut, 400: ErrorOut, STRANGERS: ErrorOut, 404: ErrorOut, 409: ErrorOut}
)
def by_name(request: HttpRequest, name: str, project: str = "") -> HttpResponse:
    """One service; 409 `ambiguous-name` with the `projects` when several have it and none was named."""
    return _json(queries.item(_service(request, name, project)))


@router.post(
    "",
    response={201: DeclaredOut, 202: DeclaredOut, frozenset({401, 403, 404, 409, 422, 503}): ErrorOut},
    openapi_extra=BODY,
)
def declare(request: HttpRequest, project: str = "") -> HttpResponse:
    """Declare the services of a spec file; answers when they are started, or with 202 after 5 s."""
    by = _acting(request)
    home = _project(request, project)
    accepted = _validated(request, home)
    if isinstance(accepted, specs.Invalid):
        lifecycle.reject(home, accepted.reason, by=by, now=timezone.now())
        raise _unprocessable(accepted)
    agent, wi = accepted.written_by or "", accepted.wi_id or ""
    with acceptance.refusals_told(home, wi=wi, by=by):
        placed = orders.declare(home, accepted.specs, agent=agent, wi=wi, by=by)
    items = [queries.item(row) for row in placed.rows]
    warnings = [*accepted.warnings, *placed.warnings]
    return _json({"items": items, "warnings": warnings}, status=201 if placed.is_started else 202)


@router.post(
    "/validate",
    response={200: ValidOut, frozenset({401, 403, 404, 422}): ErrorOut},
    openapi_extra=BODY,
)
def validate(request: HttpRequest, project: str = "") -> HttpResponse:
    """Say what would become of a spec file; changes nothing."""
    accepted = _validated(request, _project(request, project))
    if isinstance(accepted, specs.Invalid):
        raise _unprocessable(accepted)
    return _json({"ok": True, "specs": accepted.specs, "warnings": accepted.warnings})


@router.post("/kill", response={200: KilledOut, REFUSED: ErrorOut, 504: ErrorOut})
def kill(request: HttpRequest, body: KillIn) -> HttpResponse:
    """Stop a service; answers once it is verified gone. With `force` it gets no grace."""
    by = _acting(request)
    row = _service(request, body.name, body.project)
    try:
        done = orders.stop(row, at_once=body.force, by=by, expected_generation=body.expected_generation)
    except Conflict as refusal:
        # It ended by itself meanwhile.
        if refusal.code != "not-live":
            raise
        done = orders.Stopped(row, None, was_live=False)
    return _json({"ok": True, "name": row.name, "killed_pid": done.pid, "killed": done.was_live})


@router.post("/restart", response={200: RestartedOut, 202: RestartedOut, REFUSED: ErrorOut})
def restart(request: HttpRequest, body: ServiceIn) -> HttpResponse:
    """Restart a service, or start one that has ended; 202 when its next generation is not there in time."""
    by = _acting(request)
    before = _service(request, body.name, body.project)
    row = orders.restart(before, by=by, expected_generation=body.expected_generation)
    is_new = row.generation > before.generation
    if row.status not in LIVE and not is_new:
        raise Conflict("not-live", f"{row} was stopped meanwhile. Start it.", status_now=row.status)
    answer = {
        "ok": True,
        "name": row.name,
        "pid": row.pid if is_new else None,
        "started_at": queries.epoch_ms(row.started_at) if is_new else None,
        "log_path": row.log_path,
        "generation": row.generation,
    }
    return _json(answer, status=200 if is_new and queries.is_started(row) else 202)


@router.post("/start", response={200: ProcessOut, 202: ProcessOut, REFUSED: ErrorOut})
def start(request: HttpRequest, body: ServiceIn) -> HttpResponse:
    """Start a service that has ended, or try one in back-off now; 202 when it is not there within 5 s."""
    by = _acting(request)
    row = orders.start(_service(request, body.name, body.project), by=by, expected_generation=body.expected_generation)
    return _json(queries.item(row), status=200 if queries.is_started(row) else 202)


@router.post("/extend", response={200: ProcessOut, REFUSED - {503}: ErrorOut})
def extend(request: HttpRequest, body: ExtendIn) -> HttpResponse:
    """Move a service's expiry on, to at most 1440 minutes from now."""
    by = _acting(request)
    row = lifecycle.extend(
        _service(request, body.name, body.project),
        body.minutes,
        by=by,
        now=timezone.now(),
        expected_generation=body.expected_generation,
    )
    orders.tell([row])
    return _json(queries.item(row))


@router.get("/log/{name}", response={200: LogOut, 400: ErrorOut, STRANGERS: ErrorOut, 404: ErrorOut, 409: ErrorOut})
def log(request: HttpRequest, name: str, lines: str = "", tail: str = "", project: str = "") -> HttpResponse:
    """The last `lines` (1 to 1000, default 100) of a service's log, or its last `tail` bytes (1 to 1048576)."""
    row = _service(request, name, project)
    wanted = _number("lines", lines, 1, MAX_LINES, DEFAULT_LINES)
    size = _number("tail", tail, 1, MAX_TAIL, 0)
    with opened_log(row) as descriptor:
        if descriptor is None:
            chunk = logs.Chunk(offset=0, next_offset=0, text="", size=0, truncated=False)
        elif size:
            chunk = logs.tail_bytes(descriptor, tail=size, head=row.log_head)
        else:
            chunk = logs.tail_lines(descriptor, lines=wanted, head=row.log_head)
    return _json(
        {
            "name": row.name,
            "content": chunk.text,
            # A head beyond the end belongs to an earlier file.
            "size_bytes": chunk.size - (row.log_head if row.log_head <= chunk.size else 0),
            "truncated": chunk.truncated,
            "offset": chunk.next_offset,
        }
    )


@router.get(
    "/log-stream/{name}",
    response={400: ErrorOut, STRANGERS: ErrorOut, 404: ErrorOut, 409: ErrorOut},
    openapi_extra=SSE,
)
def follow_log(
    request: HttpRequest, name: str, tail: str = "", offset: str = "", project: str = ""
) -> StreamingHttpResponse:
    """The log as it grows, from its last `tail` bytes (default 65536) or a byte `offset` on: `log`, `heartbeat`,
    and `done` when the service is gone. `Last-Event-ID` resumes.
    """
    row = _service(request, name, project)
    first = -_number("tail", tail, 1, MAX_TAIL, DEFAULT_TAIL)
    first = _number("offset", offset, 0, MAX_OFFSET, first)
    resumed = request.headers.get("Last-Event-ID", "")
    if resumed.isascii() and resumed.isdigit() and len(resumed) < 19:
        first = int(resumed)
    return sse(log_stream(identity_of(request), row, first))


@router.get("/live-block", response={404: ErrorOut, NONSENSE: ErrorOut}, openapi_extra=MARKDOWN)
def healthy_services(request: HttpRequest, project: str = "") -> HttpResponse:
    """The healthy services of one project as a block for an agent's prompt, at most 2048 bytes."""
    slug = queries.scope(project, identity_of(request).project)
    if not slug:
        raise _no_project()
    return _markdown(live_block([queries.item(row) for row in queries.healthy(slug)]))


@router.get("/hint", response={400: ErrorOut, STRANGERS: ErrorOut, 404: ErrorOut}, openapi_extra=MARKDOWN)
def hint(request: HttpRequest, agent: str = "", wi: str = "", project: str = "") -> HttpResponse:
    """The text that teaches an agent how to leave a service running."""
    slug = queries.scope(project, identity_of(request).project)
    if not specs.is_agent_id(agent):
        raise Rejected("invalid-agent-id", "An agent id has letters, digits, - and _, at most 128, the first no sign.")
    return _markdown(specs.hint(settings.ANDON_HOME / FOLDER / agent / FILE, agent, wi, project=slug))


def identity_of(request: HttpRequest) -> Identity:
    identity: Identity = request.identity  # type: ignore[attr-defined]
    return identity


def _acting(request: HttpRequest) -> By:
    """Return who runs a verb. A kanban run looks and has checked; what it wants to run it leaves in its sidecar."""
    if identity_of(request).run:
        raise Forbidden("forbidden", "A run may not start or stop services. It declares them in $ANDON_SIDECAR.")
    return actor(request)


def _service(request: HttpRequest, name: str, project: str | None) -> ManagedProcess:
    return queries.by_name(name, project=queries.scope(project or "", identity_of(request).project))


def _project(request: HttpRequest, slug: str) -> Project:
    bound = identity_of(request).project
    if not slug and not bound:
        raise _no_project()
    return get_project(slug or bound, bound)


def _no_project() -> ValidationError:
    return ValidationError([{"type": "missing", "loc": ("query", "project"), "msg": "Field required"}])


def _validated(request: HttpRequest, project: Project) -> specs.Accepted | specs.Invalid:
    # Not `body`, which refuses beyond another limit in another way.
    raw = request.read(specs.MAX_BYTES + 1)
    return acceptance.of_known_length(specs.validate(raw, rules.limits(project), rules.system()))


def _unprocessable(refused: specs.Invalid) -> Unprocessable:
    return Unprocessable("invalid-managed-spawn", refused.reason)


def _number(name: str, text: str, low: int, high: int, default: int) -> int:
    """Return a number of the query; Rejected when it is none or out of bounds."""
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 20 and low <= int(text) <= high):
        raise Rejected(f"invalid-{name}", f"{name} is a whole number from {low} to {high}.")
    return int(text)


def _encoded(document: Any) -> bytes:
    try:
        return orjson.dumps(document)
    except TypeError:
        # An agent's attrs may hold integers of more than 64 bits.
        return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def _json(document: dict[str, Any], status: int = 200) -> HttpResponse:
    """Answer with a document that needs no validation on its way out: it was built here."""
    return HttpResponse(_encoded(document), content_type="application/json", status=status)


def _markdown(text: str) -> HttpResponse:
    return HttpResponse(text, content_type="text/markdown; charset=utf-8")
