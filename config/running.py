"""What runs now, over all apps, and what today cost."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from django.db.models import CharField, Count, F, OuterRef, QuerySet, Subquery, Value
from django.db.models import Sum as Added
from django.db.models.functions import Cast
from django.urls import reverse

from kanban import costs as attempts
from kanban.models import Run
from projects import costs
from projects.days import window
from projects.models import Project, Story
from projects.queries import ProjectView
from services import pages as processes
from services.models import ManagedProcess
from services.states import Purpose

# Of loops, of task workers, of services.
SHOWN = 12
BESIDE_LOOPS = (Purpose.WORKER, Purpose.SERVICE)


def loops(rows: Iterable[Project]) -> list[Project]:
    """Return the projects whose loop runs, as many as are shown."""
    return [row for row in rows if row.running][:SHOWN]


def in_sight(now: datetime, limit: int) -> list[ManagedProcess]:
    """Return services.pages.in_sight, of a task's worker also its `run` and `title`; one query."""
    run = Run.objects.filter(process=OuterRef("pk"), ended_at=None).order_by()[:1]
    beside = {"run": Subquery(run.values("pk")), "title": Subquery(run.values("task__title"))}
    return processes.in_sight(now, max(limit, SHOWN), **beside)


def panel(
    rows: Sequence[Project],
    stories: Iterable[Story],
    found: Iterable[ManagedProcess],
    spent: dict[str, costs.Sum],
    now: datetime,
) -> dict[str, Any]:
    """Return what runs: {total, loops, groups: [{purpose, total, rows}]}; `loops` are those of `loops`, as views."""
    by_project: dict[int, list[Story]] = {row.pk: [] for row in loops(rows)}
    for story in stories:
        by_project.get(story.project_id, []).append(story)
    views = [ProjectView(row, by_project[row.pk], now) for row in loops(rows)]
    for view in views:
        view.spent_today = spent.get(view.slug)
    live = [row for row in found if row.lives]  # type: ignore[attr-defined]
    groups = [_group(purpose, [row for row in live if row.purpose == purpose]) for purpose in BESIDE_LOOPS]
    of_loops = sum(row.running for row in rows)
    return {
        "total": of_loops + sum(group["total"] for group in groups),
        "loops": views,
        "loops_total": of_loops,
        "groups": [group for group in groups if group["total"]],
    }


def _group(purpose: str, rows: list[Any]) -> dict[str, Any]:
    return {
        "purpose": purpose,
        "total": rows[0].living if rows else 0,
        "rows": [
            {
                "row": row,
                "title": row.title or str(row),
                "url": reverse("run", args=[row.run]) if row.run else row.get_absolute_url(),
            }
            for row in rows[:SHOWN]
        ],
    }


def cost_today(now: datetime) -> tuple[dict[str, costs.Sum], costs.Sum]:
    """Return what the loops of each project that ran today cost, by slug, and what attempts that ended today cost.

    One query. An attempt that told no cost is unknown, never 0; one whose worker did not start is none. Tokens are not
    counted.
    """
    span = window(1, now)
    entries: QuerySet[Any, Any] = costs.entries().filter(at__gte=span.start, at__lt=span.end)
    of_tasks = _summed(attempts.within(attempts.attempts(), span), Cast(Value(""), CharField()), "cost_usd")
    found = {of: _sum(*sums) for of, *sums in _summed(entries, F("project__slug"), "cost").union(of_tasks, all=True)}
    return found, found.pop("", costs.Sum())


def _summed(rows: QuerySet[Any, Any], of: Any, cost: str) -> QuerySet[Any, Any]:
    named: QuerySet[Any, Any] = rows.annotate(of=of).values_list("of")
    summed: QuerySet[Any, Any] = named.annotate(spent=Added(cost), runs=Count("pk"), known=Count(cost))
    return summed


def _sum(spent: Any, runs: int, known: int) -> costs.Sum:
    if not runs:
        return costs.Sum()
    cost = Decimal(spent).quantize(costs.SMALLEST) if known else None
    return costs.Sum(cost=cost, runs=runs, tokens=None, unknown=runs - known)
