"""What follows for children when parents or edges change, in both directions."""

from collections.abc import Collection
from datetime import datetime
from typing import NamedTuple

from django.db.models import Q, QuerySet

from kanban.lifecycle.moves import free, move, tell
from kanban.links import HAS_OPEN_PARENT
from kanban.models import Link, Task
from kanban.states import BlockKind, Status
from projects.events import By

# Who may have to move when an edge or a parent changes.
WAITING = Q(status=Status.TODO, held=False)
BLOCKED_BY_PARENTS = Q(status=Status.BLOCKED, block_kind=BlockKind.DEPENDENCY)
UNWAIVED = Q(status=Status.READY, parents_waived=False)
MOST_AT_ONCE = 5000


class Settled(NamedTuple):
    """How many tasks moved, by why."""

    promoted: int = 0
    unblocked: int = 0
    demoted: int = 0


def settle_children(parents: Collection[str], *, by: By, now: datetime) -> None:
    """Bring the children of parents that opened or closed where they belong."""
    keys = Link.objects.filter(parent__in=parents).values("child")
    settle(Task.objects.filter(pk__in=keys), by=by, now=now)


def settle_one(task: Task, *, by: By, now: datetime) -> None:
    """Bring one task where its parents let it be, the object too."""
    if any(settle(Task.objects.filter(pk=task.pk), by=by, now=now)):
        task.refresh_from_db(fields=["status", "since", "active_at", "block_kind", "block_reason", "blocked_by"])


def settle(tasks: QuerySet[Task], *, by: By, now: datetime) -> Settled:
    """Promote what waits for nobody any more, take back what waits again; inside `writing()`.

    Records task.ready, task.unblocked, task.status; children that are held or waived stay.
    """
    # Locked before their parents are looked at: of two parents that close at once, the later one sees the other closed.
    found = tasks.filter(WAITING | BLOCKED_BY_PARENTS | UNWAIVED).order_by("pk")[:MOST_AT_ONCE]
    keys = list(found.select_for_update().values_list("pk", flat=True))
    if not keys:
        return Settled()
    rows = Task.objects.filter(pk__in=keys).annotate(waits=HAS_OPEN_PARENT).defer("body", "result")
    todo, blocked, ready = [], [], []
    for task in rows:
        if task.status == Status.TODO and not task.waits:
            todo.append(task)
        elif task.status == Status.BLOCKED and not task.waits:
            blocked.append(task)
        elif task.status == Status.READY and task.waits:
            ready.append(task)
    moved = Settled(move(todo, "promote", now=now), move(blocked, "unblock", now=now), move(ready, "demote", now=now))
    for task in todo:
        tell(task, "ready", by=by, now=now)
    for task in blocked:
        tell(task, "unblocked", by=by, now=now, status=task.status, block_kind=BlockKind.DEPENDENCY)
    for task in ready:
        tell(task, "status", by=by, now=now, status=Status.TODO)
    if todo or blocked:
        free()
    return moved
