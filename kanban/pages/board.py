"""The board: its columns with counts and cards, and what stands above them; seven queries whatever it holds."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Case, Count, F, Min, Q, QuerySet, When, Window
from django.db.models.functions import RowNumber
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy

from kanban.models import Board, Profile, Task
from kanban.pages import cards
from kanban.pages.cards import Card
from kanban.pages.filters import NOBODY, Filters
from kanban.states import CLOSED, Status

COLUMN_PAGE = 100
MOST_PAGES = 1000
LATE_AFTER = timedelta(seconds=15)

NAMES: dict[str, tuple[Promise, Promise]] = {
    Status.TRIAGE: (gettext_lazy("Triage"), gettext_lazy("To be looked at; nobody works on it yet.")),
    Status.TODO: (gettext_lazy("To do"), gettext_lazy("Waits for its parents, or is held by a person.")),
    Status.READY: (gettext_lazy("Ready"), gettext_lazy("Taken by priority, then age.")),
    Status.RUNNING: (gettext_lazy("Running"), gettext_lazy("A worker is at it.")),
    Status.REVIEW: (gettext_lazy("Review"), gettext_lazy("Handed in: approve it or send it back.")),
    Status.BLOCKED: (gettext_lazy("Blocked"), gettext_lazy("Waits for you, its parents, or time.")),
    Status.DONE: (gettext_lazy("Done"), gettext_lazy("Newest first.")),
    Status.ARCHIVED: (gettext_lazy("Archived"), gettext_lazy("Put away, newest first.")),
}
# What a pass tells of itself, in words.
PASS: dict[str, Promise] = {
    "spawned": gettext_lazy("claimed"),
    "promoted": gettext_lazy("promoted"),
    "reclaimed": gettext_lazy("taken back"),
    "crashed": gettext_lazy("found crashed"),
    "timed_out": gettext_lazy("timed out"),
    "auto_blocked": gettext_lazy("given up"),
    "skipped_unassigned": gettext_lazy("skipped, nobody's"),
    "skipped_nonspawnable": gettext_lazy("skipped, no agent"),
}
# Where a task may begin.
BEGINNINGS = frozenset({Status.TRIAGE, Status.TODO, Status.READY})
_ANYWHERE = (
    *("created", "edited", "assigned", "priority", "commented", "linked", "unlinked", "status", "forced"),
    *("archived", "reopened", "completed", "approved", "unblocked"),
)
# Where an old worker is shown until it is gone.
_OPEN = (*_ANYWHERE, "exited")
# Which events may change a column; a heartbeat concerns only who runs.
KINDS: dict[str, tuple[str, ...]] = {
    Status.TRIAGE: _OPEN,
    Status.TODO: (*_OPEN, "ready", "sent_back", "reclaimed", "crashed", "rate_limited"),
    Status.READY: ("",),
    Status.RUNNING: ("",),
    Status.REVIEW: (*_OPEN, "review_requested", "sent_back"),
    Status.BLOCKED: (*_OPEN, "blocked", "gave_up", "spawn_auto_blocked"),
    Status.DONE: _ANYWHERE,
    Status.ARCHIVED: _ANYWHERE,
}


@dataclass(slots=True)
class Tally:
    """How many tasks of a status match, and since when the oldest is in it."""

    number: int = 0
    oldest: datetime | None = None


@dataclass(slots=True)
class Facets:
    """What the filters can be set to."""

    tenants: list[str] = field(default_factory=list)
    assignees: list[str] = field(default_factory=list)
    projects: list[str] = field(default_factory=list)
    total: int = 0


@dataclass(slots=True)
class Column:
    """A column as it is shown: `page` counts from 1; `lanes` groups its cards by who does them."""

    status: str
    name: Promise
    help: Promise
    number: int
    oldest: datetime | None
    cards: list[Card]
    page: int
    pages: int
    kinds: str
    # Queries of addresses: as it is, a page before, a page after; "" = there is none.
    query: str = ""
    before: str = ""
    after: str = ""
    lanes: list[dict[str, Any]] | None = None

    @property
    def can_begin(self) -> bool:
        return self.status in BEGINNINGS

    @property
    def is_closed(self) -> bool:
        return self.status in CLOSED

    @property
    def first(self) -> int:
        return (self.page - 1) * COLUMN_PAGE + 1

    @property
    def last(self) -> int:
        return self.first + len(self.cards) - 1


def profiles_by_name() -> dict[str, Profile]:
    return {profile.name: profile for profile in Profile.objects.defer("env")}


def statuses(filters: Filters) -> list[str]:
    """Return the columns in the board's order; what is archived only when asked for."""
    return [status for status in Status.values if status != Status.ARCHIVED or filters.archived]


def tallies(filters: Filters, shown: Iterable[str]) -> tuple[dict[str, Tally], Facets]:
    """Count what matches by status, and list what could be asked for; one query."""
    matches = filters.where()
    rows = (
        Task.objects.filter(status__in=list(shown))
        .order_by()
        .values_list("status", "tenant", "assignee", "project")
        .annotate(
            total=Count("pk"),
            number=Count("pk", filter=matches) if matches else Count("pk"),
            oldest=Min("since", filter=matches) if matches else Min("since"),
        )
    )
    found: dict[str, Tally] = {}
    tenants, assignees, projects, total = set(), set(), set(), 0
    for status, tenant, assignee, project, in_all, number, oldest in rows:
        total += in_all
        tenants.add(tenant)
        assignees.add(assignee or NOBODY)
        projects.add(project)
        tally = found.setdefault(status, Tally())
        tally.number += number
        tally.oldest = min(filter(None, (tally.oldest, oldest)), default=None)
    return found, Facets(sorted(tenants - {""}), sorted(assignees), sorted(projects - {""}), total)


def columns(
    filters: Filters,
    pages: Mapping[str, int],
    *,
    counted: Mapping[str, Tally],
    shown: Iterable[str],
    profiles: Mapping[str, Profile],
    nodes: Iterable[str],
    now: datetime,
) -> list[Column]:
    """Return columns with a page of cards each; four queries."""
    wanted: dict[str, tuple[int, int]] = {}
    for status in shown:
        tally = counted.get(status, Tally())
        last = max(1, -(-tally.number // COLUMN_PAGE))
        wanted[status] = (min(max(1, pages.get(status, 1)), last), last)
    rows = _page_of_each(filters, {status: page for status, (page, _last) in wanted.items()})
    by_status: dict[str, list[Card]] = {}
    for card in cards.cards(rows, profiles, nodes, now):
        by_status.setdefault(card.task.status, []).append(card)
    found = []
    shown_pages = {f"page_{status}": page for status, page in pages.items() if page > 1}
    for status, (page, last) in wanted.items():
        mine = by_status.get(status, [])
        tally = counted.get(status, Tally())
        name, help_ = NAMES[status]
        found.append(
            Column(
                status=status,
                name=name,
                help=help_,
                number=tally.number,
                oldest=tally.oldest,
                cards=mine,
                page=page,
                pages=last,
                kinds=" ".join([*(f"task.{kind}" for kind in KINDS[status]), "profile."]),
                query=filters.query(**shown_pages),
                before=filters.query(**{**shown_pages, f"page_{status}": page - 1}) if page > 1 else "",
                after=filters.query(**{**shown_pages, f"page_{status}": page + 1}) if page < last else "",
                lanes=cards.as_rows(mine) if filters.lanes and status == Status.RUNNING else None,
            )
        )
    return found


def _page_of_each(filters: Filters, pages: Mapping[str, int]) -> QuerySet[Task]:
    """Return one page of each status in the board's order, what is closed newest first; one query."""
    closed = Case(When(status__in=sorted(CLOSED), then=F("since")))
    order = [closed.desc(), F("priority").desc(), F("created_at").asc(), F("pk").asc()]
    place = Window(RowNumber(), partition_by=[F("status")], order_by=order)
    on_page = Q(pk__in=[])
    for status, page in pages.items():
        first = (page - 1) * COLUMN_PAGE
        on_page |= Q(status=status, place__gt=first, place__lte=first + COLUMN_PAGE)
    rows = Task.objects.filter(filters.where(), status__in=list(pages)).annotate(place=place)
    return rows.filter(on_page).defer(*cards.HEAVY).order_by("status", "place")


def switches(*, dispatches: bool, now: datetime) -> dict[str, Any]:
    """Return what `switchboard` does, with profiles of its own; two queries."""
    return switchboard(profiles_by_name(), dispatches=dispatches, now=now)


def switchboard(profiles: Mapping[str, Profile], *, dispatches: bool, now: datetime) -> dict[str, Any]:
    """Return what stands above the columns: paused profiles, the dispatcher's switch and last pass; one query."""
    row = Board.objects.filter(id=1).first() or Board(id=1)
    last = row.last_pass_at
    return {
        "told": [(word, number) for name, word in PASS.items() if (number := (row.last_pass or {}).get(name))],
        "paused": [profile for profile in profiles.values() if profile.paused_at is not None],
        "board": row,
        "dispatches": dispatches,
        "is_late": dispatches and row.paused_at is None and (last is None or now - last > LATE_AFTER),
    }
