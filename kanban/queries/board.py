"""The whole board as one document: seven queries with the door's own, however many tasks there are."""

from datetime import datetime
from typing import Any

import orjson
from django.db import connection

from kanban.models import Comment, Link
from kanban.queries.fields import FLAGS, NAMES, TASKS, columns
from kanban.states import Status

LINKS = Link._meta.db_table  # noqa: SLF001 (Django's documented way to a table's name)
COMMENTS = Comment._meta.db_table  # noqa: SLF001
NO_LIMIT = 1 << 31
NONE = (0, 0)
_STATUS = NAMES.index("status")


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
    then age. `latest` is `latest_event_id()`, read before this: whatever commits meanwhile comes after it.
    """
    moment = int(now.timestamp())
    shown = [status for status in Status if status != Status.ARCHIVED or include_archived]
    where, values = _where(tenant, project, only)
    rows = _rows(shown, where, values, NO_LIMIT if limit is None else limit)
    ids = None if limit is None else [row[0] for row in rows]
    parents, children, comments = _parents(ids), _children(ids), _comments(ids)
    piles: dict[str, list[dict[str, Any]]] = {status: [] for status in shown}
    for row in rows:
        card = dict(zip(NAMES, row, strict=True))
        for name in FLAGS:
            card[name] = card[name] == 1
        task_id, created, started, completed = row[0], card["created_at"], card["started_at"], card["completed_at"]
        card["age"] = {
            "created_age_seconds": moment - created,
            "started_age_seconds": None if started is None else moment - started,
            "time_to_complete_seconds": None if completed is None else completed - (started or created),
        }
        total, done = children.get(task_id, NONE)
        card["link_counts"] = {"parents": parents.get(task_id, 0), "children": total}
        card["comment_count"] = comments.get(task_id, 0)
        card["progress"] = {"done": done, "total": total} if total else None
        piles[row[_STATUS]].append(card)
    tenants, assignees = _menus(only, include_archived=include_archived)
    return {
        "columns": [
            {"name": status, "tasks": cards} for status, cards in piles.items() if cards or status != Status.REVIEW
        ],
        "tenants": tenants,
        "assignees": assignees,
        "latest_event_id": latest,
        "now": moment,
    }


def _where(tenant: str, project: str, only: str) -> tuple[str, list[str]]:
    wanted = [("tenant", tenant), ("project", project), ("project", only)]
    chosen = [(column, value) for column, value in wanted if value]
    return "".join(f" AND tasks.{column} = %s" for column, _ in chosen), [value for _, value in chosen]


def _rows(shown: list[Status], where: str, values: list[str], limit: int) -> list[tuple[Any, ...]]:
    """Return the cards' rows, status by status in the board's order, which is that of the index."""
    parts, params = [], []
    for status in shown:
        chosen = columns(connection.vendor, with_pid=status == Status.RUNNING)
        parts.append(
            f"SELECT * FROM (SELECT {chosen} FROM {TASKS} tasks WHERE tasks.status = %s{where} "  # noqa: S608
            "ORDER BY tasks.status, tasks.priority DESC, tasks.created_at, tasks.id LIMIT %s) pile"
        )
        params += [str(status), *values, limit]
    return _fetch(" UNION ALL ".join(parts), params)


def _parents(ids: list[str] | None) -> dict[str, int]:
    among, params = _among("child_id", ids)
    return dict(_fetch(f"SELECT child_id, count(*) FROM {LINKS}{among} GROUP BY child_id", params))  # noqa: S608


def _children(ids: list[str] | None) -> dict[str, tuple[int, int]]:
    """Return {task: (children, of which are done)}."""
    among, params = _among("links.parent_id", ids)
    rows = _fetch(
        "SELECT links.parent_id, count(*), count(*) FILTER (WHERE tasks.status = 'done') "  # noqa: S608
        f"FROM {LINKS} links JOIN {TASKS} tasks ON tasks.id = links.child_id{among} GROUP BY links.parent_id",
        params,
    )
    return {task_id: (total, done) for task_id, total, done in rows}


def _comments(ids: list[str] | None) -> dict[str, int]:
    among, params = _among("task_id", ids)
    return dict(_fetch(f"SELECT task_id, count(*) FROM {COMMENTS}{among} GROUP BY task_id", params))  # noqa: S608


def _among(column: str, ids: list[str] | None) -> tuple[str, list[Any]]:
    """Restrict to some tasks; one parameter however many."""
    if ids is None:
        return "", []
    if connection.vendor == "postgresql":
        return f" WHERE {column} = ANY(%s)", [ids]
    return f" WHERE {column} IN (SELECT value FROM json_each(%s))", [orjson.dumps(ids).decode()]  # noqa: S608


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
