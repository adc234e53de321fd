"""Reads over what runs."""

import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from django.db import connection
from django.db.models import Case, Count, Model, QuerySet, Value, When

from projects.errors import Conflict, Missing, Rejected, Unavailable
from projects.models import Project
from projects.ralph import is_slug
from services.models import ManagedProcess, WorkerHost
from services.states import LIVE, HostStatus, Purpose, Status

Row = TypeVar("Row", bound=Model)
# Columns that only the worker and a process's own page need.
HEAVY = ("usage", "strip", "members", "exits", "env")
# Columns of which an item is made.
SHOWN = (
    *("name", "project", "purpose", "status", "pid", "generation", "owner_agent", "owner_wi", "attrs", "ports"),
    *("started_at", "expires_at", "last_health_at", "last_error", "exit_code", "exit_cause", "restarts"),
    *("cmd", "args", "cwd", "healthcheck", "env"),
)
# What has ended stays listed until it is erased: the newest of them, and all that live.
MOST_LISTED = 2000
_NAME = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


def hosts(now: datetime) -> list[WorkerHost]:
    """Return all worker hosts, by node, each with `shown`: its status as it is at `now`."""
    found = list(WorkerHost.objects.all())
    for host in found:
        host.shown = host.seen_at(now)
    return found


def need_worker(node: str, now: datetime) -> WorkerHost:
    """Return the host of a node; Unavailable `no-worker` when its worker does not tick: nothing would be done."""
    host = WorkerHost.objects.filter(node=node).first()
    if host is None or host.seen_at(now) != HostStatus.TICKING:
        raise Unavailable("no-worker", f"No worker ticks on {node}, so nothing was changed. Start Andon there.")
    return host


def processes(*, purpose: str = Purpose.SERVICE, project: str = "") -> QuerySet[ManagedProcess]:
    """Return managed processes by name; `purpose` "all" = of every purpose."""
    rows = ManagedProcess.objects.order_by("name", "project", "purpose")
    if purpose != "all":
        rows = rows.filter(purpose=purpose)
    return rows.filter(project=project) if project else rows


def by_name(name: str, *, project: str = "", purpose: str = Purpose.SERVICE) -> ManagedProcess:
    """Return the one process of a name.

    Raises Rejected `invalid-name` for what no name can be, Missing `not-found`, Conflict `ambiguous-name` with the
    `projects` when several have it and none was named.
    """
    if len(name) > 64 or not _NAME.fullmatch(name):
        raise Rejected("invalid-name", "A name has lower-case letters, digits and single dashes, at most 64.")
    found = list(processes(purpose=purpose, project=project).filter(name=name)[:51])
    if not found:
        where = f" in {project}" if project else ""
        raise Missing("not-found", f"No {'process' if purpose == 'all' else purpose} is named {name}{where}.")
    if len(found) > 1:
        names = sorted({row.project for row in found})
        raise Conflict("ambiguous-name", f"{name} exists in {', '.join(names)}. Say which project.", projects=names)
    return found[0]


def scope(project: str, visible_to: str) -> str:
    """Return the slug that a request is about: the one it names, else the one it is bound to, "" = all.

    Missing `not-found` for a project that nobody knows, not even by what ran there, or that is not to be seen.
    """
    if not project:
        return visible_to
    is_known = is_slug(project) and (not visible_to or project == visible_to)
    rows = (Project.objects.filter(slug=project), ManagedProcess.objects.filter(project=project))
    if not is_known or not any(found.exists() for found in rows):
        raise Missing("not-found", "No project has this slug.")
    return project


def listed(*, purpose: str = Purpose.SERVICE, project: str = "") -> list[ManagedProcess]:
    """Return processes as items need them, by name: all live ones, then the newest, 2,000 at most."""
    is_over = Case(When(status__in=LIVE, then=Value(0)), default=Value(1))
    rows = processes(purpose=purpose, project=project).only(*SHOWN).order_by(is_over, "-pk")[:MOST_LISTED]
    return sorted(rows, key=lambda row: (row.name, row.project, row.purpose))


def healthy(project: str) -> list[ManagedProcess]:
    """Return the healthy services of one project as items need them, by name."""
    return list(processes(project=project).filter(status=Status.HEALTHY).only(*SHOWN))


def item(row: ManagedProcess) -> dict[str, Any]:
    """Return a process as REST shows it; times are whole milliseconds since the epoch."""
    return {
        "name": row.name,
        "project": row.project,
        "purpose": row.purpose,
        "state": row.status,
        "pid": row.pid,
        "alive": row.pid is not None and row.status in LIVE,
        "healthy": row.status == Status.HEALTHY,
        "generation": row.generation,
        "owner_agent": row.owner_agent or None,
        "owner_wi": row.owner_wi or None,
        "owner_project": row.project or None,
        "attrs": row.attrs,
        "ports": row.ports,
        "started_at": epoch_ms(row.started_at),
        "ttl_expires_at": epoch_ms(row.expires_at),
        "last_health_at": epoch_ms(row.last_health_at),
        "last_error": row.last_error or None,
        "exit_code": row.exit_code,
        "exit_cause": row.exit_cause or None,
        "restarts": row.restarts,
        "log_path": row.log_path,
        "cmd": row.cmd,
        "args": shown_args(row),
        "cwd": row.cwd,
        "healthcheck": row.healthcheck,
        "env_keys": sorted(row.env),
    }


def shown_args(row: ManagedProcess) -> list[str]:
    """Return a process's arguments as everybody may see them: of a loop none, they are an administrator's."""
    return (["…"] if row.args else []) if row.purpose == Purpose.LOOP else row.args


def epoch_ms(moment: datetime | None) -> int | None:
    """Return a moment as whole milliseconds since the epoch."""
    return None if moment is None else (moment - _EPOCH) // _MILLISECOND


def awaited(rows: Sequence[Row], is_settled: Callable[[Row], bool], *, within_s: float) -> list[Row]:
    """Return rows of one model as they are once all are settled, or after `within_s` seconds.

    Looks at a few indexed rows, at most 20 ms apart at first and 200 ms later; outside any transaction.
    """
    deadline = time.monotonic() + within_s
    step = 0.02
    keys = [row.pk for row in rows]
    while True:
        found = type(rows[0])._default_manager.in_bulk(keys) if rows else {}  # noqa: SLF001 (its public name)
        fresh = [found.get(row.pk, row) for row in rows]
        if all(row.pk not in found or is_settled(row) for row in fresh) or time.monotonic() >= deadline:
            return fresh
        if connection.vendor == "postgresql" and not connection.in_atomic_block:
            # Back to the pool: many who wait must not keep all others from the database.
            connection.close()
        time.sleep(step)
        step = min(0.2, step * 1.3)


def is_started(row: ManagedProcess) -> bool:
    """Say whether a start has come out: there is a process, not one that is to be replaced, or it will not come."""
    return row.status not in LIVE or (row.pid is not None and row.status != Status.RESTARTING)


def counts() -> list[tuple[str, int]]:
    """Return (status, how many services are in it), every status; one query."""
    rows = ManagedProcess.objects.filter(purpose=Purpose.SERVICE).order_by()
    found = dict(rows.values_list("status").annotate(Count("id")))
    return [(str(status), found.get(status, 0)) for status in Status]
