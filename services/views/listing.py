"""/services/: all services by project, and the spec files of agents that nobody knows."""

import json
from itertools import groupby
from typing import Any

from django.contrib import messages
from django.core.paginator import Page, Paginator
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils import timezone
from django.utils.functional import SimpleLazyObject
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_http_methods, require_safe

from projects import access, sorting
from projects.errors import Missing
from projects.pages import page
from projects.sorting import By, Order
from projects.states import Role
from services import pages, specs, unclaimed
from services.states import Purpose, Status

ROWS = 100
PURPOSES = (*Purpose.values, "all")
# By status what needs somebody comes first.
STATUSES = (
    *(Status.CRASH_LOOP, Status.FAILED, Status.LOST, Status.UNHEALTHY, Status.BACKOFF, Status.RESTARTING),
    *(Status.STARTING, Status.STOPPING, Status.RUNNING, Status.HEALTHY, Status.EXPIRED, Status.EXITED),
)
SORTS = {
    "project": By(gettext_lazy("Project"), ("project", "name")),
    "name": By(gettext_lazy("Name"), ("name", "project")),
    "status": By(gettext_lazy("Status"), (sorting.place("status", STATUSES), "since")),
    "started": By(gettext_lazy("Started"), ("started_at",), begins_high=True),
    "expires": By(gettext_lazy("Expires"), ("expires_at",)),
    "restarts": By(gettext_lazy("Restarts"), ("restarts",), begins_high=True),
}


@require_safe
def index(request: HttpRequest) -> HttpResponse:
    """All services, by project if nothing else is asked for; filters and order stand in the address."""
    asked = {name: request.GET.get(name, "").strip()[:80] for name in ("q", "status", "project", "purpose")}
    if request.htmx.target == "project-services":  # type: ignore[attr-defined]
        return page(
            request, "services/list.html", {"slug": asked["project"]}, {"project-services": "services/_of_project.html"}
        )
    purpose = asked["purpose"] if asked["purpose"] in PURPOSES else Purpose.SERVICE
    status = asked["status"] if asked["status"] in Status.values else ""
    now = timezone.now()
    rows = pages.found(purpose=purpose, project=asked["project"], status=status, text=asked["q"])
    counted = pages.tally(purpose)
    in_scope = [counted[asked["project"]]] if asked["project"] in counted else counted.values()
    order = Order(SORTS, request.GET.get("sort", ""), default="project")
    shown: Page[Any] = Paginator(order.rows(rows), ROWS).get_page(request.GET.get("page"))
    listed = pages.listed(shown.object_list, now)
    context = {
        "page": shown,
        "order": order,
        "groups": _grouped(listed, order),
        "filters": {**asked, "purpose": purpose, "status": status},
        "filtered": bool(asked["q"] or status or asked["project"] or purpose != Purpose.SERVICE),
        "slugs": sorted(counted),
        "statuses": [(each, sum(one.get(each, 0) for one in in_scope)) for each in Status.values],
        "total": sum(sum(one.values()) for one in counted.values()),
        "purposes": PURPOSES,
        "example": json.dumps(dict(specs.EXAMPLE), indent=2),
        "unclaimed": SimpleLazyObject(unclaimed.listed),
    }
    fragments = {"services": "services/_list.html", "unclaimed": "services/_unclaimed.html"}
    return page(request, "services/list.html", context, fragments)


def _grouped(listed: list[dict[str, Any]], order: Order) -> list[dict[str, Any]]:
    """Return rows under the heads of their projects; without any where another order has them mixed."""
    if order.name != "project":
        return [{"project": "", "rows": listed}] if listed else []
    groups = groupby(listed, lambda item: item["row"].project)
    return [{"project": project, "rows": list(rows)} for project, rows in groups]


@require_http_methods(["GET", "HEAD", "POST"])
def discard(request: HttpRequest, agent: str) -> HttpResponse:
    """Ask, then remove an unclaimed spec file."""
    access.need(request.identity, Role.OPERATOR)  # type: ignore[attr-defined]
    if not specs.is_agent_id(agent):
        raise Missing("not-found", "No agent has such a name.")
    if request.method != "POST":
        context = {
            "title": _("Discard the spec file of %s?") % agent,
            "body": _("It is deleted unread and nothing is started. This cannot be undone."),
            "action": request.path,
            "label": _("Discard"),
            "danger": True,
            "back": "/services/#unclaimed",
        }
        return page(request, "confirm.html", context)
    unclaimed.discard(agent, by=access.actor(request), now=timezone.now())
    messages.success(request, _("The file of %s is discarded.") % agent)
    return HttpResponseRedirect("/services/")
