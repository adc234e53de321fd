"""What the board keeps for how long: events, logs and scratch workspaces of tasks that have long been closed.

Each goes in bounded batches, oldest first. What is on a host's disk is its own worker's to remove.
"""

import logging
import shutil
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db.models import Exists, OuterRef, Q, QuerySet, Value
from django.db.models.functions import Concat

from kanban import workspaces
from kanban.models import LINGERING, Link, Run, Task
from kanban.states import CLOSED, WorkspaceKind
from kanban.workers import CONTEXT_FILE
from projects.errors import Conflict
from projects.events import SWEEP, By, record, writing
from projects.models import Event
from services import lifecycle as services
from services.specs.sidecars import FOLDER as AGENTS
from services.states import LIVE

KEPT = timedelta(days=30)
BATCH = 200
MOST_EVENTS = 5_000
ARTEFACTS = "artefacts"
log = logging.getLogger("andon.kanban")


def long_closed(now: datetime) -> QuerySet[Task]:
    """Return the tasks that have been done or archived for 30 days."""
    return Task.objects.filter(status__in=sorted(CLOSED), since__lte=now - KEPT).order_by("since")


def prune_events(*, now: datetime) -> int:
    """Delete the events of tasks that were closed 30 days ago; their cards stay. Returns how many.

    The log's floor does not move: it says how far *all* is deleted.
    """
    old = Event.objects.filter(at__lte=now - KEPT).order_by("id")
    names = [f"task:{pk}" for pk in long_closed(now).filter(_has_events(now)).values_list("pk", flat=True)[:BATCH]]
    keys = list(old.filter(subject__in=names).values_list("pk", flat=True)[:MOST_EVENTS]) if names else []
    if not keys:
        return 0
    with writing():
        return Event.objects.filter(pk__in=keys).delete()[0]


def _has_events(now: datetime) -> Q:
    of_it = Event.objects.filter(subject=Concat(Value("task:"), OuterRef("pk")), at__lte=now - KEPT)
    return Q(Exists(of_it))


def prune_logs(*, now: datetime) -> int:
    """Forget the processes of this host whose tasks were closed 30 days ago, and what their workers were told.

    services removes their logs. Returns how many.
    """
    over = Run.objects.filter(task__in=long_closed(now), process__node=settings.ANDON_NODE, ended_at__isnull=False)
    found = 0
    for run in over.exclude(process__status__in=sorted(LIVE)).select_related("process")[:BATCH]:
        if run.process is None:
            continue
        try:
            _remove_folder(run)
            services.erase(run.process, by=SWEEP, now=now)
        except (Conflict, OSError) as error:
            log.warning("the log of %s: %s", run, error)
            continue
        found += 1
    return found


def _remove_folder(run: Run) -> None:
    """Remove a run's folder; a sidecar that nobody read stays, and is shown as unclaimed."""
    folder = settings.ANDON_HOME / AGENTS / run.agent
    if folder.is_dir() and not folder.is_symlink() and {each.name for each in folder.iterdir()} <= {CONTEXT_FILE}:
        shutil.rmtree(folder)


def prunable(now: datetime) -> QuerySet[Task]:
    """Return the tasks whose scratch workspaces may go: closed for 30 days, nobody works there, no child is open.

    A child may still read what its parent has left there.
    """
    at_work = Run.objects.filter(Q(ended_at=None) | LINGERING, task=OuterRef("pk"))
    open_child = Link.objects.filter(parent=OuterRef("pk")).exclude(child__status__in=sorted(CLOSED))
    mine = Run.objects.filter(task=OuterRef("pk"), host=settings.ANDON_NODE, has_process=True).exclude(workspace="")
    scratch = long_closed(now).filter(workspace_kind=WorkspaceKind.SCRATCH)
    return scratch.filter(Exists(mine), ~Exists(open_child), ~Exists(at_work))


def prune_workspaces(*, now: datetime, dry_run: bool = False) -> list[str]:
    """Remove the scratch workspaces of this host that nobody needs any more; returns the ids of their tasks.

    What a task's result names is first copied to `artefacts/<task id>` under ANDON_HOME. Directories without our
    marker, and those of kind dir and worktree, are never touched. Records task.pruned.
    """
    home = settings.ANDON_HOME
    gone = []
    for task in prunable(now)[:BATCH]:
        place = home / workspaces.FOLDER / task.pk
        if dry_run:
            gone += [task.pk] if (place / workspaces.MARKER).is_file() else []
            continue
        # It may have been opened again since the others were found.
        if not prunable(now).filter(pk=task.pk).exists():
            continue
        try:
            kept = workspaces.artefacts(task.result, place)
            is_gone = workspaces.remove(task.pk, home=home, kept=kept, keep_to=home / ARTEFACTS / task.pk)
        except OSError as error:
            log.warning("the workspace of %s: %s", task.pk, error)
            continue
        _note(task, kept if is_gone else [], is_gone=is_gone, by=SWEEP, now=now)
        gone += [task.pk] if is_gone else []
    return gone


def _note(task: Task, kept: list[str], *, is_gone: bool, by: By, now: datetime) -> None:
    # Without a workspace the task is not looked at again.
    with writing():
        Run.objects.filter(task=task, host=settings.ANDON_NODE).update(workspace="")
        if is_gone:
            told: dict[str, Any] = {"kept": kept or None}
            record("task.pruned", task.subject, by=by, now=now, project=task.project, **told)
