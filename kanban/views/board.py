"""/kanban/: the board and its fragments, and the dispatcher's switch, which stands above it."""

from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.functional import SimpleLazyObject
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.http import require_POST, require_safe

from kanban import dispatch, lifecycle, sweeps
from kanban.forms import BulkForm
from kanban.pages import board, filters
from kanban.pages.filters import Filters
from kanban.states import Status
from kanban.views import answers
from projects import access
from projects.errors import DomainError, Unavailable
from projects.pages import page
from projects.states import Role
from services import queries as services
from services.states import HostStatus

BOARD = "/kanban/"
SYSTEM = "/system/"
# As many as one press of the button claims.
NUDGED = 8
SAMPLE_BODY = "Watch me: I work for a few seconds, comment, and complete.\n\ndemo: steps 3 every 1\n"
# What adds a column that is shown only when something is in it.
OF_REVIEW = "task.review_requested task.approved task.sent_back"


@require_safe
def index(request: HttpRequest) -> HttpResponse:
    """The board; filters, switches and pages of columns stand in the address."""
    wanted = filters.read(
        request.GET, lanes=settings.ANDON_BOARD.lane_by_profile, archived=settings.ANDON_BOARD.include_archived
    )
    target = request.htmx.target or ""  # type: ignore[attr-defined]
    only = target.removeprefix("column-") if target.startswith("column-") else ""
    shown = [only] if only in Status.values else board.statuses(wanted)
    now = timezone.now()
    profiles: Any = SimpleLazyObject(board.profiles_by_name)
    context: dict[str, Any] = {
        "filters": wanted,
        "switches": SimpleLazyObject(lambda: board.switchboard(profiles, dispatches=settings.ANDON_DISPATCH, now=now)),
    }
    if target != "switchboard":
        context |= _columns(request, wanted, shown, profiles, is_one=bool(only))
    fragments = {"board": "kanban/_board.html", "switchboard": "kanban/_switchboard.html"}
    fragments |= {f"column-{status}": "kanban/_column.html" for status in Status.values}
    return page(request, "kanban/board.html", context, fragments)


def _columns(request: HttpRequest, wanted: Filters, shown: list[str], profiles: Any, *, is_one: bool) -> dict[str, Any]:
    now = timezone.now()
    hosts = services.hosts(now)
    counted, facets = board.tallies(wanted, shown)
    if not is_one and Status.REVIEW not in counted:
        shown = [status for status in shown if status != Status.REVIEW]
    columns = board.columns(
        wanted,
        {status: filters.number(request.GET.get(f"page_{status}", "")) or 1 for status in Status.values},
        counted=counted,
        shown=shown,
        profiles=profiles,
        nodes=[host.node for host in hosts if host.shown == HostStatus.TICKING],
        now=now,
    )
    return {
        "columns": columns,
        "column": columns[0],
        "full_path": f"{request.path}?{columns[0].query}",
        "facets": facets,
        # The frame of the page shows the same ones.
        "hosts": hosts,
        "of_review": OF_REVIEW,
        "bulk": BulkForm(),
        "beginnings": sorted(board.BEGINNINGS),
        "nobody": filters.NOBODY,
    }


@require_POST
def nudge(request: HttpRequest) -> HttpResponse:
    """Run one pass now: mend what is to be mended, claim up to eight. Refuses `no-worker`, as REST does."""
    access.need(request.identity, Role.OPERATOR)  # type: ignore[attr-defined]
    now = timezone.now()
    nodes = dispatch.ticking(now)
    if not nodes:
        silent = Unavailable("no-worker", _("No worker ticks anywhere, so nothing was changed. Start Andon."))
        return answers.refused(request, silent, back=answers.came_from(request, BOARD))
    done, runs = sweeps.run_pass(nodes, limit=NUDGED, by=access.actor(request), now=now)
    said = ngettext("%d task is started.", "%d tasks are started.", len(runs)) % len(runs)
    if not runs:
        waiting = len(done.skipped_unassigned) + len(done.skipped_nonspawnable)
        said = _("Nothing is to be started now.")
        if waiting:
            said += (
                " " + ngettext("%d ready task has nobody to do it.", "%d ready tasks have nobody.", waiting) % waiting
            )
    return answers.done(request, said, back=answers.came_from(request, BOARD))


@require_POST
def switch(request: HttpRequest, to: str) -> HttpResponse:
    """Pause or resume the dispatcher, on every host."""
    access.need(request.identity, Role.OPERATOR)  # type: ignore[attr-defined]
    back = answers.back_to(request, request.POST.get("next", ""), answers.came_from(request, SYSTEM))
    act = lifecycle.pause_dispatch if to == "pause" else lifecycle.resume_dispatch
    said = _("The dispatcher is paused; what runs goes on.") if to == "pause" else _("The dispatcher runs again.")
    try:
        act(by=access.actor(request), now=timezone.now())
    except DomainError as refusal:
        return answers.refused(request, refusal, back=back)
    return answers.done(request, said, back=back)


@require_POST
def sample(request: HttpRequest) -> HttpResponse:
    """Make a task for the profile that needs no agent, so that a newcomer sees the board run."""
    access.need(request.identity, Role.OPERATOR)  # type: ignore[attr-defined]
    by, now = access.actor(request), timezone.now()
    lifecycle.create(_("A sample task"), body=SAMPLE_BODY, assignee="demo", by=by, now=now)
    return answers.done(request, _("The sample is ready: the dispatcher takes it within seconds."), back=BOARD)
