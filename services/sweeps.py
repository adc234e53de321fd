"""Level-triggered repairs of what runs. Those that touch processes are the worker's, for its own node."""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import orjson
from django.conf import settings
from django.db import connection, transaction
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.utils import timezone

from projects import importer, jobs
from projects.errors import Conflict
from projects.events import SWEEP, By
from projects.models import Project
from services import lifecycle, logs
from services.logs import rotation
from services.models import LOG_FOLDER, ManagedProcess, WorkerHost
from services.processes import Census, Identity, Verdict, boot_id
from services.states import GOING, LIVE, SILENT_AFTER, UP, Cause, HostStatus, Status
from services.supervisor import Supervisor

# A directory that is being moved or mounted is not removed.
REMOVED_AFTER = timedelta(seconds=30)
# By then a new worker has read the workspace in.
LOOKED_AFTER = timedelta(seconds=15)
SAMPLES = 120
# A log is older than its row's name by a moment when it is made.
UNNAMED_FOR_S = 60.0
log = logging.getLogger("andon.services")


def find_silent(*, now: datetime) -> int:
    """Tell of workers that ticked more than 15 s ago; every web process looks, since no worker may be left to."""
    late = WorkerHost.objects.filter(status=HostStatus.TICKING, tick_at__lt=now - SILENT_AFTER)
    return sum(lifecycle.silence(host, by=SWEEP, now=now) for host in late)


def adopt(supervisor: Supervisor, *, now: datetime) -> dict[str, int]:
    """Take over every live process of this node when its worker starts; nothing is started twice, nothing forgotten.

    Rows of another boot are lost. What lives without a row that speaks for it is ended. Returns counts.
    """
    rows = list(ManagedProcess.objects.filter(node=supervisor.node))
    living: list[ManagedProcess] = []
    lost = 0
    for row in rows:
        if row.status not in LIVE:
            continue
        if row.pid is not None and row.boot_id != boot_id():
            lost += _each(partial(lifecycle.lose, row, "the machine was restarted", by=SWEEP, now=now), row)
            continue
        if row.identity is not None and supervisor.take_over(row, row.identity) and row.status in UP:
            living.append(row)
    # Also what is older than the present leader: a life that was written off.
    census = supervisor.kernel.census([replace(supervisor.mark(row), since_ticks=0) for row in rows])
    stray = supervisor.end_strays(_strays(rows, census))
    lifecycle.adopt(living, by=SWEEP, now=now)
    for row in rows:
        if row.status in LIVE:
            supervisor.wake(row.pk)
    if stray:
        log.warning("ended %s processes that no row spoke for: %s", len(stray), stray)
    return {"adopted": len(living), "lost": lost, "strays": len(stray)}


def _strays(rows: Iterable[ManagedProcess], census: Census) -> list[Identity]:
    """Return the living members of rows that have ended, or of generations before the present one."""
    found: list[Identity] = []
    for row in rows:
        is_over = row.status not in LIVE or row.status == Status.BACKOFF
        for member in census.members.get(row.pk, ()):
            is_old = member.generation is not None and member.generation < row.generation
            if is_over or (is_old and row.status not in GOING):
                found.append(member.identity)
    return found


def detect_crashed(supervisor: Supervisor, *, now: datetime) -> int:
    """Find the dead that the watch missed: one read of /proc a row. Returns how many."""
    rows = ManagedProcess.objects.filter(node=supervisor.node, status__in=sorted(UP), pid__isnull=False)
    found = 0
    for pk, pid, ticks, boot in rows.values_list("pk", "pid", "start_ticks", "boot_id"):
        identity = Identity(supervisor.node, boot, pid or 0, ticks or 0)
        if supervisor.kernel.verdict(identity) is Verdict.GONE:
            supervisor.wake(pk)
            found += 1
    return found


def probe_due(supervisor: Supervisor, *, now: datetime) -> dict[str, int]:
    """Write what the last probes found and start those that are due. Returns counts."""
    written = supervisor.health.write(now=now)
    return {"written": written, "started": supervisor.health.probe(node=supervisor.node, now=now)}


def expire_due(supervisor: Supervisor, *, now: datetime) -> int:
    """Stop what has outlived its TTL and warn of what will in five minutes. Returns how many were stopped."""
    mine = ManagedProcess.objects.filter(node=supervisor.node)
    for row in mine.filter(warn_at__lte=now, status__in=sorted(LIVE)):
        _each(partial(lifecycle.warn, row, by=SWEEP, now=now), row)
    stopped = 0
    for row in mine.filter(expires_at__lte=now, status__in=sorted(LIVE - {Status.STOPPING})):
        stopped += _each(partial(lifecycle.stop, row, cause=Cause.TTL, by=SWEEP, now=now), row)
        supervisor.wake(row.pk)
    return stopped


def reconcile(supervisor: Supervisor, *, now: datetime) -> dict[str, int]:
    """Wake the supervisor for every row that asks for something, and stop what belongs to removed projects.

    Needs no memory: whatever a lost job or a killed worker left undone is seen here again. Returns counts.
    """
    mine = ManagedProcess.objects.filter(node=supervisor.node, status__in=sorted(LIVE))
    removed = _removed(supervisor, mine.order_by().values_list("project", flat=True).distinct(), now)
    stopped = 0
    for row in mine.filter(project__in=removed).exclude(status=Status.STOPPING):
        stopped += _each(partial(lifecycle.stop, row, cause=Cause.PROJECT_REMOVED, by=SWEEP, now=now), row)
    waiting = mine.filter(Q(status__in=[*sorted(GOING), Status.STARTING]) | Q(status=Status.BACKOFF, retry_at__lte=now))
    keys = list(waiting.values_list("pk", flat=True))
    for pk in keys:
        supervisor.wake(pk)
    return {"woken": len(keys), "removed": stopped}


def _removed(supervisor: Supervisor, slugs: Iterable[str], now: datetime) -> set[str]:
    """Return the projects whose directories are gone for 30 s; until this worker has surely looked, none are."""
    if now - supervisor.born_at < LOOKED_AFTER:
        return set()
    wanted = {slug for slug in slugs if slug}
    return wanted - set(_there(now).filter(slug__in=wanted).values_list("slug", flat=True))


def _there(now: datetime) -> QuerySet[Project]:
    return Project.objects.filter(Q(missing_since=None) | Q(missing_since__gt=now - REMOVED_AFTER))


def forgettable(now: datetime) -> QuerySet[ManagedProcess]:
    """Return what has ended in projects that were removed: each host's worker forgets its own."""
    over = ManagedProcess.objects.exclude(status__in=sorted(LIVE)).exclude(project="")
    return over.filter(~Exists(_there(now).filter(slug=OuterRef("project"))))


def remove_logs(supervisor: Supervisor, *, now: datetime) -> int:
    """Forget what ended in removed projects, and remove logs that no row names any more. Returns files removed."""
    forget_removed(supervisor, by=SWEEP, now=now)
    return remove_unnamed(now=now)


def forget_removed(supervisor: Supervisor, *, by: By, now: datetime) -> int:
    """Forget what ended on this node in projects that were removed. Returns how many."""
    ended = ManagedProcess.objects.filter(node=supervisor.node).exclude(status__in=sorted(LIVE))
    removed = _removed(supervisor, ended.order_by().values_list("project", flat=True).distinct(), now)
    return sum(_each(partial(lifecycle.erase, row, by=by, now=now), row) for row in ended.filter(project__in=removed))


def remove_unnamed(*, now: datetime) -> int:
    """Remove the logs on this host that no row names any more. Returns how many."""
    found = 0
    for name in unnamed_logs(now):
        try:
            logs.remove(LOG_FOLDER, name)
        except OSError as error:
            log.warning("%s: %s", name, error)
        else:
            found += 1
    return found


def unnamed_logs(now: datetime) -> set[str]:
    """Return the names of logs on this host that no row names any more, and nobody has written to for a minute."""
    if not (old := _old_logs(before=now.timestamp() - UNNAMED_FOR_S)):
        return set()
    return old - {f"{pk}-{name}.log" for pk, name in ManagedProcess.objects.values_list("pk", "name")}


def _old_logs(*, before: float) -> set[str]:
    """Return the names of logs that were last written before a moment, links themselves and not what they lead to."""
    found = set()
    with contextlib.suppress(FileNotFoundError), os.scandir(LOG_FOLDER) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                if entry.name.endswith(".log") and entry.stat(follow_symlinks=False).st_mtime < before:
                    found.add(entry.name)
    return found


def rotate_logs(*, node: str, now: datetime) -> int:
    """Hand logs that have grown over their limit to the second pool. Returns how many."""
    rows = ManagedProcess.objects.filter(node=node, status__in=sorted(LIVE))
    found = 0
    for row in rows.only("pk", "name", "log_head", "log_mode"):
        if logs.size(LOG_FOLDER, row.log_name, row.log_head) > rotation.LIMIT:
            jobs.submit(f"rotate:{row.pk}", rotate, row.pk)
            found += 1
    return found


def rotate(pk: int) -> None:
    """Rotate one log and keep where it begins now."""
    row = ManagedProcess.objects.only("pk", "name", "log_head", "log_mode").filter(pk=pk).first()
    if row is None:
        return
    done = logs.rotate(LOG_FOLDER, row.log_name, row.log_head)
    mode = row.log_mode if done.mode == "none" else done.mode
    if (done.head, mode) != (row.log_head, row.log_mode):
        ManagedProcess.objects.filter(pk=pk).update(log_head=done.head, log_mode=mode)
    if done.error:
        log.warning("the log %s: %s", row.log_name, done.error)


def sample_usage(supervisor: Supervisor, *, now: datetime) -> int:
    """Add processor time and memory of every live group to its last 120 samples. Returns how many groups."""
    rows = list(
        ManagedProcess.objects.filter(node=supervisor.node, status__in=sorted(LIVE), pid__isnull=False).defer("strip")
    )
    census = supervisor.kernel.census([supervisor.mark(row) for row in rows])
    groups = {pk: [member.identity.pid for member in members] for pk, members in census.members.items()}
    loads = supervisor.kernel.loads(groups)
    at = time.monotonic()
    written: list[tuple[Any, ...]] = []
    for row in rows:
        load = loads.get(row.pk)
        if load is None:
            continue
        before = supervisor.loads.get(row.pk)
        supervisor.loads[row.pk] = (row.generation, at, load.cpu_s)
        used = 0.0
        if before and before[0] == row.generation and at > before[1]:
            used = max(0.0, (load.cpu_s - before[2]) / (at - before[1]) * 100)
        samples = [*row.usage, [int(now.timestamp()), round(used, 1), load.rss]][-SAMPLES:]
        written.append((orjson.dumps(samples).decode(), row.pk, row.generation))
    for pk in supervisor.loads.keys() - {row.pk for row in rows}:
        supervisor.loads.pop(pk, None)
    if written:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.executemany(_USAGE, written)
    return len(written)


def _each(act: Callable[[], object], row: ManagedProcess) -> int:
    """Run one row's verb; one poison row never stops the rest. Returns 1 when it was done."""
    try:
        act()
    except Conflict:
        return 0  # it moved on by itself
    except Exception as error:
        log.exception("%s", row)
        # Clients see this, and the text of a database's error may hold the row's environment.
        told = f"internal: {type(error).__name__}; the worker's log says more"
        ManagedProcess.objects.filter(pk=row.pk).update(last_error=told)
        return 0
    return 1


_TABLE = ManagedProcess._meta.db_table  # noqa: SLF001 (Django's documented way to a table's name)
_USAGE = f"UPDATE {_TABLE} SET usage = %s WHERE id = %s AND generation = %s"  # noqa: S608 (constants only)


def import_loop(slug: str) -> None:
    """Have the project of a loop that began or ended looked at now; the importer tells of it."""
    for path in Project.objects.filter(slug=slug, node=settings.ANDON_NODE).values_list("path", flat=True):
        jobs.submit(f"import {path}", _import, path)


def _import(path: str) -> bool:
    return importer.import_project(path, now=timezone.now())
