"""/projects/<slug>/rollback/: what a rollback would do, the question, and what came of it."""

import secrets
from typing import Any
from urllib.parse import urlencode

from django import forms
from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_http_methods, require_safe

from projects import access, lifecycle, previews
from projects.errors import Conflict, DomainError, Missing, Unfinished
from projects.models import Project, Rollback
from projects.pages import page
from projects.queries import get_project
from projects.states import Role
from projects.templatetags.andon import visible
from services import loops

EARLIER_SHOWN = 10
FILES_SHOWN = 200


class Wanted(forms.Form):
    """What the preview showed when the button was pressed."""

    expected_head = forms.CharField(max_length=64, widget=forms.HiddenInput)
    commit = forms.CharField(required=False, max_length=64, widget=forms.HiddenInput)
    story = forms.CharField(required=False, max_length=200, widget=forms.HiddenInput)
    mainline = forms.IntegerField(required=False, min_value=1, max_value=64, widget=forms.HiddenInput)
    stop_first = forms.BooleanField(required=False, widget=forms.HiddenInput)
    idempotency_key = forms.CharField(max_length=64, widget=forms.HiddenInput)


@require_safe
def preview(request: HttpRequest, slug: str) -> HttpResponse:
    """What undoing a commit would do: commit, story, files, what is in the way."""
    project = get_project(slug)
    wanted = _asked(request)
    context: dict[str, Any] = {
        "p": project,
        "wanted": wanted,
        "earlier": Rollback.objects.filter(project=slug)[:EARLIER_SHOWN],
    }
    try:
        look = _look(project, wanted)
    except DomainError as refusal:
        context["refusal"] = refusal
    else:
        sent = {"head": look.seen.head, "commit": wanted["commit"], "story": look.seen.story}
        sent |= {"mainline": wanted["mainline"] or "", "stop": "1" if look.is_running else ""}
        query = urlencode({name: value for name, value in sent.items() if value})
        context |= {
            "look": look,
            "seen": look.seen,
            "chosen_is_older": bool(look.seen.commit) and look.seen.commit not in dict(look.seen.recent),
            "branch": look.seen.branch.removeprefix("refs/heads/"),
            "blockers": [{"code": each.code, "detail": each.detail, **each.extra} for each in look.blockers],
            "files": look.seen.files[:FILES_SHOWN],
            "files_left": max(0, look.seen.files_total - FILES_SHOWN),
            "confirm_url": f"{reverse('rollback-confirm', args=[slug])}?{query}",
            "can_do": look.can_do or look.can_stop_and_do,
        }
    return page(request, "services/rollback.html", context, {"rollback": "services/_rollback.html"})


@require_http_methods(["GET", "HEAD", "POST"])
def confirm(request: HttpRequest, slug: str) -> HttpResponse:
    """Ask once more, then roll back; where something changed since the preview, say what."""
    access.need(request.identity, Role.OPERATOR)  # type: ignore[attr-defined]
    project = get_project(slug)
    if request.method == "POST":
        form = Wanted(request.POST)
        if not form.is_valid():
            return HttpResponseRedirect(reverse("rollback", args=[slug]))
        return _roll_back(request, project, form.cleaned_data)
    asked = _asked(request)
    stop_first = request.GET.get("stop") == "1"
    initial = {
        "expected_head": request.GET.get("head", "")[:64],
        "commit": asked["commit"],
        "story": asked["story"],
        "mainline": asked["mainline"],
        "stop_first": "on" if stop_first else "",
        "idempotency_key": secrets.token_hex(16),
    }
    if not initial["expected_head"]:
        return HttpResponseRedirect(reverse("rollback", args=[slug]))
    commit = (asked["commit"] or str(initial["expected_head"]))[:12]
    context = {
        "title": _("Stop the loop and roll back?") if stop_first else _("Roll back?"),
        "body": _(
            "Commit %(commit)s is undone by a new commit and %(story)s is opened again. Nothing is reset: what is now "
            "stays in a backup ref, and prd.json's other stories, progress.txt and the logs stay as they are."
        )
        % {"commit": visible(commit), "story": visible(asked["story"]) or _("its story")},
        "action": request.path,
        "label": _("Stop and roll back") if stop_first else _("Roll back"),
        "danger": True,
        "back": reverse("rollback", args=[slug]),
        "form": Wanted(initial=initial, auto_id="id_confirm_%s"),
    }
    return page(request, "confirm.html", context)


@require_safe
def done(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """What came of one rollback, and how to take it back."""
    project = get_project(slug)
    row = Rollback.objects.filter(project=slug, pk=pk).first() if pk < 1 << 62 else None
    if row is None:
        raise Missing("not-found", f"{slug} has no rollback {pk}.")
    return page(
        request,
        "services/rollback_done.html",
        {"p": project, "r": row},
        {"rollback-done": "services/_rollback_done.html"},
    )


class Reason(forms.Form):
    """Why a rollback is written off: kept in the log."""

    reason = forms.CharField(
        label=gettext_lazy("Reason"), max_length=500, widget=forms.TextInput({"autocomplete": "off"})
    )


@require_http_methods(["GET", "HEAD", "POST"])
def force(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Write an open rollback off that can neither go on nor back: an administrator's last resort."""
    access.need(request.identity, Role.ADMIN)  # type: ignore[attr-defined]
    row = Rollback.objects.filter(project=get_project(slug).slug, pk=pk).first() if pk < 1 << 62 else None
    if row is None:
        raise Missing("not-found", f"{slug} has no rollback {pk}.")
    form = Reason(request.POST if request.method == "POST" else None)
    if form.is_valid():
        try:
            lifecycle.force(row, form.cleaned_data["reason"], by=access.actor(request), now=timezone.now())
        except DomainError as refusal:
            messages.error(request, refusal.detail)
        else:
            messages.success(request, _("It is written off. Look at the repository before the next one."))
        return HttpResponseRedirect(row.get_absolute_url())
    body = _(
        "Andon lets go of it and touches nothing: HEAD, index and files stay as they are now, half done or not. "
        "What was saved before stays where it is."
    )
    context = {"title": _("Write this rollback off?"), "body": body, "label": _("Write off"), "danger": True}
    context |= {"action": request.path, "back": row.get_absolute_url(), "form": form}
    return page(request, "confirm.html", context)


def _roll_back(request: HttpRequest, project: Project, said: dict[str, Any]) -> HttpResponse:
    wanted = {name: said[name] for name in ("expected_head", "commit", "story", "mainline")}
    by = access.actor(request)
    preview_url = reverse("rollback", args=[project.slug])
    try:
        row = loops.roll_back(project, wanted, stop_first=said["stop_first"], key=said["idempotency_key"], by=by)
    except Unfinished as slow:
        messages.warning(request, slow.detail)
        return HttpResponseRedirect(preview_url)
    except DomainError as refusal:
        if refusal.code == "head-moved":
            now = str(refusal.extra.get("head", ""))
            changes = [{"label": "HEAD", "then": said["expected_head"][:12], "now": now[:12]}]
            raise Conflict(refusal.code, refusal.detail, changes=changes, back=preview_url) from None
        messages.error(request, refusal.detail)
        return HttpResponseRedirect(preview_url)
    messages.success(request, _("%s is rolled back.") % row.reverted_commit[:12])
    return HttpResponseRedirect(row.get_absolute_url())


def _look(project: Project, wanted: dict[str, Any]) -> previews.Look:
    return previews.look(project, wanted, is_running=project.running or loops.live(project) is not None)


def _asked(request: HttpRequest) -> dict[str, Any]:
    """Return what the address asks for: commit, story, mainline."""
    return {
        "commit": request.GET.get("commit", "").strip()[:64],
        "story": request.GET.get("story", "").strip()[:200],
        "mainline": previews.mainline(request.GET.get("mainline", "")),
    }
