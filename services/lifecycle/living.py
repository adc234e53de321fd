"""What happens to a managed process while it lives: spawned fail roll_back heal sicken extend warn adopt."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Q

from projects import lifecycle as projects
from projects.errors import Conflict
from projects.events import By, writing
from services.lifecycle.declaring import check_minutes, warning_of
from services.lifecycle.moves import locked, move, on_start, tell, tell_of_loop
from services.lifecycle.stopping import NO_PROCESS, OVER, again, again_later, stop
from services.models import ManagedProcess
from services.processes import Identity
from services.states import LIVE, Cause, Purpose, Restart, Status

MAX_LIFE = timedelta(minutes=1440)


def spawned(row: ManagedProcess, identity: Identity, *, by: By, now: datetime) -> None:
    """Record who was started. Conflict when the row was stopped or started anew meanwhile: then nothing is recorded.

    Records service.starting.
    """
    fields: dict[str, Any] = {
        "pid": identity.pid,
        "start_ticks": identity.start_ticks,
        "boot_id": identity.boot_id,
        "started_at": now,
        "last_error": "",
        "misses": 0,
        "passes": 0,
    }
    if row.purpose == Purpose.SERVICE:
        fields["health_by"] = now + timedelta(seconds=row.healthcheck["timeout_s"])
    verb = "spawn" if row.purpose == Purpose.SERVICE else "run"
    with writing():
        move(row, verb, now=now, by=by, **fields)
        tell(row, "starting", by=by, now=now)
        if row.purpose == Purpose.LOOP:
            projects.note_loop(
                row.project,
                {
                    "process": row.pk,
                    "pid": identity.pid,
                    "start_ticks": identity.start_ticks,
                    "boot_id": identity.boot_id,
                    "started_at": now.isoformat(),
                    "by": row.declared_by,
                },
            )
            tell_of_loop(row)
        if tell_start := on_start.get(row.purpose):
            tell_start(row, by, now)


def fail(row: ManagedProcess, reason: str, *, jitter: float = 0.0, by: By, now: datetime) -> None:
    """Record that a process could not be started, and why. Conflict when it was, meanwhile.

    One that its policy was bringing back is tried again by the same policy. Records service.failed, then as `ended`.
    """
    not_there = Q(pid__isnull=True)
    with writing():
        if row.attempt:
            again_later(row, reason, jitter=jitter, by=by, now=now, only=not_there)
            return
        fields = {**NO_PROCESS, **OVER, "last_error": reason, "ended_at": now}
        move(row, "fail", now=now, by=by, only=not_there, **fields)
        tell(row, "failed", by=by, now=now, reason=reason)


def roll_back(row: ManagedProcess, *, by: By, now: datetime) -> list[ManagedProcess]:
    """End all that was declared together with a service that could not be started; returns those to be stopped.

    Nothing when it had been started before: then the declaration came out well.
    """
    if not row.batch or row.started_at is not None:
        return []
    going = []
    reason = f"rolled back: {row.name} could not be started"
    with writing():
        siblings = (
            ManagedProcess.objects.select_for_update().filter(batch=row.batch, status__in=LIVE).exclude(pk=row.pk)
        )
        for sibling in siblings.exclude(status=Status.STOPPING):
            if sibling.status == Status.STARTING and sibling.pid is None:
                fail(sibling, reason, by=by, now=now)
            else:
                stop(sibling, cause=Cause.CRASH, reason=reason, by=by, now=now)
                going.append(sibling)
    return going


def heal(row: ManagedProcess, *, passes: int = 1, next_probe_at: datetime, by: By, now: datetime) -> None:
    """Mark a service healthy: its first success, or enough of them after it had failed. Records service.healthy."""
    with writing():
        first = row.status == Status.STARTING
        fields: dict[str, Any] = {"passes": passes, "misses": 0, "last_health_at": now, "next_probe_at": next_probe_at}
        move(row, "heal", now=now, by=by, health_by=None, last_error="", **fields)
        tell(row, "healthy", by=by, now=now, after_s=_age(row, now) if first else None)


def sicken(row: ManagedProcess, reason: str, *, misses: int, jitter: float, by: By, now: datetime) -> None:
    """Mark a service unhealthy after as many misses as it allows; one that restarts itself is then restarted.

    Records service.unhealthy, and what `again` records.
    """
    with writing():
        move(row, "sicken", now=now, by=by, misses=misses, passes=0, last_error=reason)
        tell(row, "unhealthy", by=by, now=now, reason=reason, misses=misses)
        if row.restart != Restart.NEVER:
            again(row, reason=reason, jitter=jitter, by=by, now=now)


def extend(
    row: ManagedProcess, minutes: int, *, by: By, now: datetime, expected_generation: int | None = None
) -> ManagedProcess:
    """Move the expiry on by `minutes`, to at most 1440 from now.

    Refuses what has ended or has no TTL (Conflict `not-live`, `no-ttl`), and less than a minute (Rejected).
    Records service.extended with the old and the new expiry.
    """
    check_minutes(minutes)
    with writing():
        row = locked(row, expected_generation)
        if row.status not in LIVE - {Status.STOPPING}:
            raise Conflict("not-live", f"{row} is {row.status}; there is nothing to extend.")
        if row.expires_at is None:
            raise Conflict("no-ttl", f"{row} has no expiry.")
        before = row.expires_at
        longer = max(before, now) + timedelta(minutes=min(minutes, 1440))
        row.expires_at = max(before, min(longer, now + MAX_LIFE))
        row.warn_at = warning_of(row.expires_at, now)
        ManagedProcess.objects.filter(pk=row.pk).update(expires_at=row.expires_at, warn_at=row.warn_at)
        tell(row, "extended", by=by, now=now, before=before.isoformat(), expires_at=row.expires_at.isoformat())
    return row


def warn(row: ManagedProcess, *, by: By, now: datetime) -> None:
    """Say once that a service expires in five minutes. Records service.expiring."""
    with writing():
        rows = ManagedProcess.objects.filter(pk=row.pk, warn_at__lte=now, status__in=LIVE)
        if rows.update(warn_at=None) and row.expires_at is not None:
            tell(row, "expiring", by=by, now=now, expires_at=row.expires_at.isoformat())


def adopt(rows: Sequence[ManagedProcess], *, by: By, now: datetime) -> None:
    """Tell that a new worker has taken over these live processes; they are what they were. Records service.adopted."""
    with writing():
        for row in rows:
            tell(row, "adopted", by=by, now=now)


def _age(row: ManagedProcess, now: datetime) -> float | None:
    return round((now - row.started_at).total_seconds(), 2) if row.started_at else None
