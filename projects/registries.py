"""Judge who of the loops in `.ralph/loops.json` runs. The worker's, for its own node: only it looks at processes.

What it saw is kept (LoopRegistry) with the moment, and pages and REST read that.
"""

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from django.conf import settings

from projects import history
from projects.events import SWEEP, record, writing
from projects.models import LoopRegistry, Project
from services import processes
from services.processes import Identity

# A moment that says no more than that nothing has changed.
TOLD_EVERY = timedelta(seconds=15)
# A registry notes a start a moment after it.
SLACK_S = 5.0
log = logging.getLogger("andon.registries")


def sweep(*, now: datetime) -> int:
    """Judge the registries of this node's projects; returns how many say something else than before.

    One that fails is logged and does not stop the rest. Where nothing has changed only the moment moves on.
    """
    rows = Project.objects.filter(node=settings.ANDON_NODE, missing_since=None).select_related("registry")
    booted_at = _booted_at()
    changed, same = 0, []
    for project in rows.only("slug", "path", "registry"):
        known: LoopRegistry | None = getattr(project, "registry", None)
        try:
            if _judge(project, known, booted_at, now=now):
                changed += 1
            elif known is not None and now - known.judged_at >= TOLD_EVERY:
                same.append(project.pk)
        except Exception:
            log.exception("the registry of %s was not judged", project.slug)
    if same:
        LoopRegistry.objects.filter(project__in=same).update(judged_at=now)
    return changed


def _judge(project: Project, known: LoopRegistry | None, booted_at: datetime, *, now: datetime) -> bool:
    """Look at one registry and keep what is new. Records project.changed, but not of one without a loop at first."""
    loops, problem = history.read_registry(Path(project.path), booted_at=booted_at, is_alive=_is_alive)
    seen: dict[str, Any] = {"loops": [loop.told() for loop in loops], "problem": problem}
    if known is not None and (known.loops, known.problem) == (seen["loops"], seen["problem"]):
        return False
    with writing():
        # Locked: of a project that is forgotten meanwhile nothing is kept.
        if not Project.objects.select_for_update().filter(pk=project.pk).exists():
            return False
        LoopRegistry.objects.update_or_create(project=project, defaults={**seen, "judged_at": now})
        if known is not None or loops or problem:
            record("project.changed", project.subject, by=SWEEP, now=now, project=project.slug, changed=["loops"])
    return True


def _booted_at() -> datetime:
    identity = Identity(settings.ANDON_NODE, processes.boot_id(), 1, 0)
    return datetime.fromtimestamp(processes.started_at(identity), UTC)


def _is_alive(pid: int, started: datetime | None) -> bool | None:
    """Say whether the process that had a pid at a time is still there; None when that cannot be told."""
    try:
        identity = processes.identify(pid, settings.ANDON_NODE)
        if identity is None or started is None:
            return False if identity is None else None
        return processes.started_at(identity) <= started.timestamp() + SLACK_S
    except (OSError, ValueError):
        return None
