"""Verbs over what runs. A host's worker: enlist, beat, silence, leave."""

from datetime import datetime, timedelta
from typing import Any

from django.db.models import Q

from projects.errors import Conflict
from projects.events import By, record, writing
from projects.models import Project
from services.models import WorkerHost
from services.processes import Identity, Verdict, verdict
from services.states import HOST_MOVES, SILENT_AFTER, HostStatus

TOLD_EVERY = timedelta(seconds=60)


def enlist(identity: Identity, *, host_name: str, version: str, by: By, now: datetime) -> WorkerHost:
    """Take the node's lease for a starting worker.

    Refuses (Conflict `node-taken`) while another process ticked on this node within 15 s: the caller makes sure
    with a file lock that it is not merely the same home started twice. Records worker.started.
    """
    fresh: dict[str, Any] = {
        "pid": identity.pid,
        "start_ticks": identity.start_ticks,
        "boot_id": identity.boot_id,
        "host_name": host_name,
        "version": version,
        "started_at": now,
        "tick_at": now,
        "told_at": now,
        "jobs": {},
        "watching": "",
    }
    before = WorkerHost.objects.filter(node=identity.host).first()
    taken = before is not None and _is_held_by_another(before, identity, now)
    with writing():
        host = WorkerHost.objects.select_for_update().filter(node=identity.host).first()
        if host is None:
            host = WorkerHost.objects.create(node=identity.host, status=HostStatus.TICKING, **fresh)
        elif taken or before is None or before.pid != host.pid:
            raise Conflict(
                "node-taken",
                f"A worker with pid {host.pid} on {host.host_name} ticks for node {host.node}. "
                "Stop it, or set ANDON_NODE to another name here.",
            )
        else:
            _move(host, "enlist", **fresh)
        record("worker.started", host.subject, by=by, now=now, pid=identity.pid, version=version)
    return host


def beat(host: WorkerHost, *, jobs: dict[str, Any], watching: str, by: By, now: datetime) -> None:
    """Say that the worker ticks.

    Refuses (Conflict `lease-lost`) once another worker has enlisted. Records worker.recovered after a silence,
    worker.heartbeat at most once a minute.
    """
    with writing():
        current = WorkerHost.objects.filter(_lease(host)).first()
        if current is None:
            raise Conflict("lease-lost", f"Another worker has taken the lease of node {host.node}.")
        tell = now - current.told_at >= TOLD_EVERY or watching != current.watching
        fields: dict[str, Any] = {
            "tick_at": now,
            "jobs": jobs,
            "watching": watching,
            "told_at": now if tell else current.told_at,
        }
        if current.status == HostStatus.SILENT:
            _move(current, "recover", **fields)
            record("worker.recovered", current.subject, by=by, now=now)
            return
        WorkerHost.objects.filter(_lease(host)).update(**fields)
        if tell:
            record("worker.heartbeat", current.subject, by=by, now=now, watching=watching)


def silence(host: WorkerHost, *, by: By, now: datetime) -> bool:
    """Mark a worker whose last tick is older than 15 s; of several web processes one tells. Records worker.silent."""
    with writing():
        try:
            _move(host, "silence", only=Q(tick_at__lt=now - SILENT_AFTER))
        except Conflict:
            return False
        record("worker.silent", host.subject, by=by, now=now, last_tick=host.tick_at.isoformat())
    return True


def leave(host: WorkerHost, *, by: By, now: datetime) -> None:
    """Give the node's lease back when a worker stops in order. Records worker.stopped."""
    with writing():
        _move(host, "leave", only=_lease(host))
        record("worker.stopped", host.subject, by=by, now=now)


def forget(host: WorkerHost, *, by: By, now: datetime) -> int:
    """Remove a host that will not come back, with what it had read of its projects; returns how many those were.

    Refuses (Conflict) one that ticks. Files are not touched: a worker that sees them reads them anew, under the
    slugs that become free. Records worker.forgotten.
    """
    with writing():
        away = Q(status=HostStatus.STOPPED) | Q(tick_at__lt=now - SILENT_AFTER)
        if not WorkerHost.objects.filter(away, pk=host.pk).delete()[0]:
            raise Conflict("host-ticks", f"The worker of {host.node} ticks. Stop it first.")
        projects = Project.objects.filter(node=host.node).delete()[1].get("projects.Project", 0)
        record("worker.forgotten", f"worker:{host.node}", by=by, now=now, projects=projects)
    return projects


def _lease(host: WorkerHost) -> Q:
    """Match the row as long as it is this very process's."""
    return Q(pk=host.pk, pid=host.pid, start_ticks=host.start_ticks, boot_id=host.boot_id)


def _is_held_by_another(host: WorkerHost, identity: Identity, now: datetime) -> bool:
    """Say whether another process holds the lease: it ticked within 15 s, and is not known to be gone.

    Only a process of this boot can be looked up here; one of another boot may be another machine of that name.
    """
    holder = Identity(host.node, host.boot_id, host.pid, host.start_ticks)
    if holder == identity or host.status != HostStatus.TICKING or now - host.tick_at >= SILENT_AFTER:
        return False
    return host.boot_id != identity.boot_id or verdict(holder, host.node) is not Verdict.GONE


def _move(host: WorkerHost, verb: str, *, only: Q | None = None, **fields: Any) -> None:
    """The only writer of `status`: compare-and-swap along HOST_MOVES; Conflict when the row is elsewhere."""
    sources, target = HOST_MOVES[verb]
    rows = WorkerHost.objects.filter(only or Q(), pk=host.pk, status__in=sources)
    if not rows.update(status=target, **fields):
        raise Conflict("illegal-transition", f"{host.node} cannot {verb} as {host.status}.")
    host.status = target
    for name, value in fields.items():
        setattr(host, name, value)
