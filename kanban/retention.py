"""What the board keeps for how long: events, logs and scratch workspaces of tasks that have long been closed.

Each goes in bounded batches, oldest first. What is on a host's disk is its own worker's to remove.
"""

import contextlib
import logging
import shutil
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db.models import Exists, OuterRef, Q, QuerySet, Value
from django.db.models.functions import Concat

from kanban import workspaces
from kanban.models import LINGERING, Link, Run, Task
from kanban.states import CLOSED, WorkspaceKind
from kanban.workers import CONTEXT_FILE
from projects import sizes
from projects.errors import Conflict
from projects.events import SWEEP, By, record, writing
from projects.models import Event
from services import lifecycle as services
from services import logs
from services.models import LOG_FOLDER
from services.specs.sidecars import FOLDER as AGENTS
from services.states import LIVE

KEPT = timedelta(days=30)
BATCH = 200
MOST_EVENTS = 5_000
ARTEFACTS = "artefacts"
log = logging.getLogger("andon.kanban")


@dataclass(slots=True)
class Pruned:
    """What went, as ids of tasks or names of runs, and how many bytes; `more`: there may be more to look at."""

    gone: list[str] = field(default_factory=list)
    size: int = 0
    more: bool = False


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


def is_old(now: datetime) -> Q:
    """Return the condition on the events that `prune_events` deletes, batch after batch."""
    names = long_closed(now).order_by().values_list(Concat(Value("task:"), "pk"))
    return Q(at__lte=now - KEPT, subject__in=names)


def over(now: datetime) -> QuerySet[Run]:
    """Return the runs, of any host, whose logs and folders may go: of tasks closed for 30 days, ended themselves."""
    rows = Run.objects.filter(task__in=long_closed(now).order_by(), process__isnull=False, ended_at__isnull=False)
    return rows.exclude(process__status__in=sorted(LIVE)).select_related("process").order_by("pk")


def prune_logs(*, by: By = SWEEP, now: datetime) -> Pruned:
    """Forget the processes of this host whose tasks were closed 30 days ago, and what their workers were told.

    services removes their logs.
    """
    mine = over(now).filter(process__node=settings.ANDON_NODE)
    found = list(mine[:BATCH])
    done = Pruned()
    for run in found:
        # Its task may have been opened again since the others were found.
        if run.process is None or not mine.filter(pk=run.pk).exists():
            continue
        try:
            size, folder = size_of(run), folder_of(run)
            if folder is not None:
                shutil.rmtree(folder)
            services.erase(run.process, by=by, now=now)
        except (Conflict, OSError) as error:
            log.warning("the log of %s: %s", run, error)
            continue
        done.gone.append(str(run))
        done.size += size
    done.more = len(found) == BATCH and bool(done.gone)
    return done


def size_of(run: Run) -> int:
    """Return how many bytes the log and the folder of a run of this host have."""
    process = run.process
    size = logs.size(LOG_FOLDER, process.log_name, process.log_head) if process is not None else 0
    return size + sizes.of_files([settings.ANDON_HOME / AGENTS / run.agent / CONTEXT_FILE])


def folder_of(run: Run) -> Path | None:
    """Return the folder of a run of this host, which may go; None without one, or while a sidecar waits to be read."""
    folder = settings.ANDON_HOME / AGENTS / run.agent
    with contextlib.suppress(OSError):
        if not folder.is_symlink() and {each.name for each in folder.iterdir()} <= {CONTEXT_FILE}:
            return folder
    return None


def prunable(now: datetime, *, node: str) -> QuerySet[Task]:
    """Return the tasks whose scratch workspaces may go: closed for 30 days, nobody works there, no child is open.

    A child may still read what its parent has left there. `node` "" = on any host.
    """
    scratch = long_closed(now).filter(workspace_kind=WorkspaceKind.SCRATCH)
    made = with_workspace().filter(task=OuterRef("pk"))
    made = made.filter(host=node) if node else made
    return scratch.filter(Exists(made), ~Exists(open_children()), ~Exists(at_work()))


def with_workspace() -> QuerySet[Run]:
    """Return the runs for which a workspace was made that is not known to be gone."""
    return Run.objects.filter(has_process=True).exclude(workspace="")


def open_children() -> QuerySet[Link]:
    """Return, for a query over tasks, their links to children that are not closed."""
    return Link.objects.filter(parent=OuterRef("pk")).exclude(child__status__in=sorted(CLOSED))


def at_work() -> QuerySet[Run]:
    """Return, for a query over tasks, their runs that have not ended or whose process is not verified gone."""
    return Run.objects.filter(Q(ended_at=None) | LINGERING, task=OuterRef("pk"))


def prune_workspaces(*, by: By = SWEEP, now: datetime, dry_run: bool = False) -> Pruned:
    """Remove the scratch workspaces of this host that nobody needs any more.

    What a task's result names is first copied to `artefacts/<task id>` under ANDON_HOME. Directories without our
    marker, and those of kind dir and worktree, are never touched. Whether it may go is decided once more with the
    task's row held, and there it leaves the task's reach: who opens it again finds all of it, or none. Records
    task.pruned.
    """
    home = settings.ANDON_HOME
    found = list(prunable(now, node=settings.ANDON_NODE)[:BATCH])
    done, failed = Pruned(), 0
    for task in found:
        if dry_run:
            done.gone += [task.pk] if workspaces.is_ours(task.pk, home=home) else []
            continue
        place = home / workspaces.FOLDER / task.pk
        kept = workspaces.artefacts(task.result, place)
        size = sizes.of_tree(place)
        try:
            workspaces.keep(task.pk, home=home, kept=kept, to=home / ARTEFACTS / task.pk)
            is_gone = _give_up(task, kept, size, by=by, now=now)
        except OSError as error:
            log.warning("the workspace of %s: %s", task.pk, error)
            failed += 1
            continue
        done.gone += [task.pk] if is_gone else []
        done.size += size * is_gone
    if not dry_run:
        _clear()
        done.more = failed < len(found) == BATCH
    return done


def _give_up(task: Task, kept: list[str], size: int, *, by: By, now: datetime) -> bool:
    """Set a workspace aside if its task still lets it go, and tell of it; says whether there was one of ours."""
    with writing():
        # Held until the commit, so that nobody opens it again meanwhile.
        Task.objects.select_for_update().filter(pk=task.pk).first()
        if not prunable(now, node=settings.ANDON_NODE).filter(pk=task.pk).exists():
            return False
        # Without a workspace the task is not looked at again.
        Run.objects.filter(task=task, host=settings.ANDON_NODE).update(workspace="")
        is_gone = workspaces.set_aside(task.pk, home=settings.ANDON_HOME)
        if is_gone:
            told: dict[str, Any] = {"kept": kept or None, "bytes": size}
            record("task.pruned", task.subject, by=by, now=now, project=task.project, **told)
    return is_gone


def _clear() -> None:
    """Remove what was set aside, also by those that a crash, or the disk, has stopped."""
    home = settings.ANDON_HOME
    for name in workspaces.aside(home=home):
        try:
            workspaces.clear(name, home=home)
        except OSError as error:
            log.warning("the workspace %s: %s", name, error)
