"""The whole board as one document: two queries, and one for its cursor, however many tasks there are."""

from datetime import datetime
from typing import Any

import orjson
from django.db import connection

from kanban.models import Comment, Link
from kanban.queries.fields import TASKS, epoch, json_of, seconds, told
from kanban.states import Status

LINKS = Link._meta.db_table  # noqa: SLF001 (Django's documented way to a table's name)
COMMENTS = Comment._meta.db_table  # noqa: SLF001
NO_LIMIT = 1 << 31


def board(
    *,
    tenant: str = "",
    project: str = "",
    only: str = "",
    include_archived: bool = False,
    limit: int | None = None,
    latest: int,
    now: datetime,
) -> dict[str, Any]:
    """Return `{columns, tenants, assignees, latest_event_id, now}`; a column has at most `limit` cards.

    `tenant` and `project` choose, "" = all; `only` binds to one project whatever is chosen. Cards stand by priority,
    then age, each as the JSON that the database wrote. `latest` is `latest_event_id()`, read before this: whatever
    commits meanwhile comes after it.
    """
    shown = [status for status in Status if status != Status.ARCHIVED or include_archived]
    wanted = [("tenant", tenant), ("project", project), ("project", only)]
    chosen = [(column, value) for column, value in wanted if value]
    piles: dict[str, list[orjson.Fragment]] = {status: [] for status in shown}
    for status, card in _cards(shown, chosen, limit or NO_LIMIT, epoch(now) or 0):
        piles[status].append(orjson.Fragment(card))
    tenants, assignees = _menus(only, include_archived=include_archived)
    return {
        "columns": [
            {"name": status, "tasks": cards} for status, cards in piles.items() if cards or status != Status.REVIEW
        ],
        "tenants": tenants,
        "assignees": assignees,
        "latest_event_id": latest,
        "now": epoch(now),
    }


def _cards(shown: list[Status], chosen: list[tuple[str, str]], limit: int, now: int) -> list[tuple[Any, ...]]:
    """Return (status, card), status by status in the board's order, which is that of the index."""
    vendor = connection.vendor
    where = "".join(f" AND tasks.{column} = %s" for column, _ in chosen)
    parts: list[str] = []
    params: list[Any] = []
    for status in shown:
        fields = told(vendor, with_pid=status == Status.RUNNING) | _beside(vendor, now)
        parts.append(
            f"SELECT * FROM (SELECT tasks.status, CAST({json_of(fields, vendor)} AS text) FROM {TASKS} tasks "  # noqa: S608
            f"WHERE tasks.status = %s{where} "
            "ORDER BY tasks.status, tasks.priority DESC, tasks.created_at, tasks.id LIMIT %s) pile"
        )
        params += [str(status), *(value for _, value in chosen), limit]
    return _fetch(" UNION ALL ".join(parts), params)


def _beside(vendor: str, now: int) -> dict[str, str]:
    """Return SQL for what stands on a card beside its task's fields; counts are seeks in indexes, a card at a time."""
    created, started, completed = (seconds(f"tasks.{name}_at", vendor) for name in ("created", "started", "completed"))
    ages = {
        "created_age_seconds": _at_least_0(f"{now} - {created}", vendor),
        "started_age_seconds": _at_least_0(f"{now} - {started}", vendor),
        "time_to_complete_seconds": f"{completed} - COALESCE({started}, {created})",
    }
    counts = {
        "parents": f"(SELECT count(*) FROM {LINKS} links WHERE links.child_id = tasks.id)",  # noqa: S608
        "children": f"(SELECT count(*) FROM {LINKS} links WHERE links.parent_id = tasks.id)",  # noqa: S608
    }
    done = {"done": f"count(*) FILTER (WHERE below.status = '{Status.DONE}')", "total": "count(*)"}
    progress = (
        f"(SELECT {json_of(done, vendor)} FROM {LINKS} links JOIN {TASKS} below ON below.id = links.child_id "  # noqa: S608
        "WHERE links.parent_id = tasks.id GROUP BY links.parent_id)"
    )
    return {
        "age": json_of(ages, vendor),
        "link_counts": json_of(counts, vendor),
        "comment_count": f"(SELECT count(*) FROM {COMMENTS} comments WHERE comments.task_id = tasks.id)",  # noqa: S608
        # Out of a subquery SQLite would take it for a text.
        "progress": f"json({progress})" if vendor == "sqlite" else progress,
    }


def _at_least_0(number: str, vendor: str) -> str:
    """Return SQL for an age, of which the clocks of two hosts may make less than nothing; null stays null."""
    return f"max(0, {number})" if vendor == "sqlite" else f"CASE WHEN {number} < 0 THEN 0 ELSE {number} END"


def _menus(only: str, *, include_archived: bool) -> tuple[list[str], list[str]]:
    """Return the tenants and assignees that there are to choose from, sorted."""
    bound, params = (" AND project = %s", [only]) if only else ("", [])
    state = "" if include_archived else f" AND status <> '{Status.ARCHIVED}'"
    rows = _fetch(f"SELECT DISTINCT tenant, assignee FROM {TASKS} WHERE 1 = 1{state}{bound}", params)  # noqa: S608
    return sorted({row[0] for row in rows if row[0]}), sorted({row[1] for row in rows if row[1]})


def _fetch(sql: str, params: list[Any]) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return list(cursor.fetchall())
