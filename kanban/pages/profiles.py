"""Who does the work: each profile with what it does now and how it did lately; four queries."""

import shlex
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from django.db.models import Count, F, Q, Window
from django.db.models.functions import RowNumber

from kanban.models import Profile, Run, Task
from kanban.states import COUNTED, FAILURE_LIMIT, Outcome, Status
from projects.errors import Missing

LAST = 50
RECENT = timedelta(days=30)
# These say something of an agent; what a person took back does not.
JUDGED = frozenset({*COUNTED, Outcome.COMPLETED, Outcome.REVIEW_REQUESTED, Outcome.BLOCKED, Outcome.FAILED})


@dataclass(slots=True)
class ProfileView:
    """`outcomes` of its last 50 runs; `waiting` tasks wait for its quota."""

    row: Profile
    command: str
    live: int = 0
    ready: int = 0
    waiting: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)

    @property
    def limit(self) -> int:
        return self.row.failure_limit or FAILURE_LIMIT

    @property
    def runs(self) -> int:
        return self.outcomes.total()

    @property
    def failed(self) -> int:
        return sum(number for outcome, number in self.outcomes.items() if outcome in COUNTED)

    @property
    def completed(self) -> int:
        return self.outcomes[Outcome.COMPLETED] + self.outcomes[Outcome.REVIEW_REQUESTED]

    @property
    def quota_waits(self) -> int:
        return self.outcomes[Outcome.RATE_LIMITED]

    @property
    def failure_rate(self) -> int | None:
        """Percent of the judged runs that failed; None when there is none."""
        judged = sum(number for outcome, number in self.outcomes.items() if outcome in JUDGED)
        return round(100 * self.failed / judged) if judged else None

    @property
    def status(self) -> str:
        """Whether it can be started: paused, working, idle, missing (not found anywhere) or stopped (disabled)."""
        if self.row.paused_at is not None:
            return "paused"
        if self.row.enabled is False:
            return "disabled"
        if self.row.enabled is None and not self.row.found_on:
            return "missing"
        return "running" if self.live else "idle"


def listed(now: datetime) -> list[ProfileView]:
    """Return all profiles by name."""
    views = {row.name: ProfileView(row, shlex.join(row.argv)) for row in Profile.objects.defer("env")}
    for name, number in Run.objects.filter(ended_at=None).order_by().values_list("profile").annotate(Count("pk")):
        if name in views:
            views[name].live = number
    waits = Count("pk", filter=Q(not_before__gt=now))
    ready = Task.objects.filter(status=Status.READY).order_by().values_list("assignee")
    for name, number, waiting in ready.annotate(Count("pk"), waits=waits):
        if name in views:
            views[name].ready, views[name].waiting = number, waiting
    place = Window(RowNumber(), partition_by=[F("profile")], order_by=[F("ended_at").desc()])
    ended = Run.objects.filter(ended_at__gt=now - RECENT, profile__in=views).order_by()
    for name, outcome in ended.annotate(place=place).filter(place__lte=LAST).values_list("profile", "outcome"):
        views[name].outcomes[outcome] += 1
    return list(views.values())


def get_profile(name: str) -> Profile:
    """Return a profile; Missing when there is none."""
    row = Profile.objects.filter(name=name).first()
    if row is None:
        raise Missing("not-found", f"There is no profile {name[:80]}.")
    return row
