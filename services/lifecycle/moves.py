"""The one writer of a managed process's status, and how its changes are told."""

from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any

from django.db.models import Q

from projects import lifecycle as projects
from projects.errors import Conflict
from projects.events import By, after, record
from services.models import ManagedProcess
from services.states import ENDED, PROCESS_MOVES, Purpose

# Filled in by the apps above, by purpose; called in the transaction that records a start or an end: (process, by, now).
on_start: dict[str, Callable[[ManagedProcess, By, datetime], None]] = {}
on_end: dict[str, Callable[[ManagedProcess, By, datetime], None]] = {}

# Filled in by the worker: told after the commit that a loop which Andon started began or ended: (project's slug).
on_loop: list[Callable[[str], None]] = []

# The importer tells of these, whoever started the loop: never two events for one fact.
TOLD_BY_IMPORTER = frozenset({"starting", "crashed", "exited", "stopped"})
KEPT_EXITS = 10
LONGEST_ERROR = 2500


def move(
    row: ManagedProcess, verb: str, *, now: datetime, by: By, only: Q | None = None, start: bool = False, **fields: Any
) -> None:
    """Compare-and-swap along PROCESS_MOVES, guarded by the generation; Conflict when the row is elsewhere.

    `start` raises the generation with it. Must stand inside `writing()`; an end calls `on_end`.
    """
    sources, target = PROCESS_MOVES[verb]
    if start:
        fields["generation"] = row.generation + 1
    if row.status != target:
        fields["since"] = now
    if "last_error" in fields:
        fields["last_error"] = storable(fields["last_error"])
    rows = ManagedProcess.objects.filter(only or Q(), pk=row.pk, generation=row.generation, status__in=sources)
    if not rows.update(status=target, **fields):
        raise Conflict("illegal-transition", f"{row} cannot {verb} as {row.status}, or was changed meanwhile.")
    row.status = target
    for name, value in fields.items():
        setattr(row, name, value)
    if target in ENDED and row.purpose == Purpose.LOOP:
        projects.note_loop_end(row.project, row.pk, exit_code=row.exit_code, cause=row.exit_cause, now=now)
        tell_of_loop(row)
    if target in ENDED and (tell_end := on_end.get(row.purpose)):
        tell_end(row, by, now)


def tell_of_loop(row: ManagedProcess) -> None:
    """Have the project of a loop looked at once this transaction has committed."""
    for look in on_loop:
        after(partial(look, row.project))


def tell(row: ManagedProcess, what: str, *, by: By, now: datetime, **payload: Any) -> None:
    """Record `service.<what>` or `loop.<what>`; of a kanban worker the kanban tells, through `on_end`."""
    if row.purpose == Purpose.WORKER or (row.purpose == Purpose.LOOP and what in TOLD_BY_IMPORTER):
        return
    fields = {"generation": row.generation, "pid": row.pid, **payload}
    record(f"{row.purpose}.{what}", row.subject, by=by, now=now, project=row.project, **fields)


def locked(row: ManagedProcess, expected_generation: int | None = None) -> ManagedProcess:
    """Read the row anew for this transaction. Conflict `generation-changed` when another life than expected is on."""
    fresh = ManagedProcess.objects.select_for_update().filter(pk=row.pk).first()
    if fresh is None:
        raise Conflict("generation-changed", f"{row} is not there any more.")
    if expected_generation is not None and fresh.generation != expected_generation:
        raise Conflict(
            "generation-changed",
            f"{row} was started again meanwhile: generation {fresh.generation}, not {expected_generation}.",
            generation=fresh.generation,
        )
    return fresh


def storable(text: str) -> str:
    """Return an error as every database takes it: without NUL and lone surrogates, at most 2,500 characters."""
    return text.replace("\x00", "").strip()[:LONGEST_ERROR].encode("utf-8", "replace").decode()


def need_service(row: ManagedProcess) -> None:
    """Refuse (Conflict `not-a-service`) kanban workers and loops: they are started by what they work for."""
    if row.purpose != Purpose.SERVICE:
        raise Conflict("not-a-service", f"{row} is a {row.purpose}: it is started anew by what it works for.")


def exits_with(row: ManagedProcess, *, code: int | None, cause: str, now: datetime) -> list[dict[str, Any]]:
    """Return the last ends with this one in front."""
    up_s = (now - row.started_at).total_seconds() if row.started_at else 0.0
    entry = {
        "at": now.isoformat(),
        "generation": row.generation,
        "pid": row.pid,
        "code": code,
        "cause": cause,
        "up_s": round(up_s, 1),
    }
    return [entry, *row.exits][:KEPT_EXITS]
