"""Signing in by password or by a one-time link, and out again."""

import threading
from datetime import datetime
from typing import Any, cast

from django.conf import settings
from django.contrib.auth import authenticate, login, logout
from django.contrib.auth.forms import SetPasswordForm
from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.utils import timezone
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods, require_POST

from projects import access
from projects.errors import Missing, TooMany
from projects.events import writing

ATTEMPT_WAIT_S = 10.0
_one_attempt = threading.Lock()
BACKEND = settings.AUTHENTICATION_BACKENDS[0]


@never_cache
@sensitive_post_parameters("password")
@require_http_methods(["GET", "HEAD", "POST"])
def sign_in(request: HttpRequest) -> HttpResponse:
    """The sign-in page; refuses 429 after too many failures of a name or an address."""
    target = _target(request)
    if request.method != "POST":
        if request.user.is_authenticated and access.role_of(request.user):
            return HttpResponseRedirect(target)
        return _form(request, target)
    username = request.POST.get("username", "").replace("\x00", "")[:150]
    address = access.address_of(request)
    now = timezone.now()
    try:
        user = _attempt(request, username, address, now)
    except TooMany as refusal:
        return _form(request, target, status=429, error=refusal.detail, username=username)
    if user is None:
        return _form(request, target, status=401, error=_("That name and password do not match."), username=username)
    login(request, user)
    return HttpResponseRedirect(target)


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def use_link(request: HttpRequest, raw: str) -> HttpResponse:
    """A sign-in link: GET shows a button (a mail scanner that opens links must not use it up), POST consumes it."""
    now = timezone.now()
    try:
        if request.method == "POST":
            user = access.consume(raw, address=access.address_of(request), now=now)
            login(request, user, backend=BACKEND)
            return HttpResponseRedirect("/" if user.has_usable_password() else "/settings/password/")
        link = access.find_link(raw, now=now)
    except Missing:
        return render(request, "registration/link.html", {"gone": True}, status=404)
    return render(request, "registration/link.html", {"user_name": link.user.get_username(), "gone": False})


@require_POST
def sign_out(request: HttpRequest) -> HttpResponse:
    access.tell("user.signed_out", request.user.get_username(), by=access.actor(request), now=timezone.now())
    logout(request)
    return HttpResponseRedirect("/login/")


@never_cache
@sensitive_post_parameters()
@require_http_methods(["GET", "HEAD", "POST"])
def set_password(request: HttpRequest) -> HttpResponse:
    """Set a password for oneself, after a link or from the settings; other sessions of the user end."""
    # The door lets only a known user come here.
    form = SetPasswordForm(cast("User", request.user), request.POST or None)
    if request.method == "POST" and form.is_valid():
        with writing():
            user = form.save()
            access.tell("user.password_set", user.get_username(), by=access.actor(request), now=timezone.now())
        login(request, user, backend=BACKEND)
        return HttpResponseRedirect("/")
    return render(request, "registration/set_password.html", {"form": form}, status=400 if form.errors else 200)


def _attempt(request: HttpRequest, username: str, address: str, now: datetime) -> User | None:
    """Check, hash and note one attempt at a time: many at once would all pass the check, and cost a core each."""
    if not _one_attempt.acquire(timeout=ATTEMPT_WAIT_S):
        raise TooMany("too-many-attempts", _("Many people sign in at this moment. Try again."))
    try:
        access.check_attempts(username, address, now=now)
        user = authenticate(request, username=username, password=request.POST.get("password", ""))
        access.note_sign_in(username, address, ok=user is not None, now=now)
    finally:
        _one_attempt.release()
    return user


def _target(request: HttpRequest) -> str:
    target = request.POST.get("next") or request.GET.get("next") or "/"
    safe = url_has_allowed_host_and_scheme(target, {request.get_host()}, require_https=request.is_secure())
    return target if safe and not target.startswith("/login/") else "/"


def _form(request: HttpRequest, target: str, *, status: int = 200, **context: Any) -> HttpResponse:
    return render(request, "registration/login.html", {"next": target, **context}, status=status)
