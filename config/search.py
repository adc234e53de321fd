"""Finding anything: one bounded look into each kind of thing, best matches first.

Each finder asks a query or two, reads at most `LOOKED` rows and returns what it found; `finders` is where another
kind hangs its own in.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any
from urllib.parse import urlencode

from django.db.models import F, Model, Q, QuerySet, Subquery
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from kanban.models import Run, Task
from projects import queries as projects
from projects.models import Event, JournalFile, Story
from projects.states import JournalFamily, JournalState
from services import pages as services
from services.models import ManagedProcess
from services.states import Purpose

SHOWN = 8
# Rows that are ranked; of more matches than these the rest is not looked at.
LOOKED = 60
WORDS = 6
LONGEST = 200
# A log has no end: words are looked for in its newest part, a whole subject in all of it.
EVENTS_LOOKED_THROUGH = 20_000
RUNS_LOOKED_THROUGH = 2_000
TASK_ID = re.compile(r"t_[0-9a-f]{8}")


@dataclass(frozen=True, slots=True)
class Hit:
    """One thing that was found. `names` are what it is called, the most telling first."""

    url: str
    title: str
    names: tuple[str, ...]
    status: str = ""
    detail: str = ""
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """The hits of one kind; `more` leads to all of them where a list can show them."""

    name: str
    label: str
    hits: list[Hit]
    is_cut: bool
    more: str = ""
    note: str = ""


class Asked:
    """What was typed: all of it, and its words in lower case."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.words = text.lower().split()[:WORDS]

    def standing_in(self, *fields: str) -> Q:
        """Return the condition that each word stands in one of the fields."""
        condition = Q()
        for word in self.words:
            anywhere = Q()
            for field in fields:
                anywhere |= Q(**{f"{field}__icontains": word})
            condition &= anywhere
        return condition

    @cached_property
    def processes(self) -> list[ManagedProcess]:
        """Services and other processes, which are two kinds of hits, asked for together."""
        condition = self.standing_in("name", "project", "cmd", "owner_wi", "owner_agent")
        if self.text.isascii() and self.text.isdigit() and len(self.text) < 10:
            condition |= Q(pid=int(self.text))
        found = ManagedProcess.objects.filter(condition)
        ways = (found.filter(purpose=Purpose.SERVICE), found.exclude(purpose=Purpose.SERVICE))
        return list(_newest(ManagedProcess.objects.defer(*services.LIST_LEFT_OUT), "-since", *ways))


@dataclass(frozen=True, slots=True)
class Finder:
    """One kind of thing, and how it is looked for."""

    label: Any
    look: Callable[[Asked], Iterable[Hit]]
    more: Callable[[str], str] = lambda text: ""
    note: Any = ""


def search(text: str) -> list[Found]:
    """Return what matches every word of `text`, by kind; [] for nothing typed and nothing found."""
    text = " ".join(text.replace("\x00", " ").split())[:LONGEST]
    asked = Asked(text)
    if not asked.words:
        return []
    found = []
    for name, finder in finders.items():
        hits = sorted(finder.look(asked), key=lambda hit: _rank(hit, text.lower()))
        if hits:
            is_cut = len(hits) > SHOWN
            more = finder.more(text) if is_cut else ""
            note = str(finder.note) if is_cut else ""
            found.append(Found(name, str(finder.label), hits[:SHOWN], is_cut, more, note))
    return found


def _rank(hit: Hit, text: str) -> int:
    """Return 0 for a name that is just what was typed, then what begins with it, then what has it as a word."""
    names = [name.lower() for name in hit.names]
    if text in names:
        return 0
    if any(name.startswith(text) for name in names):
        return 1
    return 2 if any(f" {text}" in f" {re.sub(r'[^0-9a-z]+', ' ', name)}" for name in names) else 3


def _projects(asked: Asked) -> Iterable[Hit]:
    for row in projects.known().filter(asked.standing_in("slug", "title"))[:LOOKED]:
        names = (row.slug, row.title)
        detail = row.slug if row.title and row.title != row.slug else ""
        yield Hit(row.get_absolute_url(), row.title or row.slug, names, projects.status_of(row), detail)


def _stories(asked: Asked) -> Iterable[Hit]:
    heavy = ("project__document", "project__shown_stories", "project__description", "project__fingerprints")
    rows: QuerySet[Story] = Story.objects.select_related("project").defer("description", "criteria", "notes", *heavy)
    for row in rows.filter(asked.standing_in("key", "title", "project__slug"))[:LOOKED]:
        yield Hit(
            row.get_absolute_url(),
            row.title or row.key,
            (row.key, f"{row.project.slug}/{row.key}", row.title),
            row.state,
            f"{row.project.slug} · {row.key}",
        )


def _tasks(asked: Asked) -> Iterable[Hit]:
    rows = Task.objects.defer("body", "result", "block_reason")
    condition = asked.standing_in("title", "assignee")
    if key := TASK_ID.match(asked.text.lower()):
        condition |= Q(pk=key[0])
    for row in rows.filter(condition).order_by("-active_at")[:LOOKED]:
        detail = " · ".join(filter(None, (row.pk, row.assignee, row.project)))
        yield Hit(row.get_absolute_url(), row.title, (row.pk, row.title), row.status, detail, row.active_at)


def _runs(asked: Asked) -> Iterable[Hit]:
    rows = Run.objects.filter(id__gt=_last(Run) - RUNS_LOOKED_THROUGH).defer("result", "services")
    condition = asked.standing_in("task__id", "task__title", "profile", "summary", "error", "outcome")
    for row in rows.filter(condition).select_related("task").order_by("-id")[:LOOKED]:
        names = (f"{row.task_id}/{row.number}", row.task.title)
        title = _("%(task)s, attempt %(number)d") % {"task": row.task.title, "number": row.number}
        detail = " · ".join(filter(None, (row.task_id, row.profile, row.error.partition("\n")[0] or row.summary)))
        state = "running" if row.ended_at is None else row.outcome
        yield Hit(row.get_absolute_url(), title, names, state, detail[:200], row.started_at)


def _sessions(asked: Asked) -> Iterable[Hit]:
    rows = JournalFile.objects.filter(family=JournalFamily.TURNS).exclude(state=JournalState.SUPERSEDED)
    rows = rows.only("family", "name", "state", "node", "written_at").order_by(F("written_at").desc(nulls_last=True))
    for row in rows.filter(asked.standing_in("name"))[:LOOKED]:
        gone = _("its file is gone; what was read of it is kept") if row.state == JournalState.MISSING else ""
        yield Hit(row.get_absolute_url(), row.name, (row.name,), "", gone, row.written_at)


def _services(asked: Asked) -> Iterable[Hit]:
    return _hits_of(row for row in asked.processes if row.purpose == Purpose.SERVICE)


def _processes(asked: Asked) -> Iterable[Hit]:
    return _hits_of(row for row in asked.processes if row.purpose != Purpose.SERVICE)


def _hits_of(rows: Iterable[ManagedProcess]) -> Iterable[Hit]:
    for row in rows:
        detail = " · ".join(filter(None, (row.cmd, row.owner_wi, row.owner_agent, row.last_error.partition("\n")[0])))
        yield Hit(row.get_absolute_url(), str(row), (row.name, str(row)), row.status, detail[:200], row.since)


def _events(asked: Asked) -> Iterable[Hit]:
    number = asked.text.removeprefix("#")
    is_number = number.isascii() and number.isdigit() and len(number) < 19
    exact = Event.objects.filter(Q(pk=int(number)) if is_number else Q(subject=asked.text))
    recent = Event.objects.filter(asked.standing_in("subject", "kind"), id__gt=_last(Event) - EVENTS_LOOKED_THROUGH)
    recent = recent.exclude(kind__in=("worker.heartbeat", "project.changed"))
    for row in projects.entitled(list(_newest(Event.objects.all(), "-id", exact, recent))):
        yield _hit_of(row, f"#{row.pk}", str(row.pk), row.subject)


def _hit_of(event: Event, *names: str) -> Hit:
    detail = " · ".join(filter(None, (event.kind, event.subject, event.actor)))
    return Hit(event.get_absolute_url(), event.summary or event.kind, names, "", detail, event.at)


def _newest(rows: QuerySet[Any], order: str, *ways: QuerySet[Any]) -> QuerySet[Any]:
    """Return those of the rows that are among the first of one of the ways, in one query.

    One IN over both, since PostgreSQL reads the whole table for an OR of two; SQLite takes no LIMIT in a UNION itself.
    """
    firsts = [rows.model._default_manager.filter(pk__in=way.order_by(order).values("pk")[:LOOKED]) for way in ways]  # noqa: SLF001
    some, *others = [first.order_by().values("pk") for first in firsts]
    return rows.filter(pk__in=some.union(*others, all=True)).order_by(order)


def _last(model: type[Model]) -> Subquery:
    """Return the newest id, for a condition in the same query."""
    return Subquery(model._default_manager.order_by("-pk").values("pk")[:1])  # noqa: SLF001


def _list(address: str, name: str, **beside: str) -> Callable[[str], str]:
    return lambda text: f"{address}?{urlencode({**beside, name: text})}"


finders: dict[str, Finder] = {
    "projects": Finder(gettext_lazy("Projects"), _projects, _list("/projects/", "q")),
    "stories": Finder(gettext_lazy("Stories"), _stories),
    "tasks": Finder(gettext_lazy("Tasks"), _tasks),
    "runs": Finder(
        gettext_lazy("Attempts"), _runs, note=gettext_lazy("Words are looked for in the newest 2,000 attempts.")
    ),
    "sessions": Finder(gettext_lazy("Sessions"), _sessions, _list("/sessions/", "q")),
    "services": Finder(gettext_lazy("Services"), _services, _list("/services/", "q")),
    "processes": Finder(gettext_lazy("Loops and task workers"), _processes, _list("/services/", "q", purpose="all")),
    "events": Finder(
        gettext_lazy("Events"),
        _events,
        lambda text: _list("/events/", "subject")(text) if ":" in text else "",
        note=gettext_lazy("Words are looked for in the newest 20,000 events, a whole subject in all that are kept."),
    ),
}
