"""/costs/: what loops and attempts at tasks have cost, and the same as CSV."""

from django.conf import settings
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.utils import timezone
from django.views.decorators.http import require_safe

from kanban import costs as attempts
from projects import costs, exports
from projects.days import wanted_days, window
from projects.pages import page

CHOICES = (7, 30, 90, 365)
DAYS = 30


@require_safe
def report(request: HttpRequest) -> HttpResponse:
    """What work cost, by day, project, profile, story and model; window and project stand in the address."""
    slug, days = _asked(request)
    now = timezone.now()
    beside = attempts.beside(window(days, now), slug)
    reporting = costs.reporting()
    known = {row["slug"] for row in reporting if row["has_entries"]} | beside.known
    context = {
        "costs": costs.report(days, now, slug, beside),
        "kinds": " ".join(("project.", *attempts.ENDS)),
        "slug": slug,
        "days": days,
        "choices": CHOICES,
        "slugs": sorted(known - {""}),
        "unread": [row for row in reporting if (row["rejected"] or row["problem"]) and slug in {"", row["slug"]}],
        "zone": settings.TIME_ZONE,
    }
    return page(request, "costs.html", context, {"costs": "_costs.html"})


@require_safe
def export(request: HttpRequest) -> StreamingHttpResponse:
    """The bills of the window as CSV."""
    slug, days = _asked(request)
    span = window(days, timezone.now())
    rows = exports.pieces(exports.costs_csv(span, slug, attempts.exported(span, slug)))
    response = StreamingHttpResponse(rows, content_type="text/csv; charset=utf-8")
    name = f"andon-costs-{span.first}-to-{span.today}.csv"
    response["Content-Disposition"] = f'attachment; filename="{name}"'
    return response


def _asked(request: HttpRequest) -> tuple[str, int]:
    slug = request.GET.get("project", "").strip()[:80]
    return slug, wanted_days(request.GET.get("days", ""), DAYS)
