"""Shapes of REST: what goes in is checked by these, what comes out is documented by these."""

from datetime import date, datetime
from typing import Any

from ninja import Schema
from pydantic import ConfigDict, Field


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


class WrittenOut(Schema):
    """An event exactly as it was written: all its fields, those that its writer invented too."""

    model_config = ConfigDict(extra="allow")


class SessionRowOut(Schema):
    session_id: str
    turns: int
    pending: int
    collisions: int
    malformed: int
    updated_at: datetime | None
    state: str


class SessionsOut(Schema):
    sessions: list[SessionRowOut]
    page: int
    pages: int
    total: int


class MalformedOut(Schema):
    """A line that is no event: `raw` is escaped and cut at 500 characters."""

    line: int
    offset: int
    raw: str
    sha256: str
    kind: str


class TurnOut(Schema):
    """One turn; times are epoch seconds. What its submitted event said is whatever its writer put there."""

    turn_id: str
    raw_state: str
    effective_state: str
    terminal: bool
    collision: bool
    stream_id: str | None
    role: Any
    content: Any
    attachments: Any
    workspace: Any
    model: Any
    model_provider: Any
    assistant_message_index: Any
    reason: str | None
    submitted_at: float | None
    updated_at: float | None
    ended_at: float | None
    events: int
    first_line: int
    last_line: int


class CollisionOut(Schema):
    turn_id: str
    duplicate: bool
    events: list[dict[str, Any]]


class SessionOut(Schema):
    """`next` is what to ask for as `after`, null at the end; `source` says whether the file is here."""

    session_id: str
    events: list[dict[str, Any]]
    malformed: list[MalformedOut]
    turns: list[TurnOut]
    collisions: list[CollisionOut]
    total_events: int
    next: int | None
    unterminated: bool
    source: str


class FindingOut(Schema):
    session_id: str | None
    turn_id: str | None
    kind: str
    detail: str
    recommendation: str


class AuditOut(Schema):
    findings: list[FindingOut]
    count: int


class RecoverIn(Schema):
    """`live_streams` are those that the caller knows to be worked on; `dry_run` only says what would be added."""

    live_streams: list[str] = Field(default=[], max_length=10_000)
    dry_run: bool = False


class RecoverOut(Schema):
    """How many turns were called interrupted, in which sessions, and which sessions could not be mended and why."""

    added: int
    by_session: dict[str, int]
    failed: dict[str, str]


class SummaryOut(Schema):
    prompt: str | None
    started_at: str | None
    iterations_completed: int
    iterations_failed: int
    events_published: int
    completed: bool
    completion_reason: str | None
    ended_at: str | None
    terminated: bool
    termination_signal: str | None
    merge_commit: str | None
    merge_failed: bool
    merge_failure_reason: str | None


class RunOut(Schema):
    """One run of a loop. `ambiguous`: it cannot be told which of several runs an end belonged to."""

    key: str
    first_line: int
    last_line: int
    prompt: str
    pid: int | None
    started_at: datetime | None
    last_at: datetime | None
    ended_at: datetime | None
    ended_by: str
    reason: str
    ambiguous: bool
    resumed: int
    iteration: int
    iterations_started: int
    iterations_completed: int
    iterations_failed: int
    events_published: int
    merge_state: str
    merge_commit: str
    merge_reason: str
    outcome: str


class LoopOut(Schema):
    """`state`: running, crashed (its process is gone), unknown (nobody has seen)."""

    id: str
    pid: int | None
    started_at: datetime | None
    prompt: str
    worktree: str
    state: str


class MergeOut(Schema):
    loop: str
    state: str
    commit: str
    reason: str
    at: datetime | None


class HistoryOut(Schema):
    """`events` as they stand in the file, the newest last; `loops` and `merges` from the files beside it.

    Who of the loops runs was seen at `loops_as_of` by the worker of the project's host, null before it has looked.
    """

    slug: str
    events: list[dict[str, Any]]
    summary: SummaryOut
    runs: list[RunOut]
    malformed: list[MalformedOut]
    loops: list[LoopOut]
    loops_as_of: datetime | None
    merges: list[MergeOut]
    problems: list[str]
