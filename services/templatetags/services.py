"""What pages of the floor show of this app: they name it in templates alone, for imports run one way."""

from typing import Any

from django import template

from services import pages

register = template.Library()


@register.simple_tag
def services_of(slug: str) -> dict[str, Any]:
    """Return a project's services for a short list: {rows, more}; one query."""
    rows = pages.of_project(slug)
    return {"rows": rows[: pages.OF_PROJECT_SHOWN], "more": len(rows) > pages.OF_PROJECT_SHOWN}
