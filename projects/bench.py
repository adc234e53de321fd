"""What all admin pages of the house share: roles instead of Django's permissions, read-only rows, links to pages."""

from collections.abc import Iterator
from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from django.template.loader import render_to_string
from django.utils.html import format_html
from django.utils.translation import gettext_lazy as _


class ByRole:
    """Who came through the door of the admin pages holds the role admin; Django's own permissions add nothing."""

    def has_module_permission(self, request: HttpRequest) -> bool:
        return True

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return True

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return True

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return True

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return True


class Values(admin.AllValuesFieldListFilter):
    """A filter by a column's values, in which none at all can be read and chosen too."""

    def choices(self, changelist: Any) -> Iterator[Any]:
        for choice in super().choices(changelist):
            yield {**choice, "display": choice["display"] or "–"}


class ReadOnly(ByRole, admin.ModelAdmin):  # type: ignore[type-arg]  # generic in the stubs only
    """Rows that only verbs and the importer write.

    `action_groups` are the actions as the menu shows them, {heading: names}; the others stand before them.
    """

    action_groups: dict[Any, tuple[str, ...]] = {}
    show_facets = admin.ShowFacets.NEVER

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_action_choices(self, request: HttpRequest, *args: Any, **options: Any) -> list[Any]:
        choices = dict(super().get_action_choices(request, *args, **options))
        grouped = {
            heading: [(name, choices.pop(name)) for name in names] for heading, names in self.action_groups.items()
        }
        return [*choices.items(), *grouped.items()]

    @admin.display(description=_("status"), ordering="status")
    def badge(self, row: Any) -> str:
        """Return a row's status as pages show it."""
        return state_badge(row.status)

    @admin.display(description=_("page"))
    def page_link(self, row: Any) -> str:
        url = getattr(row, "url", "") or row.get_absolute_url()
        return format_html('<a href="{}">{}</a>', url, _("open"))


def state_badge(status: str) -> str:
    """Return the shape and the word of a state."""
    return render_to_string("_status.html", {"status": status})
