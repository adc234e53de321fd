"""How a page, or one fragment of it, is rendered: one template, one permission check, the same address."""

from collections.abc import Mapping
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.cache import patch_vary_headers


def page(
    request: HttpRequest, template: str, context: dict[str, Any], fragments: Mapping[str, str] | None = None
) -> HttpResponse:
    """Render `template`, or, when htmx or live.js asks for one of `fragments` (element id -> template), only that."""
    htmx = request.htmx  # type: ignore[attr-defined]
    wanted = (fragments or {}).get(htmx.target or "") if htmx else None
    response = render(request, wanted or template, context)
    patch_vary_headers(response, ["HX-Request", "HX-Target", "Cookie"])
    response.headers.setdefault("Cache-Control", "private, no-cache")
    return response
