"""What a run has left when its process is gone: a result in its output, services in its sidecar. Worker only.

Level-triggered and idempotent: a crash between any two steps is mended by the next look.
"""

import os
from datetime import datetime

from django.conf import settings
from django.utils import timezone

from kanban import lifecycle, workers
from kanban.lifecycle.ending import NO_VERDICT
from kanban.models import LONGEST_TEXT, Run, Task
from kanban.states import Outcome, Phase, Status
from projects import jobs, usage
from projects.errors import Conflict, Unavailable
from projects.events import SWEEP, By, writing
from projects.models import Project
from services import acceptance, logs, orders, rules, specs, supervisor
from services import lifecycle as services
from services.models import LOG_FOLDER, ManagedProcess
from services.states import LIVE
from services.states import Status as ProcessStatus

# An agent's result stands at the end of its output.
OUTPUT_READ = 1_048_576
INVALID = "invalid-managed-spawn"
UNHEALTHY = "managed-spawn-healthcheck-failed"
# What else may go wrong with a declaration passes.
REFUSALS = acceptance.REFUSALS | {"project-missing"}
PENDING = frozenset({ProcessStatus.STARTING, ProcessStatus.RESTARTING, ProcessStatus.BACKOFF})


def wake(run_pk: int) -> None:
    """Have what a run has left looked at soon, on the second pool; elsewhere than in a worker its sweep does."""
    if supervisor.current() is None:
        return
    jobs.submit(f"run:{run_pk}", settle, run_pk)


def settle(run_pk: int) -> None:
    """Bring a run of this host or of none, whose process is gone, as far as it can go now."""
    run = Run.objects.select_related("task", "process").filter(pk=run_pk, ended_at=None).first()
    if run is None or run.host not in {"", settings.ANDON_NODE} or not _is_gone(run):
        return
    try:
        if run.task.phase == Phase.READING:
            _read_output(run, now=timezone.now())
            run = Run.objects.select_related("task", "process").get(pk=run_pk)
        if run.ended_at is None and run.task.phase == Phase.SERVICES:
            _settle_services(run, now=timezone.now())
    except (Conflict, Unavailable):
        return  # somebody was faster, or no worker ticks; the sweep looks again


def _is_gone(run: Run) -> bool:
    return run.process is None or run.process.status not in LIVE


def _read_output(run: Run, *, now: datetime) -> None:
    """Take an agent's result envelope for its verdict; without one it has broken the protocol."""
    envelope = usage.result_envelope(_output(run))
    try:
        said = usage.parse_record(envelope) if envelope else None
    except ValueError:
        said = None
    if envelope is not None and said is not None and not said.failed and not run.exit_code:
        result = envelope.get("result")
        lifecycle.complete(
            run.task,
            result=result[:LONGEST_TEXT] if isinstance(result, str) else "",
            cost_usd=said.cost,
            tokens=_tokens(said),
            has_sidecar=workers.has_sidecar(run),
            by=workers.as_run(run),
            now=now,
        )
        return
    with writing():
        task = lifecycle.locked(run.task_id)
        if task.current_run != run.number or task.status != Status.RUNNING:
            return
        if said is not None and said.cost is not None:
            Run.objects.filter(pk=run.pk).update(cost_usd=said.cost, tokens=_tokens(said))
        if said is not None and said.rate_limited:
            lifecycle.rate_limit(task, by=SWEEP, now=now)
            return
        outcome, error = Outcome.PROTOCOL_VIOLATION, NO_VERDICT
        if said is not None and said.failed:
            outcome, error = Outcome.CRASHED, usage.error_text(envelope or {}) or "its agent says that it failed"
        elif run.exit_code != 0:
            outcome, error = Outcome.CRASHED, _last_error(run)
        lifecycle.fail(task, outcome, error, exit_code=run.exit_code, pid=run.pid, by=SWEEP, now=now)


def _last_error(run: Run) -> str:
    said = run.process.last_error if run.process is not None else ""
    return said or ("nobody saw how it ended" if run.exit_code is None else f"exit code {run.exit_code}")


def _tokens(said: usage.Usage) -> int | None:
    parts = [said.input_tokens, said.output_tokens, said.cache_creation_tokens, said.cache_read_tokens]
    known = [part for part in parts if part is not None]
    return sum(known) if known else None


def _output(run: Run) -> bytes:
    """Return the end of what a run printed, b"" when there is no log."""
    if run.process is None:
        return b""
    try:
        descriptor = logs.open_for_reading(LOG_FOLDER, run.process.log_name)
    except OSError:
        return b""
    try:
        size = os.fstat(descriptor).st_size
        return os.pread(descriptor, OUTPUT_READ, max(run.process.log_head, size - OUTPUT_READ))
    finally:
        os.close(descriptor)


def _settle_services(run: Run, *, now: datetime) -> None:
    if run.services_total is not None:
        # The worker before us may have died between accepting it and this.
        _delete_sidecar(run)
    elif not _accept(run, now=now):
        return
    rows = ManagedProcess.objects.in_bulk([each["process"] for each in run.services])
    seen = [_health(rows.get(each["process"])) for each in run.services]
    if None in seen:
        lifecycle.still_waiting(run.task, now=now)
        return
    healthy, total = sum(1 for each in seen if each), len(seen)
    failure, reason = "", ""
    if total and healthy < total:
        failed = [rows.get(each["process"]) for each, ok in zip(run.services, seen, strict=True) if not ok]
        reason = "\n".join(f"{row.name}: {row.last_error or row.status}" for row in failed if row is not None)
    if total and not healthy:
        failure = UNHEALTHY
    lifecycle.services_known(
        run.task, healthy=healthy, total=total, failure=failure, reason=reason, by=workers.as_run(run), now=now
    )


def _health(row: ManagedProcess | None) -> bool | None:
    """Say whether a declared service was healthy once; None while nobody can tell."""
    if row is None:
        return False
    if row.last_health_at is not None and row.status in LIVE:
        return True
    return None if row.status in PENDING else False


def _accept(run: Run, *, now: datetime) -> bool:
    """Read a run's sidecar and reserve what it declares; False when that ended the run.

    The file is deleted, accepted or not; after that is recorded, so that a crash in between forgets nothing.
    """
    task = run.task
    who = workers.as_run(run)
    project = Project.objects.filter(slug=task.project, node=settings.ANDON_NODE).first()
    found = _read_sidecar(run, project)
    if found is None and not task.services_required:
        lifecycle.services_known(task, healthy=0, total=0, by=who, now=now)
        return False
    if isinstance(found, specs.Accepted) and project is not None:
        try:
            with acceptance.refusals_told(project, wi=task.pk, by=who):
                done = services.declare(
                    project, found.specs, agent=run.agent, wi=task.pk, quotas=rules.quotas(), by=who, now=now
                )
        except Conflict as refusal:
            if refusal.code not in REFUSALS:
                raise
            found = specs.Invalid(refusal.detail)
        else:
            declared = [{"process": row.pk, "generation": row.generation, "name": row.name} for row in done.rows]
            lifecycle.declare_services(run, declared, now=now)
            _delete_sidecar(run)
            orders.tell(done.rows)
            return True
    reason = found.reason if isinstance(found, specs.Invalid) else "sidecar-missing"
    _reject(task, reason, by=who, now=now)
    _delete_sidecar(run)
    return False


def _reject(task: Task, reason: str, *, by: By, now: datetime) -> None:
    """Block a task whose services were refused: with the reason, what the file should be, never retried by itself."""
    text = f"{reason}\n{specs.SCHEMA_HINT}"
    lifecycle.services_known(task, healthy=0, total=0, failure=INVALID, reason=text, by=by, now=now)


def _read_sidecar(run: Run, project: Project | None) -> specs.Accepted | specs.Invalid | None:
    try:
        raw = specs.read_sidecar(settings.ANDON_HOME, run.agent)
    except specs.Unreadable as refusal:
        return specs.Invalid(refusal.reason)
    if raw is None:
        return None
    if project is None:
        return specs.Invalid("project-missing: the task has no project, and services belong to one")
    found = acceptance.of_known_length(specs.validate(raw, rules.limits(project), rules.system()))
    if isinstance(found, specs.Accepted):
        found = specs.check_sidecar(found, run.agent, run.task_id) or found
    if isinstance(found, specs.Invalid):
        shown = raw[:500].decode("utf-8", "replace")
        return specs.Invalid(f"{found.reason}\n{shown}")
    return found


def _delete_sidecar(run: Run) -> None:
    try:
        specs.delete_sidecar(settings.ANDON_HOME, run.agent)
    except specs.Unreadable:
        return  # shown on /services/ as unclaimed, with the reason
