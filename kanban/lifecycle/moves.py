"""The one writer of a task's status, how its changes are told, and how its current run ends."""

import hashlib
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from functools import partial
from typing import Any

from django.db import connection
from django.db.models import Q, Sum

from kanban.models import LONGEST_ERROR, Run, Task
from kanban.states import TASK_ID, TASK_MOVES, Outcome, Status
from projects import access
from projects.errors import Conflict, Forbidden, Missing
from projects.events import SWEEP, By, after, record
from projects.models import ApiToken
from projects.states import Via
from services import lifecycle as services
from services import orders
from services.models import ManagedProcess
from services.states import LIVE
from services.states import Status as ProcessStatus

# Filled in by AppConfig.ready(): called after a commit that may have freed work.
on_free: list[Callable[[], object]] = []

LONGEST_RUN_ERROR = 3000
# What a run's own verdict leaves it time to end by itself after.
VERDICTS = frozenset({Outcome.COMPLETED, Outcome.BLOCKED, Outcome.REVIEW_REQUESTED})
NO_LEASE: dict[str, Any] = {"current_run": None, "lease_owner": "", "lease_until": None, "phase": ""}
NO_BLOCK: dict[str, Any] = {"block_kind": "", "block_reason": "", "blocked_by": "", "unblock_at": None}
log = logging.getLogger("andon.kanban")


def locked(task_id: str) -> Task:
    """Read a task for this transaction; Missing when there is none."""
    # A form may name anything, and PostgreSQL refuses to look for NUL.
    task = Task.objects.select_for_update().filter(pk=task_id).first() if TASK_ID.fullmatch(task_id) else None
    if task is None:
        raise Missing("not-found", f"There is no task {storable(task_id, 40)}.")
    return task


def move(tasks: Sequence[Task], verb: str, *, now: datetime, only: Q | None = None, **fields: Any) -> int:
    """Compare-and-swap tasks of one status along TASK_MOVES in one UPDATE; returns how many were won.

    Raises Conflict `illegal-transition` for a pair that is not in the table. Must stand inside `writing()`.
    """
    if not tasks:
        return 0
    sources, target = TASK_MOVES[verb]
    source = tasks[0].status
    if source not in sources:
        raise illegal(tasks[0], target)
    fields = {**fields, "since": now, "active_at": now}
    if source == Status.RUNNING:
        fields |= NO_LEASE
    if source == Status.BLOCKED and target != Status.BLOCKED:
        fields |= NO_BLOCK
    keys = [task.pk for task in tasks]
    rows = Task.objects.filter(only or Q(), pk__in=keys, status=source, current_run=tasks[0].current_run)
    won = rows.update(status=target, **fields)
    if won == len(tasks):
        for task in tasks:
            task.status = target
            for name, value in fields.items():
                setattr(task, name, value)
    return won


def step(task: Task, verb: str, *, now: datetime, only: Q | None = None, **fields: Any) -> None:
    """Move one task; Conflict when it was changed meanwhile."""
    if not move([task], verb, now=now, only=only, **fields):
        raise Conflict("illegal-transition", f"{task.id} was changed meanwhile. Look again.")


def illegal(task: Task, target: str) -> Conflict:
    """Return the refusal of a move that the machine does not have."""
    return Conflict(
        "illegal-transition",
        f"{task.id} cannot go from {task.status} to {target}.",
        **{"from": str(task.status), "to": str(target)},
    )


def tell(task: Task, what: str, *, by: By, now: datetime, run: str = "", **payload: Any) -> None:
    """Record `task.<what>`; it carries the run whose doing or fate it is."""
    who = replace(by, run=by.run or run or task.run_name)
    record(f"task.{what}", task.subject, by=who, now=now, project=task.project, **payload)


def is_person(by: By) -> bool:
    """Say whether a person or somebody's token acts, not a run and not Andon itself."""
    return not by.run and by.via != Via.SWEEP


def need_current(task: Task, by: By) -> None:
    """Refuse a run that is another task's (Forbidden) or whose attempt is over (Conflict `superseded`)."""
    if not by.run:
        return
    name, _, number = by.run.rpartition("/")
    if name != task.id:
        raise Forbidden("forbidden", "A run may only speak of its own task.")
    if task.status != Status.RUNNING or str(task.current_run) != number:
        raise Conflict("superseded", f"This attempt at {task.id} is over; another may be running. Stop working.")


def current_run(task: Task) -> Run:
    """Return the run of a running task."""
    run = Run.objects.filter(task=task, number=task.current_run or 0, ended_at=None).first()
    if run is None:
        raise Conflict("no-run", f"{task.id} has no run that goes on.")
    return run


def end_run(task: Task, outcome: Outcome, *, error: str = "", by: By, now: datetime, **fields: Any) -> Run | None:
    """End the current run of a running task: its token dies, its process is stopped once this has committed.

    A worker that gave its verdict itself has ten seconds to end; any other is stopped at once. Must come before the
    move, which forgets the run. Returns it, None for a task that does not run.
    """
    if task.current_run is None:
        return None
    run = current_run(task)
    if error:
        fields |= {"error": storable(error, LONGEST_RUN_ERROR), "signature": signature(error)}
    fields |= {"outcome": outcome, "ended_at": now, "launch_by": None}
    if not Run.objects.filter(pk=run.pk, ended_at=None).update(**fields):
        raise Conflict("superseded", f"The run {run} has ended meanwhile.")
    for name, value in fields.items():
        setattr(run, name, value)
    for token in ApiToken.objects.filter(run=str(run), revoked_at=None):
        access.revoke(token, by=replace(by, run=by.run or str(run)), now=now)
    if run.process_id is not None and not (by.via == Via.RUN and outcome in VERDICTS):
        after(partial(stop_process, run.process_id, now))
    free()
    return run


def stop_process(pk: int, now: datetime) -> bool:
    """Have the process of a run that is over stopped, in a transaction of its own; says whether it had to be."""
    row = ManagedProcess.objects.filter(pk=pk, status__in=sorted(LIVE)).first()
    if row is None or row.status == ProcessStatus.STOPPING:
        return False
    try:
        row = services.stop(row, reason="its run is over", by=SWEEP, now=now)
    except Conflict:
        return False  # it ended by itself
    orders.tell([row])
    return True


def free() -> None:
    """Have the dispatcher look once this transaction has committed, however often it is asked for in it."""
    waiting = {entry[1] for entry in connection.run_on_commit if entry[1] in on_free}
    for callback in on_free:
        if callback not in waiting:
            after(callback)


def spent(task: Task) -> Decimal | None:
    """Return what all runs of a task reported in dollars, None when none did."""
    found: Decimal | None = Run.objects.filter(task=task).aggregate(sum=Sum("cost_usd"))["sum"]
    return found


def is_over_budget(task: Task) -> bool:
    """Say whether nothing is left of what a task may cost."""
    used = spent(task) if task.max_cost_usd is not None else None
    return used is not None and task.max_cost_usd is not None and used >= task.max_cost_usd


def storable(text: str, most: int = LONGEST_ERROR) -> str:
    """Return a text as every database takes it: without NUL and lone surrogates, at most `most` characters."""
    return text.replace("\x00", "")[:most].encode("utf-8", "replace").decode()


def signature(error: str) -> str:
    """Return what errors that are alike have in common: without task ids, hexadecimal and decimal numbers."""
    plain = re.sub(r"\bt[_-][0-9a-f]{8}\b|0x[0-9a-fA-F]+|\d+", "#", error[:LONGEST_ERROR])
    return hashlib.sha256(plain.encode("utf-8", "replace")).hexdigest()[:16]
