"""What dispatcher and workers do: claim spawned heartbeat report complete block request_review."""

from datetime import datetime, timedelta
from decimal import ROUND_DOWN, Decimal
from typing import Any

from kanban import links
from kanban.lifecycle.creating import clean
from kanban.lifecycle.moves import current_run, end_run, free, is_person, locked, need_current, spent, step, tell
from kanban.lifecycle.promotion import settle_children
from kanban.models import LINGERING, LONGEST_TEXT, Profile, Run, Task
from kanban.states import (
    HEARTBEAT_TOLD_EVERY,
    LAUNCH_WITHIN,
    LEASE,
    OVER_BUDGET,
    TRANSIENT_WAITS,
    BlockKind,
    Outcome,
    Phase,
    Status,
)
from projects.errors import Conflict, Rejected
from projects.events import SWEEP, By, writing
from projects.models import Project
from services import lifecycle as services
from services.models import ManagedProcess
from services.states import Purpose

MOST_TOKENS = 10**15
MOST_COST = Decimal(1_000_000)
# As fine as the column.
MICRO = Decimal("0.000001")


def claim(
    task: Task, *, profile: Profile | None = None, node: str = "", per_host: int = 0, by: By, now: datetime
) -> Run:
    """Take a ready task: a new run with a lease of 900 s; of many at once one wins.

    With a `profile` its worker is reserved on `node` in the same transaction, within the caps of both; without one a
    pull worker elsewhere takes it, whose lease alone decides. Refuses (Conflict) `task-not-ready`, `parents-open`,
    `still-stopping` (the old worker), `cooling-down`, `over-cap`, `profile-paused`; Unavailable `no-worker`.
    Records task.claimed.
    """
    with writing():
        if profile is not None:
            services.lock_host(node, now)
            profile = Profile.objects.select_for_update().get(pk=profile.pk)
            _check_caps(profile, node, per_host)
        task = locked(task.pk)
        if profile is not None and task.assignee != profile.name:
            raise Conflict("task-not-ready", f"{task.id} was given to {task.assignee or 'nobody'} meanwhile.")
        _check_claimable(task, now)
        newest = Run.objects.filter(task=task).order_by("-number").values_list("number", flat=True).first()
        run = Run(task=task, number=(newest or 0) + 1, host=node, started_at=now, owner=by.name)
        if profile is not None:
            run.profile, run.owner, run.launch_by = profile.name, f"{node}:{task.id}/{run.number}", now + LAUNCH_WITHIN
        if task.max_runtime_s is not None:
            run.timeout_at = now + timedelta(seconds=task.max_runtime_s)
        step(
            task,
            "claim",
            now=now,
            current_run=run.number,
            lease_owner=run.owner,
            lease_until=now + LEASE,
            started_at=task.started_at or now,
            not_before=None,
        )
        if profile is not None:
            run.process = _launch(task, run, profile, by=by, now=now)
            run.has_process = True
        run.save(force_insert=True)
        expires = int((now + LEASE).timestamp())
        tell(task, "claimed", by=by, now=now, lock=run.owner, expires=expires, profile=run.profile or None)
    return run


def _check_caps(profile: Profile, node: str, per_host: int) -> None:
    if not profile.can_spawn(node):
        raise Conflict("profile-paused", f"The profile {profile.name} is paused, disabled or not installed here.")
    live = Run.objects.filter(ended_at=None, has_process=True)
    if live.filter(profile=profile.name).count() >= profile.concurrency:
        raise Conflict("over-cap", f"{profile.concurrency} runs of {profile.name} go on already.")
    if live.filter(host=node).count() >= per_host:
        raise Conflict("over-cap", f"{per_host} runs go on on {node} already.")


def _check_claimable(task: Task, now: datetime) -> None:
    if task.status != Status.READY:
        raise Conflict("task-not-ready", f"{task.id} is {task.status}, not ready.")
    if not task.parents_waived and (waiting := links.open_parents(task.pk)):
        raise Conflict("parents-open", f"{task.id} waits for {', '.join(waiting[:5])}.", parents=waiting[:50])
    if task.not_before is not None and task.not_before > now:
        raise Conflict("cooling-down", f"{task.id} waits for its agent's quota until {task.not_before.isoformat()}.")
    if Run.objects.filter(LINGERING, task=task).exists():
        raise Conflict("still-stopping", f"The old worker of {task.id} is still being stopped.")


def _launch(task: Task, run: Run, profile: Profile, *, by: By, now: datetime) -> ManagedProcess:
    """Reserve the worker's process; what it needs is made by its host, just before it is started."""
    project = Project.objects.filter(slug=task.project).first() if task.project else None
    if task.project and project is None:
        raise Conflict("project-missing", f"The project {task.project} is not there any more.")
    return services.launch(
        project,
        run.process_name,
        Purpose.WORKER,
        argv=profile.argv,
        cwd="/",
        env={},
        stop_grace_s=profile.stop_grace_s,
        node=run.host,
        by=by,
        now=now,
    )


def spawned(process: ManagedProcess, by: By, now: datetime) -> None:
    """Note that a run's worker has started; called in the transaction that records it. Records task.spawned."""
    run = Run.objects.filter(process=process, ended_at=None).first()
    if run is None:
        return
    # As all verbs: the task first, then its run.
    task = locked(run.task_id)
    Run.objects.filter(pk=run.pk).update(
        pid=process.pid, spawned_at=now, launch_by=None, heartbeat_at=now, log_path=process.log_path
    )
    if task.current_run == run.number:
        Task.objects.filter(pk=task.pk).update(lease_until=now + LEASE, active_at=now)
        tell(task, "spawned", by=by, now=now, pid=process.pid)


def heartbeat(
    task: Task,
    *,
    note: str = "",
    cost_usd: Decimal | None = None,
    tokens: int | None = None,
    by: By,
    now: datetime,
) -> Task:
    """Extend the lease of the run that speaks, and note what it has spent so far (dollars and tokens, in all).

    Refuses who is no run (Rejected `not-a-run`), another task's run (Forbidden), one that is over (Conflict
    `superseded`). Beyond max_cost_usd the task is blocked: a person decides. Records task.heartbeat at most once a
    minute.
    """
    if not by.run:
        raise Rejected("not-a-run", "Only a run has a heartbeat. Claim the task first and use the token of its run.")
    with writing():
        task = locked(task.pk)
        need_current(task, by)
        run = current_run(task)
        fields: dict[str, Any] = {"heartbeat_at": now, **_usage(run, cost_usd, tokens)}
        is_due = run.told_at is None or now - run.told_at >= HEARTBEAT_TOLD_EVERY
        if is_due:
            fields["told_at"] = now
        Run.objects.filter(pk=run.pk).update(**fields)
        Task.objects.filter(pk=task.pk).update(lease_until=now + LEASE, active_at=now)
        task.lease_until, task.active_at = now + LEASE, now
        if is_due:
            tell(task, "heartbeat", by=by, now=now, note=clean(note.strip(), "note", 2000) or None)
        check_budget(task, by=by, now=now)
    return task


def _usage(run: Run, cost_usd: Decimal | None, tokens: int | None) -> dict[str, Any]:
    """Return what a run has spent as fields; it only ever grows."""
    fields: dict[str, Any] = {}
    if cost_usd is not None:
        if not cost_usd.is_finite() or not 0 <= cost_usd < MOST_COST:
            raise Rejected("invalid-cost_usd", "cost_usd is a number of dollars, from 0 to less than a million.")
        fields["cost_usd"] = max(cost_usd.quantize(MICRO, ROUND_DOWN), run.cost_usd or Decimal(0))
    if tokens is not None:
        if not 0 <= tokens <= MOST_TOKENS:
            raise Rejected("invalid-tokens", "tokens is a whole number, 0 or more.")
        fields["tokens"] = max(tokens, run.tokens or 0)
    return fields


def check_budget(task: Task, *, by: By, now: datetime) -> None:
    """Block a task whose runs have spent more than max_cost_usd, inside `writing()`: a person decides."""
    used = spent(task) if task.max_cost_usd is not None else None
    if used is None or task.max_cost_usd is None or used <= task.max_cost_usd:
        return
    reason = f"{OVER_BUDGET}: {used:.2f} of {task.max_cost_usd:.2f} dollars are spent"
    _block(task, reason, BlockKind.NEEDS_INPUT, by=By(SWEEP.name, SWEEP.via, run=by.run), now=now)


def complete(
    task: Task,
    *,
    result: str = "",
    summary: str = "",
    cost_usd: Decimal | None = None,
    tokens: int | None = None,
    has_sidecar: bool = False,
    by: By,
    now: datetime,
) -> Task:
    """Have a task done, with its result; its children are promoted in the same transaction.

    By a run while services are required or a sidecar lies there, the verdict is only kept (task.reported): the card
    stays running until its services are known. Refuses (Conflict) `illegal-transition`, `superseded`, a run of
    another task (Forbidden). Records task.completed.
    """
    text, short = clean(result, "result", LONGEST_TEXT), clean(summary, "summary", LONGEST_TEXT)
    with writing():
        task = locked(task.pk)
        need_current(task, by)
        if by.run:
            run = current_run(task)
            if run.verdict:
                return task  # said twice, since the first answer was lost
            Run.objects.filter(pk=run.pk).update(
                result=text, summary=short, heartbeat_at=now, **_usage(run, cost_usd, tokens)
            )
            if task.services_required or has_sidecar:
                _report(task, run, by=by, now=now)
                return task
        finish(task, text, outcome=Outcome.COMPLETED if by.run else Outcome.SUPERSEDED, by=by, now=now)
    return task


def _report(task: Task, run: Run, *, by: By, now: datetime) -> None:
    Run.objects.filter(pk=run.pk).update(verdict=Outcome.COMPLETED, reported_at=now)
    fields = {"phase": Phase.SERVICES, "lease_until": now + LEASE, "active_at": now}
    Task.objects.filter(pk=task.pk).update(**fields)
    for name, value in fields.items():
        setattr(task, name, value)
    tell(task, "reported", by=by, now=now, verdict=Outcome.COMPLETED)


def finish(task: Task, result: str, *, outcome: Outcome, verb: str = "complete", by: By, now: datetime) -> None:
    """Close a task inside `writing()`: its run ends, its counters are forgotten, its children are promoted."""
    run_name = task.run_name
    end_run(task, outcome, by=by, now=now)
    fields: dict[str, Any] = {"completed_at": now, "failures": 0, "violations": 0, "transient_blocks": 0}
    fields |= {"last_error": "", "not_before": None, "result": result or task.result}
    step(task, verb, now=now, **fields)
    kind = "approved" if verb == "approve" else "completed"
    tell(task, kind, by=by, now=now, run=run_name, result_len=len(task.result))
    settle_children([task.pk], by=by, now=now)
    free()


def block(task: Task, reason: str = "", *, kind: str = BlockKind.NEEDS_INPUT, by: By, now: datetime) -> Task:
    """Have a task wait for somebody or something: a person, its parents, or time (transient: 5, 15, 60 minutes).

    Refuses (Rejected) an unknown kind and `breaker`, which is the failures' own; (Conflict) `illegal-transition`,
    `superseded`, `no-open-parents` for a dependency on nothing. Records task.blocked.
    """
    if kind not in BlockKind.values or kind == BlockKind.BREAKER:
        allowed = ", ".join(each for each in BlockKind.values if each != BlockKind.BREAKER)
        raise Rejected("unknown-block-kind", f"A block is one of {allowed}.")
    text = clean(reason.strip(), "reason", LONGEST_TEXT)
    with writing():
        task = locked(task.pk)
        need_current(task, by)
        if kind == BlockKind.DEPENDENCY and not links.open_parents(task.pk):
            raise Conflict("no-open-parents", f"All parents of {task.id} are closed. Link what it waits for first.")
        _block(task, text, BlockKind(kind), by=by, now=now)
    return task


def _block(task: Task, reason: str, kind: BlockKind, *, by: By, now: datetime) -> None:
    fields: dict[str, Any] = {}
    if kind == BlockKind.TRANSIENT:
        if task.transient_blocks < len(TRANSIENT_WAITS):
            fields["unblock_at"] = now + TRANSIENT_WAITS[task.transient_blocks]
            fields["transient_blocks"] = task.transient_blocks + 1
        else:
            kind = BlockKind.NEEDS_INPUT
    run_name = task.run_name
    end_run(task, Outcome.SUPERSEDED if is_person(by) else Outcome.BLOCKED, by=by, now=now, summary=reason)
    step(task, "block", now=now, block_kind=kind, block_reason=reason, blocked_by=by.name, **fields)
    tell(task, "blocked", by=by, now=now, run=run_name, reason=reason, block_kind=kind)


def request_review(task: Task, *, summary: str = "", by: By, now: datetime) -> Task:
    """Hand a running task to a person for review. Refuses as `complete` does. Records task.review_requested."""
    text = clean(summary, "summary", LONGEST_TEXT)
    with writing():
        task = locked(task.pk)
        need_current(task, by)
        run_name = task.run_name
        outcome = Outcome.SUPERSEDED if is_person(by) else Outcome.REVIEW_REQUESTED
        end_run(task, outcome, by=by, now=now, summary=text)
        step(task, "request_review", now=now)
        tell(task, "review_requested", by=by, now=now, run=run_name, summary=text[:500] or None)
    return task
