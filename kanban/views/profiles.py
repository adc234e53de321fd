"""/kanban/profiles/: who does the work; pause and resume. What they run is edited in the admin."""

from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from kanban import lifecycle
from kanban.forms import PauseForm
from kanban.pages import profiles
from kanban.views import answers
from projects import access
from projects.errors import DomainError
from projects.pages import page
from projects.states import Role

PAGE = "/kanban/profiles/"


@require_safe
def index(request: HttpRequest) -> HttpResponse:
    """All profiles, with what they do and how they did lately."""
    context = {"profiles": profiles.listed(timezone.now()), "last": profiles.LAST}
    return page(request, "kanban/profiles.html", context, {"profile-list": "kanban/_profiles.html"})


@require_http_methods(["GET", "HEAD", "POST"])
def pause(request: HttpRequest, name: str) -> HttpResponse:
    """Ask why, then start no more workers of a profile."""
    access.need(request.identity, Role.OPERATOR)  # type: ignore[attr-defined]
    row = profiles.get_profile(name)
    form = PauseForm(request.POST if request.method == "POST" else None, auto_id="id_pause_%s")
    if form.is_valid():
        try:
            lifecycle.pause(row, reason=form.cleaned_data["reason"], by=access.actor(request), now=timezone.now())
        except DomainError as refusal:
            return answers.refused(request, refusal, back=PAGE)
        return answers.done(request, _("%s is paused.") % row.name, back=PAGE)
    context = {
        "title": _("Pause %s?") % row.name,
        "body": _("No more of its workers are started; those at work go on."),
        "action": request.path,
        "label": _("Pause"),
        "back": PAGE,
        "form": form,
    }
    return page(request, "confirm.html", context)


@require_POST
def resume(request: HttpRequest, name: str) -> HttpResponse:
    """Start workers of a profile again."""
    access.need(request.identity, Role.OPERATOR)  # type: ignore[attr-defined]
    back = answers.came_from(request, PAGE)
    try:
        row = lifecycle.resume(profiles.get_profile(name), by=access.actor(request), now=timezone.now())
    except DomainError as refusal:
        return answers.refused(request, refusal, back=back)
    return answers.done(request, _("%s works again.") % row.name, back=back)
