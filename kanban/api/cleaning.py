"""REST of the clean-up (mounted at /api/system): the dry run, and have it done."""

from dataclasses import asdict
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from ninja import Router

from kanban import cleaning, leftovers
from kanban.api.answers import STRANGERS, identity_of, json_answer
from kanban.leftovers import Leftover
from kanban.models import CleanUp
from kanban.schemas import CleanUpsOut, PreviewOut
from projects import access
from projects.errors import Forbidden
from projects.schemas import ErrorOut
from projects.states import Role

router = Router(tags=["system"])


@router.get("/clean-up", response={200: PreviewOut, STRANGERS: ErrorOut})
def preview(request: HttpRequest) -> HttpResponse:
    """What a clean-up would remove now, 50 rows of a kind, and why workspaces stay. Changes nothing; operators only."""
    _need(request, Role.OPERATOR)
    seen = leftovers.look(timezone.now())
    return json_answer(
        {
            "workspaces": [_leftover(row) for row in seen.workspaces],
            "runs": [_leftover(row) for row in seen.runs],
            "total": seen.total,
            "kept": seen.kept,
            "size_bytes": seen.size,
            "measured": seen.is_measured,
        }
    )


@router.post("/clean-up", response={200: CleanUpsOut, 202: CleanUpsOut, STRANGERS: ErrorOut, 503: ErrorOut})
def clean_up(request: HttpRequest) -> HttpResponse:
    """Have the worker of each host that ticks remove now what retention lets go; 202 when one is not done within 5 s.

    Each single thing is asked about again when it is removed: a task that was opened meanwhile keeps all. One that is
    under way is not begun again. Administrators only; 503 `no-worker` when none ticks.
    """
    _need(request, Role.ADMIN)
    rows = cleaning.order(by=access.actor(request), now=timezone.now())
    is_over = all(row.ended_at is not None for row in rows)
    return json_answer({"clean_ups": [_clean_up(row) for row in rows]}, status=200 if is_over else 202)


def _need(request: HttpRequest, role: Role) -> None:
    who = identity_of(request)
    access.need(who, role)
    if who.project:
        raise Forbidden("forbidden", "A clean-up goes over all projects, and this token is bound to one.")


def _leftover(row: Leftover) -> dict[str, Any]:
    told = asdict(row)
    return {**told, "size_bytes": told.pop("size")}


def _clean_up(row: CleanUp) -> dict[str, Any]:
    names = ("asked_by", "asked_at", "ended_at", "removed", "failed", "left")
    return {"host": row.node, **{name: getattr(row, name) for name in names}}
