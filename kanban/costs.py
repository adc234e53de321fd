"""What attempts at tasks have cost: those that ended, by when they ended. One that told no cost is unknown, never 0."""

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from django.db.models import Count, Q, QuerySet, Sum

from kanban.models import Run
from kanban.states import COUNTED, Outcome
from projects import costs
from projects.days import Window, day_of, read_day

# What went wrong, whether or not it counts against the task.
FAILED = frozenset({*COUNTED, Outcome.FAILED})
# What is told when an attempt ends, or its process after it, which may tell what it cost.
ENDS = tuple(
    f"task.{what}"
    for what in (
        *("completed", "blocked", "crashed", "timed_out", "rate_limited", "protocol_violation", "review_requested"),
        *("reclaimed", "archived", "gave_up", "forced", "exited"),
    )
)


def attempts(project: str = "") -> QuerySet[Run]:
    """Return the attempts that have ended, of a project by its slug, "" = of all. Without a worker there was none."""
    rows = Run.objects.order_by().filter(ended_at__isnull=False).exclude(outcome=Outcome.SPAWN_FAILED)
    return rows.filter(task__project=project) if project else rows


def within(rows: QuerySet[Run], span: Window) -> QuerySet[Run]:
    """Return those that ended in a window."""
    return rows.filter(ended_at__gte=span.start, ended_at__lt=span.end)


def beside(span: Window, project: str = "") -> costs.Beside:
    """Return what stands beside the costs of loops, in two queries: by day, and by project and profile."""
    found = costs.Beside()
    inside: QuerySet[Any, Any] = within(attempts(project), span).annotate(day=day_of(span, "ended_at"))
    for row in inside.values("day").annotate(**_sums()):
        found.by_day[read_day(row["day"])] = _sum(row)
    ever: QuerySet[Any, Any] = attempts()
    recent = Q(ended_at__gte=span.start, ended_at__lt=span.end)
    sums = {**_sums(), **_sums("recent_", recent)}
    for row in ever.values("task__project", "profile").annotate(**sums):
        slug = row["task__project"]
        found.known.add(slug)
        if project not in {"", slug}:
            continue
        _add(found.ever, slug, _sum(row))
        if row["recent_runs"]:
            added = _sum(row, "recent_")
            _add(found.by_project, slug, added)
            _add(found.by_profile, row["profile"], added)
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


def _sums(prefix: str = "", where: Q | None = None) -> dict[str, Any]:
    """Return what is added up, of those that fit `where`, under names that begin with `prefix`."""
    where = where or Q()
    return {
        f"{prefix}spent": Sum("cost_usd", filter=where),
        f"{prefix}runs": Count("pk", filter=where),
        f"{prefix}known": Count("cost_usd", filter=where),
        f"{prefix}said": Sum("tokens", filter=where),
        f"{prefix}failures": Count("pk", filter=where & Q(outcome__in=sorted(FAILED))),
        f"{prefix}waits": Count("pk", filter=where & Q(outcome=Outcome.RATE_LIMITED)),
    }


def _sum(row: dict[str, Any], prefix: str = "") -> costs.Sum:
    told = {name: row[f"{prefix}{name}"] for name in ("spent", "runs", "known", "said", "failures", "waits")}
    return costs.Sum(
        cost=Decimal(told["spent"]).quantize(costs.SMALLEST) if told["known"] else None,
        runs=told["runs"],
        tokens=told["said"],
        unknown=told["runs"] - told["known"],
        failed=told["failures"],
        rate_limited=told["waits"],
    )
