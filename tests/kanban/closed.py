"""Tasks that were done long ago, with all that they leave on the disk of their host."""

from datetime import timedelta
from pathlib import Path
from typing import Any

from django.utils import timezone

from kanban import lifecycle, workspaces
from kanban.models import Run
from tests.kanban import rows

LONG_AGO = timezone.now() - timedelta(days=40)


def worked_on(home: Path, *, result: str = "see report.md", **fields: Any) -> Run:
    """Return the run of a task that was done long ago, in a workspace with three files."""
    run = rows.started(rows.task(now=LONG_AGO, **fields), now=LONG_AGO)
    if fields.get("workspace_kind", "scratch") == "scratch":
        place = workspaces.make("scratch", task_id=run.task_id, home=home, path="", roots=[], repository=None)
        for name in ("report.md", "other.txt"):
            (place / name).write_text(name)
        Run.objects.filter(pk=run.pk).update(workspace=str(place))
    lifecycle.complete(run.task, result=result, by=rows.as_run(run), now=LONG_AGO)
    rows.ended(run, now=LONG_AGO)
    folder = home / "agents" / run.agent
    folder.mkdir(parents=True)
    (folder / "context.md").write_text("context")
    return rows.fresh_run(run)
