"""Level-triggered repairs of the board; any host may run them, any number at once. Each returns what it did."""

import logging
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

from django.conf import settings
from django.db.models import Q
from django.utils import timezone

from kanban import dispatch, gate, lifecycle, profiles
from kanban.links import HAS_OPEN_PARENT
from kanban.models import Board, Profile, Run, Task
from kanban.states import END_WITHIN, BlockKind, Outcome, Status
from projects.errors import Conflict, DomainError
from projects.events import SWEEP, By, writing
from services.models import ManagedProcess
from services.rules import search_path
from services.states import LIVE, UP, Purpose

MOST_A_SWEEP = 500
log = logging.getLogger("andon.kanban")


@dataclass(slots=True)
class Pass:
    """What one pass did, or with `dry_run` would do; ids of tasks, and counts."""

    reclaimed: int = 0
    promoted: int = 0
    spawned: list[tuple[str, str, str]] = field(default_factory=list)
    skipped_unassigned: list[str] = field(default_factory=list)
    skipped_nonspawnable: list[str] = field(default_factory=list)
    crashed: list[str] = field(default_factory=list)
    timed_out: list[str] = field(default_factory=list)
    auto_blocked: list[str] = field(default_factory=list)
    dry_run: bool = False


def run_pass(nodes: list[str], *, limit: int, dry_run: bool = False, by: By, now: datetime) -> tuple[Pass, list[Run]]:
    """Mend what is to be mended, then claim up to `limit` ready tasks for nodes that tick, and tell their hosts.

    With `dry_run` nothing at all is changed. Returns what was done and the runs that were claimed.
    """
    done = Pass(dry_run=dry_run)
    if dry_run:
        hosts = dispatch.ticking(now)
        done.reclaimed = sum(not is_alive(run, hosts) for run in _expired(now))
        done.promoted = _promotable().count()
    else:
        mend(done, now=now)
    claimed = dispatch.claim_ready(nodes, limit=limit, dry_run=dry_run, by=by, now=now)
    done.spawned = claimed.spawned
    done.skipped_unassigned, done.skipped_nonspawnable = claimed.skipped_unassigned, claimed.skipped_nonspawnable
    dispatch.tell(claimed.runs)
    if not dry_run:
        shown = {key: len(value) if isinstance(value, list) else value for key, value in asdict(done).items()}
        Board.objects.update_or_create(id=1, defaults={"last_pass_at": now, "last_pass": shown})
    return done, claimed.runs


def mend(done: Pass, *, now: datetime) -> None:
    """Mend all that time, deaths and lost messages have left undone, and note it in a pass."""
    done.reclaimed = len(release_expired(now=now))
    done.crashed = detect_crashed(now=now)
    done.timed_out = time_out(now=now)
    lift_blocks(now=now)
    done.promoted = promote_ready(now=now)
    stop_superseded(now=now)
    failed = [*done.crashed, *done.timed_out]
    blocked = Task.objects.filter(pk__in=failed, status=Status.BLOCKED, block_kind=BlockKind.BREAKER)
    done.auto_blocked = sorted(blocked.values_list("pk", flat=True))


def tick() -> dict[str, Any] | None:
    """Run the periodic pass of this host; while it is switched off, only mend. Returns its counts, None then."""
    now = timezone.now()
    if not settings.ANDON_DISPATCH or lifecycle.the_board().paused_at is not None:
        mend(Pass(), now=now)
        return None
    nodes = [node for node in dispatch.ticking(now) if node == settings.ANDON_NODE]
    done, _ = run_pass(nodes, limit=settings.ANDON_WORKERS_PER_HOST, by=SWEEP, now=now)
    return {"claimed": len(done.spawned), "reclaimed": done.reclaimed, "promoted": done.promoted}


def _expired(now: datetime) -> list[Run]:
    tasks = Task.objects.filter(lease_until__lte=now, status=Status.RUNNING).values("pk")
    runs = Run.objects.filter(task__in=tasks, ended_at=None).select_related("task", "process")
    return list(runs.defer("task__body", "task__result")[:MOST_A_SWEEP])


def is_alive(run: Run, hosts: Collection[str]) -> bool:
    """Say whether a run goes on as far as anybody can prove: its process runs and its host's worker would know.

    `hosts` are the nodes whose worker ticks. One whose process is gone and whose services are waited for goes on too,
    while there is who would look at them.
    """
    if run.task.phase:
        return not run.has_process or run.host in hosts
    process = run.process
    return process is not None and process.status in UP and process.node in hosts


def release_expired(*, now: datetime) -> list[str]:
    """Release tasks whose lease is over, except those whose process is provably alive. Returns their ids."""
    found = _expired(now)
    hosts = dispatch.ticking(now) if found else []
    return [
        run.task_id
        for run in found
        if _each(partial(lifecycle.expire, run.task, is_alive=is_alive(run, hosts), by=SWEEP, now=now), run.task_id)
    ]


def detect_crashed(*, now: datetime) -> list[str]:
    """Settle runs whose process is gone and that nobody told of, and those that nobody started. Returns ids."""
    live = Run.objects.filter(ended_at=None, has_process=True)
    found = []
    gone = live.filter(Q(process=None) | ~Q(process__status__in=sorted(LIVE))).select_related("process", "task")
    for run in gone.defer("task__body", "task__result")[:MOST_A_SWEEP]:
        if run.verdict or run.task.phase:
            gate.wake(run.pk)
        elif run.process is None:
            found += _each(partial(_lost, run, now), run.task_id) * [run.task_id]
        else:
            found += _each(partial(_settle, run.process, now), run.task_id) * [run.task_id]
    for run in (
        live.filter(launch_by__lte=now).select_related("task").defer("task__body", "task__result")[:MOST_A_SWEEP]
    ):
        found += _each(partial(lifecycle.give_up_launch, run.task, by=SWEEP, now=now), run.task_id) * [run.task_id]
    return sorted(set(found))


def _settle(process: ManagedProcess, now: datetime) -> bool:
    with writing():
        lifecycle.exited(process, SWEEP, now)
    return True


def _lost(run: Run, now: datetime) -> bool:
    with writing():
        task = lifecycle.locked(run.task_id)
        if task.current_run != run.number:
            return False
        lifecycle.fail(task, Outcome.CRASHED, "its process was erased", pid=run.pid, by=SWEEP, now=now)
    return True


def time_out(*, now: datetime) -> list[str]:
    """End runs that are longer under way than their task allows and have not said what came of it. Returns ids."""
    late = Run.objects.filter(ended_at=None, timeout_at__lte=now, verdict="", task__phase="")
    late = late.select_related("task").defer("task__body")
    return [
        run.task_id
        for run in late[:MOST_A_SWEEP]
        if _each(partial(lifecycle.time_out, run.task, by=SWEEP, now=now), run.task_id)
    ]


def _promotable() -> Any:
    return Task.objects.filter(~HAS_OPEN_PARENT, status=Status.TODO, held=False)


def promote_ready(*, now: datetime) -> int:
    """Bring tasks where their parents let them be, whatever was missed. Returns how many were promoted."""
    stuck = Q(status=Status.TODO, held=False) | Q(status=Status.BLOCKED, block_kind=BlockKind.DEPENDENCY)
    late = Task.objects.filter(stuck, ~HAS_OPEN_PARENT) | Task.objects.filter(
        HAS_OPEN_PARENT, status=Status.READY, parents_waived=False
    )
    keys = list(late.values_list("pk", flat=True)[:MOST_A_SWEEP])
    if not keys:
        return 0
    with writing():
        return lifecycle.settle(Task.objects.filter(pk__in=keys), by=SWEEP, now=now).promoted


def lift_blocks(*, now: datetime) -> int:
    """Lift transient blocks whose time is over. Returns how many."""
    due = Task.objects.filter(status=Status.BLOCKED, unblock_at__lte=now).defer("body", "result")
    return sum(_each(partial(lifecycle.unblock, task, by=SWEEP, now=now), task.pk) for task in due[:MOST_A_SWEEP])


def stop_superseded(*, now: datetime) -> int:
    """Stop workers whose run is over: at once, or after ten seconds one that gave its verdict. Returns how many."""
    spoken = [Outcome.COMPLETED, Outcome.BLOCKED, Outcome.REVIEW_REQUESTED]
    over = Run.objects.filter(
        Q(ended_at__lte=now - END_WITHIN)
        | (Q(ended_at__isnull=False) & ~Q(outcome__in=spoken))
        | Q(reported_at__lte=now - END_WITHIN),
        process__purpose=Purpose.WORKER,
        process__status__in=sorted(LIVE),
    )
    keys = list(over.values_list("process_id", flat=True)[:MOST_A_SWEEP])
    return sum(_each(partial(lifecycle.stop_process, pk, now), pk) for pk in keys)


def settle_left() -> int:
    """Have every run that waits for what it has left on this host, or on none, looked at. Returns how many."""
    waiting = Run.objects.filter(ended_at=None, host__in=["", settings.ANDON_NODE]).exclude(task__phase="")
    keys = list(waiting.values_list("pk", flat=True)[:MOST_A_SWEEP])
    for pk in keys:
        gate.wake(pk)
    return len(keys)


def find_profiles(*, now: datetime) -> int:
    """Note which profiles' executables are on this node. Returns how many are."""
    path = search_path()
    found = 0
    for profile in Profile.objects.all():
        is_there = profiles.is_installed(profile.argv, path)
        found += is_there
        if (settings.ANDON_NODE in profile.found_on) != is_there:
            note = partial(lifecycle.note_found, profile, settings.ANDON_NODE, is_there=is_there, by=SWEEP, now=now)
            _each(note, profile.name)
    return found


def _each(act: Callable[[], object], what: object) -> bool:
    """Run one row's verb; one poison row never stops the rest. Says whether it did something."""
    try:
        return act() is not False
    except (Conflict, DomainError):
        return False  # it moved on by itself
    except Exception:
        log.exception("%s", what)
        return False
