"""/settings/notices/: who is told of which events by webhook or e-mail, and what became of it; not for viewers."""

from functools import partial
from typing import Any

from django import forms
from django.conf import settings
from django.contrib import messages
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.debug import sensitive_variables
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from kanban.lifecycle import delivering, subscribing
from kanban.models import Subscription
from kanban.queries import notices
from kanban.states import DeliveryStatus, Target
from projects import access
from projects.access import Identity
from projects.errors import Conflict, DomainError, Missing
from projects.models import Project
from projects.pages import page
from projects.states import Role

PAGE = 50
PLAIN = {"autocomplete": "off", "autocapitalize": "none", "spellcheck": "false"}
VERBS = {
    "test": (subscribing.test, gettext_lazy("A test is on its way.")),
    "pause": (subscribing.pause, gettext_lazy("Paused. Nothing is lost meanwhile.")),
    "resume": (subscribing.resume, gettext_lazy("It goes on.")),
}


class SubscriptionForm(forms.Form):
    target = forms.ChoiceField(label=gettext_lazy("By"))
    address = forms.CharField(
        max_length=1000,
        label=gettext_lazy("Address"),
        help_text=gettext_lazy("https://… of a webhook, or an e-mail address"),
        widget=forms.TextInput(PLAIN),
    )
    kind = forms.CharField(
        required=False,
        max_length=64,
        label=gettext_lazy("Kinds that begin with"),
        help_text=gettext_lazy("task.blocked, service.crashed, loop. … empty = all"),
        widget=forms.TextInput(PLAIN),
    )
    about = forms.CharField(
        required=False,
        max_length=200,
        label=gettext_lazy("About what begins with"),
        help_text=gettext_lazy("task:t_1a2b3c4d, service:demo/ … empty = all"),
        widget=forms.TextInput(PLAIN),
    )
    project = forms.ChoiceField(required=False, label=gettext_lazy("Project"))

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        ways = [(Target.WEBHOOK, _("webhook"))]
        if settings.EMAIL_IS_SET_UP:
            ways.append((Target.EMAIL, _("e-mail")))
        self.fields["target"].choices = ways  # type: ignore[attr-defined]
        slugs = Project.objects.values_list("slug", flat=True)
        self.fields["project"].choices = [("", _("all projects")), *((slug, slug) for slug in slugs)]  # type: ignore[attr-defined]


@require_http_methods(["GET", "HEAD", "POST"])
@sensitive_variables("secret")
def listing(request: HttpRequest) -> HttpResponse:
    """All subscriptions and the form of a new one; POST makes it and shows its secret this once."""
    who = _who(request)
    if request.method != "POST":
        return _listing(request, SubscriptionForm())
    form = SubscriptionForm(request.POST)
    if not form.is_valid():
        return _listing(request, form, status=400)
    given = form.cleaned_data
    try:
        row, secret = subscribing.subscribe(
            given["target"],
            given["address"],
            kind=given["kind"],
            about=given["about"],
            project=given["project"],
            by=access.actor(request),
            now=timezone.now(),
        )
    except DomainError as refusal:
        form.add_error("address" if refusal.code == "invalid-address" else None, refusal.detail)
        return _listing(request, form, status=refusal.status)
    made = {"row": notices.subscription(who, row.pk), "secret": secret}
    response = _listing(request, SubscriptionForm(), made=made)
    response["Cache-Control"] = "no-store"
    return response


def _listing(request: HttpRequest, form: SubscriptionForm, *, status: int = 200, **context: Any) -> HttpResponse:
    who = _who(request)
    rows = [(row, notices.may_change(who, row)) for row in notices.subscriptions(who)]
    shown = {"rows": rows, "form": form, "has_email": settings.EMAIL_IS_SET_UP, "made": None, **context}
    response = page(request, "notices/list.html", shown, {"notices": "notices/_list.html"})
    response.status_code = status
    return response


@require_safe
def single(request: HttpRequest, number: int) -> HttpResponse:
    """One subscription and its delivery log, newest first, 50 a page."""
    row = notices.changeable(_who(request), number)
    status = request.GET.get("status", "")
    status = status if status in DeliveryStatus.values else ""
    log = Paginator(notices.deliveries(row, status), PAGE).get_page(request.GET.get("page"))
    context = {"row": row, "page": log, "status": status, "statuses": DeliveryStatus.values}
    return page(request, "notices/page.html", context, {"notice": "notices/_page.html"})


@require_POST
def act(request: HttpRequest, number: int, verb: str) -> HttpResponse:
    """Test, pause or resume."""
    row = notices.changeable(_who(request), number)
    if verb not in VERBS:
        raise Missing("not-found", "There is no such page.")
    run, said = VERBS[verb]
    return _done(request, row, partial(run, row, by=access.actor(request), now=timezone.now()), str(said))


@require_POST
def send_again(request: HttpRequest, number: int, delivery: int) -> HttpResponse:
    """Send what was given up, or delivered, once more."""
    found = notices.delivery(_who(request), number, delivery)
    by, now = access.actor(request), timezone.now()
    again = partial(delivering.send_again, found, by=by, now=now)
    return _done(request, found.subscription, again, _("It is sent again."))


def _done(request: HttpRequest, row: Subscription, verb: Any, said: str) -> HttpResponse:
    try:
        verb()
        messages.success(request, said)
    except Conflict as refusal:
        messages.warning(request, refusal.detail)
    return HttpResponseRedirect(f"/settings/notices/{row.pk}/")


@require_http_methods(["GET", "HEAD", "POST"])
def delete(request: HttpRequest, number: int) -> HttpResponse:
    """Ask, then delete."""
    row = notices.changeable(_who(request), number)
    if request.method != "POST":
        context = {
            "title": _("Delete the notices to %s?") % row.host,
            "body": _("Nothing more is sent, what waits is not sent either, and the delivery log goes with it."),
            "action": request.path,
            "label": _("Delete"),
            "danger": True,
            "back": f"/settings/notices/{row.pk}/",
        }
        return page(request, "confirm.html", context)
    subscribing.unsubscribe(row, by=access.actor(request), now=timezone.now())
    messages.success(request, _("The notices to %s are deleted.") % row.host)
    return HttpResponseRedirect("/settings/notices/")


def _who(request: HttpRequest) -> Identity:
    identity: Identity = request.identity  # type: ignore[attr-defined]
    access.need(identity, Role.OPERATOR)
    return identity
