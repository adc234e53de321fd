"""The door of every page and route: who is not known stays outside, and a refusal has a face."""

import zoneinfo
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from asgiref.sync import iscoroutinefunction
from django.db import connection
from django.http import HttpRequest, HttpResponse, HttpResponseBase, HttpResponseRedirect, JsonResponse
from django.middleware.gzip import GZipMiddleware as DjangoGzipMiddleware
from django.shortcuts import render
from django.utils import timezone

from config.queries import preference_of
from kanban import runs
from projects.access import BEARER_PREFIXES, identify, need
from projects.errors import DomainError, Rejected, Unauthenticated
from projects.relay import head
from projects.states import Role

OPEN_PATHS = frozenset({"/login/", "/healthz", "/readyz", "/favicon.ico"})
OPEN_PREFIXES = ("/static/", "/login/link/")
# What somebody who may only read still does for himself.
OWN_AFFAIRS = frozenset({"/logout/", "/settings/", "/settings/password/"})
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
STYLED = frozenset({400, 401, 403, 404, 409, 500})


class GzipMiddleware(DjangoGzipMiddleware):
    """Compress what is whole: each chunk of a stream would be a gzip file of its own, and browsers read only one."""

    def process_response(self, request: HttpRequest, response: Any) -> Any:
        return response if response.streaming else super().process_response(request, response)


class DoorMiddleware:
    """Let nobody past who is not known: sets `request.identity`, fails closed for every path.

    REST and /metrics answer 401 or 403 as JSON, pages redirect to /login/ (a fragment hears 401, since a
    redirect would put the sign-in page into the middle of another).
    """

    sync_capable = True
    async_capable = False

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        if iscoroutinefunction(get_response):
            raise TypeError("DoorMiddleware stands in a synchronous chain")
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        request.identity = None  # type: ignore[attr-defined]
        request.cursor = 0  # type: ignore[attr-defined]
        if request.path in OPEN_PATHS or request.path.startswith(OPEN_PREFIXES):
            return self.get_response(request)
        is_api = request.path.startswith(BEARER_PREFIXES)
        try:
            if not is_api and ("\x00" in request.path or "%00" in request.META.get("QUERY_STRING", "")):
                raise Rejected("bad-request", "An address cannot hold a NUL character.")
            identity = identify(request)
            if identity.run:
                runs.check(identity.run, identity.project, request.method or "", request.path)
            if request.path.startswith("/admin/"):
                need(identity, Role.ADMIN)
            if not is_api and request.method not in SAFE_METHODS and request.path not in OWN_AFFAIRS:
                need(identity, Role.OPERATOR)
        except DomainError as refusal:
            return self._refuse(request, refusal, is_api=is_api)
        request.identity = identity  # type: ignore[attr-defined]
        if is_api:
            response = self.get_response(request)
            if response.streaming and not connection.in_atomic_block:
                # A stream lives for hours and Django would keep this request's connection until it ends.
                connection.close()
            return _as_json(request, response)
        # Read before the page's first query: whatever commits while it renders comes over the socket.
        request.cursor = head()  # type: ignore[attr-defined]
        with timezone.override(_zone(preference_of(request).zone)):
            return self.get_response(request)

    def _refuse(self, request: HttpRequest, refusal: DomainError, *, is_api: bool) -> HttpResponseBase:
        if is_api:
            body = {"error": refusal.code, "detail": refusal.detail, **beside(request, refusal.detail)}
            return JsonResponse(body, status=refusal.status)
        if isinstance(refusal, Unauthenticated) and not request.headers.get("HX-Request"):
            return HttpResponseRedirect("/login/?" + urlencode({"next": request.get_full_path()}))
        return refused(request, refusal)

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponseBase | None:
        """Give a verb's refusal on a page its face; REST has a handler of its own (api.py)."""
        if not isinstance(exception, DomainError):
            return None
        return self._refuse(request, exception, is_api=request.path.startswith(BEARER_PREFIXES))


def beside(request: HttpRequest, detail: Any) -> dict[str, Any]:
    """Return what the answer to a failed POST under /api/ralph also has: their clients look for `success`."""
    if request.method != "POST" or not request.path.startswith("/api/ralph/"):
        return {}
    if not request.path.endswith("/rollback"):
        return {"success": False}
    message = detail if isinstance(detail, str) else "The request cannot be understood."
    return {"success": False, "message": message, "reverted_commit": None, "story_reverted": None}


def _zone(name: str) -> zoneinfo.ZoneInfo:
    """Return a zone; one that this machine does not know (a restored row, a slim container) must lock nobody out."""
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError):
        return zoneinfo.ZoneInfo("UTC")


def _as_json(request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
    """Give what ninja itself refuses (a method that a path does not have) the shape of all errors."""
    if response.status_code == 405 and not response.headers.get("Content-Type", "").startswith("application/json"):
        detail = f"{request.method} is not possible here; try {response.headers.get('Allow', 'another method')}."
        answer = JsonResponse({"error": "method-not-allowed", "detail": detail}, status=405)
        answer["Allow"] = response.headers.get("Allow", "")
        return answer
    return response


def refused(request: HttpRequest, refusal: DomainError) -> HttpResponse:
    """Render a refusal: the page of its status with the sentence and the stable code."""
    template = f"{refusal.status}.html" if refusal.status in STYLED else "400.html"
    context = {"code": refusal.code, "detail": refusal.detail, **refusal.extra}
    return render(request, template, context, status=refusal.status)
