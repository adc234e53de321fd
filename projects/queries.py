"""What is derived from rows and `now`: status, ETA, staleness; nothing here is stored."""

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import orjson
from django.conf import settings
from django.db.models import Exists, OuterRef, Q, QuerySet

from projects.errors import Conflict, Missing, Rejected
from projects.models import Event, Iteration, LoopStop, Project, Rollback, Story
from projects.ralph import is_slug
from projects.states import ROLLBACK_OPEN, STOP_OPEN, ProjectStatus

DEFAULT_ITERATION_S = 12 * 60
ENOUGH_ITERATIONS = 3
STALLED_FACTOR = 3
CLOSED = frozenset({"passed", "failed", "blocked"})
# What in the journals is of interest to a person still, and when a turn without an end is late.
NEWS = timedelta(days=1)
PENDING = timedelta(minutes=10)
LIGHT = ("document", "shown_stories", "description", "fingerprints")


@dataclass(frozen=True, slots=True)
class Eta:
    """Minutes until the last open story; `low` and `high` only once three iterations are known."""

    minutes: int
    low: int | None = None
    high: int | None = None


def known(visible_to: str = "") -> QuerySet[Project]:
    """Return projects without their heavy columns; `visible_to` is a bound token's slug, "" = all."""
    rows = Project.objects.defer(*LIGHT)
    return rows.filter(slug=visible_to) if visible_to else rows


def get_project(slug: str, visible_to: str = "", *, orders: bool = False) -> Project:
    """Return a project for a page; Missing when unknown or not to be seen.

    With `orders` its `is_asked` and `is_rolling` say whether a stop of its loop, or a rollback, is under way.
    """
    rows: QuerySet[Project] = Project.objects.defer("document", "shown_stories", "fingerprints")
    if orders:
        stops = LoopStop.objects.filter(project=OuterRef("slug"), status__in=STOP_OPEN)
        rollbacks = Rollback.objects.filter(project=OuterRef("slug"), status__in=ROLLBACK_OPEN)
        rows = rows.annotate(is_asked=Exists(stops), is_rolling=Exists(rollbacks))
    project = rows.filter(slug=slug).first() if is_slug(slug) else None
    if project is None or (visible_to and project.slug != visible_to):
        raise Missing("not-found", f"There is no project {slug[:80]}.")
    return project


def get_ralph_project(slug: str, visible_to: str = "") -> Project:
    """Return a Ralph project for REST; malformed and unknown slugs are both Rejected, as its clients expect."""
    project = Project.objects.defer(*LIGHT).filter(slug=slug, ralph=True).first() if is_slug(slug) else None
    if project is None or (visible_to and project.slug != visible_to):
        raise Rejected("invalid-project-slug", "No Ralph project has this slug.")
    return project


def open_stop(project: Project) -> LoopStop | None:
    """Return the stop of a project's loop that is under way."""
    return LoopStop.objects.filter(project=project.slug, status__in=STOP_OPEN).first()


def open_rollback(project: Project) -> Rollback | None:
    """Return the rollback of a project that is under way."""
    return Rollback.objects.filter(project=project.slug, status__in=ROLLBACK_OPEN).first()


def need_here(project: Project) -> None:
    """Refuse (Conflict `elsewhere`) a project whose files lie on another host: ours of that path are not its."""
    if project.node != settings.ANDON_NODE:
        raise Conflict("elsewhere", f"{project.slug} lies on {project.node}. Ask the Andon that runs there.")


def status_of(project: Project) -> ProjectStatus:
    """Return a project's status, first match wins (spec: projects.md 2)."""
    if project.missing_since is not None:
        return ProjectStatus.MISSING
    if project.error:
        return ProjectStatus.ERROR
    if project.running:
        return ProjectStatus.RUNNING
    if project.failed and not remaining(project):
        return ProjectStatus.FAILED
    if project.total and project.passed == project.total:
        return ProjectStatus.COMPLETE
    return ProjectStatus.BLOCKED if project.blocked else ProjectStatus.IDLE


def remaining(project: Project) -> int:
    """Return how many stories are still open; with passed, failed and blocked they add up to the total."""
    return project.total - project.passed - project.failed - project.blocked


def median_iteration_s(project: Project) -> float:
    durations = project.durations
    return statistics.median(durations) if len(durations) >= ENOUGH_ITERATIONS else DEFAULT_ITERATION_S


def eta_of(project: Project) -> Eta | None:
    """Return how long the open stories take at the pace of the last ten iterations; None when none is open."""
    left = remaining(project)
    if not left:
        return None
    minutes = _minutes(left * median_iteration_s(project))
    if len(project.durations) < ENOUGH_ITERATIONS:
        return Eta(minutes)
    low, _, high = statistics.quantiles(project.durations, n=4, method="inclusive")
    return Eta(minutes, _minutes(left * low), _minutes(left * high))


def is_stalled(project: Project, now: datetime) -> bool:
    """Say whether a running loop has written nothing for three times its median iteration."""
    since = quiet_since(project)
    if not project.running or since is None:
        return False
    return (now - since).total_seconds() > STALLED_FACTOR * median_iteration_s(project)


def quiet_since(project: Project) -> datetime | None:
    """Return when a loop last gave a sign: its newest writing, or its start where all files are older."""
    return max(filter(None, (project.written_at, project.loop_started_at)), default=None)


def stories_of(projects: Iterable[Project]) -> dict[int, list[Story]]:
    """Return the stories of several projects in one query, in file order, without their long texts."""
    by_project: dict[int, list[Story]] = {project.pk: [] for project in projects}
    rows = Story.objects.filter(project_id__in=by_project).defer("description", "criteria", "notes")
    for story in rows.order_by("project_id", "position"):
        by_project[story.project_id].append(story)
    return by_project


def current_of(project: Project, stories: list[Story]) -> Story | None:
    """Return what a running loop works on, None while it does not run."""
    return current_row(stories) if project.running else None


def current_row(stories: list[Story]) -> Story | None:
    """Return the story that a loop works on: lowest (priority, key) among open ones with all dependencies passed."""
    passed = {story.key for story in stories if story.state == "passed"}
    known = {story.key for story in stories}
    ready = [
        story
        for story in stories
        if story.state not in CLOSED and all(key in passed or key not in known for key in story.depends_on)
    ]
    return min(ready, key=lambda story: (story.priority, story.key), default=None)


class ProjectView:
    """A project as pages show it: its row and what is derived from it."""

    def __init__(self, project: Project, stories: list[Story], now: datetime) -> None:
        self._project = project
        self.status = status_of(project)
        self.remaining = remaining(project)
        self.pending = self.remaining - project.in_progress
        self.eta = eta_of(project) if project.running else None
        self.stalled = project.stalled or is_stalled(project, now)
        self.quiet_for = (now - project.written_at).total_seconds() if project.written_at else None
        self.current = current_of(project, stories)
        self.stories = stories
        self.spent_today: Any = None
        for story in stories:
            story.project = project

    def __getattr__(self, name: str) -> Any:
        return getattr(self._project, name)


def views(projects: Iterable[Project], now: datetime) -> list[ProjectView]:
    """Return projects ready for a page; one query for the stories of those that run."""
    rows = list(projects)
    stories = stories_of([project for project in rows if project.running])
    return [ProjectView(project, stories.get(project.pk, []), now) for project in rows]


# Filled in by who is above: a family of subjects, and what looks up the titles of some names of it.
titles_of: dict[str, Callable[[set[str]], dict[str, str]]] = {}

# What says no more than what the event beside it says.
SMALL = ("worker.heartbeat", "project.changed", "task.heartbeat", "task.spawned", "task.exited")


def events(
    filters: dict[str, str], *, before: int | None = None, limit: int, visible_to: str = "", headlines: bool = False
) -> list[Event]:
    """Return events newest first. Exact filters: kind, subject, actor, project; `kind` may end in `.` for a family.

    Heartbeats of workers are left out unless a kind is asked for, and of `headlines` also what is SMALL, unless a kind
    or a subject is asked for.
    """
    rows = Event.objects.all()
    # PostgreSQL refuses to look for NUL; no event holds one.
    if any("\x00" in value for value in filters.values()):
        return []
    for name in ("subject", "actor", "project"):
        if filters.get(name):
            rows = rows.filter(**{name: filters[name]})
    if kind := filters.get("kind", ""):
        rows = rows.filter(Q(kind__startswith=kind) if kind.endswith(".") else Q(kind=kind))
    else:
        rows = rows.exclude(kind__in=SMALL if headlines and not filters.get("subject") else ("worker.heartbeat",))
    if visible_to:
        rows = rows.filter(project=visible_to)
    if before:
        rows = rows.filter(id__lt=before)
    return list(rows.order_by("-id")[:limit])


def entitled(events: list[Event]) -> list[Event]:
    """Return the events, each with the title of its subject where that has one; a query a family at most."""
    known = titles({event.subject for event in events})
    for event in events:
        event.title = known.get(event.subject, "")
    return events


def titles(subjects: set[str]) -> dict[str, str]:
    """Return the titles of those of these subjects that have one and still are."""
    found: dict[str, str] = {}
    for family, look_up in titles_of.items():
        names = {subject.partition(":")[2] for subject in subjects if subject.startswith(f"{family}:")}
        found |= {f"{family}:{name}": title for name, title in (look_up(names) if names else {}).items()}
    return found


def events_of_subject(subject: str, limit: int = 20) -> list[Event]:
    """Return the newest events of one thing, without those that only say that a file has changed."""
    rows = Event.objects.filter(subject=subject).exclude(kind="project.changed")
    return list(rows.order_by("-id")[:limit])


def iterations_of(project: Project) -> QuerySet[Iteration]:
    return Iteration.objects.filter(project=project).order_by("-number")


def snapshot(now: datetime, visible_to: str = "") -> dict[str, Any]:
    """Return the status document of all Ralph projects (spec: projects.md 3); two queries however many.

    The stories stand ready on the project's row: 10,000 rows as objects cost six times a naive look at the files.
    """
    rows = Project.objects.defer("document", "description", "fingerprints").filter(ralph=True, missing_since=None)
    if visible_to:
        rows = rows.filter(slug=visible_to)
    found = list(rows.order_by("slug"))
    working_on = stories_of([project for project in found if project.running])
    projects = [_status_row(project, working_on.get(project.pk, []), now) for project in found]
    return {"projects": projects, "fetchedAt": now.isoformat(), "count": len(projects)}


def _status_row(project: Project, stories: list[Story], now: datetime) -> dict[str, Any]:
    current = current_of(project, stories)
    eta = eta_of(project) if project.running else None
    return {
        "slug": project.slug,
        "status": str(status_of(project)),
        "running": project.running,
        "pid": project.pid,
        "branchName": project.branch,
        "storiesTotal": project.total,
        "storiesComplete": project.passed,
        "storiesFailed": project.failed,
        "storiesBlocked": project.blocked,
        "storiesRemaining": remaining(project),
        "currentStory": current
        and {"id": current.key, "title": current.title, "tags": current.tags, "retries": current.retries},
        "lastIterAt": project.last_iteration_at.isoformat() if project.last_iteration_at else None,
        "etaMinutes": eta.minutes if eta else None,
        "stories": orjson.loads(project.shown_stories),
        "stalled": project.stalled or is_stalled(project, now),
        "warnings": project.warnings,
        "revision": project.revision,
        "error": project.error or None,
    }


def shown_stories(stories: Iterable[Story]) -> str:
    """Return stories as the status document shows them, as JSON."""
    return orjson.dumps([_story_row(story) for story in stories]).decode()


def _story_row(story: Story) -> dict[str, Any]:
    return {
        "id": story.key,
        "title": story.title,
        "passes": story.state == "passed",
        "failed": story.state == "failed",
        "blocked": story.state == "blocked",
        "retries": story.retries,
        "tags": story.tags,
        "failureReason": story.failure_reason or None,
    }


def _minutes(seconds: float) -> int:
    return max(1, round(seconds / 60))
