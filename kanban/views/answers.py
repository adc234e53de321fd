"""What a verb's page answers: back to where one came from, with what was done, an undo, or why not."""

from typing import Any
from urllib.parse import urlsplit

from django.contrib import messages
from django.core import signing
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.utils.html import format_html
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.translation import gettext as _

from kanban import links
from kanban.models import Task
from kanban.pages.board import NAMES
from kanban.pages.cards import seen
from kanban.states import BlockKind, Status
from projects.errors import Conflict, DomainError

SALT = "andon.kanban.undo"
# Whose pages ask: one goes back there afterwards.
OURS = ("/kanban/", "/runs/", "/system/")
# What cannot be brought back: a worker that was stopped, and what was handed in.
FINAL = frozenset({Status.RUNNING, Status.REVIEW})


def is_live(request: HttpRequest) -> bool:
    """Say whether a script asked, which shows the answer on the page as it stands."""
    return bool(request.headers.get("HX-Request"))


def back_to(request: HttpRequest, wanted: str, default: str) -> str:
    """Return where to go afterwards: a path of ours that the form named, else `default`."""
    if wanted.startswith("/") and url_has_allowed_host_and_scheme(wanted, allowed_hosts=None):
        return wanted
    return default


def came_from(request: HttpRequest, default: str) -> str:
    """Return the path of the page that a question was asked on, for its form to carry."""
    parts = urlsplit(request.headers.get("Referer", ""))
    is_ours = parts.netloc == request.get_host() and parts.path.startswith(OURS)
    if not (is_ours or parts.path == "/") or parts.path == request.path:
        return default
    return parts.path + (f"?{parts.query}" if parts.query else "")


def check_seen(task: Task, said: str) -> None:
    """Refuse (Conflict) what was decided of another state than the task is in now; "" = it was not said."""
    if not said or said == seen(task):
        return
    status = said.partition(".")[0]
    changes = [{"label": _("Status"), "then": word(status), "now": word(task.status)}]
    if status == task.status:
        changes = [{"label": _("Status"), "then": word(status), "now": _("%s again") % word(task.status)}]
    detail = _("%s is not as it was when you looked. Nothing was changed by you.") % task.pk
    raise Conflict("changed-meanwhile", detail, changes=changes, back=task.get_absolute_url())


def word(status: str) -> str:
    return str(NAMES[status][0]) if status in NAMES else status


def undo_token(before: Task, after: Task) -> str:
    """Return what brings a task back where it was, "" when nothing does."""
    if before.status in FINAL or before.status == after.status:
        return ""
    if before.status == Status.BLOCKED and links.open_parents(after.pk):
        return ""
    kind = before.block_kind if before.block_kind != BlockKind.BREAKER else BlockKind.NEEDS_INPUT
    told = {"id": after.pk, "was": before.status, "seen": seen(after), "kind": kind}
    return signing.dumps({**told, "reason": before.block_reason[:1000]}, salt=SALT, compress=True)


def done(request: HttpRequest, said: str, *, back: str, undo: str = "") -> HttpResponse:
    """Say what was done: a toast for a script, else a message on the page that one goes back to."""
    context = {"said": said, "undo": undo}
    if is_live(request):
        return render(request, "kanban/_toast.html", context)
    text: Any = said
    if undo:
        text = format_html(
            '{} <button class="button button-small" form="verb" formaction="{}" name="token" value="{}" '
            "data-undo>{}</button>",
            said,
            reverse("kanban-undo"),
            undo,
            _("Undo"),
        )
    messages.success(request, text)
    return HttpResponseRedirect(back)


def refused(request: HttpRequest, refusal: DomainError, *, back: str) -> HttpResponse:
    """Say why nothing was done: a toast for a script; a message, or the page of what changed, for a form."""
    if is_live(request):
        context = {"said": refusal.detail, "is_refusal": True}
        return render(request, "kanban/_toast.html", context, status=refusal.status)
    if "changes" in refusal.extra or refusal.status < 409:
        raise refusal
    messages.error(request, refusal.detail)
    return HttpResponseRedirect(back)
