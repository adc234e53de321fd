"""What attempts at tasks have cost: those that ended, by when they ended. One that told no cost is unknown, never 0."""

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from django.db.models import Count, Q, QuerySet, Sum

from kanban.models import Run
from kanban.states import Outcome
from projects import costs
from projects.days import Window, day_of, read_day

FAILED = (Outcome.CRASHED, Outcome.FAILED, Outcome.TIMED_OUT, Outcome.PROTOCOL_VIOLATION)
SUMS: dict[str, Any] = {
    "spent": Sum("cost_usd"),
    "runs": Count("pk"),
    "known": Count("cost_usd"),
    "said": Sum("tokens"),
    "failures": Count("pk", filter=Q(outcome__in=FAILED)),
    "waits": Count("pk", filter=Q(outcome=Outcome.RATE_LIMITED)),
}


def attempts(project: str = "") -> QuerySet[Run]:
    """Return the attempts that have ended, of a project by its slug, "" = of all. Without a worker there was none."""
    rows = Run.objects.order_by().filter(ended_at__isnull=False).exclude(outcome=Outcome.SPAWN_FAILED)
    return rows.filter(task__project=project) if project else rows


def within(rows: QuerySet[Run], span: Window) -> QuerySet[Run]:
    """Return those that ended in a window."""
    return rows.filter(ended_at__gte=span.start, ended_at__lt=span.end)


def beside(span: Window, project: str = "") -> costs.Beside:
    """Return what stands beside the costs of loops, in two queries."""
    found = costs.Beside()
    inside: QuerySet[Any, Any] = within(attempts(project), span).annotate(day=day_of(span, "ended_at"))
    for row in inside.values("day", "task__project", "profile").annotate(**SUMS):
        added = _sum(row)
        _add(found.by_day, read_day(row["day"]), added)
        _add(found.by_project, row["task__project"], added)
        _add(found.by_profile, row["profile"], added)
    ever: QuerySet[Any, Any] = attempts(project)
    for row in ever.values("task__project").annotate(**SUMS):
        found.ever[row["task__project"]] = _sum(row)
    return found


def exported(span: Window, project: str = "") -> Iterator[dict[str, Any]]:
    """Yield a window's attempts by the names of the table's head, oldest first, asked for a page at a time."""
    rows = within(attempts(project), span).select_related("task").order_by("ended_at", "pk")
    rows = rows.only(*("number", "profile", "started_at", "ended_at", "outcome", "cost_usd", "tokens", "task__project"))
    after = Q()
    while page := list(rows.filter(after)[: costs.EXPORT_PAGE]):
        yield from map(_row, page)
        last = page[-1]
        after = Q(ended_at__gt=last.ended_at) | Q(ended_at=last.ended_at, pk__gt=last.pk)


def _row(run: Run) -> dict[str, Any]:
    took = (run.ended_at - run.started_at).total_seconds() if run.ended_at else None
    told = {"at": run.ended_at, "project": run.task.project, "cost_usd": run.cost_usd, "tokens": run.tokens}
    whose = {"task": run.task_id, "attempt": run.number, "profile": run.profile}
    ended = {"failed": run.outcome in FAILED, "rate_limited": run.outcome == Outcome.RATE_LIMITED, "duration_s": took}
    return {**told, **whose, **ended}


def _add(sums: dict[Any, costs.Sum], key: Any, added: costs.Sum) -> None:
    sums[key] = sums.get(key, costs.Sum()) + added


def _sum(row: dict[str, Any]) -> costs.Sum:
    return costs.Sum(
        cost=Decimal(row["spent"]).quantize(costs.SMALLEST) if row["known"] else None,
        runs=row["runs"],
        tokens=row["said"],
        unknown=row["runs"] - row["known"],
        failed=row["failures"],
        rate_limited=row["waits"],
    )
