"""Verbs as people and programs give them: the intent is committed, its node's worker is told, the outcome awaited.

REST and pages share these. Nothing here touches a process; without a worker nothing is changed (503 `no-worker`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.utils import timezone
from huey import RedisHuey

from projects import jobs
from projects.errors import Conflict, Unfinished
from projects.events import By
from projects.models import Project
from services import lifecycle, queries, rules, supervisor
from services.models import ManagedProcess
from services.states import LIVE, Status

STARTED_WITHIN_S = 5.0
STOPPED_BEYOND_GRACE_S = 5.0


@jobs.job
def act(pk: int) -> None:
    """Run by the worker: look at one row now."""
    if at_work := supervisor.current():
        at_work.wake(pk)


def tell(rows: Iterable[ManagedProcess]) -> None:
    """Tell each row's worker to look at it; a lost message costs up to five seconds, the sweep's rhythm."""
    for row in rows:
        send(act, row.node, row.pk)


def send(job: Any, node: str, pk: int) -> None:
    """Enqueue a job of `jobs.job` for the worker of a node."""
    if node == settings.ANDON_NODE:
        job(pk)
    elif settings.REDIS_URL:
        away = RedisHuey(f"andon-{node}", url=settings.REDIS_URL)
        away.storage.enqueue(jobs.queue.serialize_task(job.s(pk)))


@dataclass(frozen=True, slots=True)
class Placed:
    """What became of a declaration: its rows in order, what to know, and whether all have their process already."""

    rows: list[ManagedProcess]
    warnings: list[str]
    is_started: bool


def declare(project: Project, specs: Sequence[Mapping[str, Any]], *, agent: str = "", wi: str = "", by: By) -> Placed:
    """Reserve validated specs and answer when their processes are started, at most 5 s later.

    Raises what `lifecycle.declare` refuses; Conflict `port-conflict` or `start-failed` when one could not be started:
    then those declared with it are rolled back.
    """
    done = lifecycle.declare(project, specs, agent=agent, wi=wi, quotas=rules.quotas(), by=by, now=timezone.now())
    tell(done.rows)
    rows = queries.awaited(done.rows, queries.is_started, within_s=STARTED_WITHIN_S)
    fresh = {row.pk for row in done.fresh}
    # In file order: the one that could not be started stands before those that were not started because of it.
    for row in rows:
        if row.pk in fresh and row.status == Status.FAILED and row.started_at is None:
            raise _refusal(row)
    return Placed(rows, done.warnings, all(queries.is_started(row) for row in rows))


def start(row: ManagedProcess, *, by: By, expected_generation: int | None = None) -> ManagedProcess:
    """Start what has ended and answer when it has its process, at most 5 s later. Raises as `declare` does."""
    row = lifecycle.start(
        row, quotas=rules.quotas(), by=by, now=timezone.now(), expected_generation=expected_generation
    )
    tell([row])
    [row] = queries.awaited([row], queries.is_started, within_s=STARTED_WITHIN_S)
    if row.status == Status.FAILED and row.started_at is None:
        raise _refusal(row)
    return row


def restart(row: ManagedProcess, *, by: By, expected_generation: int | None = None) -> ManagedProcess:
    """Restart and answer when the next generation has its process, at most grace + 5 s later; start what has ended.

    Raises Conflict as `lifecycle.restart` does.
    """
    if row.status not in LIVE:
        return start(row, by=by, expected_generation=expected_generation)
    queries.need_worker(row.node, timezone.now())
    row = lifecycle.restart(row, by=by, now=timezone.now(), expected_generation=expected_generation)
    generation = row.generation
    tell([row])

    def is_back(fresh: ManagedProcess) -> bool:
        return fresh.status not in LIVE or (fresh.generation > generation and fresh.pid is not None)

    within_s = row.stop_grace_s + STOPPED_BEYOND_GRACE_S
    [row] = queries.awaited([row], is_back, within_s=within_s)
    if row.status == Status.FAILED and row.generation > generation:
        raise _refusal(row)
    return row


@dataclass(frozen=True, slots=True)
class Stopped:
    """What a stop did: the row, the leader's pid when there was one, whether anything had to be stopped."""

    row: ManagedProcess
    pid: int | None
    was_live: bool


def stop(row: ManagedProcess, *, at_once: bool = False, by: By, expected_generation: int | None = None) -> Stopped:
    """Stop and answer once nothing is left, at most grace + 5 s later; `at_once` kills without grace.

    Of one that has ended already nothing is done. Raises Unfinished `still-stopping` with `left`, Conflict
    `identity-unavailable` when what is left cannot be seen, `generation-changed`.
    """
    if expected_generation is not None and row.generation != expected_generation:
        raise Conflict(
            "generation-changed",
            f"{row} is generation {row.generation} now, not {expected_generation}.",
            generation=row.generation,
        )
    if row.status not in LIVE:
        return Stopped(row, None, was_live=False)
    queries.need_worker(row.node, timezone.now())
    verb = lifecycle.kill if at_once else lifecycle.stop
    pid = row.pid
    row = verb(row, by=by, now=timezone.now(), expected_generation=expected_generation)
    tell([row])
    grace = 0 if at_once else row.stop_grace_s
    [row] = queries.awaited([row], lambda each: each.status not in LIVE, within_s=grace + STOPPED_BEYOND_GRACE_S)
    if row.status not in LIVE:
        return Stopped(row, pid, was_live=True)
    if row.last_error.startswith("identity-unavailable"):
        raise Conflict(
            "identity-unavailable", f"Some processes of {row} cannot be seen, so nothing more was signalled."
        )
    left = row.left or ([row.pid] if row.pid else [])
    raise Unfinished(
        "still-stopping", f"{row} is still being stopped; it is tried again until nothing is left.", left=left
    )


def _refusal(row: ManagedProcess) -> Conflict:
    code = "port-conflict" if row.last_error.startswith("port-conflict") else "start-failed"
    return Conflict(code, row.last_error)
