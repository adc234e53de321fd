"""The public fields of a task, written down once: read from rows by SQL, or from what a verb returned."""

from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import Decimal
from functools import cache
from typing import Any

from django.db import connection

from kanban.models import Run, Task
from kanban.states import Status

# Public name -> column. The last five are what clients of other boards read.
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
NAMES = (*AS_THEY_ARE, *NULLABLE, *MOMENTS, *FLAGS, *AMOUNTS, "worker_pid")
_PID = f"(SELECT runs.pid FROM {RUNS} runs WHERE runs.task_id = tasks.id AND runs.number = tasks.current_run)"  # noqa: S608


def epoch(moment: datetime | None) -> int | None:
    """Return a moment as whole seconds since the epoch."""
    return None if moment is None else int(moment.timestamp())


@cache
def columns(vendor: str, *, with_pid: bool) -> str:
    """Return the select list that gives NAMES in order, of a table `tasks`; flags are 0 and 1 in SQLite.

    Only a running task has a current run, so the others need not look for its pid.
    """
    chosen = [
        *(f"tasks.{column}" for column in AS_THEY_ARE.values()),
        *(f"NULLIF(tasks.{column}, '')" for column in NULLABLE.values()),
        *(seconds(f"tasks.{column}", vendor) for column in MOMENTS.values()),
        # Behind an expression SQLite's driver does not convert them one by one.
        *(f"+tasks.{column}" if vendor == "sqlite" else f"tasks.{column}" for column in FLAGS.values()),
        *(f"CAST(tasks.{column} AS double precision)" for column in AMOUNTS.values()),
        _PID if with_pid else "CAST(NULL AS integer)",
    ]
    return ", ".join(chosen)


def seconds(column: str, vendor: str) -> str:
    """Return SQL for a moment as whole seconds since the epoch, rounded down."""
    if vendor == "postgresql":
        return f"CAST(floor(extract(epoch FROM {column})) AS bigint)"
    # With its fraction SQLite would round to the nearest millisecond first.
    return f"CAST(strftime('%%s', substr({column}, 1, 19)) AS integer)"


def row_document(row: tuple[Any, ...]) -> dict[str, Any]:
    """Return a row of `columns` as a task's public fields."""
    found = dict(zip(NAMES, row, strict=True))
    for name in FLAGS:
        found[name] = found[name] == 1
    return found


def read_document(task_id: str) -> dict[str, Any] | None:
    """Return the public fields of a task as it is now, None when there is none; one query."""
    chosen = columns(connection.vendor, with_pid=True)
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {chosen} FROM {TASKS} tasks WHERE tasks.id = %s", [task_id])  # noqa: S608
        row = cursor.fetchone()
    return None if row is None else row_document(row)


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
