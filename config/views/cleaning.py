"""/system/clean-up/: what would be removed now, and why the rest stays; administrators have it removed."""

from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods

from kanban import cleaning, leftovers
from kanban.pages import cleaning as words
from kanban.views import answers
from projects import access
from projects.errors import DomainError
from projects.pages import page
from projects.states import Role

BACK = "/system/"


@require_http_methods(["GET", "HEAD", "POST"])
def clean_up(request: HttpRequest) -> HttpResponse:
    """Show the dry run to whoever may run verbs; a POST of an administrator has the workers clean up."""
    identity = request.identity  # type: ignore[attr-defined]
    access.need(identity, Role.OPERATOR)
    if request.method == "POST":
        access.need(identity, Role.ADMIN)
        return _order(request)
    seen = leftovers.look(timezone.now())
    refusal = ""
    if seen.is_empty:
        refusal = _("Nothing is to be removed now.")
    elif not identity.may(Role.ADMIN):
        refusal = _("Only an administrator can have it removed now; else it goes by itself.")
    context = {
        "title": _("Clean up: dry run") if refusal else _("Clean up now?"),
        "action": request.path,
        "label": _("Clean up now"),
        "danger": True,
        "back": BACK,
        "refusal": refusal,
        "seen": seen,
        "kept": words.reasons(seen),
        "more_workspaces": seen.more("workspaces"),
        "more_runs": seen.more("runs"),
    }
    return page(request, "clean_up.html", context)


def _order(request: HttpRequest) -> HttpResponse:
    try:
        rows = cleaning.order(by=access.actor(request), now=timezone.now())
    except DomainError as refusal:
        return answers.refused(request, refusal, back=BACK)
    told = [
        _("%(node)s: %(said)s") % {"node": row.node, "said": words.said(row) or _("it is being cleaned up")}
        for row in rows
    ]
    return answers.done(request, "; ".join(told), back=BACK)
