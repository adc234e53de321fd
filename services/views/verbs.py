"""The verbs of a managed process as forms post them; what cannot be taken back asks first."""

from collections.abc import Callable
from typing import Any

from django import forms
from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods

from projects import access
from projects.errors import Conflict, DomainError, Missing, Rejected, Unfinished
from projects.events import By
from projects.pages import page
from projects.states import Role
from projects.templatetags.andon import status_word
from services import lifecycle, orders, pages
from services.models import ManagedProcess
from services.states import Status

Said = str


class Seen(forms.Form):
    """What the page showed when the button was pressed."""

    expected_generation = forms.IntegerField(required=False, widget=forms.HiddenInput)
    seen = forms.CharField(required=False, widget=forms.HiddenInput)


@require_http_methods(["GET", "HEAD", "POST"])
def service(request: HttpRequest, project: str, name: str, verb: str) -> HttpResponse:
    """A verb on a service."""
    return _act(request, pages.get_service(project, name), verb)


@require_http_methods(["GET", "HEAD", "POST"])
def process(request: HttpRequest, pk: int, verb: str) -> HttpResponse:
    """A verb on a process of any purpose."""
    return _act(request, pages.get_process(pk), verb)


def _act(request: HttpRequest, row: ManagedProcess, verb: str) -> HttpResponse:
    access.need(request.identity, Role.OPERATOR)  # type: ignore[attr-defined]
    act = VERBS.get(verb)
    if act is None:
        raise Missing("not-found", f"Nothing can be {verb[:40]}ed here.")
    if request.method != "POST":
        return _ask(request, row, verb) if verb in QUESTIONS else HttpResponseNotAllowed(["POST"])
    expected = _number(request.POST.get("expected_generation", ""))
    back = "/services/" if verb == "erase" else row.get_absolute_url()
    try:
        said = act(request, row, access.actor(request), expected)
    except Conflict as refusal:
        if refusal.code == "generation-changed":
            raise _changed(request, row, refusal, expected) from None
        return _refused(request, row, refusal)
    except DomainError as refusal:
        if refusal.status == Rejected.status:
            raise
        return _refused(request, row, refusal)
    messages.success(request, said)
    return HttpResponseRedirect(back)


def _refused(request: HttpRequest, row: ManagedProcess, refusal: DomainError) -> HttpResponse:
    """Go back to the process, whose page says why nothing was done, or that it is still under way."""
    if isinstance(refusal, Unfinished):
        messages.warning(request, refusal.detail)
    else:
        messages.error(request, refusal.detail)
    return HttpResponseRedirect(row.get_absolute_url())


def _changed(request: HttpRequest, row: ManagedProcess, refusal: Conflict, expected: int | None) -> Conflict:
    """Return the refusal with what the page showed beside what is now."""
    fresh = ManagedProcess.objects.filter(pk=row.pk).first()
    back = row.get_absolute_url() if fresh else "/services/"
    changes: list[dict[str, Any]] = []
    if fresh is not None:
        changes.append({"label": _("Generation"), "then": expected, "now": fresh.generation})
        seen = request.POST.get("seen") or request.GET.get("seen", "")
        if seen in Status.values:
            changes.append({"label": _("Status"), "then": status_word(seen), "now": status_word(fresh.status)})
    return Conflict(refusal.code, refusal.detail, changes=changes, back=back)


def _ask(request: HttpRequest, row: ManagedProcess, verb: str) -> HttpResponse:
    title, body = QUESTIONS[verb](row)
    initial = {
        "expected_generation": _number(request.GET.get("generation", "")) or row.generation,
        "seen": request.GET.get("seen") or row.status,
    }
    button = pages.verb(row, verb)
    context = {
        "title": title,
        "body": body,
        "action": request.path,
        "label": button.label,
        "danger": verb != "restart",
        "back": row.get_absolute_url(),
        "form": Seen(initial=initial, auto_id="id_confirm_%s"),
    }
    return page(request, "confirm.html", context)


def _number(text: str) -> int | None:
    """Return a whole number from a form; None for "", Rejected for anything else."""
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise Rejected("bad-request", "The form carries something that is no number.")
    return int(text)


def _start(request: HttpRequest, row: ManagedProcess, by: By, expected: int | None) -> Said:
    row = orders.start(row, by=by, expected_generation=expected)
    return _("%s is started.") % row if row.pid else _("%s is being started.") % row


def _restart(request: HttpRequest, row: ManagedProcess, by: By, expected: int | None) -> Said:
    row = orders.restart(row, by=by, expected_generation=expected)
    return _("%s is started again.") % row if row.pid else _("%s is being started again.") % row


def _stop(request: HttpRequest, row: ManagedProcess, by: By, expected: int | None) -> Said:
    done = orders.stop(row, by=by, expected_generation=expected)
    return _("%s is stopped.") % row if done.was_live else _("%s had ended already.") % row


def _kill(request: HttpRequest, row: ManagedProcess, by: By, expected: int | None) -> Said:
    done = orders.stop(row, at_once=True, by=by, expected_generation=expected)
    return _("%s is killed.") % row if done.was_live else _("%s had ended already.") % row


def _extend(request: HttpRequest, row: ManagedProcess, by: By, expected: int | None) -> Said:
    minutes = _number(request.POST.get("minutes") or request.GET.get("minutes", "")) or 60
    row = lifecycle.extend(row, minutes, by=by, now=timezone.now(), expected_generation=expected)
    orders.tell([row])
    until = timezone.localtime(row.expires_at).strftime("%H:%M")
    return _("%(name)s now runs until %(until)s.") % {"name": row, "until": until}


def _erase(request: HttpRequest, row: ManagedProcess, by: By, expected: int | None) -> Said:
    if expected is not None and row.generation != expected:
        raise Conflict("generation-changed", f"{row} was started again meanwhile.", generation=row.generation)
    lifecycle.erase(row, by=by, now=timezone.now())
    return _("%s is forgotten.") % row


VERBS: dict[str, Callable[[HttpRequest, ManagedProcess, By, int | None], Said]] = {
    "start": _start,
    "restart": _restart,
    "stop": _stop,
    "kill": _kill,
    "extend": _extend,
    "erase": _erase,
}
QUESTIONS: dict[str, Callable[[ManagedProcess], tuple[str, str]]] = {
    "restart": lambda row: (
        _("Restart %s?") % row,
        _("It is stopped, and started again once nothing of it is left. When it expires stays as it is."),
    ),
    "stop": lambda row: (
        _("Stop %s?") % row,
        _("It is asked to end (TERM); what is left after %d s is killed. Start brings it back.") % row.stop_grace_s,
    ),
    "kill": lambda row: (
        _("Kill %s?") % row,
        _("All its processes are killed at once and can save nothing. This cannot be undone."),
    ),
    "erase": lambda row: (
        _("Forget %s?") % row,
        _("Its page, its last ends and its log are removed; the events stay. This cannot be undone."),
    ),
}
