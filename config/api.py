"""The one NinjaAPI: doors, error shapes and where each app's routes hang."""

import logging
from typing import Any

import orjson
from django.conf import settings
from django.core.exceptions import RequestDataTooBig
from django.http import HttpRequest, HttpResponse
from ninja import NinjaAPI
from ninja.errors import AuthenticationError, HttpError, ValidationError
from ninja.renderers import BaseRenderer
from ninja.utils import check_csrf

from config.door import SAFE_METHODS, beside
from kanban.api import router as kanban_router
from kanban.api import system_router
from projects.access import need
from projects.api import events_router, me_router
from projects.api import router as ralph_router
from projects.api.journals import history_router, journal_router
from projects.errors import DomainError, Forbidden
from projects.states import Role
from services.api import loops_router
from services.api import router as processes_router

log = logging.getLogger("andon.api")


class OrjsonRenderer(BaseRenderer):
    media_type = "application/json"

    def render(self, request: HttpRequest, data: Any, *, response_status: int) -> bytes:
        return orjson.dumps(data)


class Door:
    """Let a request through by role: reading needs viewer, anything else operator (or `role`); sessions send CSRF.

    Who it is was settled by config/door.py, which lets nobody unknown come this far.
    """

    def __init__(self, role: Role | None = None) -> None:
        self.role = role

    def __call__(self, request: HttpRequest) -> Any:
        identity = getattr(request, "identity", None)
        if identity is None:
            raise AuthenticationError
        safe = request.method in SAFE_METHODS
        need(identity, self.role or (Role.VIEWER if safe else Role.OPERATOR))
        if not safe and identity.token_id is None and check_csrf(request) is not None:
            raise Forbidden("csrf", "The CSRF token is missing or wrong. Reload the page and try again.")
        return identity


api = NinjaAPI(
    title="Andon",
    version=settings.VERSION,
    description=(
        "Loops, tasks and services of a workshop of coding agents. Send a token as `Authorization: Bearer …`. "
        "Errors are `{error, detail}`: a stable code and one sentence for a person."
    ),
    urls_namespace="api",
    auth=Door(),
    renderer=OrjsonRenderer(),
)


def refuse(request: HttpRequest, status: int, code: str, detail: Any, **extra: Any) -> HttpResponse:
    """Return the one shape of every error under /api, with what a failed verb on a loop says beside it."""
    body = {"error": code, "detail": detail, **beside(request, detail), **extra}
    return HttpResponse(orjson.dumps(body), status=status, content_type="application/json")


@api.exception_handler(DomainError)
def _domain(request: HttpRequest, error: DomainError) -> HttpResponse:
    return refuse(request, error.status, error.code, error.detail, **error.extra)


@api.exception_handler(AuthenticationError)
def _unknown(request: HttpRequest, error: AuthenticationError) -> HttpResponse:
    return refuse(request, 401, "unauthenticated", "Sign in, or send a token as Authorization: Bearer …")


@api.exception_handler(ValidationError)
def _invalid(request: HttpRequest, error: ValidationError) -> HttpResponse:
    details = [{key: value for key, value in item.items() if key in {"type", "loc", "msg"}} for item in error.errors]
    return refuse(request, 422, "invalid-request", details)


@api.exception_handler(HttpError)
def _http(request: HttpRequest, error: HttpError) -> HttpResponse:
    return refuse(request, error.status_code, "invalid-request", str(error))


@api.exception_handler(RequestDataTooBig)
def _too_big(request: HttpRequest, error: RequestDataTooBig) -> HttpResponse:
    return refuse(request, 413, "invalid-request", "The body is too large.")


@api.exception_handler(Exception)
def _internal(request: HttpRequest, error: Exception) -> HttpResponse:
    log.error("%s %s failed", request.method, request.path, exc_info=error)
    return refuse(request, 500, "internal", "Something went wrong here. The log of the web process says what.")


api.add_router("/ralph", ralph_router)
api.add_router("/ralph", loops_router)
api.add_router("/ralph", history_router)
api.add_router("/journal", journal_router)
api.add_router("/events", events_router)
api.add_router("/me", me_router)
api.add_router("/managed-processes", processes_router)
api.add_router("/kanban", kanban_router)
api.add_router("/system", system_router)
