"""How the board stands, in numbers."""

from collections import Counter, defaultdict
from collections.abc import Collection
from datetime import datetime
from typing import Any

from django.db.models import Count, Max, Min

from kanban.models import Board, Profile, Run, Task, age_s
from kanban.queries.fields import epoch
from kanban.states import BlockKind, Status
from services.models import WorkerHost


def stats(*, only: str = "", nodes: Collection[str], now: datetime) -> dict[str, Any]:
    """Return counts of tasks that are not archived, and who works on them; `nodes` are those whose worker ticks.

    `by_assignee` is {assignee: {status: n}}. `last_tick` is when a worker last ticked, `last_pass` when the
    dispatcher last ran. `only` binds the counts to one project ("" = all). Seven queries.
    """
    tasks = Task.objects.exclude(status=Status.ARCHIVED).order_by()
    live = Run.objects.filter(ended_at=None).order_by()
    if only:
        tasks, live = tasks.filter(project=only), live.filter(task__project=only)
    by_status: Counter[str] = Counter()
    by_assignee: dict[str, Counter[str]] = defaultdict(Counter)
    for status, assignee, count in tasks.values_list("status", "assignee").annotate(Count("pk")):
        by_status[status] += count
        if assignee:
            by_assignee[assignee][status] += count
    oldest = tasks.filter(status=Status.READY).aggregate(oldest=Min("created_at"))["oldest"]
    at_work = dict(live.exclude(profile="").values_list("profile").annotate(Count("pk")))
    board = Board.objects.filter(id=1).first()
    ticked = WorkerHost.objects.aggregate(last=Max("tick_at"))["last"]
    return {
        "by_status": dict(by_status),
        "by_assignee": {name: dict(found) for name, found in sorted(by_assignee.items())},
        "oldest_ready_age_seconds": age_s(oldest, now),
        "now": epoch(now),
        "profiles": [
            {
                "name": profile.name,
                "enabled": profile.enabled if profile.enabled is not None else bool(profile.found_on),
                "can_spawn": any(profile.can_spawn(node) for node in nodes),
                "paused": profile.paused_at is not None,
                "paused_reason": profile.paused_reason or None,
                "live": at_work.get(profile.name, 0),
                "cap": profile.concurrency,
            }
            for profile in Profile.objects.all()
        ],
        "breaker": tasks.filter(status=Status.BLOCKED, block_kind=BlockKind.BREAKER).count(),
        "dispatch_paused": board is not None and board.paused_at is not None,
        "last_pass": epoch(board.last_pass_at) if board else None,
        "last_tick": epoch(ticked),
    }
