"""Finding anything: one bounded look into each kind of thing, best matches first.

Each finder asks a query or two, reads at most `LOOKED` rows and returns what it found; `finders` is where another
kind hangs its own in.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from django.db.models import F, Model, Q, QuerySet
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from kanban.models import Run, Task
from projects import queries as projects
from projects.models import Event, JournalFile, Story
from projects.relay import head
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


@dataclass(frozen=True, slots=True)
class Finder:
    """One kind of thing: `look` gets the words, lower case, and all of what was typed."""

    label: Any
    look: Callable[[list[str], str], Iterable[Hit]]
    more: Callable[[str], str] = lambda text: ""
    note: Any = ""


def search(text: str) -> list[Found]:
    """Return what matches every word of `text`, by kind; [] for nothing typed and nothing found."""
    text = " ".join(text.replace("\x00", " ").split())[:LONGEST]
    words = text.lower().split()[:WORDS]
    if not words:
        return []
    found = []
    for name, finder in finders.items():
        hits = sorted(finder.look(words, text), key=lambda hit: _rank(hit, text.lower()))
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


def _matching(words: list[str], *fields: str) -> Q:
    """Return the condition that each word stands in one of the fields."""
    condition = Q()
    for word in words:
        anywhere = Q()
        for field in fields:
            anywhere |= Q(**{f"{field}__icontains": word})
        condition &= anywhere
    return condition


def _projects(words: list[str], text: str) -> Iterable[Hit]:
    for row in projects.known().filter(_matching(words, "slug", "title"))[:LOOKED]:
        names = (row.slug, row.title)
        detail = row.slug if row.title and row.title != row.slug else ""
        yield Hit(row.get_absolute_url(), row.title or row.slug, names, projects.status_of(row), detail)


def _stories(words: list[str], text: str) -> Iterable[Hit]:
    heavy = ("project__document", "project__shown_stories", "project__description", "project__fingerprints")
    rows: QuerySet[Story] = Story.objects.select_related("project").defer("description", "criteria", "notes", *heavy)
    for row in rows.filter(_matching(words, "key", "title", "project__slug"))[:LOOKED]:
        yield Hit(
            row.get_absolute_url(),
            row.title or row.key,
            (row.key, f"{row.project.slug}/{row.key}", row.title),
            row.state,
            f"{row.project.slug} · {row.key}",
        )


def _tasks(words: list[str], text: str) -> Iterable[Hit]:
    rows = Task.objects.defer("body", "result", "block_reason")
    condition = _matching(words, "title", "assignee")
    if key := TASK_ID.match(text.lower()):
        condition |= Q(pk=key[0])
    for row in rows.filter(condition).order_by("-active_at")[:LOOKED]:
        detail = " · ".join(filter(None, (row.pk, row.assignee, row.project)))
        yield Hit(row.get_absolute_url(), row.title, (row.pk, row.title), row.status, detail, row.active_at)


def _runs(words: list[str], text: str) -> Iterable[Hit]:
    newest = _newest(Run.objects.all())
    rows = Run.objects.filter(id__gt=newest - RUNS_LOOKED_THROUGH).defer("result", "services")
    condition = _matching(words, "task__id", "task__title", "profile", "summary", "error", "outcome")
    for row in rows.filter(condition).select_related("task").order_by("-id")[:LOOKED]:
        names = (f"{row.task_id}/{row.number}", row.task.title)
        title = _("%(task)s, attempt %(number)d") % {"task": row.task.title, "number": row.number}
        detail = " · ".join(filter(None, (row.task_id, row.profile, row.error.partition("\n")[0] or row.summary)))
        state = "running" if row.ended_at is None else row.outcome
        yield Hit(row.get_absolute_url(), title, names, state, detail[:200], row.started_at)


def _sessions(words: list[str], text: str) -> Iterable[Hit]:
    rows = JournalFile.objects.filter(family=JournalFamily.TURNS).exclude(state=JournalState.SUPERSEDED)
    rows = rows.only("family", "name", "state", "node", "written_at").order_by(F("written_at").desc(nulls_last=True))
    for row in rows.filter(_matching(words, "name"))[:LOOKED]:
        gone = _("its file is gone; what was read of it is kept") if row.state == JournalState.MISSING else ""
        yield Hit(row.get_absolute_url(), row.name, (row.name,), "", gone, row.written_at)


def _services(words: list[str], text: str) -> Iterable[Hit]:
    return _processes_of(words, text, Q(purpose=Purpose.SERVICE))


def _processes(words: list[str], text: str) -> Iterable[Hit]:
    return _processes_of(words, text, ~Q(purpose=Purpose.SERVICE))


def _processes_of(words: list[str], text: str, kind: Q) -> Iterable[Hit]:
    condition = _matching(words, "name", "project", "cmd", "owner_wi", "owner_agent")
    if text.isascii() and text.isdigit() and len(text) < 10:
        condition |= Q(pid=int(text))
    rows = ManagedProcess.objects.defer(*services.LIST_LEFT_OUT).filter(kind).filter(condition)
    for row in rows.order_by("-since")[:LOOKED]:
        detail = " · ".join(filter(None, (row.cmd, row.owner_wi, row.owner_agent, row.last_error.partition("\n")[0])))
        yield Hit(row.get_absolute_url(), str(row), (row.name, str(row)), row.status, detail[:200], row.since)


def _events(words: list[str], text: str) -> Iterable[Hit]:
    number = text.removeprefix("#")
    if number.isascii() and number.isdigit() and len(number) < 19:
        for row in Event.objects.filter(pk=int(number)):
            yield _hit_of(row, f"#{row.pk}", number)
    exact = Event.objects.filter(subject=text[:LONGEST]).order_by("-id")[:LOOKED]
    recent = Event.objects.filter(id__gt=head() - EVENTS_LOOKED_THROUGH).exclude(
        kind__in=("worker.heartbeat", "project.changed")
    )
    seen = set()
    for row in (*exact, *recent.filter(_matching(words, "subject", "kind")).order_by("-id")[:LOOKED]):
        if row.pk not in seen:
            seen.add(row.pk)
            yield _hit_of(row, row.subject)


def _hit_of(event: Event, *names: str) -> Hit:
    detail = " · ".join(filter(None, (event.kind, event.subject, event.actor)))
    return Hit(event.get_absolute_url(), event.summary or event.kind, names, "", detail, event.at)


def _newest(rows: QuerySet[Any]) -> int:
    newest: Model | None = rows.order_by("-id").only("id").first()
    return int(newest.pk) if newest is not None else 0


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
