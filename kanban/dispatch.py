"""One pass of the dispatcher: which ready tasks are claimed for which worker, within all caps.

Everything here is rows: the claim reserves the worker's process in its transaction, and the process's host makes the
workspace and starts it (workers.py). So any process may run a pass, and any number at once.
"""

import logging
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.conf import settings
from django.db.models import Count, Exists, OuterRef, Q, QuerySet
from django.utils import timezone

from kanban import lifecycle
from kanban.links import HAS_OPEN_PARENT
from kanban.models import LINGERING, Profile, Run, Task
from kanban.states import Status, WorkspaceKind
from projects import jobs
from projects.errors import DomainError
from projects.events import By
from projects.models import Project
from services import orders
from services.models import WorkerHost
from services.states import HostStatus

MOST_LISTED = 200
# Refusals that the profile's next task would meet as well.
FULL = frozenset({"over-cap", "profile-paused", "no-worker"})
log = logging.getLogger("andon.kanban")


@dataclass(slots=True)
class Claimed:
    """What a pass has claimed, or would (then without runs): (id, assignee, workspace); and who was skipped."""

    runs: list[Run] = field(default_factory=list)
    spawned: list[tuple[str, str, str]] = field(default_factory=list)
    skipped_unassigned: list[str] = field(default_factory=list)
    skipped_nonspawnable: list[str] = field(default_factory=list)


def ticking(now: datetime) -> list[str]:
    """Return the nodes whose worker ticks."""
    hosts = WorkerHost.objects.filter(status=HostStatus.TICKING)
    return [host.node for host in hosts if host.seen_at(now) == HostStatus.TICKING]


def claim_ready(nodes: list[str], *, limit: int, dry_run: bool = False, by: By, now: datetime) -> Claimed:
    """Claim up to `limit` ready tasks for the workers of nodes that tick, by priority, then age.

    A task of a project goes to that project's node, any other to the first node with room.
    """
    done = Claimed()
    profiles = {profile.name: profile for profile in Profile.objects.all()}
    for node in nodes:
        _claim_on(node, profiles, done, limit=limit - len(done.spawned), dry_run=dry_run, by=by, now=now)
    _list_skipped(profiles, done, now)
    return done


def _claim_on(
    node: str, profiles: dict[str, Profile], done: Claimed, *, limit: int, dry_run: bool, by: By, now: datetime
) -> None:
    live = Run.objects.filter(ended_at=None, has_process=True).order_by()
    busy = dict(live.values_list("profile").annotate(Count("pk")))
    room = min(limit, settings.ANDON_WORKERS_PER_HOST - live.filter(host=node).count())
    free = Counter(
        {name: profile.concurrency - busy.get(name, 0) for name, profile in profiles.items() if profile.can_spawn(node)}
    )
    taken = {task_id for task_id, _, _ in done.spawned}
    while room > 0:
        names = [name for name, left in free.items() if left > 0]
        found = list(ready(node, now).filter(assignee__in=names).exclude(pk__in=taken)[:room])
        if not found:
            return
        for task in found:
            if room <= 0 or free[task.assignee] <= 0:
                continue
            taken.add(task.pk)
            if not dry_run:
                run, has_room = _claim(task, profiles[task.assignee], node, by=by, now=now)
                if run is None:
                    free[task.assignee] *= has_room
                    continue
                done.runs.append(run)
            free[task.assignee] -= 1
            room -= 1
            done.spawned.append((task.pk, task.assignee, planned_workspace(task)))


def _claim(task: Task, profile: Profile, node: str, *, by: By, now: datetime) -> tuple[Run | None, bool]:
    """Claim one task, and say whether its profile may have room yet. One poison row stops nobody.

    Another dispatcher, a person or a cap may have been faster.
    """
    try:
        per_host = settings.ANDON_WORKERS_PER_HOST
        return lifecycle.claim(task, profile=profile, node=node, per_host=per_host, by=by, now=now), True
    except DomainError as refusal:
        log.debug("%s is not claimed: %s", task.pk, refusal)
        return None, refusal.code not in FULL
    except Exception:
        log.exception("%s cannot be claimed", task.pk)
        return None, True


def ready(node: str, now: datetime) -> QuerySet[Task]:
    """Return the tasks that a node may claim now, in the board's order; a task whose old worker lingers is none."""
    lingers = Exists(Run.objects.filter(LINGERING, task=OuterRef("pk")))
    due = Q(not_before=None) | Q(not_before__lte=now)
    free = Q(parents_waived=True) | ~HAS_OPEN_PARENT
    rows = Task.objects.filter(_placed(node), due, ~lingers, free, status=Status.READY)
    return rows.defer("body", "result").order_by("-priority", "created_at", "id")


def _placed(node: str) -> Q:
    """Return the condition on tasks that a node may do: of no project, or of one that is there on it."""
    return Q(project="") | Q(project__in=Project.objects.filter(node=node, missing_since=None).values("slug"))


def _list_skipped(profiles: dict[str, Profile], done: Claimed, now: datetime) -> None:
    """List ready tasks that nobody can be started for on any host that ticks, the first 200 of each kind."""
    waiting = Task.objects.filter(status=Status.READY).order_by("-priority", "created_at", "id")
    unknown = waiting.exclude(assignee__in=profiles)
    done.skipped_unassigned = list(unknown.values_list("pk", flat=True)[:MOST_LISTED])
    idle = waiting.filter(assignee__in=profiles)
    for node in ticking(now):
        names = [name for name, profile in profiles.items() if profile.can_spawn(node)]
        idle = idle.exclude(_placed(node), assignee__in=names)
    done.skipped_nonspawnable = list(idle.values_list("pk", flat=True)[:MOST_LISTED])


def planned_workspace(task: Task) -> str:
    """Return where a task's worker will work, as far as that is known before its host makes it."""
    if task.workspace_path:
        return task.workspace_path
    kind = WorkspaceKind(task.workspace_kind)
    return str(settings.ANDON_HOME / "workspaces" / task.pk) if kind != WorkspaceKind.DIR else ""


def tell(runs: list[Run]) -> None:
    """Tell the hosts of claimed runs to start their workers."""
    orders.tell([run.process for run in runs if run.process is not None])


# Filled in by sweeps.py: what the worker does when it is told that work may be free.
passes: list[Any] = []


@jobs.job
def look(_: int = 0) -> None:
    """Run by the worker: one pass now; several that were asked for meanwhile are one."""
    for run_pass in passes:
        jobs.submit("kanban.dispatch", run_pass)


def wake() -> None:
    """Have the dispatchers look now; a lost message costs up to five seconds, the tick's rhythm."""
    nodes = ticking(timezone.now()) if settings.REDIS_URL else [settings.ANDON_NODE]
    for node in nodes:
        orders.send(look, node, 0)
