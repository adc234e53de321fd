"""Verbs on one task: what workers report and what people decide."""

from decimal import Decimal

from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from ninja import Router

from kanban import lifecycle, workers
from kanban.api.answers import REFUSED, task_answer, task_of
from kanban.models import Run, Task
from kanban.schemas import (
    BlockIn,
    ClaimedOut,
    CompleteIn,
    HeartbeatIn,
    LimitIn,
    OneTaskOut,
    ReleaseIn,
    ReviewIn,
)
from kanban.states import BlockKind
from projects.access import actor
from projects.events import By, writing
from projects.schemas import ErrorOut

router = Router(tags=["kanban"])
# Of those that have no body.
PLAIN = REFUSED - {400, 413, 422}
OF_A_TASK = {200: OneTaskOut, REFUSED: ErrorOut}


@router.post("/tasks/{task_id}/claim", response={200: ClaimedOut, PLAIN: ErrorOut})
def claim(request: HttpRequest, task_id: str) -> HttpResponse:
    """Take a ready task for a worker elsewhere: its run reports with the token, which is told this once."""
    task, by, now = task_of(request, task_id), actor(request), timezone.now()
    with writing():
        run = lifecycle.claim(task, by=by, now=now)
        token = workers.issue_token(run, run.task, by=by, now=now)
    return task_answer(run.task, run={"number": run.number, "token": token})


@router.post("/tasks/{task_id}/heartbeat", response=OF_A_TASK)
def heartbeat(request: HttpRequest, task_id: str, body: HeartbeatIn | None = None) -> HttpResponse:
    """Extend the lease of the run that speaks, and note what it has spent so far."""
    said = body or HeartbeatIn()
    return task_answer(
        lifecycle.heartbeat(
            task_of(request, task_id),
            note=said.note or "",
            cost_usd=_dollars(said.cost_usd),
            tokens=said.tokens,
            by=actor(request),
            now=timezone.now(),
        )
    )


@router.post("/tasks/{task_id}/complete", response=OF_A_TASK)
def complete(request: HttpRequest, task_id: str, body: CompleteIn | None = None) -> HttpResponse:
    """Have a task done. By a run that leaves services it stays running until they are known (`phase`)."""
    said, task, by = body or CompleteIn(), task_of(request, task_id), actor(request)
    return task_answer(
        lifecycle.complete(
            task,
            result=said.result or "",
            summary=said.summary or "",
            cost_usd=_dollars(said.cost_usd),
            tokens=said.tokens,
            has_sidecar=_has_sidecar(task, by),
            by=by,
            now=timezone.now(),
        )
    )


@router.post("/tasks/{task_id}/block", response=OF_A_TASK)
def block(request: HttpRequest, task_id: str, body: BlockIn | None = None) -> HttpResponse:
    """Have a task wait for a person (needs_input, the default, capability), its parents (dependency), or time."""
    said = body or BlockIn()
    return task_answer(
        lifecycle.block(
            task_of(request, task_id),
            said.reason or "",
            kind=BlockKind.NEEDS_INPUT if said.kind is None else said.kind,
            by=actor(request),
            now=timezone.now(),
        )
    )


@router.post("/tasks/{task_id}/review", response=OF_A_TASK)
def review(request: HttpRequest, task_id: str, body: ReviewIn | None = None) -> HttpResponse:
    """Hand a running task to a person for review."""
    summary = (body.summary if body else "") or ""
    return task_answer(
        lifecycle.request_review(task_of(request, task_id), summary=summary, by=actor(request), now=timezone.now())
    )


@router.post("/tasks/{task_id}/limit", response=OF_A_TASK)
def limit(request: HttpRequest, task_id: str, body: LimitIn) -> HttpResponse:
    """Set what a task may take; one that was blocked over its budget goes on where the new one is enough."""
    task = task_of(request, task_id)
    limits = {name: getattr(task, name) for name in LimitIn.model_fields}
    for name in body.model_fields_set:
        given = getattr(body, name)
        limits[name] = _dollars(given) if name == "max_cost_usd" else given
    return task_answer(lifecycle.limit(task, **limits, by=actor(request), now=timezone.now()))


@router.post("/tasks/{task_id}/release", response=OF_A_TASK)
def release(request: HttpRequest, task_id: str, body: ReleaseIn | None = None) -> HttpResponse:
    """Take a running task back to ready; its worker is stopped."""
    reason = (body.reason if body else "") or ""
    return task_answer(
        lifecycle.release(task_of(request, task_id), reason=reason, by=actor(request), now=timezone.now())
    )


@router.post("/tasks/{task_id}/unblock", response={200: OneTaskOut, PLAIN: ErrorOut})
def unblock(request: HttpRequest, task_id: str) -> HttpResponse:
    """Lift a block and forgive all failures: to ready, or to todo while a parent is open."""
    return task_answer(lifecycle.unblock(task_of(request, task_id), by=actor(request), now=timezone.now()))


@router.post("/tasks/{task_id}/approve", response={200: OneTaskOut, PLAIN: ErrorOut})
def approve(request: HttpRequest, task_id: str) -> HttpResponse:
    """Accept what was handed in for review: done."""
    return task_answer(lifecycle.approve(task_of(request, task_id), by=actor(request), now=timezone.now()))


@router.post("/tasks/{task_id}/send-back", response={200: OneTaskOut, PLAIN: ErrorOut})
def send_back(request: HttpRequest, task_id: str) -> HttpResponse:
    """Have what was handed in for review done again."""
    return task_answer(lifecycle.send_back(task_of(request, task_id), by=actor(request), now=timezone.now()))


@router.post("/tasks/{task_id}/reopen", response={200: OneTaskOut, PLAIN: ErrorOut})
def reopen(request: HttpRequest, task_id: str) -> HttpResponse:
    """Have a closed task done again; its ready children wait for it again."""
    return task_answer(lifecycle.reopen(task_of(request, task_id), by=actor(request), now=timezone.now()))


def _dollars(amount: float | None) -> Decimal | None:
    return None if amount is None else Decimal(str(amount))


def _has_sidecar(task: Task, by: By) -> bool:
    """Say whether the run that speaks may have left services to be looked at."""
    number = by.run.rpartition("/")[2]
    run = Run.objects.filter(task=task, number=number).first() if number.isdigit() else None
    return run is not None and workers.has_sidecar(run)
