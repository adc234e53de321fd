"""/kanban/list/: all tasks as a table, and the same as CSV."""

from collections.abc import Iterator
from typing import Any

from django.core.paginator import Page, Paginator
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.utils import timezone
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_safe

from kanban.models import Profile, Task
from kanban.pages import board, cards, filters
from kanban.pages.filters import Filters
from kanban.states import Status
from projects import exports, sorting
from projects.pages import page
from projects.sorting import By, Order

ROWS = 50
CHUNK = 1000
SORTS = {
    "title": By(gettext_lazy("Task"), ("title",)),
    "status": By(gettext_lazy("Status"), (sorting.place("status", Status.values), "since")),
    "priority": By(gettext_lazy("Priority"), ("priority",), begins_high=True),
    "assignee": By(gettext_lazy("Assignee"), ("assignee",)),
    "tenant": By(gettext_lazy("Tenant"), ("tenant",)),
    "project": By(gettext_lazy("Project"), ("project",)),
    "failures": By(gettext_lazy("Failures"), ("failures",), begins_high=True),
    "created": By(gettext_lazy("Created"), ("created_at",), begins_high=True),
    "active": By(gettext_lazy("Last activity"), ("active_at",), begins_high=True),
}
COLUMNS = (
    *("id", "title", "status", "priority", "assignee", "tenant", "project", "failures", "block_kind"),
    *("block_reason", "last_error", "created_by", "created_at", "started_at", "completed_at", "active_at"),
)


@require_safe
def index(request: HttpRequest) -> HttpResponse:
    """The table; filters, order and page stand in the address."""
    wanted, status = _asked(request)
    order = _order(request)
    rows = order.rows(_rows(wanted, status))
    shown: Page[Any] = Paginator(rows.defer(*cards.HEAVY), ROWS).get_page(request.GET.get("page"))
    now = timezone.now()
    tasks = list(shown.object_list)
    for each in tasks:
        each.level, each.quiet = cards.staleness(each, now)
        each.said = (each.block_reason if each.status == Status.BLOCKED else each.last_error).partition("\n")[0]
    counted, facets = board.tallies(wanted, Status.values)
    context = {
        "tasks": tasks,
        "page": shown,
        "filters": wanted,
        "status": status,
        "statuses": [(each, board.NAMES[each][0], counted[each].number if each in counted else 0) for each in Status],
        "facets": facets,
        "nobody": filters.NOBODY,
        "order": order,
        "filtered": wanted.narrows or bool(status),
        "profiles": set(Profile.objects.values_list("name", flat=True)) if tasks else set(),
    }
    return page(request, "kanban/list.html", context, {"tasks": "kanban/_list.html"})


@require_safe
def export(request: HttpRequest) -> StreamingHttpResponse:
    """What the table shows, all pages of it, as CSV."""
    wanted, status = _asked(request)
    rows = _order(request).rows(_rows(wanted, status)).values_list(*COLUMNS)
    response = StreamingHttpResponse(exports.pieces(_csv(rows)), content_type="text/csv; charset=utf-8")
    response["Content-Disposition"] = 'attachment; filename="andon-tasks.csv"'
    return response


def _csv(rows: QuerySet[Any, Any]) -> Iterator[str]:
    yield exports.text([COLUMNS])
    for start in range(0, rows.count(), CHUNK):
        yield exports.text([[exports.cell(value) for value in row] for row in rows[start : start + CHUNK]])


def _asked(request: HttpRequest) -> tuple[Filters, str]:
    status = request.GET.get("status", "")
    return filters.read(request.GET), status if status in Status.values else ""


def _order(request: HttpRequest) -> Order:
    return Order(SORTS, request.GET.get("sort", ""), default="-active")


def _rows(wanted: Filters, status: str) -> QuerySet[Task]:
    rows = Task.objects.filter(wanted.where())
    return rows.filter(status=status) if status else rows.exclude(status=Status.ARCHIVED)
