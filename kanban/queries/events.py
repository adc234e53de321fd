"""Events of tasks as this board's clients read them, and how far the log has come."""

from collections.abc import Mapping
from typing import Any

from django.db import connection

from kanban.models import Task
from projects.models import Event

PREFIX = "task."
# Every kind that a verb records of a task, and the keys that its payload always has for clients of other boards.
KINDS: dict[str, tuple[str, ...]] = {
    "created": ("assignee", "status", "parents", "tenant"),
    "ready": (),
    "claimed": ("lock", "expires"),
    "spawned": (),
    "heartbeat": (),
    "reported": (),
    "exited": (),
    "imported": (),
    "reclaimed": ("stale_lock",),
    "crashed": ("pid", "claimer"),
    "timed_out": (),
    "spawn_failed": ("error", "failures"),
    "spawn_auto_blocked": ("failures", "error"),
    "gave_up": (),
    "rate_limited": (),
    "protocol_violation": (),
    "completed": ("result_len",),
    "blocked": ("reason",),
    "unblocked": (),
    "review_requested": (),
    "approved": (),
    "sent_back": (),
    "archived": (),
    "reopened": (),
    "assigned": ("assignee",),
    "linked": ("parent", "child"),
    "unlinked": ("parent", "child"),
    "commented": ("author", "len"),
    "status": ("status",),
    "priority": ("priority",),
    "edited": (),
    "forced": (),
    "pruned": (),
}


def latest_event_id() -> int:
    """Return the greatest id of a task's event, 0 when there is none; one query, one index seek a kind."""
    with connection.cursor() as cursor:
        cursor.execute(_LATEST, [PREFIX + kind for kind in KINDS])
        return int(cursor.fetchone()[0] or 0)


def event_document(
    number: int, kind: str, subject: str, payload: Mapping[str, Any], created_at: int | None
) -> dict[str, Any]:
    """Return an event in the shape {id, task_id, kind, payload, created_at}, its kind without `task.`.

    What was null when it was recorded is not in the log, and is null here.
    """
    short = kind.removeprefix(PREFIX)
    return {
        "id": number,
        "task_id": subject.partition(":")[2],
        "kind": short,
        "payload": {**dict.fromkeys(KINDS.get(short, ())), **payload},
        "created_at": created_at,
    }


_EVENTS = Event._meta.db_table  # noqa: SLF001 (Django's documented way to a table's name)
_OF_A_KIND = f"SELECT max(id) AS id FROM {_EVENTS} WHERE kind = %s"  # noqa: S608 (constants only)
_LATEST = f"SELECT max(id) FROM ({' UNION ALL '.join([_OF_A_KIND] * len(KINDS))}) newest"  # noqa: S608


def titles(ids: set[str]) -> dict[str, str]:
    """Return the titles of those of these tasks that still are, by id."""
    return dict(Task.objects.filter(pk__in=ids).values_list("id", "title"))
