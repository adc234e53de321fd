"""Pages of the journals: sessions and their turns, what is odd in them, the history of a loop."""

import math
from typing import Any

from django.contrib import messages
from django.core.paginator import Paginator
from django.db.models import F
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext
from django.views.decorators.http import require_http_methods, require_safe

from projects import access, auditing, keeping, queries, sessions, timelines
from projects.errors import DomainError, Missing
from projects.journal import is_session_id
from projects.pages import page
from projects.queries import ProjectView
from projects.sorting import By, Order
from projects.states import Role

SESSIONS_PAGE = 50
TURNS_PAGE = 25
FINDINGS_PAGE = 100
RUNS_PAGE = 50
FINDINGS_ON_TOP = 20
SESSION_SORTS = {
    "name": By(gettext_lazy("Session"), ("name",)),
    "turns": By(gettext_lazy("Turns"), ("turns_total",), begins_high=True),
    "findings": By(
        gettext_lazy("Findings"), (F("pending") + F("collisions") + F("malformed"), "written_at"), begins_high=True
    ),
    "written": By(gettext_lazy("Written"), ("written_at",), begins_high=True),
}
FINDING_SORTS = {
    "finding": By(gettext_lazy("Finding"), (lambda row: timelines.rank(row["kind"]),)),
    "session": By(gettext_lazy("Session"), (lambda row: row["session_id"] or None,)),
}


@require_safe
def index(request: HttpRequest) -> HttpResponse:
    """All sessions, the one written to last first; filter and order stand in the address."""
    text = request.GET.get("q", "").strip()[:128]
    order = Order(SESSION_SORTS, request.GET.get("sort", ""), default="-written")
    shown = Paginator(order.rows(sessions.sessions(text)), SESSIONS_PAGE).get_page(request.GET.get("page"))
    context = {"sessions": shown, "q": text, "order": order, "roots": sessions.roots()}
    return page(request, "projects/sessions.html", context, {"session-list": "projects/_sessions.html"})


@require_safe
def session(request: HttpRequest, session_id: str) -> HttpResponse:
    """One session as it was read: what is odd about it, then its turns as a timeline, the newest first."""
    file, is_here = sessions.page_of(_legal(session_id))
    turns = Paginator(sessions.turns_of(file), TURNS_PAGE).get_page(request.GET.get("page"))
    rows = list(turns.object_list)
    keys = [row.turn_id for row in rows]
    records = sessions.events_of(file, keys, timelines.EVENTS_OF_A_TURN) if file is not None and keys else []
    odd = timelines.findings(auditing.findings_of(session_id, timezone.now(), file))
    context = {
        "session_id": session_id,
        "turns": turns,
        "rows": timelines.turn_rows(rows, records),
        "findings": odd[:FINDINGS_ON_TOP],
        "findings_left": max(0, len(odd) - FINDINGS_ON_TOP),
        "malformed": sessions.malformed_of(file),
        "total_malformed": file.malformed if file is not None else 0,
        "total_lines": file.committed_line if file is not None else 0,
        "is_gone": not is_here,
        "is_unread": file is None,
    }
    return page(request, "projects/session.html", context, {"session": "projects/_session.html"})


@require_http_methods(["GET", "HEAD", "POST"])
def delete_session(request: HttpRequest, session_id: str) -> HttpResponse:
    """Ask, then delete a session."""
    access.need(request.identity, Role.OPERATOR)  # type: ignore[attr-defined]
    _legal(session_id)
    if request.method == "POST":
        try:
            keeping.delete(session_id, by=access.actor(request), now=timezone.now())
        except DomainError as refusal:
            messages.error(request, refusal.detail)
            return HttpResponseRedirect(f"/sessions/{session_id}/")
        messages.success(request, _("Session %s is deleted.") % session_id)
        return HttpResponseRedirect("/sessions/")
    context = {
        "title": _("Delete session %s?") % session_id,
        "body": _("Its file and all that was read of it go, for good. Whoever still appends to it is refused."),
        "action": request.path,
        "label": _("Delete"),
        "danger": True,
        "back": f"/sessions/{session_id}/",
    }
    return page(request, "confirm.html", context)


@require_safe
def audit(request: HttpRequest) -> HttpResponse:
    """What is odd in the journals and what to do about it, and what recover would do."""
    now = timezone.now()
    kind = request.GET.get("kind", "")
    found = auditing.audit(now, kind)
    wanted = found.counts.get(kind, 0) if kind else found.total
    order = Order(FINDING_SORTS, request.GET.get("sort", ""), default="finding")
    rows = order.of(timelines.findings(found.findings))
    context = {
        "findings": Paginator(rows, FINDINGS_PAGE).get_page(request.GET.get("page")),
        "order": order,
        "kinds": [(each, word, found.counts.get(each, 0)) for each, word in timelines.KINDS.items()],
        "kind": kind,
        "total": wanted,
        "shown": len(found.findings) if len(found.findings) < wanted else 0,
        "preview": _preview(request),
        "roots": sessions.roots(),
    }
    return page(request, "projects/audit.html", context, {"audit": "projects/_audit.html"})


@require_http_methods(["GET", "HEAD", "POST"])
def recover(request: HttpRequest) -> HttpResponse:
    """Ask, then say of turns that nobody works on that they were interrupted."""
    access.need(request.identity, Role.OPERATOR)  # type: ignore[attr-defined]
    if request.method == "POST":
        try:
            done = keeping.recover(by=access.actor(request), now=timezone.now())
        except DomainError as refusal:
            messages.error(request, refusal.detail)
            return HttpResponseRedirect("/audit/")
        if done["added"]:
            told = ngettext("%d turn is called interrupted.", "%d turns are called interrupted.", done["added"])
            messages.success(request, told % done["added"])
        elif not done["failed"]:
            messages.info(request, _("Nothing was to be recovered."))
        for session_id, why in done["failed"].items():
            messages.error(request, _("%(session)s: %(why)s") % {"session": session_id, "why": why})
        return HttpResponseRedirect("/audit/")
    preview = _preview(request)
    if not preview["added"]:
        return page(request, "confirm.html", _nothing_to_recover(preview))
    count = ngettext("%d turn", "%d turns", preview["added"]) % preview["added"]
    context = {
        "title": _("Recover %s?") % count,
        "body": _(
            "Each gets one line more that says that it was interrupted. What was asked stays, no answer is invented, "
            "and nothing is asked again. Turns that a living process works on are left alone."
        ),
        "action": request.path,
        "label": _("Recover"),
        "back": "/audit/",
    }
    return page(request, "confirm.html", context)


@require_safe
def history(request: HttpRequest, slug: str) -> HttpResponse:
    """What a project's loop did: its runs on an axis of time, and the last events."""
    now = timezone.now()
    row = queries.get_project(slug)
    beside = sessions.beside(row)
    shown = Paginator(sessions.runs_of(row), RUNS_PAGE).get_page(request.GET.get("page"))
    runs = [each.run() for each in shown.object_list]
    axis = timelines.axis([(run, sessions.is_alive(run, row, beside["registered"])) for run in runs], now)
    context: dict[str, Any] = {
        "p": ProjectView(row, [], now),
        "runs": shown,
        "axis": axis,
        "lines": [20 * lane for lane in range(axis.lanes)],
        "summary": math.fsum(bar.took_s or 0 for bar in axis.bars),
        "events": sessions.records_of(row),
        **beside,
        "is_old": beside["registered"].is_old(now),
        "problems": [*beside["problems"], *sessions.odd_history(row, now)],
        "merges": [(merge, timelines.MERGES.get(merge.state, "")) for merge in beside["merges"]],
    }
    return page(request, "projects/history.html", context, {"history": "projects/_history.html"})


def _preview(request: HttpRequest) -> dict[str, Any]:
    """Return what recover would do now; where it cannot be told, why."""
    try:
        only = sessions.pending_sessions()
        return keeping.recover(by=access.actor(request), now=timezone.now(), dry_run=True, only=only)
    except DomainError as refusal:
        return {"added": 0, "by_session": {}, "failed": {"": refusal.detail}}


def _nothing_to_recover(preview: dict[str, Any]) -> dict[str, Any]:
    why = [f"{session_id}: {why}" if session_id else why for session_id, why in preview["failed"].items()]
    return {
        "title": _("What can be recovered cannot be told") if why else _("There is nothing to recover"),
        "body": "\n".join(why)
        or _("Every turn has an end, is being worked on, or was heard of less than 30 seconds ago."),
        "back": "/audit/",
    }


def _legal(session_id: str) -> str:
    if not is_session_id(session_id):
        raise Missing("not-found", "No session can have this name.")
    return session_id
