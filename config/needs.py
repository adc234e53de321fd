"""What needs a person, over all apps: the most urgent first, each with its reason and where to go."""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime
from typing import Any

from django.db.models import Q
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from kanban.pages import needs as work
from projects import queries as projects
from projects import sessions, timelines
from projects.models import Project, Story
from projects.states import ProjectStatus, StoryState
from services import pages as processes
from services.models import ManagedProcess, WorkerHost
from services.states import HostStatus

# Of each severity.
SHOWN = 25
# What else the board's signals hold within the same bound: whether there is a profile, a task, a token.
MADE = 3
SEVERITIES = ("special", "bad", "warn")
# Where the rest of a kind is listed, and how it is told of.
REST: dict[str, tuple[str, Callable[[int], str]]] = {
    "worker": ("/system/", lambda n: ngettext("%d more worker", "%d more workers", n) % n),
    "task": ("/kanban/list/", lambda n: ngettext("%d more task", "%d more tasks", n) % n),
    "project": ("/projects/", lambda n: ngettext("%d more of projects", "%d more of projects", n) % n),
    "story": ("/projects/?status=blocked", lambda n: ngettext("%d more story", "%d more stories", n) % n),
    "service": ("/services/", lambda n: ngettext("%d more service", "%d more services", n) % n),
    "journal": ("/audit/", lambda n: ngettext("%d more of journals", "%d more of journals", n) % n),
}


def stories(rows: Iterable[Project], loops: Collection[Project]) -> list[Story]:
    """Return the stories of `loops`, which run, and those that wait for a person, as many as are shown; one query."""
    by_id = {row.pk: row for row in rows}
    is_blocked = Q(state=StoryState.BLOCKED, project_id__in=[row.pk for row in by_id.values() if row.blocked])
    blocked = Story.objects.filter(is_blocked).order_by("project_id", "position").values("pk")[:SHOWN]
    found = Story.objects.filter(Q(project_id__in=[row.pk for row in loops]) | Q(pk__in=blocked))
    listed = list(found.defer("description", "criteria", "notes").order_by("project_id", "position"))
    for story in listed:
        story.project = by_id[story.project_id]
    return listed


def urgencies(
    rows: Sequence[Project],
    *,
    hosts: Iterable[WorkerHost],
    of_work: list[dict[str, Any]],
    stories: Iterable[Story],
    in_sight: Iterable[ManagedProcess],
    now: datetime,
) -> dict[str, Any]:
    """Return what a person should look at: {total, is_least, groups: [{severity, total, needs, more}]}.

    Of each severity `SHOWN` are shown, no kind of them to the exclusion of another; `more` leads to the rest by kind,
    as [{words, url}]. `is_least`: there may be more tasks than were counted.
    """
    found: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for kind, need in _all(rows, hosts=hosts, of_work=of_work, stories=stories, in_sight=in_sight, now=now):
        found[need["severity"]][kind].append(need)
    counted: Counter[tuple[str, str]] = Counter()
    for severity, kinds in found.items():
        counted.update({(severity, kind): len(each) for kind, each in kinds.items()})
    # What was read is cut: of these it is known how many there are.
    counted["special", "story"] = sum(row.blocked for row in rows)
    for row in in_sight:
        if row.severity:  # type: ignore[attr-defined]
            counted[row.severity, "service"] = row.alike  # type: ignore[attr-defined]
    groups = [_group(severity, found[severity], counted) for severity in SEVERITIES if severity in found]
    return {
        "groups": groups,
        "total": sum(group["total"] for group in groups),
        "is_least": len(of_work) >= work.MOST - MADE,
    }


def _group(severity: str, kinds: dict[str, list[dict[str, Any]]], counted: Counter[tuple[str, str]]) -> dict[str, Any]:
    shown = _shared({kind: len(needs) for kind, needs in kinds.items()}, SHOWN)
    more = []
    for kind in kinds:
        if (left := counted[severity, kind] - shown[kind]) > 0:
            url, words = REST[kind]
            if (severity, kind) == ("special", "task"):
                url += "?status=blocked"
            more.append({"words": words(left), "url": url})
    return {
        "severity": severity,
        "total": sum(counted[severity, kind] for kind in kinds),
        "needs": [need for kind, needs in kinds.items() for need in needs[: shown[kind]]],
        "more": more,
    }


def _shared(wanted: dict[str, int], places: int) -> dict[str, int]:
    """Return how many places each gets: as many as it wants, or else an equal share of what the others leave."""
    shares = {}
    for at, (kind, number) in enumerate(sorted(wanted.items(), key=lambda item: item[1])):
        shares[kind] = min(number, places // (len(wanted) - at))
        places -= shares[kind]
    return shares


def _all(
    rows: Iterable[Project],
    *,
    hosts: Iterable[WorkerHost],
    of_work: list[dict[str, Any]],
    stories: Iterable[Story],
    in_sight: Iterable[ManagedProcess],
    now: datetime,
) -> Iterable[tuple[str, dict[str, Any]]]:
    yield from (("worker", _silent(host)) for host in hosts if host.shown == HostStatus.SILENT)
    yield from (("task", need) for need in of_work)
    for row in rows:
        yield from (("project", need) for need in _of_project(row, now))
    yield from (("story", _blocked(story)) for story in stories if story.state == StoryState.BLOCKED)
    for process in in_sight:
        if process.severity:  # type: ignore[attr-defined]
            yield "service", processes.need(process, now)
    for odd in sessions.needs(now):
        severity, title, reason = timelines.need_words(odd["kind"], odd["count"])
        yield "journal", _need(severity, title, reason, "/audit/", None)


def _of_project(row: Project, now: datetime) -> Iterable[dict[str, Any]]:
    status = projects.status_of(row)
    url = row.get_absolute_url()
    if status is ProjectStatus.ERROR:
        yield _need("bad", _("%s cannot be read") % row.slug, row.error, url, row.stale_since)
    elif row.stalled or projects.is_stalled(row, now):
        reason = _("Its loop runs but has written nothing for a long time.")
        stop = {"act_url": f"{url}stop/", "act_label": _("Stop…")}
        yield {**_need("warn", _("%s is stalled") % row.slug, reason, url, row.written_at), **stop}
    if crash := row.loop_crash:
        reason = _("Exit code %s.") % crash["exit_code"] if crash["exit_code"] is not None else _("Nobody saw how.")
        start = {"act_url": f"{url}start/", "act_label": _("Start…")}
        yield {**_need("bad", _("The loop of %s crashed") % row.slug, reason, url, row.written_at), **start}
    if row.failed and not projects.remaining(row):
        reason = ngettext("%d story failed", "%d stories failed", row.failed) % row.failed
        reason += _(" and none is left to try.")
        yield _need("bad", _("%s has failed") % row.slug, reason, url, row.written_at)


def _blocked(story: Story) -> dict[str, Any]:
    title = _("%(slug)s: %(key)s waits for a person") % {"slug": story.project.slug, "key": story.key}
    reason = story.failure_reason[:200] or story.title
    url = story.get_absolute_url()
    again = {"act_url": f"{url}requeue/", "act_label": _("Open again…")}
    return {**_need("special", title, reason, url, story.project.written_at), **again}


def _silent(host: WorkerHost) -> dict[str, Any]:
    reason = _("Nothing is dispatched, watched or imported there. Start Andon again on that machine.")
    return _need("bad", _("The worker of %s is silent") % host.node, reason, "/system/", host.tick_at)


def _need(severity: str, title: str, reason: str, url: str, at: datetime | None) -> dict[str, Any]:
    return {
        "severity": severity,
        "title": title,
        "reason": reason,
        "url": url,
        "remedy_url": url,
        "remedy_label": _("Look"),
        "at": at,
    }
