"""How attempts end without a verdict, and what follows: exited release expire time_out settle_read services_known."""

from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import Any

from kanban.lifecycle.moves import (
    LONGEST_RUN_ERROR,
    current_run,
    end_run,
    free,
    locked,
    need_current,
    step,
    storable,
    tell,
)
from kanban.lifecycle.profiles import trip
from kanban.lifecycle.promotion import settle_one
from kanban.lifecycle.working import check_budget, finish
from kanban.models import Profile, Run, Task
from kanban.states import (
    COUNTED,
    FAILURE_LIMIT,
    LEASE,
    QUOTA_EXIT,
    RATE_LIMIT_COOLDOWN,
    VIOLATIONS_ALLOWED,
    BlockKind,
    Outcome,
    Phase,
    Reports,
    Status,
)
from projects.errors import Conflict
from projects.events import By, after, writing
from services.models import ManagedProcess
from services.states import Cause

# Filled in by AppConfig.ready(): told after the commit that a run which has ended left something to be read.
on_left: list[Any] = []
# Ends of a process that somebody asked for: no failure of the task's.
ASKED = frozenset({Cause.USER, Cause.SHUTDOWN, Cause.REPLACED, Cause.PROJECT_REMOVED})
# How each outcome that counts is told.
KINDS = {
    Outcome.CRASHED: "crashed",
    Outcome.TIMED_OUT: "timed_out",
    Outcome.PROTOCOL_VIOLATION: "protocol_violation",
    Outcome.SPAWN_FAILED: "spawn_failed",
}


def exited(process: ManagedProcess, by: By, now: datetime) -> None:
    """Settle a run whose process is verified gone; called in the transaction that records that (services.on_end).

    Stopped by somebody: released. Never started: spawn_failed. Code 75: rate_limited. Code 0 without a verdict:
    protocol_violation. Anything else: crashed. Where its profile leaves a result in its output, or it left a verdict
    that waits for its services, what it left is read first. Of a run that is over only the code is kept; records
    task.exited of it.
    """
    run = Run.objects.filter(process=process).first()
    if run is None:
        return
    # As all verbs: the task first, then its run.
    task = locked(run.task_id)
    if run.exit_code is None and process.exit_code is not None:
        Run.objects.filter(pk=run.pk).update(exit_code=process.exit_code)
    # Its task may be claimed again.
    free()
    if task.current_run != run.number:
        # Told once: who hears of the same end again has its code already.
        if run.exit_code is None:
            tell(task, "exited", by=by, now=now, run=str(run), exit_code=process.exit_code)
        return
    run = current_run(task)
    if run.verdict or task.phase:
        _leave(run)
        return
    _settle_exit(task, run, process, by=by, now=now)


def _settle_exit(task: Task, run: Run, process: ManagedProcess, *, by: By, now: datetime) -> None:
    code, error = process.exit_code, process.last_error
    if process.exit_cause in ASKED:
        reason = f"its process was stopped ({process.exit_cause})"
        _release(task, Outcome.RELEASED, reason=reason, by=by, now=now)
    elif process.started_at is None:
        fail(task, Outcome.SPAWN_FAILED, error or "it could not be started", by=by, now=now)
    elif code == QUOTA_EXIT:
        rate_limit(task, by=by, now=now)
    elif (code is None or code >= 0) and _leaves_envelope(run):
        # Also when the code is an error's or nobody saw it: its output says what came of it, or whether it met a quota.
        Task.objects.filter(pk=task.pk).update(phase=Phase.READING, lease_until=now + LEASE)
        _leave(run)
    elif code != 0:
        fail(task, Outcome.CRASHED, error or f"exit code {code}", exit_code=code, pid=run.pid, by=by, now=now)
    else:
        fail(task, Outcome.PROTOCOL_VIOLATION, NO_VERDICT, exit_code=0, pid=run.pid, by=by, now=now)


def _leaves_envelope(run: Run) -> bool:
    return Profile.objects.filter(name=run.profile, reports=Reports.ENVELOPE).exists()


NO_VERDICT = "it ended with code 0 and said nothing: it must complete, block or ask for a review before it ends"


def _leave(run: Run) -> None:
    for read in on_left:
        after(partial(read, run.pk))


def fail(
    task: Task,
    outcome: Outcome,
    error: str,
    *,
    exit_code: int | None = None,
    pid: int | None = None,
    by: By,
    now: datetime,
) -> None:
    """End the current run as a failure that counts, inside `writing()`; at the limit the breaker opens.

    Records what happened (task.crashed, .timed_out, .protocol_violation, .spawn_failed) and at the limit
    task.gave_up, of a spawn task.spawn_auto_blocked instead. One that is over budget waits for a person. Tasks that
    fail alike pause their profile.
    """
    run = current_run(task)
    name, owner = task.run_name, task.lease_owner
    end_run(task, outcome, error=error, by=by, now=now)
    failures = task.failures + (outcome in COUNTED)
    violations = task.violations + (outcome == Outcome.PROTOCOL_VIOLATION)
    limit = task.failure_limit or _limit_of(run.profile) or FAILURE_LIMIT
    is_open = failures >= limit or violations >= VIOLATIONS_ALLOWED
    short = storable(error)
    fields: dict[str, Any] = {"failures": failures, "violations": violations, "last_error": short}
    if is_open:
        fields |= {"block_kind": BlockKind.BREAKER, "block_reason": short, "blocked_by": by.name}
    step(task, "block" if is_open else "release", now=now, **fields)
    told: dict[str, Any] = {"error": short, "failures": failures}
    if outcome == Outcome.SPAWN_FAILED:
        tell(task, "spawn_auto_blocked" if is_open else "spawn_failed", by=by, now=now, run=name, **told)
    else:
        seen = {"pid": pid, "claimer": owner, "exit_code": exit_code, **told}
        tell(task, KINDS[outcome], by=by, now=now, run=name, **seen)
        if is_open:
            tell(task, "gave_up", by=by, now=now, run=name, **told)
    if task.status == Status.READY:
        check_budget(task, by=by, now=now)
    _back(task, by=by, now=now)
    if run.profile:
        after(partial(trip, run.pk, now))


def _limit_of(profile: str) -> int | None:
    if not profile:
        return None
    return Profile.objects.filter(name=profile).values_list("failure_limit", flat=True).first()


def rate_limit(task: Task, *, by: By, now: datetime) -> None:
    """Have a task wait for its agent's quota, 300 s, inside `writing()`; not counted. Records task.rate_limited."""
    name, until = task.run_name, now + RATE_LIMIT_COOLDOWN
    end_run(task, Outcome.RATE_LIMITED, by=by, now=now)
    step(task, "release", now=now, not_before=until)
    tell(task, "rate_limited", by=by, now=now, run=name, until=int(until.timestamp()))
    check_budget(task, by=by, now=now)
    _back(task, by=by, now=now)


def release(task: Task, *, reason: str = "", by: By, now: datetime) -> Task:
    """Take a running task back to ready: its run ends, its worker is stopped. Not counted.

    Refuses (Conflict) what does not run. Records task.reclaimed with the old lease's owner.
    """
    with writing():
        task = locked(task.pk)
        if task.status == Status.RUNNING:
            need_current(task, by)
        _release(task, Outcome.RELEASED, reason=reason, by=by, now=now)
    return task


def _release(task: Task, outcome: Outcome, *, reason: str, by: By, now: datetime) -> None:
    name, owner = task.run_name, task.lease_owner
    end_run(task, outcome, error=reason, by=by, now=now)
    step(task, "release", now=now)
    tell(task, "reclaimed", by=by, now=now, run=name, stale_lock=owner, reason=reason or None)
    _back(task, by=by, now=now)


def _back(task: Task, *, by: By, now: datetime) -> None:
    """Have a task that came back wait for parents that opened meanwhile."""
    settle_one(task, by=by, now=now)
    free()


def expire(task: Task, *, is_alive: bool, by: By, now: datetime) -> bool:
    """Deal with a lease that is over: extended while the process is provably alive, else the task is released.

    Says whether it was released. Refuses (Conflict `not-expired`) a lease that was extended meanwhile.
    """
    with writing():
        task = locked(task.pk)
        if task.status != Status.RUNNING or task.lease_until is None or task.lease_until > now:
            raise Conflict("not-expired", f"The lease of {task.id} is not over.")
        if is_alive:
            Task.objects.filter(pk=task.pk).update(lease_until=now + LEASE)
            return False
        _release(task, Outcome.RELEASED, reason="its lease was over and nothing was heard of it", by=by, now=now)
    return True


def time_out(task: Task, *, by: By, now: datetime) -> None:
    """End a run that is longer under way than max_runtime_s allows; its worker is stopped. Records task.timed_out.

    Refuses (Conflict `not-due`) one that has time left, or that has given its verdict: what waits is no worker.
    """
    with writing():
        task = locked(task.pk)
        run = current_run(task)
        if run.timeout_at is None or run.timeout_at > now:
            raise Conflict("not-due", f"The run {run} has time left.")
        if run.verdict or task.phase:
            raise Conflict("not-due", f"The run {run} has said what came of it.")
        fail(task, Outcome.TIMED_OUT, f"longer than {task.max_runtime_s} s", pid=run.pid, by=by, now=now)


def give_up_launch(task: Task, *, by: By, now: datetime) -> None:
    """End a run whose worker nobody started within 60 s. Records task.spawn_failed."""
    with writing():
        task = locked(task.pk)
        run = current_run(task)
        if run.launch_by is None or run.launch_by > now:
            raise Conflict("not-due", f"The worker of {run} has started, or has time left.")
        fail(task, Outcome.SPAWN_FAILED, "not started within 60 s: is its host's worker alive?", by=by, now=now)


def declare_services(run: Run, services: Sequence[dict[str, Any]], *, now: datetime) -> None:
    """Note which services were accepted of a run's sidecar, whose first health now decides."""
    Run.objects.filter(pk=run.pk, ended_at=None).update(services=list(services), services_total=len(services))
    run.services, run.services_total = list(services), len(services)


def services_known(
    task: Task, *, healthy: int, total: int, failure: str = "", reason: str = "", by: By, now: datetime
) -> None:
    """Close a task whose services are known: at least one healthy, or none declared and none required, and it is done.

    Else it is blocked (capability), its run failed with the failure class `failure` and the `reason`; never retried
    by itself. Records task.completed or task.blocked.
    """
    with writing():
        task = locked(task.pk)
        need_current(task, by)
        run = current_run(task)
        partial_ = "partial" if total and 0 < healthy < total else ""
        fields = {
            "services_healthy": healthy,
            "services_total": total,
            "failure_class": failure or partial_,
            "error": storable(reason, LONGEST_RUN_ERROR),
        }
        Run.objects.filter(pk=run.pk).update(**fields)
        if not failure:
            finish(task, run.result, outcome=Outcome.COMPLETED, by=by, now=now)
            return
        name = task.run_name
        end_run(task, Outcome.FAILED, error=reason, by=by, now=now)
        short = storable(f"{failure}: {reason}", 2000)
        blocked: dict[str, Any] = {"block_kind": BlockKind.CAPABILITY, "block_reason": short, "blocked_by": by.name}
        step(task, "block", now=now, last_error=storable(short), **blocked)
        tell(task, "blocked", by=by, now=now, run=name, reason=short, block_kind=BlockKind.CAPABILITY)


def still_waiting(task: Task, *, now: datetime) -> None:
    """Keep the lease of a task that waits for its services' first health."""
    Task.objects.filter(pk=task.pk, status=Status.RUNNING).update(lease_until=now + LEASE)
