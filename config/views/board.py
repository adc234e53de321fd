"""The pages over all apps: /, /events/, /system/."""

from typing import Any

from django.conf import settings
from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils import timezone
from django.utils.functional import SimpleLazyObject
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST, require_safe

from config import queries
from kanban.pages import board as work
from kanban.pages import cleaning
from projects import queries as projects
from projects import tasks
from projects.errors import Missing
from projects.models import Event
from projects.pages import page
from services import pages as services

EVENTS_PAGE = 100


@require_safe
def home(request: HttpRequest) -> HttpResponse:
    """What needs somebody now, what runs, what happened last."""
    context = queries.home(timezone.now(), role=request.identity.role)  # type: ignore[attr-defined]
    fragments = {
        "needs": "_needs.html",
        "running": "_running.html",
        "recent": "_recent.html",
        "totals": "_totals.html",
        "checklist": "_checklist.html",
    }
    return page(request, "home.html", context, fragments)


@require_safe
def events(request: HttpRequest) -> HttpResponse:
    """The timeline, newest first; filters and place stand in the address."""
    filters = {name: request.GET.get(name, "").strip()[:200] for name in ("kind", "subject", "actor", "project")}
    before = request.GET.get("before", "")
    start = int(before) if before.isascii() and before.isdigit() and len(before) < 19 else None
    small = request.GET.get("small") == "1"
    rows = projects.events(filters, before=start, limit=EVENTS_PAGE + 1, headlines=not small)
    shown = projects.entitled(rows[:EVENTS_PAGE])
    context: dict[str, Any] = {
        "events": shown,
        "filters": filters,
        "small": small,
        "filtered": any(filters.values()),
        "before": start,
        "older": shown[-1].id if len(rows) > EVENTS_PAGE else None,
    }
    return page(request, "events.html", context, {"events": "_events.html"})


@require_safe
def event(request: HttpRequest, number: int) -> HttpResponse:
    """One event, all of it."""
    row = Event.objects.filter(pk=number).first()
    if row is None:
        raise Missing("not-found", f"There is no event {number}, or retention has deleted it.")
    return page(request, "event.html", {"event": projects.entitled([row])[0]})


@require_safe
def system(request: HttpRequest) -> HttpResponse:
    """Workers and their last tick, the dispatcher, what they run, database, disk, versions."""
    # Each is asked for by the fragment that shows it.
    context = {
        "facts": SimpleLazyObject(lambda: queries.facts(request.cursor)),  # type: ignore[attr-defined]
        "processes": SimpleLazyObject(services.by_node),
        "cleanup": SimpleLazyObject(lambda: {"rules": cleaning.rules(), "last": cleaning.last()}),
        "switches": SimpleLazyObject(lambda: work.switches(dispatches=settings.ANDON_DISPATCH, now=timezone.now())),
    }
    fragments = {
        "dispatch": "kanban/_dispatch.html",
        "worker-tick": "_worker.html",
        "hosts": "_hosts.html",
        "cleanup": "_cleanup.html",
        "processes": "_processes.html",
        "facts": "_facts.html",
    }
    return page(request, "system.html", context, fragments)


@require_POST
def rescan(request: HttpRequest) -> HttpResponse:
    """Have the worker look at all projects at once."""
    tasks.rescan_now()
    messages.success(request, _("The worker looks at all projects now."))
    return HttpResponseRedirect("/projects/")
