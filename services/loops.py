"""Orders for loops as REST and pages give them: start, stop, roll back. Each commits an intent and awaits its outcome.

A loop that Andon started is a managed process of purpose `loop`, one a project, never started again by itself. One
that somebody else started is stopped by what its pid file says (services.strangers).
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.utils import timezone

from projects import jobs, previews, undoing
from projects import lifecycle as projects
from projects import queries as projects_queries
from projects.errors import Broken, Conflict, DomainError, Forbidden, Missing, Rejected, Unfinished
from projects.events import By, writing
from projects.models import LoopStop, Project, Rollback
from projects.states import StopStatus
from services import commands, lifecycle, orders, queries, starting, strangers
from services.models import ManagedProcess
from services.states import ENDED, LIVE, Purpose

NAME = "loop"
# One TERM lets our runner finish its iteration; what does not end by then is killed.
GRACE_S = 10
# A person who lets an iteration end comes back later: nobody is kept waiting longer than this.
LONGEST_WAIT_S = 60.0
BEYOND_GRACE_S = 5.0
ROLLED_BACK_WITHIN_S = 60.0


def find(project: Project) -> ManagedProcess | None:
    """Return the project's loop as last started here, None when none ever was."""
    return ManagedProcess.objects.filter(project=project.slug, purpose=Purpose.LOOP, name=NAME).first()


def live(project: Project) -> ManagedProcess | None:
    """Return the project's loop that Andon started and that is not over."""
    row = find(project)
    return row if row is not None and row.status in LIVE else None


def start(project: Project, limits: commands.Limits, *, by: By) -> ManagedProcess:
    """Start a project's loop and answer when it has its process, at most 5 s later; it may have ended again by then.

    Refuses (Conflict) `already-running` while any loop runs there, ours or not, `rollback-in-progress`,
    `project-missing`, `start-failed` (also when it failed at once); (Unprocessable) `no-loop-command`,
    `limit-unsupported`; Unavailable `no-worker`. Records loop.declared.
    """
    limits.check()
    if project.running or live(project) is not None:
        raise _runs_already(project)
    command = commands.command(project, limits)
    with writing():
        lifecycle.lock_host(project.node, timezone.now())
        project.refresh_from_db(fields=["running", "pid"])
        if project.running or live(project) is not None or projects_queries.open_stop(project) is not None:
            raise _runs_already(project)
        projects.refuse_while_open(project)
        row = lifecycle.launch(
            project,
            NAME,
            Purpose.LOOP,
            argv=command.argv,
            cwd=project.path,
            env=command.env,
            stop_grace_s=GRACE_S,
            by=by,
            now=timezone.now(),
        )
    orders.tell([row])
    [row] = queries.awaited([row], queries.is_started, within_s=orders.STARTED_WITHIN_S)
    if row.status in ENDED and (row.started_at is None or row.exit_code != 0):
        reason = row.last_error.partition("\n")[0] or "It ended at once."
        raise Conflict("already-running" if reason.startswith(starting.LOOP_THERE) else "start-failed", reason)
    return row


def _runs_already(project: Project) -> Conflict:
    managed = live(project)
    pid = managed.pid if managed is not None else project.pid
    return Conflict("already-running", f"A loop of {project.slug} runs already.", pid=pid)


@dataclass(frozen=True, slots=True)
class Ended:
    """What was seen of a stop: `stopped` or `killed`, and whom; `pid` None when it had ended already."""

    state: StopStatus
    pid: int | None


def stop(project: Project, *, grace_s: int = GRACE_S, by: By) -> Ended:
    """Stop a project's loop, whoever started it, and answer once it is gone, at most grace + 5 s (and 60 s) later.

    Raises what the worker found (`no-pid-file`, `pid-not-in-project`, `permission-denied`, `pid-file-invalid`, see
    REFUSALS), Unfinished `still-stopping`, Unavailable `no-worker`. Records loop.stop_asked, loop.stopping.
    """
    row = ask_stop(project, grace_s=grace_s, by=by)
    within_s = min(max(0, grace_s), LONGEST_WAIT_S - BEYOND_GRACE_S) + BEYOND_GRACE_S
    [row] = queries.awaited([row], lambda each: not each.is_open, within_s=within_s)
    if row.is_open:
        left = row.left or ([row.pid] if row.pid else [])
        raise Unfinished(
            "still-stopping",
            f"The loop of {project.slug} is still being stopped; it is tried until nothing is left.",
            pid=row.pid,
            left=left,
        )
    if row.code == "no-pid-file" and find(project) is not None:
        # Ours has ended, and took its pid file with it.
        return Ended(StopStatus.STOPPED, None)
    if row.code:
        raise refusal(STOP_REFUSALS, row.code, row.detail)
    return Ended(StopStatus(row.status), row.pid)


def ask_stop(project: Project, *, grace_s: int = GRACE_S, by: By) -> LoopStop:
    """Commit that a loop is to be stopped and tell its worker; answers at once, also of one that ends meanwhile."""
    now = timezone.now()
    with writing():
        lifecycle.lock_host(project.node, now)
        managed = live(project)
        # First the process, then its stop: as whoever records its end does.
        managed = managed and ManagedProcess.objects.select_for_update().filter(pk=managed.pk, status__in=LIVE).first()
        row = projects.ask_stop(project, grace_s=grace_s, process=managed.pk if managed else None, by=by, now=now)
        if managed is not None:
            if grace_s:
                managed = lifecycle.stop(managed, grace_s=grace_s, by=by, now=now)
            else:
                # Nobody gets a TERM who has no time to heed it, as with a loop of somebody else's.
                managed = lifecycle.kill(managed, by=by, now=now)
            if managed.identity is not None and row.status == StopStatus.ASKED:
                projects.signal_stop(row, managed.identity, [], now + timedelta(seconds=row.grace_s), now)
    if managed is not None:
        orders.tell([managed])
    else:
        orders.send(strangers.act, row.node, row.pk)
    return row


def roll_back(project: Project, wanted: Mapping[str, Any], *, stop_first: bool, key: str = "", by: By) -> Rollback:
    """Roll a project's last commit back and answer when it is done, at most a minute later.

    `wanted`: expected_head, commit, story, mainline. With `stop_first` a running loop is stopped before. Raises
    `loop-running` and all that the repository refuses (spec: projects.md 5), what `stop` raises, Unavailable
    `no-worker`, Unfinished `still-rolling-back`. The same key answers what it answered first.
    """
    row = projects.of_key(project, key) if key else None
    if row is None:
        if stop_first and (project.running or live(project) is not None):
            _stop_before(project, by=by)
        row = _ask_rollback(project, wanted, key=key, by=by)
    [row] = queries.awaited([row], lambda each: not each.is_open, within_s=ROLLED_BACK_WITHIN_S)
    if row.code == "loop-running" and stop_first:
        # The worker saw a loop that the board did not know of yet. That answer is nobody's: the key is free again.
        _stop_before(project, by=by)
        projects.release_key(row)
        row = _ask_rollback(project, wanted, key=key, by=by)
        [row] = queries.awaited([row], lambda each: not each.is_open, within_s=ROLLED_BACK_WITHIN_S)
    if row.is_open:
        raise Unfinished(
            "still-rolling-back",
            f"The rollback of {project.slug} is still under way. Look at it in a moment.",
            id=row.pk,
        )
    if row.code:
        raise rollback_refusal(row)
    return row


def _stop_before(project: Project, *, by: By) -> None:
    """Stop a loop that is in the way; it may have ended by itself, and the worker looks again."""
    with contextlib.suppress(Missing):
        stop(project, by=by)


def _ask_rollback(project: Project, wanted: Mapping[str, Any], *, key: str, by: By) -> Rollback:
    now = timezone.now()
    with writing():
        lifecycle.lock_host(project.node, now)
        # That a loop of somebody else's runs is looked at again by the worker, at the pid file and the lock.
        if live(project) is not None:
            raise Conflict("loop-running", previews.loop_running(project.slug).detail)
        row = projects.ask_rollback(project, wanted, key=key, by=by, now=now)
    if row.is_open:
        orders.send(carry_out, row.node, row.pk)
    return row


@jobs.job
def carry_out(pk: int) -> None:
    """Run by the worker: carry out one rollback."""
    row = Rollback.objects.filter(pk=pk).first()
    if row is not None:
        undoing.submit(row)


def rollback_refusal(row: Rollback) -> DomainError:
    """Return what a rollback that was refused, or undone, answers."""
    extra = {name: value for name, value in row.extra.items() if name != "status"}
    return refusal({row.code: row.extra.get("status", 409)}, row.code, row.detail, **extra)


STOP_REFUSALS = {
    "no-pid-file": 404,
    "pid-not-in-project": 403,
    "permission-denied": 403,
    "pid-file-invalid": 500,
    "identity-unavailable": 409,
}


def refusal(statuses: Mapping[str, int], code: str, detail: str, **extra: Any) -> DomainError:
    """Return a refusal that a worker found, as the error of its status."""
    kinds: dict[int, type[DomainError]] = {kind.status: kind for kind in (Rejected, Forbidden, Missing, Broken)}
    return kinds.get(statuses.get(code, Conflict.status), Conflict)(code, detail, **extra)
