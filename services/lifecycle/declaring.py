"""How a managed process comes to be wanted: declare reject launch start erase."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Q

from projects.errors import Conflict, Rejected
from projects.events import By, record, writing
from projects.models import Project
from services import queries
from services.lifecycle.moves import locked, move, need_service, tell
from services.models import SPEC_FIELDS, ManagedProcess, WorkerHost
from services.specs import reasons
from services.states import LIVE, Cause, Purpose, Status

WARN_BEFORE = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Quotas:
    """How many services may live in one project and on one host."""

    project: int = 50
    host: int = 500


@dataclass(frozen=True, slots=True)
class Declared:
    """What became of a spec file: all its rows in order, those of them that are to be started, and what to know."""

    rows: list[ManagedProcess]
    fresh: list[ManagedProcess]
    warnings: list[str] = field(default_factory=list)


def declare(
    project: Project,
    specs: Sequence[Mapping[str, Any]],
    *,
    agent: str = "",
    wi: str = "",
    quotas: Quotas,
    by: By,
    now: datetime,
) -> Declared:
    """Reserve all services of one validated spec file, or none.

    A live one of the same spec is kept, one of the same `wi` and another spec is replaced (stopped, then started
    with the new one). Refuses with Unavailable `no-worker`, and Conflict `name-already-active`, `port-conflict`,
    `quota-exceeded`, `project-missing`; its detail is the exact reason. Records service.declared for each new one.
    """
    _need_directory(project)
    batch = secrets.token_hex(8)
    rows: list[ManagedProcess] = []
    fresh: list[ManagedProcess] = []
    is_more = False
    warnings: list[str] = []
    with writing():
        lock_host(project.node, now)
        names = [spec["name"] for spec in specs]
        known = {
            row.name: row
            for row in ManagedProcess.objects.filter(project=project.slug, purpose=Purpose.SERVICE, name__in=names)
        }
        kept = {row.name for spec in specs if (row := known.get(spec["name"])) is not None and _is_kept(row, spec)}
        taken = _declared_ports(project.node, leave_out={row.pk for row in known.values() if row.name not in kept})
        for position, spec in enumerate(specs):
            row = known.get(spec["name"])
            if row is not None and row.name in kept:
                warnings.append(reasons.already_running(row.name))
                rows.append(row)
                continue
            for port in spec["ports"]:
                if port in taken:
                    raise Conflict("port-conflict", reasons.port_conflict(port, taken[port]))
                taken[port] = f"{project.slug}/{spec['name']}"
            about = {
                **{name: spec[name] for name in SPEC_FIELDS},
                "owner_agent": agent,
                "owner_wi": wi,
                "declared_by": by.name,
                "declared_at": now,
                "batch": batch,
                "position": position,
            }
            if row is not None and row.is_live:
                row = _replace(row, about, wi=wi, by=by, now=now)
            else:
                named = {"name": spec["name"], "purpose": Purpose.SERVICE}
                named |= {"project": project.slug, "node": project.node}
                row = _reserve(row, named, about, by=by, now=now)
                is_more = True
            fresh.append(row)
            rows.append(row)
        if is_more:
            _check_quotas(project.slug, project.node, quotas)
    return Declared(rows, fresh, warnings)


def _is_kept(row: ManagedProcess, spec: Mapping[str, Any]) -> bool:
    """Say whether a row is what a spec asks for already."""
    return row.is_live and row.status != Status.STOPPING and row.spec == dict(spec)


def reject(project: Project, reason: str, *, wi: str = "", by: By, now: datetime) -> None:
    """Tell that a declaration was refused: the exact reason, nothing else of its content. Records service.rejected."""
    with writing():
        record(
            "service.rejected", project.subject, by=by, now=now, project=project.slug, reason=reason, owner=wi or None
        )


def launch(
    project: Project | None,
    name: str,
    purpose: Purpose,
    *,
    argv: Sequence[str],
    cwd: str,
    env: Mapping[str, str],
    stop_grace_s: int = 10,
    node: str = "",
    by: By,
    now: datetime,
) -> ManagedProcess:
    """Reserve one kanban worker or loop: it has no TTL, no probe and is never started again by itself.

    It runs on its project's node; without a project on `node`. Refuses with Unavailable `no-worker`, Conflict
    `project-missing` and `name-already-active`.
    """
    if project is not None:
        _need_directory(project)
        node = project.node
    slug = project.slug if project is not None else ""
    about = {
        "cmd": argv[0],
        "args": list(argv[1:]),
        "cwd": cwd,
        "env": dict(env),
        "stop_grace_s": stop_grace_s,
        "declared_by": by.name,
        "declared_at": now,
    }
    with writing():
        lock_host(node, now)
        row = ManagedProcess.objects.filter(project=slug, purpose=purpose, name=name).first()
        if row is not None and row.is_live:
            raise Conflict("name-already-active", reasons.name_already_active(name))
        named = {"project": slug, "name": name, "purpose": purpose, "node": node}
        return _reserve(row, named, about, by=by, now=now)


def start(
    row: ManagedProcess, *, quotas: Quotas, by: By, now: datetime, expected_generation: int | None = None
) -> ManagedProcess:
    """Start a service that has ended, with a new TTL; one in back-off is tried at once. A person's start never counts.

    Refuses with Unavailable `no-worker`, Conflict `already-live`, `generation-changed`, `port-conflict`,
    `quota-exceeded`, `not-a-service`. Records service.declared, or service.restarting for one in back-off.
    """
    need_service(row)
    with writing():
        lock_host(row.node, now)
        row = locked(row, expected_generation)
        if row.status == Status.BACKOFF:
            ManagedProcess.objects.filter(pk=row.pk).update(retry_at=now, crashes=[], attempt=0)
            row.retry_at, row.crashes, row.attempt = now, [], 0
            tell(row, "restarting", by=by, now=now, cause=Cause.USER)
            return row
        if row.is_live:
            raise Conflict("already-live", f"{row} is {row.status} already.")
        taken = _declared_ports(row.node, leave_out={row.pk})
        for port in row.ports:
            if port in taken:
                raise Conflict("port-conflict", reasons.port_conflict(port, taken[port]))
        row = _reserve(row, {"node": row.node}, {"batch": "", "position": 0}, by=by, now=now)
        _check_quotas(row.project, row.node, quotas)
    return row


def erase(row: ManagedProcess, *, by: By, now: datetime) -> None:
    """Forget a process that has ended; its log is removed by its node's worker. Conflict while it lives.

    Records service.erased.
    """
    with writing():
        if not ManagedProcess.objects.filter(~Q(status__in=LIVE), pk=row.pk).delete()[0]:
            raise Conflict("still-live", f"{row} is {row.status}. Stop it first.")
        tell(row, "erased", by=by, now=now)


def _reserve(
    row: ManagedProcess | None, name: dict[str, str], about: Mapping[str, Any], *, by: By, now: datetime
) -> ManagedProcess:
    ttl = about.get("ttl_minutes", row.ttl_minutes if row else None)
    fields = {**_fresh(ttl, now), **about}
    if row is None:
        row = ManagedProcess.objects.create(**name, status=Status.STARTING, since=now, **fields)
    else:
        move(row, "start", now=now, by=by, start=True, node=name["node"], **fields)
    tell(row, "declared", by=by, now=now, cmd=row.cmd, ports=row.ports or None, owner=row.owner_wi or None)
    return row


def _fresh(ttl_minutes: int | None, now: datetime) -> dict[str, Any]:
    """Return the fields of a life that begins."""
    expires_at = now + timedelta(minutes=ttl_minutes) if ttl_minutes else None
    return {
        "expires_at": expires_at,
        "warn_at": warning_of(expires_at, now),
        **dict.fromkeys(("started_at", "ended_at", "exit_code", "retry_at", "term_at", "kill_at"), None),
        **dict.fromkeys(("health_by", "next_probe_at", "last_health_at"), None),
        **dict.fromkeys(("outcome", "exit_cause", "last_error"), ""),
        **{name: [] for name in ("crashes", "members", "left", "strip", "usage")},
        **dict.fromkeys(("restarts", "attempt", "misses", "passes"), 0),
    }


def warning_of(expires_at: datetime | None, now: datetime) -> datetime | None:
    """Return when to say that the end is near: 5 minutes before, None for what ends sooner."""
    warn_at = expires_at - WARN_BEFORE if expires_at else None
    return warn_at if warn_at and warn_at > now else None


def _replace(row: ManagedProcess, about: Mapping[str, Any], *, wi: str, by: By, now: datetime) -> ManagedProcess:
    if row.status == Status.STOPPING or not wi or row.owner_wi != wi:
        raise Conflict("name-already-active", reasons.name_already_active(row.name))
    expires_at = now + timedelta(minutes=about["ttl_minutes"])
    fields: dict[str, Any] = {**about, "expires_at": expires_at, "warn_at": warning_of(expires_at, now), "batch": ""}
    fields |= {"crashes": [], "attempt": 0, "outcome": Status.STARTING, "exit_cause": Cause.REPLACED}
    fields |= {"retry_at": None, "next_probe_at": None, "health_by": None, "last_health_at": None}
    if row.status == Status.RESTARTING:
        ManagedProcess.objects.filter(pk=row.pk).update(**fields)
        row.refresh_from_db()
    else:
        move(row, "restart", now=now, by=by, **fields)
    tell(row, "declared", by=by, now=now, cmd=row.cmd, ports=row.ports or None, owner=wi, cause=Cause.REPLACED)
    return row


def _need_directory(project: Project) -> None:
    if project.missing_since is not None:
        raise Conflict("project-missing", f"The directory of {project.slug} is not there.")


def lock_host(node: str, now: datetime) -> WorkerHost:
    """Take a host's row: those who declare, start or roll back on one node come one after another. `no-worker`."""
    queries.need_worker(node, now)
    return WorkerHost.objects.select_for_update().get(node=node)


def _declared_ports(node: str, *, leave_out: set[int]) -> dict[int, str]:
    """Return port -> holder of the live services of a node."""
    rows = ManagedProcess.objects.filter(node=node, status__in=LIVE).exclude(pk__in=leave_out).exclude(ports=[])
    return {
        port: f"{project}/{name}"
        for project, name, ports in rows.values_list("project", "name", "ports")
        for port in ports
    }


def _check_quotas(project: str, node: str, quotas: Quotas) -> None:
    live = ManagedProcess.objects.filter(purpose=Purpose.SERVICE, status__in=LIVE)
    for rows, limit in ((live.filter(project=project), quotas.project), (live.filter(node=node), quotas.host)):
        if rows.count() > limit:
            raise Conflict("quota-exceeded", reasons.quota_exceeded(limit))


def check_minutes(minutes: int) -> None:
    """Refuse (Rejected) what is no positive number of minutes."""
    if isinstance(minutes, bool) or minutes < 1:
        raise Rejected("minutes-invalid", "Give at least 1 minute.")
