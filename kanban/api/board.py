"""The board as a whole: read, counted, dispatched."""

import gzip
import hashlib
import time
from dataclasses import asdict
from threading import Lock
from typing import Any

import orjson
from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.utils import timezone
from django.utils.cache import get_conditional_response, patch_vary_headers
from ninja import Router
from ninja.params.functions import Query

from kanban import dispatch, queries, sweeps
from kanban.api.answers import STRANGERS, identity_of, json_answer
from kanban.models import Run, Task
from kanban.schemas import BoardOut, ConfigOut, DispatchOut, StatsOut
from kanban.states import Outcome, Status
from projects.access import actor
from projects.errors import Forbidden, Unavailable
from projects.schemas import ErrorOut
from services import queries as services

SPAWNED_WITHIN_S = 5.0
MOST_A_PASS = 500
MOST_A_COLUMN = 10_000
# Smaller answers are left to the middleware, which compresses more slowly.
COMPRESSED_FROM = 10_000
# Whose ages may be that old; and the least bytes for which keeping a body pays.
KEPT_S = 2.0
KEPT_FROM = 200_000
MOST_KEPT = 4

router = Router(tags=["kanban"])


@router.get("/board", response={200: BoardOut, 304: None, STRANGERS: ErrorOut, 422: ErrorOut})
def board(
    request: HttpRequest,
    tenant: str = Query("", max_length=80),
    project: str = Query("", max_length=80),
    include_archived: bool = False,
    limit: int | None = Query(None, ge=1, le=MOST_A_COLUMN),
) -> HttpResponseBase:
    """Every column with its cards, by priority, then age; at most `limit` a column. With a weak ETag, which an event
    of any task changes.
    """
    wanted = {"tenant": _plain(tenant), "project": _plain(project), "only": identity_of(request).project}
    latest = queries.latest_event_id()
    shown = hashlib.sha256(repr((wanted, include_archived, limit)).encode()).hexdigest()[:16]
    etag = f'W/"{latest}-{shown}"'
    answer = get_conditional_response(request, etag=etag)
    if answer is None:
        body = _recent.get(etag)
        if body is None:
            found = queries.board(
                **wanted, include_archived=include_archived, limit=limit, latest=latest, now=timezone.now()
            )
            body = _recent.keep(etag, orjson.dumps(found))
        answer = _compressed(request, body)
    answer["ETag"] = etag
    patch_vary_headers(answer, ["Accept-Encoding"])
    return answer


class Recent:
    """The large bodies of the last two seconds, by their validator: after an event all who look ask at once."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._bodies: dict[str, tuple[float, bytes]] = {}

    def get(self, etag: str) -> bytes | None:
        made_at, body = self._bodies.get(etag, (0.0, b""))
        return body if body and time.monotonic() - made_at < KEPT_S else None

    def keep(self, etag: str, body: bytes) -> bytes:
        """Keep a body if it is large, and four of them at most; returns it."""
        if len(body) >= KEPT_FROM:
            with self._lock:
                self._bodies.pop(etag, None)
                self._bodies[etag] = time.monotonic(), body
                while len(self._bodies) > MOST_KEPT:
                    del self._bodies[next(iter(self._bodies))]
        return body


_recent = Recent()


def _plain(text: str) -> str:
    """Return a text as the database would have kept it."""
    return text.replace("\x00", "")


def _compressed(request: HttpRequest, body: bytes) -> HttpResponse:
    if len(body) < COMPRESSED_FROM or "gzip" not in request.headers.get("Accept-Encoding", ""):
        return HttpResponse(body, content_type="application/json")
    answer = HttpResponse(gzip.compress(body, 1), content_type="application/json")
    answer["Content-Encoding"] = "gzip"
    return answer


@router.get("/config", response={200: ConfigOut, STRANGERS: ErrorOut})
def config(request: HttpRequest) -> HttpResponse:
    """How this board wants to be shown (ANDON_BOARD_…)."""
    told = settings.ANDON_BOARD
    return json_answer(
        {
            "default_tenant": told.default_tenant,
            "lane_by_profile": told.lane_by_profile,
            "include_archived_by_default": told.include_archived,
            "render_markdown": told.render_markdown,
        }
    )


@router.get("/stats", response={200: StatsOut, STRANGERS: ErrorOut})
def stats(request: HttpRequest) -> HttpResponse:
    """Tasks by status and assignee, the profiles and how busy they are, and whether the dispatcher lives."""
    now = timezone.now()
    return json_answer(queries.stats(only=identity_of(request).project, nodes=dispatch.ticking(now), now=now))


@router.post("/dispatch", response={200: DispatchOut, STRANGERS: ErrorOut, 422: ErrorOut, 503: ErrorOut})
def run_dispatch(
    request: HttpRequest, dry_run: bool = False, limit: int = Query(8, alias="max", ge=0, le=MOST_A_PASS)
) -> HttpResponse:
    """Run one pass now and answer when the workers of what it claimed are started, at most 5 s later.

    With `dry_run` nothing is changed. 503 `no-worker` when there is no worker that could start anything.
    """
    if identity_of(request).project:
        raise Forbidden("forbidden", "A pass goes over all projects, and this token is bound to one.")
    now = timezone.now()
    nodes = dispatch.ticking(now)
    if not nodes and not dry_run:
        raise Unavailable("no-worker", "No worker ticks anywhere, so nothing was changed. Start Andon.")
    done, runs = sweeps.run_pass(nodes, limit=limit, dry_run=dry_run, by=actor(request), now=now)
    document = {**asdict(done), "spawn_failed": []}
    if runs:
        _await_spawns(document, runs)
    return json_answer(document)


def _await_spawns(document: dict[str, Any], runs: list[Run]) -> None:
    """Wait for the workers of a pass; whose worker could not be started is told of instead of as spawned."""
    processes = [run.process for run in runs if run.process is not None]
    services.awaited(processes, services.is_started, within_s=SPAWNED_WITHIN_S)
    after = {run.task_id: run for run in Run.objects.filter(pk__in=[run.pk for run in runs])}
    failed = {task_id for task_id, run in after.items() if run.outcome == Outcome.SPAWN_FAILED}
    blocked = Task.objects.filter(pk__in=failed, status=Status.BLOCKED).values_list("pk", flat=True)
    document["spawned"] = [
        (task_id, assignee, (after[task_id].workspace if task_id in after else "") or workspace)
        for task_id, assignee, workspace in document["spawned"]
        if task_id not in failed
    ]
    document["spawn_failed"] = sorted(failed)
    document["auto_blocked"] = sorted({*document["auto_blocked"], *blocked})
