"""The public fields of a task, written down once: told by SQL, or of what a verb returned."""

import sqlite3
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from functools import cache
from typing import Any

import orjson
from django.db import connection

from kanban.models import Run, Task
from kanban.states import Status

# Public name -> column. Those with two names have one that clients of other boards read.
AS_THEY_ARE = {
    name: name
    for name in (
        *("id", "title", "body", "status", "priority", "created_by", "workspace_kind"),
        *("failures", "failure_limit", "max_runtime_s", "current_run"),
    )
} | {"spawn_failures": "failures"}
# "" is null outside.
NULLABLE = {
    name: name
    for name in (
        *("assignee", "tenant", "project", "workspace_path", "result", "idempotency_key", "last_error"),
        *("block_kind", "block_reason", "blocked_by", "phase", "lease_owner"),
    )
} | {"claim_lock": "lease_owner", "last_spawn_error": "last_error"}
MOMENTS = {
    name: name
    for name in (
        *("created_at", "started_at", "completed_at", "since", "active_at", "lease_until"),
        *("unblock_at", "not_before"),
    )
} | {"claim_expires": "lease_until"}
FLAGS = {name: name for name in ("services_required", "parents_waived", "held")}
AMOUNTS = {"max_cost_usd": "max_cost_usd"}
TASKS = Task._meta.db_table  # noqa: SLF001 (Django's documented way to a table's name)
RUNS = Run._meta.db_table  # noqa: SLF001
# Before it SQLite has no unixepoch().
IS_NEW = sqlite3.sqlite_version_info >= (3, 38)
_PID = f"(SELECT runs.pid FROM {RUNS} runs WHERE runs.task_id = tasks.id AND runs.number = tasks.current_run)"  # noqa: S608
_HALF_MS = timedelta(microseconds=500)


def epoch(moment: datetime | None) -> int | None:
    """Return a moment as whole seconds since the epoch: the nearest millisecond's, as SQLite reads it."""
    return None if moment is None else int((moment + _HALF_MS).timestamp())


def seconds(column: str, vendor: str) -> str:
    """Return SQL for what `epoch` gives of a column."""
    if vendor == "postgresql":
        return f"CAST(floor(extract(epoch FROM {column}) + 0.0005) AS bigint)"
    return f"unixepoch({column})" if IS_NEW else f"CAST(strftime('%%s', {column}) AS integer)"


@cache
def told(vendor: str, *, with_pid: bool) -> dict[str, str]:
    """Return SQL for each public field of a row `tasks`, as `json_of` takes it.

    Only a running task has a current run, so the others need not look for its pid.
    """
    flag = "json(CASE WHEN tasks.{} THEN 'true' ELSE 'false' END)" if vendor == "sqlite" else "tasks.{}"
    return {
        **{name: f"tasks.{column}" for name, column in AS_THEY_ARE.items()},
        **{name: f"NULLIF(tasks.{column}, '')" for name, column in NULLABLE.items()},
        **{name: seconds(f"tasks.{column}", vendor) for name, column in MOMENTS.items()},
        **{name: flag.format(column) for name, column in FLAGS.items()},
        **{name: f"CAST(tasks.{column} AS double precision)" for name, column in AMOUNTS.items()},
        "worker_pid": _PID if with_pid else "CAST(NULL AS integer)",
    }


def json_of(fields: Mapping[str, str], vendor: str) -> str:
    """Return SQL for a JSON object. The database writes one in half the time that a row takes by way of a dict."""
    pairs = ", ".join(f"'{key}', {sql}" for key, sql in fields.items())
    name = "json_build_object" if vendor == "postgresql" else "json_object"
    return f"{name}({pairs})"


def read_document(task_id: str) -> dict[str, Any] | None:
    """Return the public fields of a task as it is now, None when there is none; one query."""
    found = json_of(told(connection.vendor, with_pid=True), connection.vendor)
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT CAST({found} AS text) FROM {TASKS} tasks WHERE tasks.id = %s", [task_id])  # noqa: S608
        row = cursor.fetchone()
    return None if row is None else orjson.loads(row[0])


def document(task: Task) -> dict[str, Any]:
    """Return the public fields of a task that a verb returned; one query, and only while it runs."""
    pid = None
    if task.status == Status.RUNNING:
        runs = Run.objects.filter(task=task.pk, number=task.current_run or 0)
        pid = runs.values_list("pid", flat=True).first()
    found: dict[str, Any] = {}
    for fields, shown in _SHOWN:
        found |= {name: shown(getattr(task, column)) for name, column in fields.items()}
    return {**found, "worker_pid": pid}


def _amount(value: Decimal | None) -> float | None:
    return None if value is None else float(value)


_SHOWN: tuple[tuple[Mapping[str, str], Callable[[Any], Any]], ...] = (
    (AS_THEY_ARE, lambda value: str(value) if isinstance(value, str) else value),
    (NULLABLE, lambda value: str(value) or None),
    (MOMENTS, epoch),
    (FLAGS, bool),
    (AMOUNTS, _amount),
)
