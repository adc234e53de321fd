"""REST of loops as far as they are run, stopped and rolled back (mounted at /api/ralph, beside projects.api)."""

from decimal import Decimal
from typing import Any, TypeVar

import orjson
from django.core.exceptions import RequestDataTooBig
from django.http import HttpRequest, HttpResponse
from ninja import Router, Schema
from ninja.errors import HttpError, ValidationError
from pydantic import ValidationError as PydanticError

from projects import previews
from projects import queries as projects
from projects.access import Identity, actor
from projects.errors import Forbidden
from projects.events import By
from projects.schemas import ErrorOut
from services import commands, loops
from services.schemas import (
    LoopStartedOut,
    LoopStoppedOut,
    RollbackIn,
    RollbackOut,
    RollbackPreviewOut,
    StartIn,
    StopIn,
)
from services.states import ENDED

router = Router(tags=["ralph"])
REFUSED = frozenset({400, 401, 403, 404, 409, 413, 422, 503})
Body = TypeVar("Body", bound=Schema)


def _body_of(shape: type[Schema]) -> dict[str, Any]:
    """Return how the document describes a body that may be left out."""
    schema = shape.model_json_schema()
    return {"requestBody": {"required": False, "content": {"application/json": {"schema": schema}}}}


@router.post(
    "/{slug}/start",
    response={200: LoopStartedOut, 202: LoopStartedOut, REFUSED: ErrorOut},
    openapi_extra=_body_of(StartIn),
)
def start(request: HttpRequest, slug: str) -> HttpResponse:
    """Start the project's loop; 202 when its process is not there within 5 s."""
    project = projects.get_ralph_project(slug, identity_of(request).project)
    wanted = _body(request, StartIn)
    cost = None if wanted.max_cost_usd is None else Decimal(str(wanted.max_cost_usd))
    limits = commands.Limits(wanted.max_iterations, cost, wanted.resume)
    row = loops.start(project, limits, by=_acting(request))
    message = f"The loop of {slug} is {'resumed' if wanted.resume else 'started'}."
    pid = row.exits[0]["pid"] if row.exits and row.status in ENDED else row.pid
    return _json({"success": True, "message": message, "pid": pid}, status=200 if pid else 202)


@router.post(
    "/{slug}/stop",
    response={200: LoopStoppedOut, REFUSED: ErrorOut, 500: ErrorOut, 504: ErrorOut},
    openapi_extra=_body_of(StopIn),
)
def stop(request: HttpRequest, slug: str) -> HttpResponse:
    """Stop the project's loop, whoever started it; answers with what was seen."""
    project = projects.get_ralph_project(slug, identity_of(request).project)
    grace_s = _body(request, StopIn).grace_s
    done = loops.stop(project, grace_s=loops.GRACE_S if grace_s is None else grace_s, by=_acting(request))
    said = {"stopped": f"The loop of {slug} has stopped.", "killed": f"The loop of {slug} had to be killed."}
    message = f"The loop of {slug} had already stopped." if done.pid is None else said[done.state]
    return _json({"success": True, "message": message, "pid": done.pid, "state": done.state})


@router.get("/{slug}/rollback", response={200: RollbackPreviewOut, 400: ErrorOut, frozenset({401, 403, 409}): ErrorOut})
def preview(request: HttpRequest, slug: str, commit: str = "", story: str = "", mainline: str = "") -> HttpResponse:
    """What a rollback would do, and everything that stands in its way; changes nothing."""
    project = projects.get_ralph_project(slug, identity_of(request).project)
    wanted = {"commit": commit, "story": story, "mainline": previews.mainline(mainline)}
    return _json(previews.as_document(_look(project, wanted)))


@router.post(
    "/{slug}/rollback",
    response={200: RollbackOut, REFUSED: ErrorOut, 500: ErrorOut, 504: ErrorOut},
    openapi_extra=_body_of(RollbackIn),
)
def roll_back(request: HttpRequest, slug: str) -> HttpResponse:
    """Undo the last commit, or `commit`, and reopen its story; never a reset, and HEAD as it was is kept in a ref."""
    project = projects.get_ralph_project(slug, identity_of(request).project)
    asked = _body(request, RollbackIn)
    wanted = {
        "expected_head": asked.expected_head or "",
        "commit": asked.commit or "",
        "story": asked.story or "",
        "mainline": asked.mainline,
    }
    row = loops.roll_back(
        project, wanted, stop_first=asked.stop_first, key=asked.idempotency_key or "", by=_acting(request)
    )
    return _json(
        {
            "success": True,
            "message": f"Rolled back {row.reverted_commit[:12]}; {row.detail or f'{row.story_key} is open again.'}",
            "reverted_commit": row.reverted_commit,
            "story_reverted": row.story_reverted,
            "method": row.method,
            "new_commit": row.new,
            "backup_ref": row.backup_ref,
        }
    )


def identity_of(request: HttpRequest) -> Identity:
    identity: Identity = request.identity  # type: ignore[attr-defined]
    return identity


def _body(request: HttpRequest, shape: type[Body]) -> Body:
    """Return what a verb was asked with; no body at all is an empty one, anything that is not understood is refused.

    A field with another name must not be overlooked: it may be the guard that somebody relies on.
    """
    try:
        raw = request.body
    except RequestDataTooBig:
        raise HttpError(413, "The body is too large.") from None
    try:
        return shape.model_validate_json(raw) if raw.strip() else shape()
    except PydanticError as error:
        found = [{"type": one["type"], "loc": ("body", *one["loc"]), "msg": one["msg"]} for one in error.errors()]
        raise ValidationError(found) from None


def _acting(request: HttpRequest) -> By:
    if identity_of(request).run:
        raise Forbidden("forbidden", "A run may not start, stop or roll back a loop.")
    return actor(request)


def _look(project: Any, wanted: dict[str, Any]) -> previews.Look:
    return previews.look(project, wanted, is_running=project.running or loops.live(project) is not None)


def _json(document: dict[str, Any], status: int = 200) -> HttpResponse:
    """Answer with a document that needs no validation on its way out: it was built here."""
    return HttpResponse(orjson.dumps(document), content_type="application/json", status=status)
