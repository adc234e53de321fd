"""One task as its page shows it; each part is read when the page, or its fragment, asks for it."""

import hashlib
from datetime import datetime
from decimal import Decimal
from typing import Any

from django.db.models import OuterRef, Subquery
from django.utils.functional import cached_property
from django.utils.safestring import SafeString

from kanban import links
from kanban.models import Comment, Link, Profile, Run, Task
from kanban.pages import cards, prose
from kanban.pages.cards import Chip
from kanban.pages.graph import Graph, draw
from kanban.pages.moving import Target
from kanban.pages.moving import targets as targets_of
from kanban.pages.verbs import Verb
from kanban.pages.verbs import of as verbs_of
from kanban.states import CLOSED, FAILURE_LIMIT, OPEN, TASK_ID, Outcome, Status
from projects import queries as projects
from projects.errors import Missing
from projects.models import Event
from services.states import LIVE

COMMENTS_SHOWN = 100
RUNS_SHOWN = 50
EVENTS_SHOWN = 20
LINKS_SHOWN = 200
# A result's beginning; the whole is on the run's page and in REST.
RESULT_SHOWN = 20_000
# How a run's outcome looks: the state whose shape and colour it bears.
LOOKS: dict[str, str] = {
    "": "running",
    Outcome.COMPLETED: "completed",
    Outcome.BLOCKED: "blocked",
    Outcome.REVIEW_REQUESTED: "review",
    Outcome.RATE_LIMITED: "rate_limited",
    Outcome.RELEASED: "released",
    Outcome.SUPERSEDED: "superseded",
}


def get_task(task_id: str) -> Task:
    """Return a task for its page, with its profile's failure limit; Missing when there is none."""
    limit = Profile.objects.filter(name=OuterRef("assignee")).values("failure_limit")[:1]
    rows = Task.objects.annotate(profile_limit=Subquery(limit))
    task = rows.filter(pk=task_id).first() if TASK_ID.fullmatch(task_id) else None
    if task is None:
        raise Missing("not-found", f"There is no task {task_id[:40]}.")
    return task


class TaskView:
    """A task, its neighbours, its attempts, and what can be done with it."""

    def __init__(self, task: Task, now: datetime) -> None:
        self.task = task
        self.now = now
        self.seen = cards.seen(task)
        self.level, self.quiet = cards.staleness(task, now)
        self.limit = task.failure_limit or getattr(task, "profile_limit", None) or FAILURE_LIMIT
        self.has_more_comments = False

    @cached_property
    def body(self) -> SafeString:
        return prose.html(self.task.body)

    @cached_property
    def result(self) -> SafeString:
        return prose.html(self.task.result[:RESULT_SHOWN])

    @property
    def is_result_cut(self) -> bool:
        return len(self.task.result) > RESULT_SHOWN

    @cached_property
    def verbs(self) -> list[Verb]:
        return [each for each in verbs_of(self.task) if not each.why]

    @cached_property
    def refused(self) -> list[Verb]:
        return [each for each in verbs_of(self.task) if each.why]

    @cached_property
    def targets(self) -> list[Target]:
        return targets_of(self.task)

    @cached_property
    def block(self) -> Chip | None:
        if self.task.status != Status.BLOCKED:
            return None
        status, label = cards.BLOCKS.get(self.task.block_kind, ("blocked", self.task.block_kind))
        return Chip(status, label, self.task.unblock_at)

    def _linked(self, side: str, **of: Task) -> list[Task]:
        """Return those at the other ends of links, by link, as many as are shown."""
        rows = Link.objects.filter(**of).select_related(side).defer(*(f"{side}__{name}" for name in cards.HEAVY))
        return [getattr(link, side) for link in rows[:LINKS_SHOWN]]

    @cached_property
    def parents(self) -> list[Task]:
        return self._linked("parent", child=self.task)

    @cached_property
    def children(self) -> list[Task]:
        return self._linked("child", parent=self.task)

    @property
    def open_parents(self) -> list[Task]:
        return [parent for parent in self.parents if parent.status in OPEN]

    @property
    def closed_parents(self) -> int:
        return len(self.parents) - len(self.open_parents)

    @property
    def neighbours(self) -> str:
        """The subjects of all that its picture shows, for live updates."""
        return " ".join(each.subject for each in (self.task, *self.parents, *self.children))

    @cached_property
    def frees(self) -> int:
        """How many open tasks wait for this one, directly or through others."""
        waits = self.task.status not in CLOSED and any(child.status in OPEN for child in self.children)
        return links.dependants([self.task.pk]) if waits else 0

    @cached_property
    def graph(self) -> Graph | None:
        return draw(self.task, self.parents, self.children)

    @cached_property
    def comments(self) -> list[dict[str, Any]]:
        """The newest comments, oldest of them first."""
        rows = list(Comment.objects.filter(task=self.task).order_by("-pk")[: COMMENTS_SHOWN + 1])
        self.has_more_comments = len(rows) > COMMENTS_SHOWN
        return [{"row": row, "html": prose.html(row.body)} for row in reversed(rows[:COMMENTS_SHOWN])]

    @cached_property
    def runs(self) -> list[Run]:
        rows = self.task.runs.select_related("process").defer("result", "process__env", "process__usage")
        found = list(rows.order_by("-number")[:RUNS_SHOWN])
        for run in found:
            run.look = look(run)  # type: ignore[attr-defined]
        return found

    @property
    def current(self) -> Run | None:
        return next((run for run in self.runs if run.ended_at is None), None)

    @property
    def lingering(self) -> Run | None:
        """The ended run whose worker is not verified gone."""
        return next(
            (run for run in self.runs if run.ended_at and run.process is not None and run.process.status in LIVE), None
        )

    @property
    def spent(self) -> Decimal | None:
        costs = [run.cost_usd for run in self.runs if run.cost_usd is not None]
        return sum(costs, Decimal(0)) if costs else None

    @cached_property
    def events(self) -> list[Event]:
        return projects.events_of_subject(self.task.subject, EVENTS_SHOWN)


def look(run: Run) -> str:
    """Return the state whose shape, word and colour a run's outcome bears."""
    return LOOKS.get(run.outcome, run.outcome)


def edit_mark(task: Task) -> str:
    """Return what an edit form carries of what it began with."""
    return hashlib.sha256(f"{task.title}\n{task.body}".encode("utf-8", "replace")).hexdigest()[:16]


def events_of(run: Run) -> list[Event]:
    """Return the newest events of one run, whatever came after it."""
    return list(Event.objects.filter(subject=f"task:{run.task_id}", run=str(run)).order_by("-id")[:EVENTS_SHOWN])


def get_run(pk: int) -> Run:
    """Return a run with its task and process; Missing when there is none."""
    rows = Run.objects.select_related("task", "process").defer("task__body", "task__result")
    run = rows.filter(pk=pk).first() if pk < 1 << 62 else None
    if run is None:
        raise Missing("not-found", f"There is no run {pk}.")
    return run
