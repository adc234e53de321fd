"""Keep Project, Story, Iteration and UsageEntry rows true to the files (spec: projects.md 2).

The watcher only triggers; `rescan` needs no memory and is what is correct.
"""

import logging
import os
import re
from collections import defaultdict
from datetime import datetime
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from django.conf import settings
from django.db.models import QuerySet
from django.utils import timezone

from projects import history, ralph
from projects.events import SWEEP, By, record, writing
from projects.importer import costs
from projects.importer.absorb import Absorption
from projects.importer.observe import EPOCH, Loop, Observation, observe
from projects.models import Project
from services.processes import Identity

__all__ = ["Counts", "directories", "import_project", "project_roots", "rescan"]

# The watcher's pool and the rescan may meet at one project; the second then finds nothing new.
_locks: dict[str, Lock] = defaultdict(Lock)
# What no comparison needs; loaded only where something is new.
HEAVY = ("document", "description", "shown_stories")
# How Python shows the bytes of a file's name that are not UTF-8.
UNDECODED = re.compile("[\udc80-\udcff]")
log = logging.getLogger("andon.importer")


class Counts(NamedTuple):
    """What a rescan met."""

    projects: int
    changed: int
    missing: int
    failed: int


def directories(root: Path) -> list[Path]:
    """Return the directories directly under a workspace root, by name.

    Left out are hidden ones, links, and names that are not UTF-8: no row could hold them.
    """
    try:
        with os.scandir(root) as entries:
            names = [e.path for e in entries if not e.name.startswith(".") and e.is_dir(follow_symlinks=False)]
    except OSError:
        return []
    return [Path(name) for name in sorted(names) if not UNDECODED.search(name)]


def project_roots() -> list[Path]:
    """Return the directories directly under the workspace roots that are projects."""
    return [path for root in settings.ANDON_WORKSPACE for path in directories(root) if ralph.is_project(path)]


def rescan(*, now: datetime) -> Counts:
    """Compare every project of this node with its files; one that fails is logged and does not stop the rest."""
    mine = {row.path: row for row in Project.objects.filter(node=settings.ANDON_NODE).defer(*HEAVY)}
    roots = project_roots()
    taken = set(Project.objects.values_list("slug", flat=True)) if any(str(r) not in mine for r in roots) else set()
    changed = failed = 0
    for root in roots:
        project = mine.pop(str(root), None)
        try:
            if project is None:
                project = _new(root, taken, now=now)
                taken.add(project.slug)
            changed += _import(project, now=now)
        except Exception:
            failed += 1
            log.exception("import of %s failed", root)
    missing = [project for project in mine.values() if project.missing_since is None]
    for project in missing:
        _lose(project, now=now)
    return Counts(len(roots), changed, len(missing), failed)


def import_project(path: str, *, now: datetime) -> bool:
    """Import one project by its directory; says whether anything was new.

    One not known yet, or gone, waits for rescan: whether it is missing is told there.
    """
    if not ralph.is_project(Path(path)):
        return False
    project = Project.objects.filter(node=settings.ANDON_NODE, path=path).defer(*HEAVY).first()
    return project is not None and _import(project, now=now)


def _new(root: Path, taken: set[str], *, now: datetime) -> Project:
    slug, _ = ralph.slug_for(root.name, os.path.realpath(root), taken)
    return Project(
        slug=slug,
        node=settings.ANDON_NODE,
        path=str(root),
        name=root.name,
        title=root.name,
        found_at=now,
    )


def _import(project: Project, *, now: datetime) -> bool:
    with _locks[project.path]:
        seen = _look(project)
        if project.pk is not None and not _is_news(project, seen):
            return False
        # Whoever held the lock before, or a sweep, may have brought the row further than it was when it was read.
        row = Project.objects.filter(node=project.node, path=project.path).defer(*HEAVY).first()
        if row is None:
            return project.pk is None and _absorb(project, seen, now=now)
        if (row.fingerprints, row.loop_process) != (project.fingerprints, project.loop_process):
            seen = _look(row)
        told = _is_news(row, seen) and _absorb(row, seen, now=now)
        if row.running and row.loop_process.get("ended") and _is_news(row, seen := _look(row)):
            # It had ended before anybody saw it run: its start is told now, and so is its end.
            told = _absorb(row, seen, now=now)
        return told


def _look(project: Project) -> Observation:
    """Look at a project's files, and add what only its row knows: the loop that Andon started and still watches."""
    loop = None
    if project.pid is not None and project.start_ticks is not None:
        loop = Identity(settings.ANDON_NODE, project.boot_id, project.pid, project.start_ticks)
    seen = observe(Path(project.path), project.fingerprints, node=settings.ANDON_NODE, loop=loop)
    known = project.loop_process
    started = datetime.fromisoformat(known["started_at"]) if known else EPOCH
    if seen.is_ralph and known and (not known.get("ended") or (project.loop_started_at or EPOCH) < started):
        # Until its supervisor says that it ended: how it did is known then.
        seen.loop = Loop(known["pid"], known["start_ticks"], known["boot_id"], started, ours=True)
    elif project.running and seen.loop is None:
        ending = history.last_ending(Path(project.path), project.loop_started_at or EPOCH)
        seen.ending = ending.reason if ending else ""
    if seen.is_ralph:
        seen.spent = costs.look(project, Path(seen.prd_path).parent, seen.fingerprints)
    return seen


def _absorb(project: Project, seen: Observation, *, now: datetime) -> bool:
    told = Absorption(project, seen, now=now).run()
    if seen.spent.more:
        # The queue's file is made at import; commands that need none load this too.
        from projects import jobs

        # A long usage.jsonl comes in batch by batch, and other projects in between.
        jobs.submit(f"import {project.path}", _go_on, project.path)
    return told


def _go_on(path: str) -> bool:
    return import_project(path, now=timezone.now())


def _is_news(project: Project, seen: Observation) -> bool:
    loop = (seen.loop.pid, seen.loop.start_ticks) if seen.loop else (None, None)
    return (
        seen.fingerprints != project.fingerprints
        or project.missing_since is not None
        or project.ralph != seen.is_ralph
        or project.running != (seen.loop is not None)
        or loop != (project.pid, project.start_ticks)
    )


def _lose(project: Project, *, now: datetime) -> None:
    with writing():
        fields = {"missing_since": now, "running": False, "pid": None, "start_ticks": None, "stalled": False}
        # Found again, it is read anew: what it left open has ended.
        fields["fingerprints"] = {}
        if Project.objects.filter(pk=project.pk, missing_since=None).update(**fields):
            record("project.missing", project.subject, by=SWEEP, now=now, project=project.slug, path=project.path)


def forget(projects: QuerySet[Project], *, by: By, now: datetime) -> int:
    """Forget what was read of some projects, so that the next look reads all files anew; returns how many.

    Rows stay as they are until then. Records project.changed.
    """
    rows = list(projects.only("pk", "slug"))
    with writing():
        Project.objects.filter(pk__in=[row.pk for row in rows]).update(fingerprints={})
        for row in rows:
            record("project.changed", row.subject, by=by, now=now, project=row.slug, changed=["read-again"])
    return len(rows)
