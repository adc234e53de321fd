"""Shapes of REST: what goes in is checked by these, what comes out is documented by these.

Times are whole seconds since the epoch, but those of a clean-up, which is no board's. In a body null is the same as
absent, and what nobody knows is overlooked, as clients of other boards expect; types are never converted.
"""

from datetime import datetime
from typing import Annotated, Any

from ninja import Field, Schema
from pydantic import BaseModel, ConfigDict

Texts = Annotated[list[str], Field(max_length=1000)]
Dollars = Annotated[float, Field(allow_inf_nan=False)]


class Body(BaseModel):
    """Not a Schema, which reads attributes: a text has a `title` too."""

    model_config = ConfigDict(strict=True)


class TaskOut(Schema):
    """A task. `claim_lock claim_expires worker_pid spawn_failures last_spawn_error` are what other boards call
    `lease_owner lease_until`, the current run's pid, `failures last_error`.
    """

    id: str
    title: str
    body: str
    assignee: str | None
    status: str
    priority: int
    created_by: str
    created_at: int
    started_at: int | None
    completed_at: int | None
    since: int
    active_at: int
    workspace_kind: str
    workspace_path: str | None
    tenant: str | None
    project: str | None
    result: str | None
    idempotency_key: str | None
    failures: int
    failure_limit: int | None
    last_error: str | None
    block_kind: str | None
    block_reason: str | None
    blocked_by: str | None
    unblock_at: int | None
    not_before: int | None
    held: bool
    parents_waived: bool
    max_runtime_s: int | None
    max_cost_usd: float | None
    services_required: bool
    phase: str | None
    current_run: int | None
    lease_owner: str | None
    lease_until: int | None
    claim_lock: str | None
    claim_expires: int | None
    worker_pid: int | None
    spawn_failures: int
    last_spawn_error: str | None


class AgeOut(Schema):
    created_age_seconds: int
    started_age_seconds: int | None
    time_to_complete_seconds: int | None


class LinkCountsOut(Schema):
    parents: int
    children: int


class ChildrenOut(Schema):
    """Of a task's children, how many are done."""

    done: int
    total: int


class CardOut(TaskOut):
    age: AgeOut
    link_counts: LinkCountsOut
    comment_count: int
    progress: ChildrenOut | None


class ColumnOut(Schema):
    name: str
    tasks: list[CardOut]


class BoardOut(Schema):
    """`latest_event_id` is the greatest id of a task's event: what commits later comes over /events after it."""

    columns: list[ColumnOut]
    tenants: list[str]
    assignees: list[str]
    latest_event_id: int
    now: int


class CommentOut(Schema):
    id: int
    task_id: str
    author: str
    body: str
    created_at: int


class TaskEventOut(Schema):
    """An event of a task; its kind has no prefix."""

    id: int
    task_id: str
    kind: str
    payload: dict[str, Any]
    created_at: int


class LinksOut(Schema):
    parents: list[str]
    children: list[str]


class AttemptOut(Schema):
    id: int
    number: int
    profile: str | None
    host: str | None
    pid: int | None
    started_at: int
    heartbeat_at: int | None
    ended_at: int | None
    outcome: str | None
    exit_code: int | None
    failure_class: str | None
    services_healthy: int | None
    services_total: int | None
    summary: str | None
    error: str | None
    cost_usd: float | None
    tokens: int | None


class DetailOut(Schema):
    task: TaskOut
    comments: list[CommentOut]
    events: list[TaskEventOut]
    links: LinksOut
    runs: list[AttemptOut]


class OneTaskOut(Schema):
    task: TaskOut


class ClaimedRunOut(Schema):
    """`token` speaks for the run and is not to be had again."""

    number: int
    token: str


class ClaimedOut(Schema):
    task: TaskOut
    run: ClaimedRunOut


class OkOut(Schema):
    ok: bool


class BulkItemOut(Schema):
    """`error` is the code of a refusal and `detail` its sentence; neither is there when it worked."""

    id: str
    ok: bool
    error: str | None = None
    detail: str | None = None


class BulkOut(Schema):
    results: list[BulkItemOut]


class TaskLogOut(Schema):
    """`path` is relative to ANDON_HOME, "" when there is none; `truncated`: something came before the content."""

    task_id: str
    path: str
    exists: bool
    size_bytes: int
    content: str
    truncated: bool


class ConfigOut(Schema):
    default_tenant: str
    lane_by_profile: bool
    include_archived_by_default: bool
    render_markdown: bool


class ProfileOut(Schema):
    """`can_spawn`: on some host whose worker ticks; `live` runs of at most `cap`."""

    name: str
    enabled: bool
    can_spawn: bool
    paused: bool
    paused_reason: str | None
    live: int
    cap: int


class StatsOut(Schema):
    """Counts of what is not archived; `breaker`: tasks that failed too often and wait for a person."""

    by_status: dict[str, int]
    by_assignee: dict[str, dict[str, int]]
    oldest_ready_age_seconds: int | None
    now: int
    profiles: list[ProfileOut]
    breaker: int
    dispatch_paused: bool
    last_pass: int | None
    last_tick: int | None


class DispatchOut(Schema):
    """What a pass did, or would do; `spawned` holds [id, assignee, workspace], other lists ids of tasks."""

    reclaimed: int
    promoted: int
    spawned: list[list[str]]
    skipped_unassigned: list[str]
    skipped_nonspawnable: list[str]
    crashed: list[str]
    timed_out: list[str]
    spawn_failed: list[str]
    auto_blocked: list[str]
    dry_run: bool


class CreateIn(Body):
    """`workspace_kind`: scratch, dir or worktree. With `triage` nobody works on it yet."""

    title: str
    body: str | None = None
    assignee: str | None = None
    tenant: str | None = None
    priority: int = 0
    workspace_kind: str | None = None
    workspace_path: str | None = None
    parents: Texts | None = None
    triage: bool = False
    idempotency_key: str | None = None
    project: str | None = None
    max_runtime_s: int | None = None
    max_cost_usd: Dollars | None = None
    failure_limit: int | None = None
    services_required: bool = False


class PatchIn(Body):
    """`assignee` "" takes it from everybody. `result` belongs to status done, `block_…` to status blocked."""

    status: str | None = None
    assignee: str | None = None
    priority: int | None = None
    title: str | None = None
    body: str | None = None
    result: str | None = None
    block_reason: str | None = None
    block_kind: str | None = None


class CommentIn(Body):
    """`author` counts only where the caller is not a run."""

    body: str
    author: str | None = None


class LinkIn(Body):
    parent_id: str
    child_id: str


class BulkIn(Body):
    """`archive` is status archived, whatever `status` says."""

    ids: Texts
    status: str | None = None
    assignee: str | None = None
    priority: int | None = None
    archive: bool | None = None


class HeartbeatIn(Body):
    """`cost_usd` and `tokens`: what the run has spent so far, in all."""

    note: str | None = None
    cost_usd: Dollars | None = None
    tokens: int | None = None


class CompleteIn(Body):
    result: str | None = None
    summary: str | None = None
    cost_usd: Dollars | None = None
    tokens: int | None = None


class BlockIn(Body):
    """`kind`: needs_input, capability, dependency or transient."""

    reason: str | None = None
    kind: str | None = None


class ReviewIn(Body):
    summary: str | None = None


class LimitIn(Body):
    """What is absent stays as it is; null = no limit of its own."""

    max_runtime_s: int | None = None
    max_cost_usd: Dollars | None = None
    failure_limit: int | None = None


class ReleaseIn(Body):
    reason: str | None = None


class LeftoverOut(Schema):
    """What a closed task has left; `paths` are relative to the host's ANDON_HOME, `size_bytes` null: not measured."""

    task: str
    title: str
    host: str
    paths: list[str]
    size_bytes: int | None
    closed_at: datetime


class PreviewOut(Schema):
    """The first rows of what would go, how many there are in all, and how many workspaces stay for which reason.

    `size_bytes` is all that would go when `measured`, else at least.
    """

    workspaces: list[LeftoverOut]
    runs: list[LeftoverOut]
    total: dict[str, int]
    kept: dict[str, int]
    size_bytes: int
    measured: bool


class CleanUpOut(Schema):
    """`removed` counts what went, `failed` names what could not all be looked at; `left`: the rest goes by itself."""

    host: str
    asked_by: str
    asked_at: datetime
    ended_at: datetime | None
    removed: dict[str, int]
    failed: list[str]
    left: bool


class CleanUpsOut(Schema):
    clean_ups: list[CleanUpOut]
