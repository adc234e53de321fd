"""One task with all that belongs to it: bounded lists, oldest first, six queries."""

from typing import Any

import orjson
from django.db import connection

from kanban.models import Comment, Link, Run, Task
from kanban.queries.events import event_document
from kanban.queries.fields import epoch, read_document, seconds
from kanban.states import TASK_ID
from projects.errors import Missing
from projects.models import Event

EVENTS_SHOWN = 200
COMMENTS_SHOWN = 500
RUNS_SHOWN = 200
LINKS_SHOWN = 2000
_EVENTS = Event._meta.db_table  # noqa: SLF001 (Django's documented way to a table's name)
_LATEST = (
    f"SELECT id, kind, subject, payload, {{at}} FROM {_EVENTS} "  # noqa: S608 (constants only)
    "WHERE subject = %s AND id < %s ORDER BY id DESC LIMIT %s"
)


def get_task(task_id: str, only: str = "") -> Task:
    """Return a task; Missing when there is none, or it is not of the project `only` ("" = any)."""
    task = Task.objects.filter(pk=task_id).first() if TASK_ID.fullmatch(task_id) else None
    if task is None or (only and task.project != only):
        raise _missing(task_id)
    return task


def get_run(task: Task, number: int | None) -> Run | None:
    """Return a run with its process, the newest without a number; Missing when that number was never run."""
    rows = Run.objects.filter(task=task).select_related("process").order_by("-number")
    if number is None:
        return rows.first()
    run = rows.filter(number=number).first()
    if run is None:
        raise Missing("not-found", f"{task.pk} has no run {number}.")
    return run


def detail(task_id: str, *, only: str = "", events_before: int | None = None) -> dict[str, Any]:
    """Return `{task, comments, events, links, runs}`: of each list the newest, oldest first.

    Of the events 200, with `events_before` those before that id. Missing as `get_task` raises it.
    """
    found = read_document(task_id) if TASK_ID.fullmatch(task_id) else None
    if found is None or (only and found["project"] != only):
        raise _missing(task_id)
    return {
        "task": found,
        "comments": _comments(task_id),
        "events": _events(task_id, events_before),
        "links": _links(task_id),
        "runs": _runs(task_id),
    }


def _missing(task_id: str) -> Missing:
    shown = task_id[:40].encode("utf-8", "replace").decode()
    return Missing("not-found", f"There is no task {shown}.")


def _comments(task_id: str) -> list[dict[str, Any]]:
    rows = Comment.objects.filter(task=task_id).order_by("-pk")[:COMMENTS_SHOWN]
    return [
        {"id": row.pk, "task_id": task_id, "author": row.author, "body": row.body, "created_at": epoch(row.created_at)}
        for row in reversed(rows)
    ]


def _events(task_id: str, before: int | None) -> list[dict[str, Any]]:
    sql = _LATEST.format(at=seconds("at", connection.vendor))
    with connection.cursor() as cursor:
        cursor.execute(sql, [f"task:{task_id}", (1 << 62) if before is None else before, EVENTS_SHOWN])
        rows = cursor.fetchall()
    return [
        event_document(number, kind, subject, payload if isinstance(payload, dict) else orjson.loads(payload), at)
        for number, kind, subject, payload, at in reversed(rows)
    ]


def _links(task_id: str) -> dict[str, list[str]]:
    """Return the newest of either direction, each by link: many children leave no parent out."""
    up = Link.objects.filter(child=task_id).order_by("-pk").values_list("parent_id", flat=True)
    down = Link.objects.filter(parent=task_id).order_by("-pk").values_list("child_id", flat=True)
    return {"parents": [*reversed(up[:LINKS_SHOWN])], "children": [*reversed(down[:LINKS_SHOWN])]}


def _runs(task_id: str) -> list[dict[str, Any]]:
    rows = Run.objects.filter(task=task_id).order_by("-number").defer("result", "services")[:RUNS_SHOWN]
    return [
        {
            "id": row.pk,
            "number": row.number,
            "profile": row.profile or None,
            "host": row.host or None,
            "pid": row.pid,
            "started_at": epoch(row.started_at),
            "heartbeat_at": epoch(row.heartbeat_at),
            "ended_at": epoch(row.ended_at),
            "outcome": row.outcome or None,
            "exit_code": row.exit_code,
            "failure_class": row.failure_class or None,
            "services_healthy": row.services_healthy,
            "services_total": row.services_total,
            "summary": row.summary or None,
            "error": row.error or None,
            "cost_usd": None if row.cost_usd is None else float(row.cost_usd),
            "tokens": row.tokens,
        }
        for row in reversed(rows)
    ]
