"""What a clean-up would remove now, and what stays and why. Changes nothing; of another host's disk nothing is read."""

import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db.models import CharField, Count, Exists, OuterRef, Q, QuerySet, Value

from kanban import notices, retention, workspaces
from kanban.models import Run, Task
from kanban.states import CLOSED, WorkspaceKind
from projects import sizes
from projects import sweeps as projects
from projects.models import Event
from services import sweeps as services
from services.models import LOG_FOLDER
from services.specs.sidecars import FOLDER as AGENTS

# Rows that are shown of each kind, that are looked at on the disk, and entries of directories that are measured.
MOST_LISTED = 50
MOST_LOOKED = 1000
MOST_ENTRIES = 50_000
MEASURED_FOR_S = 60.0
# Of a run.
SHOWN = (
    *("number", "task__title", "task__since"),
    *("process__name", "process__node", "process__log_head"),
)
# path -> (when it was measured, monotonic; bytes)
_measured: dict[Path, tuple[float, int]] = {}


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something of a closed task on a host's disk; paths are relative to its ANDON_HOME.

    `size` in bytes, None when it was not measured: it lies on another host, or there was too much to look at.
    """

    task: str
    title: str
    host: str
    paths: list[str]
    size: int | None
    closed_at: datetime

    @property
    def is_here(self) -> bool:
        return self.host == settings.ANDON_NODE


@dataclass(slots=True)
class Preview:
    """What would go: the first rows of a kind and `total` of each, and how many stay for which reason.

    `size` counts what was measured, all that would go when `is_measured`.
    """

    workspaces: list[Leftover] = field(default_factory=list)
    runs: list[Leftover] = field(default_factory=list)
    total: dict[str, int] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)
    size: int = 0
    is_measured: bool = True

    @property
    def is_empty(self) -> bool:
        return not any(self.total.values())

    def more(self, kind: str) -> int:
        return max(0, self.total[kind] - len(getattr(self, kind)))


def look(now: datetime) -> Preview:
    """Return what a clean-up would remove at this moment; five queries, and one more for logs that nobody names."""
    found, measure = Preview(total=_counts(now), kept=_kept(now)), sizes.Measure(MOST_ENTRIES)
    places, strange = _workspaces(now, measure)
    over = retention.over(now).select_related("task", "process").only(*SHOWN)
    runs = [_of_run(run) for run in over[:MOST_LOOKED]]
    unnamed = services.unnamed_logs(now)
    found.total |= {"workspaces": max(len(places), found.total["workspaces"] - strange), "logs": len(unnamed)}
    found.kept["not_ours"] = strange
    known = [each.size for each in (*places, *runs)]
    found.size = sum(size or 0 for size in known) + sizes.of_files(LOG_FOLDER / name for name in unnamed)
    found.is_measured = None not in known and max(len(places) + strange, len(runs)) < MOST_LOOKED
    found.workspaces, found.runs = places[:MOST_LISTED], runs[:MOST_LISTED]
    return found


def _workspaces(now: datetime, measure: sizes.Measure) -> tuple[list[Leftover], int]:
    """Return (the workspaces that would go, how many directories on this host are not ours, or gone already)."""
    rows = retention.with_workspace().filter(task__in=retention.prunable(now, node="").order_by())
    rows = rows.order_by("task__since", "task_id", "host").distinct()
    found, strange = [], 0
    for task_id, title, host, since in rows.values_list("task_id", "task__title", "host", "task__since")[:MOST_LOOKED]:
        size = None
        if host == settings.ANDON_NODE:
            if not workspaces.is_ours(task_id, home=settings.ANDON_HOME):
                strange += 1
                continue
            size = _size(settings.ANDON_HOME / workspaces.FOLDER / task_id, measure)
        found.append(Leftover(task_id, title, host, [f"{workspaces.FOLDER}/{task_id}"], size, since))
    return found, strange


def _size(folder: Path, measure: sizes.Measure) -> int | None:
    """Measure a directory, once a minute at most."""
    now = time.monotonic()
    at, size = _measured.get(folder, (now - MEASURED_FOR_S, 0))
    if now - at < MEASURED_FOR_S:
        return size
    fresh = measure.of(folder)
    if fresh is not None:
        if len(_measured) > 2 * MOST_LOOKED:
            _measured.clear()
        _measured[folder] = now, fresh
    return fresh


def _of_run(run: Run) -> Leftover:
    process: Any = run.process
    is_here = process.node == settings.ANDON_NODE
    # What lies on another host is not looked for there.
    has_folder = retention.folder_of(run) is not None if is_here else True
    paths = [*([f"{AGENTS}/{run.agent}"] if has_folder else []), process.log_path]
    size = retention.size_of(run) if is_here else None
    return Leftover(run.task_id, run.task.title, process.node, paths, size, run.task.since)


def _counts(now: datetime) -> dict[str, int]:
    """Return how many rows of each kind would go; one query."""
    runs = retention.over(now)
    events = Event.objects.filter(projects.is_old(now) | retention.is_old(now))
    processes = services.forgettable(now).exclude(pk__in=runs.order_by().values("process"))
    rows: dict[str, QuerySet[Any]] = {
        "workspaces": retention.prunable(now, node=""),
        "runs": runs,
        "processes": processes,
        "events": events,
        "deliveries": notices.old(now),
    }
    first, *others = [
        each.order_by().annotate(counted=Value(kind, CharField())).values("counted").annotate(count=Count("pk"))
        for kind, each in rows.items()
    ]
    found = {row["counted"]: row["count"] for row in first.union(*others, all=True)}
    return dict.fromkeys(rows, 0) | found


def _kept(now: datetime) -> dict[str, int]:
    """Return how many workspaces stay, by the first reason that applies to each; one query."""
    made = retention.with_workspace().filter(task=OuterRef("pk"))
    tasks = Task.objects.filter(Exists(made)).annotate(
        has_child=Exists(retention.open_children()), is_at_work=Exists(retention.at_work())
    )
    scratch = Q(workspace_kind=WorkspaceKind.SCRATCH)
    closed = scratch & Q(status__in=sorted(CLOSED))
    idle = closed & Q(is_at_work=False)
    reasons = {
        "somebodys": ~scratch,
        "open": scratch & ~Q(status__in=sorted(CLOSED)),
        "at_work": closed & Q(is_at_work=True),
        "child": idle & Q(has_child=True),
        "recent": idle & Q(has_child=False, since__gt=now - retention.KEPT),
    }
    return tasks.aggregate(**{name: Count("pk", filter=reason) for name, reason in reasons.items()})
