"""/runs/<number>/: one attempt at a task, with the log of its worker, which grows while one looks."""

from typing import Any

from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_safe

from kanban.models import Run
from kanban.pages import prose
from kanban.pages.tasks import events_of, get_run, look
from kanban.states import Status
from projects.pages import page
from services.models import ManagedProcess
from services.pages import exit_words
from services.streams import log_tail


@require_safe
def run(request: HttpRequest, pk: int) -> HttpResponse:
    """One run: how it ended or goes on, what it cost, what it printed."""
    row = get_run(pk)
    process = row.process
    wanted = request.htmx.target  # type: ignore[attr-defined]
    context: dict[str, Any] = {
        "run": row,
        "task": row.task,
        "process": process,
        "look": look(row),
        "is_current": row.ended_at is None and row.task.status == Status.RUNNING,
        "exited_with": exit_words(row.exit_code) if row.exit_code is not None else "",
        "summary": prose.html(row.summary),
        "result": prose.html(row.result[:20_000]),
        "took_s": ((row.ended_at or timezone.now()) - row.started_at).total_seconds(),
        "services": _services(row),
    }
    if wanted in {None, "run-side"}:
        context["events"] = events_of(row)
    if wanted is None and process is not None:
        context |= {
            "log": log_tail(process),
            "log_url": reverse("process-log-stream", args=[process.pk]),
            "raw_url": reverse("process-log", args=[process.pk]),
        }
    return page(
        request, "kanban/run.html", context, {"run-head": "kanban/_run_head.html", "run-side": "kanban/_run_side.html"}
    )


def _services(row: Run) -> list[dict[str, Any]]:
    """Return what a run has declared: {name, row}; one query when there is anything."""
    if not row.services:
        return []
    known = ManagedProcess.objects.in_bulk([each.get("process") for each in row.services])
    return [{"name": each.get("name", ""), "row": known.get(each.get("process"))} for each in row.services]
