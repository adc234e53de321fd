"""Tasks: made, read, changed, linked, spoken of."""

import contextlib
import logging
import os
from collections.abc import Iterator
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from ninja import Router
from ninja.params.functions import Query

from kanban import context, dispatch, lifecycle, profiles, queries, workers
from kanban.api.answers import (
    NONSENSE,
    REFUSED,
    STRANGERS,
    Scope,
    identity_of,
    json_answer,
    scope_of,
    task_answer,
    task_of,
)
from kanban.lifecycle.creating import MOST_PARENTS
from kanban.models import Run, Task
from kanban.schemas import (
    BulkIn,
    BulkOut,
    CommentIn,
    CreateIn,
    DetailOut,
    LinkIn,
    OkOut,
    OneTaskOut,
    PatchIn,
    TaskLogOut,
)
from kanban.states import TASK_ID, Status
from projects.access import actor
from projects.errors import Conflict, DomainError, Forbidden, Missing, Rejected
from projects.events import By
from projects.schemas import ErrorOut
from services import logs
from services.models import LOG_FOLDER
from services.specs.sidecars import FILE, FOLDER

DEFAULT_TAIL = 65_536
MAX_TAIL = 2_000_000
MAX_ID = (1 << 62) - 1
MARKDOWN = {"responses": {200: {"description": "OK", "content": {"text/markdown": {"schema": {"type": "string"}}}}}}
# Of a body as a whole: unreadable or wrong (400), too large, of another shape.
BODY = NONSENSE | {413}
log_ = logging.getLogger("andon.kanban")

router = Router(tags=["kanban"])


@router.post("/tasks", response={200: OneTaskOut, BODY: ErrorOut, 409: ErrorOut})
def create(request: HttpRequest, body: CreateIn) -> HttpResponse:
    """Make a task: ready, todo while a parent is open, triage when asked.

    The same `idempotency_key` on a task that is not archived answers with that one, untouched. A run makes only tasks
    that wait for its own.
    """
    scope = scope_of(request)
    parents = body.parents or []
    if scope.run and scope.run_task not in parents:
        raise Forbidden("forbidden", "A run may only make tasks that have its own task among their parents.")
    project = body.project or scope.project
    if not scope.has(project):
        raise Rejected("unknown-project", "No project has this slug.")
    _check_parents(parents, scope)
    task = lifecycle.create(
        body.title,
        body=body.body or "",
        assignee=body.assignee or "",
        tenant=body.tenant or "",
        priority=body.priority,
        workspace_kind=body.workspace_kind or "",
        workspace_path=body.workspace_path or "",
        parents=parents,
        triage=body.triage,
        idempotency_key=body.idempotency_key or "",
        project=project,
        max_runtime_s=body.max_runtime_s,
        max_cost_usd=None if body.max_cost_usd is None else Decimal(str(body.max_cost_usd)),
        failure_limit=body.failure_limit,
        services_required=body.services_required,
        by=actor(request),
        now=timezone.now(),
    )
    if not scope.has(task.project):
        raise Conflict("idempotency-key-taken", "Another task bears this key.")
    return task_answer(task)


def _check_parents(parents: list[str], scope: Scope) -> None:
    """Refuse parents that are out of sight as if they were not there."""
    if not (parents and scope.is_bound):
        return
    known = [parent for parent in parents[:MOST_PARENTS] if TASK_ID.fullmatch(parent)]
    seen = set(Task.objects.filter(pk__in=known, project=scope.project).values_list("pk", flat=True))
    for parent in parents:
        if parent not in seen:
            raise Rejected("unknown-parent", "There is no such task to wait for.")


# Above the routes of one task, one of which its path would be.
@router.post("/tasks/bulk", response={200: BulkOut, BODY: ErrorOut})
def bulk(request: HttpRequest, body: BulkIn) -> HttpResponse:
    """Change many tasks alike, each for itself: the results stand in the order of the ids, one for each."""
    if not body.ids:
        raise Rejected("ids-missing", "Name at least one task.")
    change = body.model_dump(exclude={"ids", "archive"}, exclude_none=True)
    if body.archive:
        change["status"] = Status.ARCHIVED
    by = actor(request)
    return json_answer({"results": [_one(request, task_id, change, by) for task_id in dict.fromkeys(body.ids)]})


def _one(request: HttpRequest, task_id: str, change: dict[str, Any], by: By) -> dict[str, Any]:
    shown = task_id.encode("utf-8", "replace").decode()
    try:
        lifecycle.patch(task_of(request, task_id), **change, by=by, now=timezone.now())
    except DomainError as refusal:
        return {"id": shown, "ok": False, "error": refusal.code, "detail": refusal.detail}
    except Exception:
        log_.exception("%s cannot be changed", shown)
        return {"id": shown, "ok": False, "error": "internal", "detail": "Something went wrong here."}
    return {"id": shown, "ok": True}


@router.get("/tasks/{task_id}", response={200: DetailOut, STRANGERS: ErrorOut, 404: ErrorOut, 422: ErrorOut})
def detail(
    request: HttpRequest, task_id: str, events_before: int | None = Query(None, ge=1, le=MAX_ID)
) -> HttpResponse:
    """A task with its newest 500 comments, 200 events (`events_before` an event's id: the 200 before it), links and
    runs, each list oldest first.
    """
    return json_answer(queries.detail(task_id, only=identity_of(request).project, events_before=events_before))


@router.patch("/tasks/{task_id}", response={200: OneTaskOut, REFUSED: ErrorOut})
def patch(request: HttpRequest, task_id: str, body: PatchIn) -> HttpResponse:
    """Change several things at once, all or nothing. A status is reached by the verb that leads there: 409
    `illegal-transition` names `from` and `to`, 409 `claim-only` means that a task runs only when it is claimed.
    """
    given = body.model_dump(exclude_none=True)
    return task_answer(lifecycle.patch(task_of(request, task_id), **given, by=actor(request), now=timezone.now()))


@router.post("/tasks/{task_id}/comments", response={200: OkOut, REFUSED: ErrorOut})
def comment(request: HttpRequest, task_id: str, body: CommentIn) -> HttpResponse:
    """Say something about a task; a run always speaks for itself, others as `author` (default "dashboard")."""
    author = "dashboard" if body.author is None else body.author
    lifecycle.comment(task_of(request, task_id), body.body, author=author, by=actor(request), now=timezone.now())
    return json_answer({"ok": True})


@router.post("/links", response={200: OkOut, BODY: ErrorOut})
def link(request: HttpRequest, body: LinkIn) -> HttpResponse:
    """Have a child wait until its parent is done or archived."""
    _check_ends(request, body.parent_id, body.child_id)
    lifecycle.link(body.parent_id, body.child_id, by=actor(request), now=timezone.now())
    return json_answer({"ok": True})


@router.delete("/links", response={200: OkOut, NONSENSE: ErrorOut})
def unlink(request: HttpRequest, parent_id: str, child_id: str) -> HttpResponse:
    """Have a child wait for a parent no more; `ok` is false when it did not."""
    _check_ends(request, parent_id, child_id)
    try:
        lifecycle.unlink(parent_id, child_id, by=actor(request), now=timezone.now())
    except Rejected as refusal:
        if refusal.code != "no-such-link":
            raise
        return json_answer({"ok": False})
    return json_answer({"ok": True})


def _check_ends(request: HttpRequest, *ends: str) -> None:
    for task_id in ends:
        try:
            task_of(request, task_id)
        except Missing as refusal:
            raise Rejected("unknown-task", refusal.detail) from None


@router.get("/tasks/{task_id}/context", response={STRANGERS: ErrorOut, 404: ErrorOut}, openapi_extra=MARKDOWN)
def brief(request: HttpRequest, task_id: str) -> HttpResponse:
    """What a worker of this task is told, as it would be now."""
    task = task_of(request, task_id)
    run = queries.get_run(task, task.current_run) if task.current_run is not None else None
    workspace = (run.workspace if run else "") or dispatch.planned_workspace(task)
    sidecar = str(settings.ANDON_HOME / FOLDER / run.agent / FILE) if run else ""
    told = workers.brief_of(task, run, workspace=workspace, cli=str(profiles.CLI), sidecar=sidecar)
    return HttpResponse(context.render(told), content_type="text/markdown; charset=utf-8")


@router.get("/tasks/{task_id}/log", response={200: TaskLogOut, STRANGERS: ErrorOut, 404: ErrorOut, 422: ErrorOut})
def log(
    request: HttpRequest,
    task_id: str,
    tail: int = Query(DEFAULT_TAIL, ge=1, le=MAX_TAIL),
    number: int | None = Query(None, alias="run", ge=1, le=(1 << 31) - 1),
) -> HttpResponse:
    """The last `tail` bytes that the worker of the newest run, or of run `run`, has printed."""
    task = task_of(request, task_id)
    run = queries.get_run(task, number)
    name, head = _log_of(run)
    with _opened(name) as descriptor:
        chunk = None if descriptor is None else logs.tail_bytes(descriptor, tail=tail, head=head)
    return json_answer(
        {
            "task_id": task.pk,
            "path": f"logs/services/{name}" if name else "",
            "exists": chunk is not None,
            "size_bytes": chunk.size - (head if head <= chunk.size else 0) if chunk else 0,
            "content": chunk.text if chunk else "",
            "truncated": chunk.truncated if chunk else False,
        }
    )


def _log_of(run: Run | None) -> tuple[str, int]:
    """Return the name of a run's log file and where it begins; its process may have been erased since."""
    if run is not None and run.process is not None:
        return run.process.log_name, run.process.log_head
    name = PurePosixPath(run.log_path).name if run is not None else ""
    return (name, 0) if run is not None and run.log_path == f"logs/services/{name}" else ("", 0)


@contextlib.contextmanager
def _opened(name: str) -> Iterator[int | None]:
    with contextlib.ExitStack() as stack:
        descriptor = None
        if name:
            with contextlib.suppress(OSError):
                descriptor = logs.open_for_reading(LOG_FOLDER, name)
                stack.callback(os.close, descriptor)
        yield descriptor
