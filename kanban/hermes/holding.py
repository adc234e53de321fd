"""What waits for others starts not before its links are in: it comes in held, and is let go when they are.

The mark is the rows' own, so that after a crash in between the next import lets go what the first has held.
"""

from datetime import UTC, datetime
from typing import Any

from kanban import lifecycle
from kanban.models import Task
from kanban.states import Status
from projects.events import By, writing

# No claim before that, whoever moves it on meanwhile; no quota waits as long, so it tells this hold from a person's.
UNTIL_LINKED = datetime(2200, 1, 1, tzinfo=UTC)
AT_ONCE = 500


def held(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a task with parents as it comes in: what could be started waits in todo."""
    if fields["status"] not in {Status.TODO, Status.READY}:
        return fields
    return {**fields, "status": Status.TODO, "held": True, "not_before": UNTIL_LINKED}


def let_go(*, by: By, now: datetime) -> int:
    """Bring what was held where its parents let it be; returns how many. Records task.ready of those that are free."""
    found = 0
    while keys := list(Task.objects.filter(not_before=UNTIL_LINKED).values_list("pk", flat=True)[:AT_ONCE]):
        with writing():
            rows = Task.objects.filter(pk__in=keys)
            found += rows.update(not_before=None, held=False)
            lifecycle.settle(rows, by=by, now=now)
    return found
