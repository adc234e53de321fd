"""The page of one managed process, and its log as it lies on disk."""

import os
from typing import Any

from django.db import connection
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.utils import timezone
from django.views.decorators.http import require_safe

from projects import queries as projects
from projects import streams
from projects.errors import Missing
from projects.pages import page
from services import pages
from services.logs.reading import first_offset
from services.models import ManagedProcess
from services.streams import LOG_TAIL, log_stream, log_tail, opened_log

EVENTS_SHOWN = 8


@require_safe
def service(request: HttpRequest, project: str, name: str) -> HttpResponse:
    """One service: what it is, how it does, what it said."""
    return _page(request, pages.get_service(project, name))


@require_safe
def process(request: HttpRequest, pk: int) -> HttpResponse:
    """One process of any purpose: a kanban worker, a loop."""
    return _page(request, pages.get_process(pk))


@require_safe
def service_log(request: HttpRequest, project: str, name: str) -> StreamingHttpResponse:
    """A service's whole log as it lies on disk, from where rotation has left it."""
    return _log(pages.get_service(project, name))


@require_safe
def process_log(request: HttpRequest, pk: int) -> StreamingHttpResponse:
    """The same of a process of any purpose."""
    return _log(pages.get_process(pk))


@require_safe
def process_stream(request: HttpRequest, pk: int) -> StreamingHttpResponse:
    """The log of a loop or a kanban worker as it grows; a service's is followed over REST."""
    row = pages.get_process(pk)
    offset = request.GET.get("offset", "")
    start = int(offset) if offset.isascii() and offset.isdigit() and len(offset) < 19 else -LOG_TAIL
    answer = streams.sse(log_stream(request.identity, row, start))  # type: ignore[attr-defined]
    if not connection.in_atomic_block:
        # It lives for hours, and Django would keep this request's connection until it ends.
        connection.close()
    return answer


def _page(request: HttpRequest, row: ManagedProcess) -> HttpResponse:
    wanted = request.htmx.target  # type: ignore[attr-defined]
    context: dict[str, Any] = {"s": pages.ProcessView(row, timezone.now())}
    if wanted in {None, "service-facts"}:
        context["events"] = projects.events_of_subject(row.subject, EVENTS_SHOWN)
    if wanted is None:
        context["log"] = log_tail(row)
    fragments = {
        "service-header": "services/_header.html",
        "service-charts": "services/_charts.html",
        "service-facts": "services/_facts.html",
    }
    return page(request, "services/page.html", context, fragments)


def _log(row: ManagedProcess) -> StreamingHttpResponse:
    with opened_log(row) as descriptor:
        if descriptor is None:
            raise Missing("log-gone", "There is no log, or it cannot be read.")
        whole = os.fdopen(os.dup(descriptor), "rb")
        whole.seek(first_offset(descriptor, row.log_head, os.fstat(descriptor).st_size))
    response = StreamingHttpResponse(streams.pieces(whole), content_type="text/plain; charset=utf-8")
    response["Content-Disposition"] = f'attachment; filename="{row.log_name}"'
    return response
