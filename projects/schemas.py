"""Shapes of REST: what goes in is checked by these, what comes out is documented by these."""

from datetime import date, datetime
from typing import Any

from ninja import Schema


class ErrorOut(Schema):
    error: str
    detail: Any


class EventOut(Schema):
    id: int
    at: datetime
    kind: str
    subject: str
    project: str
    actor: str
    run: str
    payload: dict[str, Any]


class FrameOut(Schema):
    """One frame of the event log; `reset` means that `since` is not in it: read anew from `cursor`."""

    events: list[EventOut] = []
    cursor: int
    reset: bool = False


class MeOut(Schema):
    name: str
    role: str
    project: str


class CurrentStoryOut(Schema):
    id: str
    title: str
    tags: list[str]
    retries: int


class StoryOut(Schema):
    id: str
    title: str
    passes: bool
    failed: bool
    blocked: bool
    retries: int
    tags: list[str]
    failureReason: str | None  # noqa: N815 (the field's name on the wire)


class ProjectOut(Schema):
    slug: str
    status: str
    running: bool
    pid: int | None
    branchName: str  # noqa: N815
    storiesTotal: int  # noqa: N815
    storiesComplete: int  # noqa: N815
    storiesFailed: int  # noqa: N815
    storiesBlocked: int  # noqa: N815
    storiesRemaining: int  # noqa: N815
    currentStory: CurrentStoryOut | None  # noqa: N815
    lastIterAt: datetime | None  # noqa: N815
    etaMinutes: int | None  # noqa: N815
    stories: list[StoryOut]
    stalled: bool
    warnings: list[str]
    revision: int
    error: str | None


class StatusOut(Schema):
    projects: list[ProjectOut]
    fetchedAt: datetime  # noqa: N815
    count: int


class ProgressOut(Schema):
    slug: str
    lines: list[str]
    total: int


class IterationOut(Schema):
    number: int
    story: str | None
    started_at: datetime | None
    ended_at: datetime | None
    written_at: datetime
    duration_s: float | None
    size_bytes: int
    running: bool
    cost_usd: float | None
    tokens: int | None


class IterationsOut(Schema):
    slug: str
    iterations: list[IterationOut]
    page: int
    pages: int
    total: int


class IterationLogOut(Schema):
    slug: str
    number: int
    exists: bool
    content: str
    offset: int
    next_offset: int
    size_bytes: int
    truncated: bool


class CostOut(Schema):
    """What some runs cost, in US dollars; `cost` null = no run said it, `unknown_cost_runs` = how many did not."""

    cost: float | None
    runs: int
    tokens: int | None
    unknown_cost_runs: int


class UsageOut(Schema):
    """Costs of all time, of a window of days that includes today, and of today, in the site's time zone."""

    today: date
    today_cost: float | None
    today_runs: int
    window_days: int
    window_cost: float | None
    window_runs: int
    by_project: dict[str, CostOut]
    by_day: dict[str, CostOut]
    total_cost: float | None
    total_runs: int
    unknown_cost_runs: int
    tokens: int | None
    fetchedAt: datetime  # noqa: N815
