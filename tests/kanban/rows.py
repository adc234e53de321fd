"""Tasks in every state, reached through the real verbs; their workers' processes are only played."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.db import connection
from django.utils import timezone

from kanban import lifecycle
from kanban.models import Link, Profile, Run, Task
from kanban.profiles import SHIPPED
from kanban.states import BlockKind, Status
from projects.events import SWEEP, By
from projects.models import Event
from projects.states import Via
from services import lifecycle as services
from services.models import ManagedProcess, WorkerHost
from services.processes import Identity
from tests.services.rows import BOOT, NODE, PIDS

ANNA = By("user:anna", Via.PAGE, "10.0.0.1")
AGENT = By("token:agent", Via.API, "10.0.0.2")
PER_HOST = 8
_names = itertools.count(1)


@dataclass
class Heard:
    """What the worker would have been told: processes to look at, runs that left something, that work is free."""

    told: list[ManagedProcess] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    freed: int = 0


def tick(now: datetime | None = None, *nodes: str) -> None:
    """Have a worker tick on nodes, ours when none is named; others stay as they are."""
    moment = now or timezone.now()
    for node in nodes or (NODE,):
        WorkerHost.objects.filter(node=node).delete()
        worker = Identity(node, BOOT, next(PIDS), 1)
        services.enlist(worker, host_name="box", version="1", by=SWEEP, now=moment)


def profile(name: str = "demo", **fields: Any) -> Profile:
    """Return a profile that can be started everywhere; a shipped one is there already, or made again."""
    shipped = SHIPPED.get(name, {"argv": ["agent", "{task_id}"]})
    made, _ = Profile.objects.get_or_create(name=name, defaults={**shipped, "enabled": True})
    for key, value in {"enabled": True, **fields}.items():
        setattr(made, key, value)
    made.save()
    return made


def task(title: str = "", *, by: By = ANNA, now: datetime | None = None, **fields: Any) -> Task:
    """Create a task; it is the demo profile's unless told otherwise."""
    fields.setdefault("assignee", "demo")
    return lifecycle.create(title or f"Task {next(_names)}", by=by, now=now or timezone.now(), **fields)


def claimed(of: Task | None = None, *, node: str = NODE, now: datetime | None = None, **fields: Any) -> Run:
    """Claim a task (a new one when none is given) for a worker of its profile, whose host ticks."""
    moment = now or timezone.now()
    of = of or task(now=moment, **fields)
    who = Profile.objects.filter(name=of.assignee).first() or profile(of.assignee)
    if who.concurrency < 1000:
        who = profile(who.name, concurrency=1000)
    tick(moment, node)
    run = lifecycle.claim(of, profile=who, node=node, per_host=1000, by=SWEEP, now=moment)
    of.refresh_from_db()
    return run


def spawned(run: Run, *, now: datetime | None = None) -> Run:
    """Have a run's process started."""
    assert run.process is not None
    identity = Identity(run.process.node, BOOT, next(PIDS), 7)
    services.spawned(process_of(run), identity, by=SWEEP, now=now or timezone.now())
    return fresh_run(run)


def started(of: Task | None = None, *, now: datetime | None = None, **fields: Any) -> Run:
    """Claim a task and have its worker started."""
    return spawned(claimed(of, now=now, **fields), now=now)


def pulled(of: Task | None = None, *, by: By = AGENT, now: datetime | None = None, **fields: Any) -> Run:
    """Claim a task for a pull worker elsewhere: no process, the lease decides."""
    moment = now or timezone.now()
    return lifecycle.claim(of or task(now=moment, **fields), by=by, now=moment)


def not_started(run: Run, reason: str = "no such program", *, now: datetime | None = None) -> Task:
    """Have a run's process fail to start."""
    services.fail(process_of(run), reason, by=SWEEP, now=now or timezone.now())
    return fresh(run.task)


def ended(run: Run, code: int | None = 0, *, tail: str = "", now: datetime | None = None) -> Task:
    """Have a run's process end, unasked or in the course of being stopped; returns its task."""
    row, moment = process_of(run), now or timezone.now()
    if row.status == "stopping":
        services.settle(row, code, by=SWEEP, now=moment)
    else:
        services.ended(row, code, members=[], tail=tail, jitter=0.0, by=SWEEP, now=moment)
    return fresh(run.task)


def stopped(run: Run, *, by: By = ANNA, now: datetime | None = None) -> Task:
    """Have somebody stop a run's process, until nothing is left."""
    moment = now or timezone.now()
    services.stop(process_of(run), by=by, now=moment)
    return ended(run, -15, now=moment)


def as_run(run: Run) -> By:
    """Return who acts with a run's token."""
    return By(f"run:{run}", Via.RUN, "127.0.0.1", str(run))


def process_of(run: Run) -> ManagedProcess:
    return ManagedProcess.objects.get(pk=run.process_id)


def fresh(of: Task) -> Task:
    return Task.objects.get(pk=of.pk)


def fresh_run(run: Run) -> Run:
    return Run.objects.select_related("task", "process").get(pk=run.pk)


def run_of(of: Task) -> Run:
    """Return a task's newest run."""
    return Run.objects.select_related("task", "process").filter(task=of).order_by("-number")[0]


def in_status(status: Status | str, *, now: datetime | None = None, **fields: Any) -> Task:
    """Return a task that came to a status through the real verbs; blocked = needs_input, running = with a worker."""
    moment = now or timezone.now()
    about: dict[str, Any] = {"by": ANNA, "now": moment}
    match Status(status):
        case Status.TRIAGE:
            made = task(triage=True, now=moment, **fields)
        case Status.TODO:
            made = task(parents=[task("A parent", assignee="", now=moment).pk], now=moment, **fields)
        case Status.READY:
            made = task(now=moment, **fields)
        case Status.RUNNING:
            made = fresh(started(task(now=moment, **fields), now=moment).task)
        case Status.REVIEW:
            run = started(task(now=moment, **fields), now=moment)
            made = lifecycle.request_review(run.task, summary="Look at it", by=as_run(run), now=moment)
            ended(run, now=moment)
        case Status.BLOCKED:
            made = lifecycle.block(task(now=moment, **fields), "Which colour?", **about)
        case Status.DONE:
            made = lifecycle.complete(task(now=moment, **fields), result="All well", **about)
        case Status.ARCHIVED:
            made = lifecycle.archive(task(now=moment, **fields), **about)
    made = fresh(made)
    assert made.status == status
    return made


def blocked(kind: BlockKind | str = BlockKind.NEEDS_INPUT, *, now: datetime | None = None, **fields: Any) -> Task:
    """Return a task that is blocked in one of the five ways."""
    moment = now or timezone.now()
    about: dict[str, Any] = {"by": ANNA, "now": moment}
    if kind == BlockKind.BREAKER:
        made = not_started(claimed(task(failure_limit=1, now=moment, **fields), now=moment), now=moment)
    elif kind == BlockKind.DEPENDENCY:
        run = pulled(task(now=moment, **fields), now=moment)
        lifecycle.link(task("A parent", assignee="", now=moment).pk, run.task_id, **about)
        made = lifecycle.block(run.task, "It waits", kind=kind, by=as_run(run), now=moment)
    else:
        made = lifecycle.block(task(now=moment, **fields), "It waits", kind=kind, **about)
    assert (made.status, made.block_kind) == (Status.BLOCKED, kind)
    return made


def linked(parent: Task, child: Task) -> None:
    lifecycle.link(parent.pk, child.pk, by=ANNA, now=timezone.now())


def expired(run: Run, *, now: datetime | None = None) -> datetime:
    """Return a moment at which the lease of a run is over, and its host still ticks."""
    until = fresh(run.task).lease_until
    assert until is not None
    moment = max(until, now or until) + timedelta(seconds=1)
    tick(moment, run.host or NODE)
    return moment


def commit() -> None:
    """Call what waits for the commit of a test's one transaction, and what waits for that."""
    while connection.run_on_commit:
        waiting, connection.run_on_commit = connection.run_on_commit, []
        for _, callback, *_ in waiting:
            callback()


def events(of: Task | str | None = None, since: int = 0) -> list[Event]:
    """Return a task's events, or all, oldest first."""
    rows = Event.objects.filter(pk__gt=since).order_by("pk")
    if of is not None:
        rows = rows.filter(subject=f"task:{of if isinstance(of, str) else of.pk}")
    return list(rows)


def kinds(of: Task | str | None = None, since: int = 0) -> list[str]:
    """Return the kinds of a task's events in order, without `task.`."""
    return [event.kind.removeprefix("task.") for event in events(of, since)]


def last(of: Task, kind: str) -> Event:
    """Return a task's last event, which has this kind."""
    event = events(of)[-1]
    assert event.kind == f"task.{kind}"
    return event


def head() -> int:
    return Event.objects.order_by("-pk").values_list("pk", flat=True).first() or 0


def everything() -> tuple[Any, ...]:
    """Return all rows of the board and the number of events: what a refusal must leave as it was."""
    found = []
    with connection.cursor() as cursor:
        for model in (Task, Run, Link, Profile, ManagedProcess):
            cursor.execute(f"SELECT * FROM {model._meta.db_table} ORDER BY id")
            found.append(cursor.fetchall())
    return (*found, head())


def unchanged(act: Callable[[], Any]) -> Any:
    """Assert that a call raises and changes nothing; returns what it raised."""
    before = everything()
    try:
        act()
    except Exception as refusal:
        assert everything() == before
        return refusal
    raise AssertionError("it was not refused")
