"""/search/ and /help/: where is it, and what does that sign mean."""

from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_safe

from config import guide as contents
from config import search as finding
from projects.pages import page


@require_safe
def search(request: HttpRequest) -> HttpResponse:
    """What matches the words in the address, by kind."""
    text = request.GET.get("q", "").strip()[: finding.LONGEST]
    found = finding.search(text)
    context = {"q": text, "found": found, "total": sum(len(kind.hits) for kind in found)}
    return page(request, "search.html", context, {"results": "_results.html"})


@require_safe
def guide(request: HttpRequest) -> HttpResponse:
    """Shortcuts, the meaning of every sign, what each page is for, and where to ask further."""
    role = request.identity.role  # type: ignore[attr-defined]
    return page(request, "help.html", {"pages": contents.pages(role), "legend": contents.LEGEND})
