"""What people decide: unblock limit approve send_back archive reopen move_to force patch; and what lifts itself."""

from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any

from django.db import IntegrityError
from django.db.models import F

from kanban import links
from kanban.lifecycle.creating import assign, clean, edit, limits_of, prioritise, update
from kanban.lifecycle.ending import release
from kanban.lifecycle.moves import end_run, free, illegal, is_over_budget, is_person, locked, spent, step, tell
from kanban.lifecycle.promotion import settle_children, settle_one
from kanban.lifecycle.working import block, complete, finish, request_review
from kanban.models import LONGEST_TEXT, Run, Task
from kanban.states import HUMAN_BLOCKS, OVER_BUDGET, BlockKind, Outcome, Status
from projects.errors import Conflict, Forbidden, Rejected
from projects.events import By, writing

FORGIVEN: dict[str, Any] = {"failures": 0, "violations": 0, "transient_blocks": 0, "not_before": None}


def unblock(task: Task, *, by: By, now: datetime) -> Task:
    """Lift a block: to ready, or to todo while a parent is open. A person's also forgives all failures.

    Refuses (Forbidden) anybody but a person for what needs a person, (Conflict) what is not blocked or not due, and a
    person `over-budget` while nothing is left of what it may cost: its first heartbeat would block it again. Records
    task.unblocked.
    """
    with writing():
        task = locked(task.pk)
        kind = task.block_kind
        if not is_person(by):
            if kind in HUMAN_BLOCKS:
                raise Forbidden("forbidden", f"{task.id} waits for a person.")
            if task.unblock_at is not None and task.unblock_at > now:
                raise Conflict("not-due", f"{task.id} waits until {task.unblock_at.isoformat()}.")
        elif task.status == Status.BLOCKED and is_over_budget(task):
            used = f"{spent(task):.2f} of {task.max_cost_usd:.2f} dollars are spent"
            raise Conflict("over-budget", f"{used}. Raise the limit of {task.id} first.")
        waits = bool(links.open_parents(task.pk)) and not task.parents_waived
        step(task, "unblock_waiting" if waits else "unblock", now=now, **(FORGIVEN if is_person(by) else {}))
        tell(task, "unblocked", by=by, now=now, status=task.status, block_kind=kind)
        free()
    return task


def limit(
    task: Task,
    *,
    max_runtime_s: int | None,
    max_cost_usd: Decimal | None,
    failure_limit: int | None,
    by: By,
    now: datetime,
) -> Task:
    """Set how long a run of a task may take, what all may cost and how many may fail, None = no limit of its own.

    A run that goes on has the new time from its start; a task that was blocked over its budget goes on where that is
    enough now. Rejected out of bounds. Records task.edited, and what `unblock` records.
    """
    fields = limits_of(max_runtime_s, max_cost_usd, failure_limit)
    with writing():
        task = locked(task.pk)
        changed = [name for name, value in fields.items() if getattr(task, name) != value]
        if not changed:
            return task
        was_over = is_over_budget(task)
        update(task, now, **fields)
        longest = None if max_runtime_s is None else timedelta(seconds=max_runtime_s)
        Run.objects.filter(task=task, ended_at=None).update(
            timeout_at=None if longest is None else F("started_at") + longest
        )
        tell(task, "edited", by=by, now=now, changed=sorted(changed))
        # Who raises the limit of what is over budget wants it to go on.
        if was_over and task.block_reason.startswith(OVER_BUDGET) and not is_over_budget(task):
            return unblock(task, by=by, now=now)
    return task


def approve(task: Task, *, by: By, now: datetime) -> Task:
    """Accept what was handed in for review: done. Refuses (Conflict) anything else. Records task.approved."""
    with writing():
        task = locked(task.pk)
        if task.status != Status.REVIEW:
            raise illegal(task, Status.DONE)
        finish(task, "", outcome=Outcome.COMPLETED, verb="approve", by=by, now=now)
    return task


def send_back(task: Task, *, by: By, now: datetime) -> Task:
    """Have it done again: from review to ready (todo while a parent is open). Records task.sent_back."""
    with writing():
        task = locked(task.pk)
        step(task, "send_back", now=now)
        tell(task, "sent_back", by=by, now=now)
        settle_one(task, by=by, now=now)
        free()
    return task


def archive(task: Task, *, by: By, now: datetime) -> Task:
    """Put a task away, from wherever it is; its key becomes free, its children wait for it no more.

    Records task.archived. Refuses (Conflict) what is archived.
    """
    with writing():
        task = locked(task.pk)
        name = task.run_name
        end_run(task, Outcome.SUPERSEDED, by=by, now=now)
        step(task, "archive", now=now)
        tell(task, "archived", by=by, now=now, run=name)
        settle_children([task.pk], by=by, now=now)
    return task


def reopen(task: Task, *, by: By, now: datetime) -> Task:
    """Have a closed task done again: to ready, or to todo while a parent is open; its ready children wait again.

    Refuses (Conflict) what is not closed, and `idempotency-key-taken` when another task bears its key by now. Records
    task.reopened.
    """
    with writing():
        task = locked(task.pk)
        waits = bool(links.open_parents(task.pk))
        _step_out(task, "reopen_waiting" if waits else "reopen", now=now, parents_waived=False, held=False)
        tell(task, "reopened", by=by, now=now, status=task.status)
        settle_children([task.pk], by=by, now=now)
        free()
    return task


def _step_out(task: Task, verb: str, *, now: datetime, **fields: Any) -> None:
    """Move a task that may have been closed: its counters begin anew, its key must still be free."""
    try:
        with writing():
            step(task, verb, now=now, completed_at=None, **FORGIVEN, **fields)
    except IntegrityError:
        raise Conflict(
            "idempotency-key-taken",
            f"Another task bears the key {task.idempotency_key!r} by now. Archive that one first.",
        ) from None


def move_to(task: Task, target: str, *, by: By, now: datetime) -> Task:
    """Put a task where a person dragged it: triage, todo or ready.

    To ready with open parents they are waived (task.forced); to todo without open parents it is held there. One that
    was blocked is forgiven, as by unblock. Refuses (Conflict) `illegal-transition`, of a running task too: release it
    first. Records task.status, or task.forced.
    """
    with writing():
        task = locked(task.pk)
        waiting = links.open_parents(task.pk)
        verb = f"move_to_{target}"
        if task.status == Status.RUNNING:
            raise illegal(task, target)
        was_closed = task.status in {Status.DONE, Status.ARCHIVED}
        fields: dict[str, Any] = {
            "parents_waived": target == Status.READY and bool(waiting),
            "held": target == Status.TODO and not waiting,
        }
        if task.status == Status.BLOCKED:
            fields |= FORGIVEN
        if was_closed:
            _step_out(task, verb, now=now, **fields)
        else:
            step(task, verb, now=now, **fields)
        if fields["parents_waived"]:
            tell(task, "forced", by=by, now=now, status=target, parents=waiting)
        else:
            tell(task, "status", by=by, now=now, status=target)
        if was_closed:
            settle_children([task.pk], by=by, now=now)
        free()
    return task


def force(task: Task, target: str, *, reason: str, by: By, now: datetime) -> Task:
    """Put a task to ready or blocked from anywhere: an administrator's last resort, who says why.

    A run of it ends and its worker is stopped. Refuses (Rejected) an empty reason and another target. Records
    task.forced.
    """
    text = clean(reason.strip(), "reason", LONGEST_TEXT)
    if not text:
        raise Rejected("reason-missing", "Say why: the reason is kept in the log.")
    if target not in {Status.READY, Status.BLOCKED}:
        raise Rejected("unknown-status", "A task can be forced to ready or blocked.")
    with writing():
        task = locked(task.pk)
        before, name = task.status, task.run_name
        end_run(task, Outcome.RELEASED, error=text, by=by, now=now)
        fields: dict[str, Any] = {"parents_waived": True, "held": False}
        if target == Status.BLOCKED:
            fields = {"held": False, "block_kind": BlockKind.NEEDS_INPUT, "block_reason": text, "blocked_by": by.name}
        _step_out(task, f"force_{target}", now=now, **fields)
        told = {"reason": text, "was": before, "status": target}
        tell(task, "forced", by=by, now=now, run=name, **told)
        settle_children([task.pk], by=by, now=now)
        free()
    return task


def patch(
    task: Task,
    *,
    status: str | None = None,
    assignee: str | None = None,
    priority: int | None = None,
    title: str | None = None,
    body: str | None = None,
    result: str | None = None,
    block_reason: str | None = None,
    block_kind: str | None = None,
    by: By,
    now: datetime,
) -> Task:
    """Change several things at once, all or nothing, in this order: assignee, status, priority, title and body.

    None leaves a thing as it is; the same status is no change. Raises what the verbs raise.
    """
    with writing():
        task = locked(task.pk)
        if assignee is not None:
            task = assign(task, assignee, by=by, now=now)
        if status is not None and status != task.status:
            task = _verb_for(task, status, result or "", block_reason or "", block_kind or "")(by=by, now=now)
        if priority is not None:
            task = prioritise(task, priority, by=by, now=now)
        if title is not None or body is not None:
            task = edit(task, title=title, body=body, by=by, now=now)
    return task


def _verb_for(task: Task, status: str, result: str, reason: str, kind: str) -> Callable[..., Task]:
    """Return the verb that brings a task to a status as PATCH means it."""
    if status not in Status.values:
        raise Rejected("unknown-status", f"A status is one of {', '.join(Status.values)}.")
    if status == Status.RUNNING:
        raise Conflict(
            "claim-only",
            "A task runs when it is claimed, by the dispatcher or by POST /claim.",
            **{"from": str(task.status), "to": status},
        )
    if status in {Status.TRIAGE, Status.TODO}:
        return partial(move_to, task, status)
    to_ready: dict[str, Callable[..., Task]] = {
        Status.BLOCKED: unblock,
        Status.REVIEW: send_back,
        Status.DONE: reopen,
        Status.ARCHIVED: reopen,
        Status.RUNNING: release,
    }
    if status == Status.READY:
        verb = to_ready.get(task.status)
        return partial(verb, task) if verb else partial(move_to, task, status)
    others: dict[str, Callable[..., Task]] = {
        Status.BLOCKED: partial(block, task, reason, kind=kind or BlockKind.NEEDS_INPUT),
        Status.REVIEW: partial(request_review, task),
        Status.DONE: partial(complete, task, result=result),
        Status.ARCHIVED: partial(archive, task),
    }
    return others[status]
