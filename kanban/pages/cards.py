"""One card: what a person sees of a task on the board, made of its row, its marks and its run."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.db.models import CharField, Count, Q, Value
from django.db.models.functions import Cast
from django.utils import timezone
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from kanban.models import LINGERING, Comment, Link, Profile, Run, Task
from kanban.states import CLOSED, FAILURE_LIMIT, STRANDED_AFTER, BlockKind, Phase, Status
from projects.models import Project
from services.states import LIVE

Text = str | Promise
# (amber, red) since its status changed; of a running task since anything was heard of it.
STALE_AFTER: dict[str, tuple[timedelta, timedelta]] = {
    Status.TODO: (timedelta(days=7), timedelta(days=30)),
    Status.READY: (timedelta(hours=1), timedelta(hours=24)),
    Status.RUNNING: (timedelta(minutes=10), timedelta(minutes=60)),
    Status.BLOCKED: (timedelta(hours=1), timedelta(hours=24)),
}
HEAVY = ("body", "result")
BLOCKS: dict[str, tuple[str, Text]] = {
    BlockKind.NEEDS_INPUT: ("blocked", gettext_lazy("Waits for you")),
    BlockKind.CAPABILITY: ("blocked", gettext_lazy("Needs what it cannot do")),
    BlockKind.BREAKER: ("breaker", gettext_lazy("Breaker open")),
    BlockKind.DEPENDENCY: ("queued", gettext_lazy("Waits for its parents")),
    BlockKind.TRANSIENT: ("waiting", gettext_lazy("Tries again by itself")),
}


@dataclass(slots=True)
class Marks:
    """What is counted of one task: links (all and closed) and comments."""

    parents: int = 0
    parents_closed: int = 0
    children: int = 0
    children_closed: int = 0
    comments: int = 0


@dataclass(frozen=True, slots=True)
class Chip:
    """A state beside the column's: the shape and colour of `status`, a word, and a moment it speaks of."""

    status: str
    label: Text
    at: datetime | None = None


@dataclass(slots=True)
class Card:
    """`level` is "", warn or bad; `quiet` how long nothing happened, in one unit; `heard_at` the run's liveness."""

    task: Task
    seen: str
    level: str = ""
    quiet: str = ""
    chips: list[Chip] = field(default_factory=list)
    marks: Marks = field(default_factory=Marks)
    limit: int = FAILURE_LIMIT
    run: Run | None = None
    heard_at: datetime | None = None
    reason: str = ""


def seen(task: Task) -> str:
    """Return what a form carries of a task's state, so that a later one is noticed: `ready.1764348000000000`."""
    return f"{task.status}.{int(task.since.timestamp() * 1_000_000)}"


def cards(rows: Iterable[Task], profiles: Mapping[str, Profile], nodes: Iterable[str], now: datetime) -> list[Card]:
    """Return cards for rows; three queries, for their marks, their runs and where ready ones are to be done."""
    tasks = list(rows)
    keys = [task.pk for task in tasks]
    counted, runs, lingering = marks(keys), *_runs(tasks)
    ticking, places = list(nodes), _places(tasks)
    return [
        _card(
            task,
            counted.get(task.pk, Marks()),
            runs.get(task.pk),
            profiles,
            is_lingering=task.pk in lingering,
            stranded=why_nobody(task, profiles.get(task.assignee), ticking, places),
            now=now,
        )
        for task in tasks
    ]


def marks(keys: list[str]) -> dict[str, Marks]:
    """Count links and comments of tasks; one query."""
    found: dict[str, Marks] = {}
    if not keys:
        return found
    closed = sorted(CLOSED)
    kind = {name: Cast(Value(name), CharField(max_length=1)) for name in ("p", "c", "m")}
    up = Link.objects.filter(child__in=keys).order_by().values_list("child_id", kind["p"])
    down = Link.objects.filter(parent__in=keys).order_by().values_list("parent_id", kind["c"])
    said = Comment.objects.filter(task__in=keys).order_by().values_list("task_id", kind["m"])
    rows = up.annotate(n=Count("pk"), closed=Count("pk", filter=Q(parent__status__in=closed))).union(
        down.annotate(n=Count("pk"), closed=Count("pk", filter=Q(child__status__in=closed))),
        said.annotate(n=Count("pk"), closed=Count("pk", filter=Q(pk__lt=0))),
        all=True,
    )
    for key, which, number, done in rows:
        mark = found.setdefault(key, Marks())
        if which == "p":
            mark.parents, mark.parents_closed = number, done
        elif which == "c":
            mark.children, mark.children_closed = number, done
        else:
            mark.comments = number
    return found


def _runs(tasks: list[Task]) -> tuple[dict[str, Run], set[str]]:
    """Return current runs, and the tasks whose old worker is not verified gone; one query at most."""
    keys = [task.pk for task in tasks if task.status not in CLOSED]
    if not keys:
        return {}, set()
    rows = Run.objects.filter(Q(ended_at=None) | LINGERING, task__in=keys).select_related("process")
    rows = rows.defer("result", "summary", "error", "process__env", "process__usage", "process__strip")
    runs: dict[str, Run] = {}
    lingering = set()
    for run in rows:
        if run.ended_at is None:
            runs[run.task_id] = run
        elif run.process is not None and run.process.status in LIVE:
            lingering.add(run.task_id)
    return runs, lingering


def _places(tasks: list[Task]) -> dict[str, str]:
    """Return the nodes of the projects that are there, of ready tasks; one query at most."""
    slugs = {task.project for task in tasks if task.status == Status.READY and task.project}
    rows = Project.objects.filter(slug__in=slugs, missing_since=None)
    return dict(rows.values_list("slug", "node")) if slugs else {}


def _card(
    task: Task,
    mark: Marks,
    run: Run | None,
    profiles: Mapping[str, Profile],
    *,
    is_lingering: bool,
    stranded: str,
    now: datetime,
) -> Card:
    profile = profiles.get(task.assignee)
    card = Card(task, seen(task), marks=mark, run=run, limit=limit_of(task, profile))
    card.level, card.quiet = staleness(task, now)
    if task.status == Status.RUNNING:
        card.heard_at = (run.heartbeat_at if run else None) or task.active_at
        _mark_running(card, task, run)
    elif task.status == Status.BLOCKED:
        status, label = BLOCKS.get(task.block_kind, ("blocked", task.block_kind))
        card.chips.append(Chip(status, label, task.unblock_at))
        is_broken = task.block_kind == BlockKind.BREAKER
        card.reason = task.block_reason.partition("\n")[0] if is_broken else task.block_reason
    elif task.status == Status.READY:
        _mark_ready(card, task, profile, stranded=stranded, now=now)
    elif task.status == Status.TODO and task.held:
        card.chips.append(Chip("stopped", _("Held")))
    if is_lingering:
        card.chips.append(Chip("stopping", _("Stopping the old worker")))
    if task.failures and not card.reason:
        card.reason = task.last_error.partition("\n")[0]
    return card


def _mark_running(card: Card, task: Task, run: Run | None) -> None:
    if task.phase == Phase.SERVICES:
        card.chips.append(Chip("waiting", _("Waits for its services")))
    elif task.phase == Phase.READING:
        card.chips.append(Chip("waiting", _("Its result is being read")))
    elif run is not None and run.has_process and run.spawned_at is None:
        card.chips.append(Chip("starting", _("Starting")))


def _mark_ready(card: Card, task: Task, profile: Profile | None, *, stranded: str, now: datetime) -> None:
    if task.not_before is not None and task.not_before > now:
        card.chips.append(Chip("waiting", _("Waits for quota"), task.not_before))
    if profile is not None and profile.paused_at is not None:
        card.chips.append(Chip("paused", _("Profile paused")))
    elif stranded and now - task.since >= STRANDED_AFTER:
        card.chips.append(Chip("stalled", stranded))
    if task.parents_waived:
        card.chips.append(Chip("stopped", _("Parents waived")))


def why_nobody(task: Task, profile: Profile | None, ticking: Collection[str], places: Mapping[str, str]) -> str:
    """Say why nobody will do a ready task: `places` are the nodes of projects; "" when somebody will."""
    if not task.assignee:
        return _("Stranded: nobody's")
    if profile is None:
        return _("Stranded: no such profile")
    if task.project and task.project not in places:
        return _("Stranded: its project is not there")
    if task.project and places[task.project] not in ticking:
        return _("Stranded: its project's host is silent")
    nodes = [places[task.project]] if task.project else ticking
    return "" if any(profile.can_spawn(node) for node in nodes) else _("Stranded: its agent is not there")


def limit_of(task: Task, profile: Profile | None) -> int:
    """Return how many failures a task is allowed."""
    return task.failure_limit or (profile.failure_limit if profile else None) or FAILURE_LIMIT


def staleness(task: Task, now: datetime) -> tuple[str, str]:
    """Return how stale a task is ("", warn, bad) and how long nothing happened, "" when it is not."""
    if task.status not in STALE_AFTER:
        return "", ""
    away = now - (task.active_at if task.status == Status.RUNNING else task.since)
    amber, red = STALE_AFTER[task.status]
    if away < amber:
        return "", ""
    return ("bad" if away >= red else "warn"), brief(away)


def brief(away: timedelta) -> str:
    """Return a length of time in its greatest unit: `14 min`."""
    seconds = max(0, int(away.total_seconds()))
    for size, unit in ((86400, _("d")), (3600, _("h")), (60, _("min"))):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} {_('s')}"


def local(at: datetime) -> str:
    return timezone.localtime(at).strftime("%H:%M")


def as_rows(cards_: list[Card]) -> list[dict[str, Any]]:
    """Group running cards by who does them: [{name, cards}], by name."""
    groups: dict[str, list[Card]] = {}
    for card in cards_:
        groups.setdefault(card.task.assignee, []).append(card)
    return [{"name": name, "cards": each} for name, each in sorted(groups.items())]
