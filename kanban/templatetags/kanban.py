"""What the board's templates write through Python."""

from collections.abc import Iterable

from django import template
from django.template import Context
from django.utils.safestring import SafeString

from kanban.pages.cards import Card
from kanban.pages.markup import Writer

register = template.Library()


@register.simple_tag(takes_context=True)
def cards(context: Context, found: Iterable[Card]) -> SafeString:
    """Cards as items of a list, as the one who looks may see them."""
    is_fragment = bool(context["request"].headers.get("HX-Request"))
    return Writer(can_operate=bool(context.get("can_operate")), is_fragment=is_fragment, now=context["now"]).cards(
        found
    )
