"""/settings/: how one likes the pages, and, for admins, tokens."""

import zoneinfo
from datetime import timedelta
from functools import cache
from typing import Any

from django import forms
from django.conf import settings as django_settings
from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.debug import sensitive_variables
from django.views.decorators.http import require_http_methods, require_POST

from config import queries
from projects import access
from projects.errors import DomainError, Missing
from projects.models import ApiToken, Preference, Project
from projects.pages import page
from projects.states import Role

THEME_COOKIE_AGE_S = 365 * 24 * 3600


@cache
def zones() -> list[tuple[str, str]]:
    """Return the time zones that this machine knows, as choices; it has to open some 600 files to tell."""
    return [(name, name) for name in sorted(zoneinfo.available_timezones())]


class PreferenceForm(forms.ModelForm):  # type: ignore[type-arg]  # generic in the stubs only
    zone = forms.ChoiceField(label=gettext_lazy("Time zone"), choices=zones)

    class Meta:
        model = Preference
        fields = ("theme", "density", "zone", "shortcuts")


class TokenForm(forms.Form):
    name = forms.CharField(max_length=80, label=gettext_lazy("Name"))
    role = forms.ChoiceField(choices=Role.choices, initial=Role.VIEWER, label=gettext_lazy("Role"))
    project = forms.ChoiceField(required=False, label=gettext_lazy("Bound to project"))
    days = forms.IntegerField(
        required=False, min_value=1, max_value=3650, label=gettext_lazy("Expires in days"), help_text="empty = never"
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        slugs = Project.objects.values_list("slug", flat=True)
        self.fields["project"].choices = [("", _("all projects")), *((slug, slug) for slug in slugs)]  # type: ignore[attr-defined]


@require_http_methods(["GET", "HEAD", "POST"])
def settings(request: HttpRequest) -> HttpResponse:
    """Preferences of whoever is signed in; POST saves them."""
    preference = queries.preference_of(request)
    form = PreferenceForm(request.POST or None, instance=preference)
    if request.method == "POST" and form.is_valid():
        saved = form.save()
        messages.success(request, _("Your preferences are saved."))
        response = HttpResponseRedirect("/settings/")
        response.set_cookie(
            "andon_theme",
            saved.theme,
            max_age=THEME_COOKIE_AGE_S,
            samesite="Lax",
            secure=getattr(django_settings, "SESSION_COOKIE_SECURE", False),
        )
        return response
    return _page(request, form=form, status=400 if form.errors else 200)


@require_POST
@sensitive_variables("raw")
def create_token(request: HttpRequest) -> HttpResponse:
    """Make a token and show it this once; admins only."""
    access.need(request.identity, Role.ADMIN)  # type: ignore[attr-defined]
    form = TokenForm(request.POST)
    if not form.is_valid():
        return _page(request, token_form=form, status=400)
    data = form.cleaned_data
    life = timedelta(days=data["days"]) if data["days"] else None
    try:
        token, raw = access.issue(
            data["name"],
            role=Role(data["role"]),
            project=data["project"],
            life=life,
            by=access.actor(request),
            now=timezone.now(),
        )
    except DomainError as refusal:
        form.add_error("name", refusal.detail)
        return _page(request, token_form=form, status=refusal.status)
    response = _page(request, new_token={"name": token.name, "text": raw})
    response["Cache-Control"] = "no-store"
    return response


@require_http_methods(["GET", "HEAD", "POST"])
def revoke_token(request: HttpRequest, number: int) -> HttpResponse:
    """Ask, then revoke; admins only."""
    access.need(request.identity, Role.ADMIN)  # type: ignore[attr-defined]
    token = ApiToken.objects.filter(pk=number).first()
    if token is None:
        raise Missing("not-found", "There is no such token.")
    if request.method != "POST":
        context = {
            "title": _("Revoke the token %s?") % token.name,
            "body": _("Whatever uses it is refused from then on. This cannot be undone."),
            "action": request.path,
            "label": _("Revoke"),
            "danger": True,
            "back": "/settings/",
        }
        return page(request, "confirm.html", context)
    access.revoke(token, by=access.actor(request), now=timezone.now())
    messages.success(request, _("%s is revoked.") % token.name)
    return HttpResponseRedirect("/settings/")


def _page(request: HttpRequest, *, status: int = 200, **context: Any) -> HttpResponse:
    can_admin = request.identity.may(Role.ADMIN)  # type: ignore[attr-defined]
    defaults: dict[str, Any] = {
        "form": PreferenceForm(instance=queries.preference_of(request)),
        "token_form": TokenForm() if can_admin else None,
        "tokens": ApiToken.objects.filter(revoked_at=None) if can_admin else [],
        "new_token": None,
    }
    response = page(request, "settings.html", {**defaults, **context})
    response.status_code = status
    return response
