"""What an error looks like, on a page and under /api."""

from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render

from projects.access import BEARER_PREFIXES


def csrf_refused(request: HttpRequest, reason: str = "") -> HttpResponse:
    """Answer a form without a valid CSRF token or from a foreign origin."""
    if request.path.startswith(BEARER_PREFIXES):
        return _json(403, "csrf", "The CSRF token is missing or wrong. Reload the page and try again.")
    detail = "This form was open for too long, or came from another site. Go back, reload the page and try again."
    return render(request, "403_csrf.html", {"code": "csrf", "detail": detail}, status=403)


def bad_request(request: HttpRequest, exception: Any = None) -> HttpResponse:
    return _answer(request, 400, "bad-request", "The request could not be understood.")


def forbidden(request: HttpRequest, exception: Any = None) -> HttpResponse:
    return _answer(request, 403, "forbidden", "Your role does not allow this.")


def not_found(request: HttpRequest, exception: Any = None) -> HttpResponse:
    return _answer(request, 404, "not-found", "There is nothing at this address.")


def internal(request: HttpRequest) -> HttpResponse:
    if request.path.startswith(BEARER_PREFIXES):
        return _json(500, "internal", "Something went wrong here. The log of the web process says what.")
    return render(None, "500.html", status=500)


def _answer(request: HttpRequest, status: int, code: str, detail: str) -> HttpResponse:
    if request.path.startswith(BEARER_PREFIXES):
        return _json(status, code, detail)
    return render(request, f"{status}.html", {"code": code, "detail": detail}, status=status)


def _json(status: int, code: str, detail: str) -> JsonResponse:
    return JsonResponse({"error": code, "detail": detail}, status=status)
