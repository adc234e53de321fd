"""Cards moved one by one (a drag, the menu and the keyboard post the same form), undone, and in bulk."""

from typing import Any

from django.core import signing
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods, require_POST

from kanban import lifecycle
from kanban.forms import BulkForm, Seen
from kanban.models import Task
from kanban.pages import moving
from kanban.pages.cards import seen
from kanban.pages.tasks import get_task
from kanban.states import Status
from kanban.views import answers
from projects import access
from projects.errors import Conflict, DomainError, Rejected
from projects.events import By, writing
from projects.pages import page
from projects.states import Role

BOARD = "/kanban/"
MOST_AT_ONCE = 500
UNDO_WITHIN_S = 60


@require_http_methods(["GET", "HEAD", "POST"])
def move(request: HttpRequest, task_id: str) -> HttpResponse:
    """Show where a card can go, and why not elsewhere; POST moves it."""
    access.need(request.identity, Role.OPERATOR)  # type: ignore[attr-defined]
    task = get_task(task_id)
    if request.method != "POST":
        back = answers.came_from(request, BOARD)
        context = {
            "task": task,
            "targets": moving.targets(task),
            "wanted": request.GET.get("to", ""),
            "back": back,
            "form": Seen(initial={"seen": seen(task), "next": back}, auto_id="id_move_%s"),
        }
        return page(request, "kanban/move.html", context)
    form = Seen(request.POST)
    form.is_valid()
    back = answers.back_to(request, form.cleaned_data.get("next", ""), BOARD)
    try:
        before, after = move_one(
            task, request.POST.get("to", ""), said=form.cleaned_data.get("seen", ""), by=access.actor(request)
        )
    except DomainError as refusal:
        return answers.refused(request, refusal, back=back)
    said = _("%(title)s: %(to)s") % {"title": after.title[:80], "to": answers.word(after.status)}
    return answers.done(request, said, back=back, undo=answers.undo_token(before, after))


def move_one(task: Task, status: str, *, said: str = "", by: By) -> tuple[Task, Task]:
    """Bring a task to a column by the verb which that means there; returns it before and after.

    Refuses what changed since `said` was seen, and with its reason what the machine does not have.
    """
    if status not in Status.values:
        raise Rejected("unknown-status", _("There is no such column."))
    with writing():
        before = lifecycle.locked(task.pk)
        answers.check_seen(before, said)
        if before.status != status and (why := moving.target(before, status).why):
            names = {"from": answers.word(before.status), "to": answers.word(status), "why": why}
            raise Conflict("illegal-transition", _("Not from %(from)s to %(to)s. %(why)s") % names)
        after = lifecycle.patch(before, status=status, by=by, now=timezone.now())
    return before, after


@require_POST
def undo(request: HttpRequest) -> HttpResponse:
    """Bring a card back where it was a moment ago, unless it went on meanwhile."""
    access.need(request.identity, Role.OPERATOR)  # type: ignore[attr-defined]
    back = answers.came_from(request, BOARD)
    try:
        told = signing.loads(request.POST.get("token", ""), salt=answers.SALT, max_age=UNDO_WITHIN_S)
    except signing.BadSignature:
        late = Conflict("too-late", _("It is too late to undo that. Move the card by hand."))
        return answers.refused(request, late, back=back)
    try:
        task = restore(told, by=access.actor(request))
    except DomainError as refusal:
        return answers.refused(request, refusal, back=back)
    said = _("Undone. %(title)s: %(to)s") % {"title": task.title[:80], "to": answers.word(task.status)}
    return answers.done(request, said, back=back)


def restore(told: dict[str, Any], *, by: By) -> Task:
    """Bring a task back to the status it had, by the verbs that lead there; all of them or none."""
    now, was = timezone.now(), told["was"]
    with writing():
        task = lifecycle.locked(told["id"])
        answers.check_seen(task, told["seen"])
        if was in {Status.BLOCKED, Status.DONE} and task.status != Status.READY:
            task = lifecycle.patch(task, status=Status.READY, by=by, now=now)
        if was == Status.BLOCKED:
            return lifecycle.block(task, told["reason"], kind=told["kind"], by=by, now=now)
        return lifecycle.patch(task, status=was, by=by, now=now)


@require_http_methods(["GET", "HEAD", "POST"])
def bulk(request: HttpRequest) -> HttpResponse:
    """Move, reassign or archive several cards, each for itself; says what came of each."""
    access.need(request.identity, Role.OPERATOR)  # type: ignore[attr-defined]
    form = BulkForm(request.POST)
    if request.method != "POST":
        return HttpResponseRedirect(BOARD)
    ids = list(dict.fromkeys(request.POST.getlist("ids")))[:MOST_AT_ONCE]
    back = answers.back_to(request, request.POST.get("next", ""), BOARD)
    if not form.is_valid() or not ids:
        none = Rejected("nothing-chosen", _("Choose cards and what is to be done with them."))
        return answers.refused(request, none, back=back)
    by, typed = access.actor(request), form.cleaned_data
    results = [_one(task_id, typed, by=by) for task_id in ids]
    context = {"results": results, "failed": sum(not each["ok"] for each in results), "back": back}
    return render(request, "kanban/bulk.html", context)


def _one(task_id: str, typed: dict[str, Any], *, by: By) -> dict[str, Any]:
    """Do with one card what was asked of several: {id, title, ok, said, undo}."""
    title = ""
    try:
        task = get_task(task_id)
        title = task.title
        if typed["act"] == "assign":
            task = lifecycle.assign(task, typed["assignee"], by=by, now=timezone.now())
            said = _("given to %s") % task.assignee if task.assignee else _("given to nobody")
            return {"id": task_id, "title": title, "ok": True, "said": said}
        status = Status.ARCHIVED if typed["act"] == "archive" else typed["to"]
        before, after = move_one(task, status, by=by)
    except DomainError as refusal:
        return {"id": task_id[:40], "title": title, "ok": False, "said": refusal.detail}
    undo = answers.undo_token(before, after)
    return {"id": task_id, "title": title, "ok": True, "said": answers.word(after.status), "undo": undo}
