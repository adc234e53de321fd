"""What the board and the list are narrowed to, as it stands in the address."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from django.db.models import Q

LONGEST = 200
# How the address asks for tasks of nobody.
NOBODY = "-"


@dataclass(frozen=True, slots=True)
class Filters:
    """`assignee` "-" = nobody's; `priority` = at least so much, None = any; the switches say what else is shown."""

    q: str = ""
    tenant: str = ""
    assignee: str = ""
    project: str = ""
    priority: int | None = None
    lanes: bool = False
    archived: bool = False

    @property
    def narrows(self) -> bool:
        return bool(self.q or self.tenant or self.assignee or self.project or self.priority is not None)

    def where(self) -> Q:
        """Return the condition on tasks."""
        found = Q()
        if self.q:
            found &= Q(title__icontains=self.q) | Q(id__icontains=self.q) | Q(body__icontains=self.q)
        if self.priority is not None:
            found &= Q(priority__gte=self.priority)
        if self.tenant:
            found &= Q(tenant=self.tenant)
        if self.assignee:
            found &= Q(assignee="" if self.assignee == NOBODY else self.assignee)
        if self.project:
            found &= Q(project=self.project)
        return found

    def query(self, **more: Any) -> str:
        """Return the address's query that asks for the same, with what else is wanted."""
        told = {
            "q": self.q,
            "tenant": self.tenant,
            "assignee": self.assignee,
            "project": self.project,
            "priority": self.priority,
            "lanes": int(self.lanes),
            "archived": int(self.archived),
            **more,
        }
        # A switch that is off is said too: the settings may have it on.
        kept = {name: value for name, value in told.items() if value not in (None, "")}
        return urlencode(kept)


def read(asked: Mapping[str, str], *, lanes: bool = False, archived: bool = False) -> Filters:
    """Read an address; nonsense asks for nothing, an absent switch is as the settings have it."""

    def text(name: str) -> str:
        # PostgreSQL refuses to look for NUL; nothing here holds one.
        return str(asked.get(name, "")).replace("\x00", "").strip()[:LONGEST]

    return Filters(
        q=text("q"),
        tenant=text("tenant"),
        assignee=text("assignee"),
        project=text("project"),
        priority=number(text("priority")),
        lanes=_switch(asked, "lanes", default=lanes),
        archived=_switch(asked, "archived", default=archived),
    )


def number(text: str) -> int | None:
    """Return a whole number as a person types it, None for anything else."""
    digits = text.removeprefix("-")
    return int(text) if digits.isascii() and digits.isdigit() and len(digits) <= 9 else None


def _switch(asked: Mapping[str, str], name: str, *, default: bool) -> bool:
    # A checkbox that is off is not sent: a form says by `switches` that it asked.
    if name in asked:
        return asked[name] not in {"", "0"}
    return default and "switches" not in asked
