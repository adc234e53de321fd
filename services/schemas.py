"""Shapes of REST: what goes in is checked by these, what comes out is documented by these."""

from datetime import datetime
from typing import Annotated, Any

from ninja import Field, Schema
from pydantic import ConfigDict


class ProcessOut(Schema):
    """A managed process; times are whole milliseconds since the epoch. Its environment is never shown, only the keys.

    `alive`: there is a process; `log_path` is relative to ANDON_HOME.
    """

    name: str
    project: str
    purpose: str
    state: str
    pid: int | None
    alive: bool
    healthy: bool
    generation: int
    owner_agent: str | None
    owner_wi: str | None
    owner_project: str | None
    attrs: dict[str, Any]
    ports: list[int]
    started_at: int | None
    ttl_expires_at: int | None
    last_health_at: int | None
    last_error: str | None
    exit_code: int | None
    exit_cause: str | None
    restarts: int
    log_path: str
    cmd: str
    args: list[str]
    cwd: str
    healthcheck: dict[str, Any]
    env_keys: list[str]


class ProcessesOut(Schema):
    items: list[ProcessOut]
    generatedAt: datetime  # noqa: N815 (the field's name on the wire)


class DeclaredOut(Schema):
    items: list[ProcessOut]
    warnings: list[str]


class ValidOut(Schema):
    ok: bool
    specs: list[dict[str, Any]]
    warnings: list[str]


class ServiceIn(Schema):
    """Which service is meant; with `expected_generation`, only while that is the life it lives."""

    model_config = ConfigDict(strict=True)

    name: str
    project: str | None = None
    expected_generation: int | None = None


class KillIn(ServiceIn):
    """`force`: kill at once, without the grace that its spec gives it."""

    force: bool = False


class ExtendIn(ServiceIn):
    """`minutes`: 1 to 1440."""

    minutes: int


class KilledOut(Schema):
    ok: bool
    name: str
    killed_pid: int | None
    killed: bool


class RestartedOut(Schema):
    ok: bool
    name: str
    pid: int | None
    started_at: int | None
    log_path: str
    generation: int


class LogOut(Schema):
    """`offset` is where the content ends, absolute in the file; `truncated`: something came before it."""

    name: str
    content: str
    size_bytes: int
    truncated: bool
    offset: int


# Documents the raw body; what is checked is `services.specs`, which also says why.
SPEC_FILE: dict[str, Any] = {
    "type": "object",
    "required": ["specs"],
    "properties": {
        "specs": {
            "type": "array",
            "minItems": 1,
            "maxItems": 5,
            "items": {
                "type": "object",
                "required": ["name", "cmd", "healthcheck"],
                "properties": {
                    "name": {"type": "string", "maxLength": 64, "pattern": "^[a-z0-9]+(-[a-z0-9]+)*$"},
                    "cmd": {"type": "string", "maxLength": 200},
                    "args": {"type": "array", "maxItems": 64, "items": {"type": "string", "maxLength": 500}},
                    "cwd": {"type": "string"},
                    "env": {"type": "object", "maxProperties": 32, "additionalProperties": {"type": "string"}},
                    "ports": {
                        "type": "array",
                        "maxItems": 20,
                        "uniqueItems": True,
                        "items": {"type": "integer", "minimum": 1024, "maximum": 65535},
                    },
                    "ttl_minutes": {"type": "integer", "minimum": 1, "maximum": 1440, "default": 240},
                    "attrs": {"type": "object"},
                    "healthcheck": {
                        "type": "object",
                        "required": ["type", "timeout_s"],
                        "properties": {
                            "type": {"enum": ["http", "command", "tcp"]},
                            "timeout_s": {"type": "number", "exclusiveMinimum": 0, "maximum": 3600},
                        },
                    },
                    "restart": {"enum": ["never", "on-failure", "always"], "default": "never"},
                    "stop_grace_s": {"type": "integer", "minimum": 0, "maximum": 60, "default": 10},
                },
            },
        },
        "written_by": {"type": ["string", "null"], "maxLength": 128},
        "wi_id": {"type": ["string", "null"], "maxLength": 200},
    },
}


class StartIn(Schema):
    model_config = ConfigDict(extra="forbid", strict=True)

    resume: bool = False
    max_iterations: Annotated[int, Field(ge=1, le=10**6)] | None = None
    max_cost_usd: Annotated[float, Field(gt=0, le=10**6)] | None = None


class LoopStartedOut(Schema):
    success: bool
    message: str
    pid: int | None


class StopIn(Schema):
    model_config = ConfigDict(extra="forbid", strict=True)

    grace_s: Annotated[int, Field(ge=0, le=86_400)] | None = None


class LoopStoppedOut(Schema):
    """`state`: stopped, or killed when TERM was not enough; `pid` null when nothing ran any more."""

    success: bool
    message: str
    pid: int | None
    state: str


class RollbackIn(Schema):
    model_config = ConfigDict(extra="forbid", strict=True)

    expected_head: Annotated[str, Field(max_length=64)] | None = None
    commit: Annotated[str, Field(max_length=64)] | None = None
    story: Annotated[str, Field(max_length=200)] | None = None
    mainline: Annotated[int, Field(ge=1, le=64)] | None = None
    stop_first: bool = False
    idempotency_key: Annotated[str, Field(max_length=200)] | None = None


class RollbackOut(Schema):
    success: bool
    message: str
    reverted_commit: str
    story_reverted: str | None
    method: str
    new_commit: str
    backup_ref: str


class BlockerOut(Schema):
    code: str
    detail: str


class ChangedFileOut(Schema):
    path: str
    old_path: str | None
    status: str
    added: int | None
    removed: int | None


class RollbackPreviewOut(Schema):
    """`blockers` is empty when it can be done; each has what belongs to its code beside `code` and `detail`."""

    slug: str
    head: str
    branch: str | None
    commit: str
    subject: str
    author: str
    at: datetime | None
    story: str | None
    story_title: str | None
    candidates: list[str]
    files: list[ChangedFileOut]
    files_total: int
    added: int
    removed: int
    diffstat: str
    pushed: bool
    upstreams: list[str]
    running: bool
    blockers: list[BlockerOut]
