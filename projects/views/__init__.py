"""Pages of this app: projects, stories, iterations."""

import os
from collections.abc import Iterable
from decimal import Decimal
from itertools import groupby
from operator import attrgetter
from typing import Any

from django.conf import settings
from django.core.paginator import Page, Paginator
from django.db.models import F, Q
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.utils import timezone
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_safe

from projects import costs, disk, queries, sorting, streams
from projects.errors import Missing
from projects.models import Iteration, Project, Story
from projects.pages import page
from projects.queries import ProjectView
from projects.sorting import By, Order
from projects.states import ProjectStatus
from services import logs

CARDS = 60
ITERATIONS_SHOWN = 20
EVENTS_SHOWN = 20
ITERATIONS_PAGE = 100
PROGRESS_LINES = 40
LINE_SHOWN = 2000
STORIES_PAGE = 200
LOG_TAIL = 128 * 1024
# By status what needs somebody comes first.
PROJECT_STATUSES = ("error", "failed", "blocked", "running", "idle", "complete", "missing")
PROJECT_SORTS = {
    "name": By(gettext_lazy("Name"), (lambda row: row.slug,)),
    "status": By(gettext_lazy("Status"), (lambda row: PROJECT_STATUSES.index(queries.status_of(row)),)),
    "passed": By(gettext_lazy("Share passed"), (lambda row: row.passed / row.total if row.total else None,)),
    "left": By(gettext_lazy("Stories left"), (lambda row: queries.remaining(row) if row.ralph else None,), True),
    "active": By(gettext_lazy("Last iteration"), (lambda row: row.last_iteration_at,), begins_high=True),
}
STORY_STATES = ("failed", "blocked", "in_progress", "pending", "passed")
STORY_SORTS = {
    "position": By(gettext_lazy("File order"), ("position",)),
    "state": By(gettext_lazy("State"), (sorting.place("state", STORY_STATES), "position")),
    "key": By(gettext_lazy("Story"), ("key",)),
    "priority": By(gettext_lazy("Priority"), ("priority", "position")),
    "retries": By(gettext_lazy("Retries"), ("retries",), begins_high=True),
}
ITERATION_SORTS = {
    "number": By(gettext_lazy("No."), ("number",), begins_high=True),
    "started": By(gettext_lazy("Started"), ("started_at",), begins_high=True),
    "story": By(gettext_lazy("Story"), ("story_key", "number")),
    "took": By(gettext_lazy("Took"), (F("ended_at") - F("started_at"),), begins_high=True),
    "size": By(gettext_lazy("Log"), ("size",), begins_high=True),
}


@require_safe
def index(request: HttpRequest) -> HttpResponse:
    """All projects as cards; the filters stand in the address."""
    wanted = {"q": request.GET.get("q", "").strip()[:80], "status": request.GET.get("status", "")}
    rows = queries.known()
    if wanted["q"]:
        rows = rows.filter(Q(slug__icontains=wanted["q"]) | Q(title__icontains=wanted["q"]))
    found = list(rows)
    if wanted["status"] in ProjectStatus.values:
        found = [row for row in found if queries.status_of(row) == wanted["status"]]
    order = Order(PROJECT_SORTS, request.GET.get("sort", ""), default="name")
    shown: Page[Any] = Paginator(order.of(found), CARDS).get_page(request.GET.get("page"))
    shown.object_list = queries.views(shown.object_list, timezone.now())
    context = {
        "projects": shown,
        "order": order,
        "filters": wanted,
        "filtered": any(wanted.values()),
        "statuses": ProjectStatus.values,
        "roots": settings.ANDON_WORKSPACE,
    }
    return page(request, "projects/list.html", context, {"projects": "projects/_list.html"})


@require_safe
def project(request: HttpRequest, slug: str) -> HttpResponse:
    """One project: where its loop is, its stories, its iterations, its log."""
    row = queries.get_project(slug, orders=True)
    order = Order(STORY_SORTS, request.GET.get("sort", ""), default="position")
    stories = list(order.rows(row.stories.defer("description", "criteria", "notes")))
    shown: Page[Any] = Paginator(stories, STORIES_PAGE).get_page(request.GET.get("page"))
    tail = disk.progress(row, PROGRESS_LINES) if row.ralph else None
    iterations = _with_project(row, list(queries.iterations_of(row)[:ITERATIONS_SHOWN]))
    context = {
        "p": ProjectView(row, stories, timezone.now()),
        "stories": shown,
        "groups": _grouped(shown.object_list, order),
        "order": order,
        "iterations": iterations,
        "heads": _iteration_order("").heads,
        "longest_s": max((iteration.duration_s or 0 for iteration in iterations), default=0),
        "spent": costs.bill(row, iterations),
        "dearest": max((added for added in map(_spent, iterations) if added and added.cost), key=_cost, default=None),
        "progress": _progress(tail) if tail else None,
        "events": queries.entitled(queries.events({"project": row.slug}, limit=EVENTS_SHOWN, headlines=True)),
        "stop": queries.open_stop(row) if getattr(row, "is_asked", False) else None,
        "rolling": queries.open_rollback(row) if getattr(row, "is_rolling", False) else None,
    }
    fragments = {
        "project-header": "projects/_header.html",
        "stories": "projects/_stories.html",
        "iterations": "projects/_iterations.html",
        "progress": "projects/_progress.html",
        "project-events": "projects/_events.html",
    }
    return page(request, "projects/page.html", context, fragments)


@require_safe
def story(request: HttpRequest, slug: str, key: str) -> HttpResponse:
    """One story with its criteria and its history."""
    row = queries.get_project(slug)
    stories = list(row.stories.all())
    view = ProjectView(row, stories, timezone.now())
    found = next((item for item in stories if item.key == key), None)
    if found is None:
        raise Missing("not-found", f"{slug} has no story {key[:80]}.")
    iterations = _with_project(row, list(queries.iterations_of(row).filter(story_key=key)[:ITERATIONS_SHOWN]))
    costs.bill(row, iterations)
    context = {
        "p": view,
        "story": found,
        "depends_on": _dependencies(found, stories),
        "iterations": iterations,
        "heads": _iteration_order("").heads,
        "events": queries.events_of_subject(f"story:{slug}/{key}"),
    }
    return page(request, "projects/story.html", context, {"story": "projects/_story.html"})


@require_safe
def iterations(request: HttpRequest, slug: str) -> HttpResponse:
    """All iterations, the newest first if nothing else is asked for."""
    row = queries.get_project(slug)
    order = _iteration_order(request.GET.get("sort", ""))
    shown = Paginator(order.rows(queries.iterations_of(row)), ITERATIONS_PAGE).get_page(request.GET.get("page"))
    shown.object_list = _with_project(row, list(shown.object_list))
    costs.bill(row, shown.object_list)
    context = {
        "p": ProjectView(row, [], timezone.now()),
        "iterations": shown,
        "order": order,
        "heads": order.heads,
    }
    return page(request, "projects/iterations.html", context, {"iteration-list": "projects/_iteration_list.html"})


@require_safe
def iteration(request: HttpRequest, slug: str, number: int) -> HttpResponse:
    """One iteration with its log, which grows while one looks."""
    row = queries.get_project(slug)
    rows = queries.iterations_of(row)
    found = rows.filter(number=number).first() if number < 1 << 31 else None
    if found is None:
        raise Missing("not-found", f"{slug} has no iteration {number}.")
    found.project = row
    costs.bill(row, [found])
    with disk.opened_log(found) as descriptor:
        chunk = logs.tail_bytes(descriptor, tail=LOG_TAIL) if descriptor is not None else None
    html, _ = logs.ansi_html(chunk.text if chunk else "")
    context = {
        "p": ProjectView(row, [], timezone.now()),
        "iteration": found,
        "log": {
            "html": html,
            "exists": chunk is not None,
            "offset": chunk.offset if chunk else 0,
            "next_offset": chunk.next_offset if chunk else 0,
            "size": chunk.size if chunk else 0,
            "truncated": bool(chunk and chunk.offset > 0),
        },
        "previous": _with_project(row, list(rows.filter(number__lt=number)[:1])),
        "next": _with_project(row, list(rows.filter(number__gt=number).reverse()[:1])),
    }
    return page(request, "projects/iteration.html", context, {"iteration": "projects/_iteration.html"})


@require_safe
def iteration_log(request: HttpRequest, slug: str, number: int) -> StreamingHttpResponse:
    """An iteration's whole log as it lies on disk, byte for byte."""
    row = queries.get_project(slug)
    found = queries.iterations_of(row).filter(number=number).first() if number < 1 << 31 else None
    if found is None:
        raise Missing("not-found", f"{slug} has no iteration {number}.")
    found.project = row
    with disk.opened_log(found) as descriptor:
        if descriptor is None:
            raise Missing("log-gone", "This log is not there any more.")
        whole = os.fdopen(os.dup(descriptor), "rb")
    response = StreamingHttpResponse(streams.pieces(whole), content_type="text/plain; charset=utf-8")
    response["Content-Disposition"] = f'attachment; filename="{slug}-iteration-{number}.log"'
    return response


def _spent(iteration: Iteration) -> costs.Sum | None:
    spent: costs.Sum | None = iteration.spent  # type: ignore[attr-defined]
    return spent


def _cost(spent: costs.Sum) -> Decimal:
    return spent.cost or Decimal(0)


def _progress(tail: disk.Tail) -> dict[str, Any]:
    text = logs.plain("\n".join(map(_shortened, tail.lines)))
    return {"text": text, "total": tail.total, "exists": tail.exists}


def _shortened(line: str) -> str:
    """Return a line as far as a page shows it; the file has the rest."""
    return line if len(line) <= LINE_SHOWN else f"{line[:LINE_SHOWN]} …"


def _iteration_order(asked: str) -> Order:
    return Order(ITERATION_SORTS, asked, default="-number")


def _grouped(stories: Iterable[Story], order: Order) -> list[tuple[str, list[Story]]]:
    """Return stories under the heads of their groups: only the file has those of one group together."""
    if order.name != "position":
        return [("", list(stories))]
    return [(group, list(rows)) for group, rows in groupby(stories, key=attrgetter("group"))]


def _with_project(project: Project, rows: list[Iteration]) -> list[Iteration]:
    for row in rows:
        row.project = project
    return rows


def _dependencies(story: Story, stories: list[Story]) -> list[dict[str, object]]:
    by_key = {item.key: item for item in stories}
    return [{"key": key, "story": by_key.get(key)} for key in story.depends_on]
